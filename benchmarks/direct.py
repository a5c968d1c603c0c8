"""Clients one by one: what the direct engine costs beside a bare loop in as many processes.

The same cohort, batches and start for each way, in turns: a bare loop on one thread; bare loops in
forked processes, each with its share of the clients; the direct engine; Lightning's Trainer. Nothing
is aggregated or evaluated. The models are those that were not trained stacked for long: dropout,
BatchNorm, a recurrent network, a transformer.

    python benchmarks/direct.py [W5 W6 W7 W8] [--processes 2] [--repeats 7] [--json FILE]
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flsimulation  # noqa: F401 - before torch: it lets OpenMP's waiting threads sleep
import torch
from torch import Tensor, nn
from torch.nn import functional
from results import command_line, json_file, write

from flsimulation.client.workspace import Workspace
from flsimulation.experiment import Experiment
from flsimulation.models.supervised import Supervised
from flsimulation.training.jobs import Terms

HERE = Path(__file__).resolve()


class Own(Supervised):
    """A classifier by SGD 0.05 whose network is given."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(learning_rate=0.05, optimizer="sgd")
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


class Dropped(Own):
    """784-128-256-10 with dropout."""

    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(
                *(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Dropout(0.2)),
                *(nn.Linear(128, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, 10)),
            )
        )


class Normed(Own):
    """conv16-BN-conv32-BN-dropout-fc."""

    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(
                *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 49, 10)),
            )
        )


class Recurrent(Supervised):
    """A GRU over the rows of an image."""

    def __init__(self) -> None:
        super().__init__(learning_rate=0.05, optimizer="sgd")
        self.gru = nn.GRU(28, 64, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.gru(x.view(-1, 28, 28))[0][:, -1])
        return logits


class Attending(Supervised):
    """Two layers of a transformer over the rows of an image."""

    def __init__(self) -> None:
        super().__init__(learning_rate=0.05, optimizer="sgd")
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True)
        self.first, self.head = nn.Linear(28, 64), nn.Linear(64, 10)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(self.first(x.view(-1, 28, 28))).mean(1))
        return logits


MODELS = {"W5": Dropped, "W6": Normed, "W7": Recurrent, "W8": Attending}


def experiment(name: str, engine: str) -> Experiment:
    return Experiment.model_validate(
        {
            "data": {"clients": 100, "validation-fraction": 0.0},
            "model": {"class": f"{HERE}:{MODELS[name].__name__}"},
            "train": {"engine": engine, "device": "cpu"},
            "strategy": {"fraction-train": 0.1},
            "evaluate": {"clients": 0},
        }
    )


def bare(space: Workspace, cohort: range, state: dict[str, Tensor]) -> None:
    module = space.module
    for partition in cohort:
        module.load_state_dict(state)
        optimizer: Any = module.configure_optimizers()
        for x, y in space.train_batches(partition, 1):
            optimizer.zero_grad()
            functional.cross_entropy(module(x), y).backward()
            optimizer.step()


class Forked:
    """Processes that wait for the word, and train their share of a cohort in a bare loop."""

    def __init__(self, space: Workspace, cohort: range, state: dict[str, Tensor], count: int):
        context = multiprocessing.get_context("fork")
        self._pipes = []
        for part in range(count):
            ours, theirs = context.Pipe()
            given = (theirs, space, cohort[part::count], state)
            context.Process(target=self._serve, args=given, daemon=True).start()
            self._pipes.append(ours)

    @staticmethod
    def _serve(pipe: Any, space: Workspace, cohort: range, state: dict[str, Tensor]) -> None:
        torch.set_num_threads(1)
        while pipe.recv():
            bare(space, cohort, state)
            pipe.send(True)

    def __call__(self) -> None:
        for pipe in self._pipes:
            pipe.send(True)
        for pipe in self._pipes:
            pipe.recv()


def compared(name: str, processes: int, repeats: int) -> dict[str, float]:
    """Median seconds of a cohort's training, by way."""
    spaces = {
        engine: Workspace.load(experiment(name, engine), processes=processes)
        for engine in ("direct", "lightning")
    }
    space = spaces["direct"]
    state, cohort = space.initial_state(), range(space.experiment.cohort_size)
    ways: dict[str, Callable[[], Any]] = {
        f"bare loop, {processes} processes": Forked(space, cohort, state, processes),
        "bare loop, 1 thread": lambda: bare(space, cohort, state),
    }
    for engine, own in spaces.items():

        def run(own: Workspace = own) -> None:
            jobs = [own.train_job(partition, 1) for partition in cohort]
            for fitted in own.engine.fit(state, jobs, Terms()):
                assert not any(isinstance(one, Exception) for one in fitted.results.values())

        ways[engine] = run
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(repeats + 1):
        for way, call in ways.items():
            began = time.perf_counter()
            call()
            if repeat:  # the first time things are made
                seconds[way].append(time.perf_counter() - began)
    for own in spaces.values():
        own.engine.close()
    return {way: statistics.median(found) for way, found in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", choices=[*MODELS, []], default=[])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=json_file, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for name in options.workloads or MODELS:
        medians = compared(name, options.processes, options.repeats)
        base = next(iter(medians.values()))
        for way, median in medians.items():
            print(f"{name}  {way:25}{median:7.4f} s{median / base:7.3f}", flush=True)
            found.append({"workload": name, "way": way, "median-seconds": median})
    if options.json:
        results = {"processes": options.processes, "repeats": options.repeats, "ways": found}
        write(options.json, command_line(), results)


if __name__ == "__main__":
    main()
