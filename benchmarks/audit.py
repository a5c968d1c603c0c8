"""What leaks with and without differential privacy: epsilon and accuracy beside the attacks of ``flsim audit``.

Small sets of MNIST, which a model of 7,850 parameters is trained on for twenty rounds:
20 clients with 200 images each hide single examples (DP-SGD), 500 clients with 2 images each hide whole clients.
Each row is a run, and its audit.

    python benchmarks/audit.py [--rows NAME] [--shadows 16] [--seed 0] [--json FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from results import command_line, json_file, write

from flsimulation import Experiment, run
from flsimulation.rundir.audit import Audit
from flsimulation.studies.audit import audit


class Row(NamedTuple):
    """A run of the table."""

    name: str
    clients: int
    examples: int
    """Of each client."""
    privacy: dict[str, Any]
    others: dict[str, Any]
    """Tables of the experiment."""


FEW = {
    "model": {"class": "logistic", "args": {"learning_rate": 0.2}},
    "train": {"epochs": 2, "batch-size": 100},
    "strategy": {"rounds": 20, "fraction-evaluate": 0.0},
}
MANY = {
    "model": {"class": "logistic", "args": {"learning_rate": 0.5}},
    "train": {"epochs": 5, "batch-size": 10},
    "strategy": {"rounds": 20, "fraction-evaluate": 0.0},
}


def example(epsilon: float) -> dict[str, Any]:
    return {"mode": "example", "epsilon": epsilon, "delta": 1e-3, "clip": 1.0}


def central(epsilon: float) -> dict[str, Any]:
    return {"mode": "central", "epsilon": epsilon, "delta": 1e-4, "clip": 0.5}


ROWS = (
    Row("20 clients, none", 20, 200, {}, FEW),
    Row("20 clients, example, epsilon 8", 20, 200, example(8.0), FEW),
    Row("20 clients, example, epsilon 2", 20, 200, example(2.0), FEW),
    Row("500 clients, none", 500, 2, {}, MANY),
    Row("500 clients, central, epsilon 8", 500, 2, central(8.0), MANY),
    Row("500 clients, central, epsilon 2", 500, 2, central(2.0), MANY),
)


def audited(row: Row, shadows: int, seed: int) -> Audit:
    """Run and audit a row."""
    data = {
        "clients": row.clients,
        "examples-per-client": row.examples,
        "min-examples": 2,
        "validation-fraction": 0.0,
    }
    tables = {"data": data, "evaluate": {"central-every": 1000, "clients": 0}, **row.others}
    tables |= {"privacy": row.privacy} if row.privacy else {}
    spec = Experiment.model_validate({"name": "leaks", "seed": seed, **tables})
    with tempfile.TemporaryDirectory() as folder:
        run(spec, out=Path(folder) / "run")
        return audit(Path(folder) / "run", shadows=shadows, seed=seed)


def line(row: Row, found: Audit) -> dict[str, Any]:
    """A row's figures."""
    inversion = found.inversion
    return {
        "name": row.name,
        "epsilon": found.epsilon,
        "delta": found.delta,
        "accuracy": found.accuracy,
        **{
            own.name: {"auc": own.auc, "error": own.auc_error, "tpr": own.tpr}
            for own in found.attacks
        },
        "psnr": None if inversion is None else sum(inversion.psnr) / len(inversion.psnr),
    }


def shown(figures: dict[str, Any]) -> str:
    """The figures as a row of Markdown."""
    epsilon = "none" if figures["epsilon"] is None else f"{figures['epsilon']:.2f}"
    attacks = (figures[name] for name in ("loss", "lira", "update"))
    cells = [f"{own['auc']:.3f} ({100 * own['tpr']:.1f} %)" for own in attacks]
    accuracy = f"{100 * figures['accuracy']:.1f} %"
    return f"| {' | '.join([figures['name'], epsilon, accuracy, *cells, format(figures['psnr'], '.1f')])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rows", default="", help="only rows whose names contain this")
    parser.add_argument("--shadows", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=json_file)
    given, command = parser.parse_args(), command_line()
    print("| Run | Epsilon | Accuracy | Loss: AUC (TPR) | LiRA | Update | PSNR, dB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    results = []
    for row in ROWS:
        if given.rows in row.name:
            results.append(line(row, audited(row, given.shadows, given.seed)))
            print(shown(results[-1]), flush=True)
    if given.json:
        write(given.json, command, results)


if __name__ == "__main__":
    main()
