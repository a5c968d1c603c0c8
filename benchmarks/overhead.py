"""What a round costs beside the training: clients that do nothing, in cohorts of several sizes.

A round of FLSimulation as ``flsim run`` runs it (Flower's FedAvg, messages, events, the run
directory), without an evaluation, with clients that give the global model back at once. The
cohorts' rounds alternate. Printed are the median and the least of each, and the lines through them.

    python benchmarks/overhead.py [--cohorts 10 100 1000] [--rounds 20] [--json FILE]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import flsimulation  # noqa: F401 - before torch: it lets OpenMP's waiting threads sleep
import numpy as np
from results import command_line, json_file, write

from flsimulation.client.workspace import Workspace
from flsimulation.events import RoundFinished
from flsimulation.experiment import Experiment
from flsimulation.runtimes.inprocess import run_in_process
from flsimulation.rundir.writer import RunDirectory
from flsimulation.training import Fitted, Job, State, Terms, Trained

_LEFT_OUT = 2  # rounds, in which things are done for the first time


class Idle:
    """Stands in for the stacked engine: returns the model as it came, as the clients' mean."""

    name, why_not, averages, gpu, can_evaluate = "stacked", None, True, None, False

    def fit(self, model: State, jobs: Sequence[Job], terms: Terms) -> Iterator[Fitted]:  # noqa: ARG002
        done = Trained({"loss": 1.0}, 1, 0.0, {})
        for first in range(0, len(jobs), 25):
            yield Fitted({job.partition: done for job in jobs[first : first + 25]}, model)

    def evaluate(self, model: State, jobs: Sequence[Job], expires: float | None = None) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        pass


def experiment(cohort: int, rounds: int) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "idle",
            "data": {"clients": 5000, "validation-fraction": 0.0},
            "strategy": {"rounds": rounds, "fraction-train": cohort / 5000},
            "evaluate": {"clients": 0, "central-every": 0},
        }
    )


def seconds(cohort: int, rounds: int) -> list[float]:
    spec = experiment(cohort, rounds)
    space = replace(Workspace.load(spec, clients=0), engine=Idle())
    found: list[float] = []

    def watch(event: Any) -> None:
        if isinstance(event, RoundFinished):
            found.append(event.seconds["total"])

    with TemporaryDirectory() as folder:
        run_in_process(spec, [RunDirectory(Path(folder), spec), watch], space)
    return found[_LEFT_OUT:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohorts", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=json_file)
    options = parser.parse_args()
    rounds: dict[int, list[float]] = {cohort: [] for cohort in options.cohorts}
    for _ in range(options.repeats):
        for cohort in options.cohorts:
            rounds[cohort] += seconds(cohort, options.rounds + _LEFT_OUT)
    figures = {"median": line(rounds, statistics.median), "least": line(rounds, min)}
    for name, found in figures.items():
        for cohort, value in found["seconds"].items():
            print(f"{cohort:6} clients: {1e3 * value:7.2f} ms a round, {name}")
        print(
            f"{1e3 * found['round']:.2f} ms per round and {1e6 * found['client']:.0f} µs per client"
        )
    if options.json:
        write(options.json, command_line(), figures)


def line(rounds: dict[int, list[float]], of: Callable[[list[float]], float]) -> dict[str, Any]:
    """Seconds by cohort, and the straight line through them."""
    values = {cohort: of(found) for cohort, found in rounds.items()}
    client, start = np.polyfit(list(values), list(values.values()), 1)
    return {"seconds": values, "round": float(start), "client": float(client)}


if __name__ == "__main__":
    main()
