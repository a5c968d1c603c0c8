"""DP-SGD in the clients: accuracy, seconds a round and epsilon, beside none in the same run.

    python benchmarks/dpsgd.py --json benchmarks/results/dpsgd.json

MNIST divided among 20 clients, for each model: rounds without privacy and with epsilon 2, 4 and 8, all
trained stacked. The runs take turns, several times; seconds are medians over all their rounds but the
first two, the ratio is of medians. Epsilon is that of Renyi divergences, from which the noise is
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
from flsimulation.privacy.examples import example_ledger
from flsimulation.runner import run

_DROPOUTS = f"{Path(__file__).parent / 'peers/shared/models.py'}:DropoutPerceptron"
MODELS = {"mlp": ("mlp", 0.002), "dropout": (_DROPOUTS, 0.5), "cnn": ("cnn", 0.002)}
"""Class, and the learning rate with privacy, by the name of the row."""
EPSILONS = (2.0, 4.0, 8.0)
_CLIENTS, _EXAMPLES, _DELTA = 20, 3000, 1e-5
_LEFT_OUT = 2  # rounds, in which things are done for the first time


def experiment_of(model: str, epsilon: float, rounds: int) -> Experiment:
    """The experiment; without privacy if epsilon is 0."""
    cls, rate = MODELS[model]
    private = [
        *("privacy.mode=example", f"privacy.epsilon={epsilon}", f"privacy.delta={_DELTA}"),
        *("privacy.clip=1.0", f"model.args.learning_rate={rate}"),
    ]
    return load_experiment(
        None,
        [
            f"model.class={cls}",
            f"data.clients={_CLIENTS}",
            f"data.examples-per-client={_EXAMPLES}",
            "data.validation-fraction=0.0",
            *("train.engine=stacked", "train.device=cpu", "train.batch-size=32"),
            f"strategy.rounds={rounds}",
            "strategy.fraction-evaluate=0",
            "evaluate.clients=0",
            *(private if epsilon else []),
        ],
    )


def measured(experiment: Experiment) -> dict[str, Any]:
    """A run's accuracy, epsilon by both accountants, and the seconds of each round's training."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        result = run(experiment, out)
        lines = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {
        "accuracy": result.accuracy,
        "rounds": [line["seconds"]["total"] for line in lines],
    }
    if (ledger := example_ledger(experiment, [_EXAMPLES] * _CLIENTS)) is not None:
        ((mechanism, steps),) = ledger.mechanisms
        found["noise-multiplier"] = ledger.noise
        found["epsilon-rdp"] = lines[-1]["privacy"]["epsilon"]
        found["epsilon-pld"] = epsilon_of(mechanism, steps * len(lines), _DELTA, "pld")
    return found


def rows_of(model: str, rounds: int, repeats: int) -> list[dict[str, Any]]:
    """A row without privacy, and one for each epsilon."""
    settings = (0.0, *EPSILONS)
    found = [[measured(experiment_of(model, e, rounds)) for e in settings] for _ in range(repeats)]
    rows: list[dict[str, Any]] = []
    for place, epsilon in enumerate(settings):
        runs = [turn[place] for turn in found]
        seconds = statistics.median(s for own in runs for s in own["rounds"][_LEFT_OUT:])
        last = {key: value for key, value in runs[-1].items() if key != "rounds"}
        plain = rows[0]["round-seconds"] if rows else seconds
        rows.append(
            {
                "model": model,
                "epsilon": epsilon or None,
                **last,
                "round-seconds": seconds,
                "ratio": seconds / plain,
            }
        )
    return rows


def main() -> None:
    """Measure, print a line for each row, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=json_file, help="file to write")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of each run")
    parser.add_argument("--repeats", type=int, default=2, help="turns of the runs")
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=[*MODELS])
    options = parser.parse_args()
    rows = []
    for model in options.models:
        for row in rows_of(model, options.rounds, options.repeats):
            rows.append(row)
            print(
                f"{model:>7}, epsilon {row['epsilon'] or '-':>4}: accuracy {row['accuracy']:.4f}, "
                f"{row['round-seconds']:.3f} s a round, {row['ratio']:.2f} times, PLD "
                f"{row.get('epsilon-pld', float('nan')):.3f}",
                flush=True,
            )
    if options.json:
        write(options.json, command_line(), rows)


if __name__ == "__main__":
    main()
