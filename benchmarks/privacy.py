"""Differential privacy of clients: accuracy, seconds a round and epsilon, beside none in the same run.

    python benchmarks/privacy.py --json benchmarks/results/privacy.json

MNIST divided among 1,000 and 10,000 clients, a logistic regression, cohorts of 500 and 1,000 clients on average.
Each population and cohort is run without privacy, with epsilon 2, 4 and 8, and without again; the
ratio is of the medians of their rounds. Epsilon is that of Renyi divergences, from which the noise is
computed, and for the same noise that of privacy loss distributions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from results import command_line, json_file, write  # before torch

from flsimulation.experiment import Experiment, load_experiment
from flsimulation.privacy.accountant import epsilon_of
from flsimulation.privacy.ledger import ledger_of
from flsimulation.runner import run

POPULATIONS = ((1000, 500), (1000, 1000), (10_000, 500), (10_000, 1000))
"""Clients, and clients of a round on average."""
EPSILONS = (2.0, 4.0, 8.0)
_LEFT_OUT = 2  # rounds, in which things are done for the first time
_EXAMPLES = 60_000


def experiment_of(clients: int, cohort: int, epsilon: float, rounds: int) -> Experiment:
    """The experiment; without privacy if epsilon is 0."""
    private = [
        "privacy.mode=central",
        f"privacy.epsilon={epsilon}",
        f"privacy.delta={0.5 / clients}",
        "privacy.clip=0.5",
    ]
    return load_experiment(
        None,
        [
            f"data.clients={clients}",
            f"data.examples-per-client={_EXAMPLES // clients}",
            "data.validation-fraction=0.0",
            "data.min-examples=2",
            "model.class=logistic",
            "train.engine=stacked",
            "train.device=cpu",
            "train.epochs=3",
            "train.batch-size=20",
            f"strategy.rounds={rounds}",
            f"strategy.fraction-train={cohort / clients}",
            "strategy.fraction-evaluate=0",
            "evaluate.clients=0",
            *(private if epsilon else []),
        ],
    )


def measured(experiment: Experiment) -> dict[str, Any]:
    """A run's accuracy, epsilon by both accountants, and the seconds of each round."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        result = run(experiment, out)
        lines = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {
        "accuracy": result.accuracy,
        "rounds": [line["seconds"]["total"] for line in lines],
    }
    if (ledger := ledger_of(experiment)) is not None:
        times = len(lines)
        found["noise-multiplier"] = ledger.noise
        found["epsilon-rdp"] = lines[-1]["privacy"]["epsilon"]
        found["epsilon-pld"] = epsilon_of(ledger.mechanism, times, ledger.delta, "pld")
    return found


def rows_of(clients: int, cohort: int, rounds: int) -> list[dict[str, Any]]:
    """A row without privacy, and one for each epsilon."""
    found = [
        (epsilon, measured(experiment_of(clients, cohort, epsilon, rounds)))
        for epsilon in (0.0, *EPSILONS, 0.0)
    ]
    plain = [s for epsilon, row in found if not epsilon for s in row["rounds"][_LEFT_OUT:]]
    rows = []
    for epsilon, row in found[:-1]:
        seconds = statistics.median(row.pop("rounds")[_LEFT_OUT:] if epsilon else plain)
        rows.append(
            {
                "clients": clients,
                "cohort": cohort,
                "epsilon": epsilon or None,
                **{key: value for key, value in row.items() if key != "rounds"},
                "round-seconds": seconds,
                "ratio": seconds / statistics.median(plain),
            }
        )
    return rows


def main() -> None:
    """Measure, print a line for each row, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=json_file, help="file to write")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of each run")
    options = parser.parse_args()
    rows = []
    for clients, cohort in POPULATIONS:
        for row in rows_of(clients, cohort, options.rounds):
            rows.append(row)
            print(
                f"{clients:>6} clients, {cohort:>5} a round, epsilon {row['epsilon'] or '-':>4}: accuracy "
                f"{row['accuracy']:.4f}, {row['round-seconds']:.3f} s a round, {row['ratio']:.2f} times, "
                f"PLD {row.get('epsilon-pld', float('nan')):.3f}",
                flush=True,
            )
    if options.json:
        write(options.json, command_line(), rows)


if __name__ == "__main__":
    main()
