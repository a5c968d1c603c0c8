"""Seconds a round: FLSimulation beside a bare PyTorch loop that does the same steps.

100 clients of 600 MNIST images, 10 a round, batch 32, one epoch of Adam, model 784-128-256-10,
evaluation on the test set after every round. Both sides use the same partitions, cohorts, batches
and initial weights; the loop averages and evaluates by hand. Rounds of the two sides alternate, so
that both meet the same machine. The first round of each side is left out.

    python benchmarks/rounds.py [--rounds 20] [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import flsimulation  # noqa: F401 - before torch: it lets OpenMP's waiting threads sleep
import torch
from torch.nn import functional

from flsimulation.apps.workspace import Workspace
from flsimulation.events import PhaseStarted, RoundFinished
from flsimulation.experiment import Experiment
from flsimulation.runtimes.inprocess import run_in_process
from flsimulation.telemetry.process import peak_memory_bytes
from flsimulation.telemetry.rundir import RunDirectory


def experiment(rounds: int) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "bench",
            "data": {"clients": 100, "validation-fraction": 0.0},
            "strategy": {"rounds": rounds, "fraction-train": 0.1},
            "evaluate": {"clients": 0},
        }
    )


class Turns:
    """A sink that stops the federation after each round until the loop has done the same round."""

    def __init__(self) -> None:
        self.ours, self.theirs = threading.Semaphore(1), threading.Semaphore(0)
        self.cohort: tuple[int, ...] = ()
        self.seconds: list[float] = []
        self.digest = ""

    def __call__(self, event: Any) -> None:
        if isinstance(event, PhaseStarted) and event.phase == "train":
            self.ours.acquire()
            self.cohort = event.cohort
            self.began = time.perf_counter()
        elif isinstance(event, RoundFinished):
            self.seconds.append(time.perf_counter() - self.began)
            self.accuracy = (event.central or {}).get("accuracy")
            self.theirs.release()


def bare_round(
    space: Workspace, state: dict[str, torch.Tensor], cohort: tuple[int, ...], number: int
) -> tuple[dict[str, torch.Tensor], float]:
    """The same round as anyone would write it."""
    module, dataset = space.trainer.module, space.data.dataset
    total: dict[str, torch.Tensor] = {}
    examples = 0
    for partition in cohort:
        module.load_state_dict(state)
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
        batches = space.train_batches(partition, number)
        for x, y in batches:
            optimizer.zero_grad()
            functional.cross_entropy(module(x), y).backward()
            optimizer.step()
        for name, value in module.state_dict().items():
            total[name] = total.get(name, 0) + value.detach() * batches.examples
        examples += batches.examples
    state = {name: value / examples for name, value in total.items()}
    module.load_state_dict(state)
    with torch.inference_mode():
        right = sum(
            int((module(x).argmax(1) == y).sum())
            for x, y in zip(dataset.x_test.split(1000), dataset.y_test.split(1000), strict=True)
        )
    return state, right / len(dataset.y_test)


def compare(rounds: int) -> Iterator[dict[str, Any]]:
    spec = experiment(rounds)
    space, other = Workspace.load(spec), Workspace.load(spec)
    turns = Turns()
    with TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder), spec)
        federation = threading.Thread(
            target=run_in_process, args=(spec, [directory, turns], space), daemon=True
        )
        federation.start()
        state = other.initial_state()
        for number in range(1, rounds + 1):
            turns.theirs.acquire()
            began = time.perf_counter()
            state, accuracy = bare_round(other, state, turns.cohort, number)
            seconds = time.perf_counter() - began
            if abs(accuracy - (turns.accuracy or 0)) > 0.005:
                raise SystemExit(f"round {number}: not the same work: {turns.accuracy} {accuracy}")
            yield {
                "round": number,
                "flsimulation": turns.seconds[-1],
                "bare": seconds,
                "accuracy": (turns.accuracy, accuracy),
            }
            turns.ours.release()
        federation.join()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, help="PyTorch threads (default: PyTorch's own)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = []
    for row in compare(options.rounds):
        rows.append(row)
        print(
            f"round {row['round']:3d}  flsimulation {row['flsimulation']:.3f} s  bare loop {row['bare']:.3f} s  accuracy {row['accuracy'][0]:.4f} {row['accuracy'][1]:.4f}",
            flush=True,
        )
    steady = rows[1:] or rows
    medians = {
        side: statistics.median(row[side] for row in steady) for side in ("flsimulation", "bare")
    }
    ratio = statistics.median(row["flsimulation"] / row["bare"] for row in steady)
    figures = {
        "machine": {"system": platform.platform(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "rounds": len(steady), "median-seconds": medians, "median-ratio": ratio, "peak-memory-bytes": peak_memory_bytes(),
    }  # fmt: skip
    print(
        f"median: flsimulation {medians['flsimulation']:.3f} s, bare loop {medians['bare']:.3f} s a round; ratio {ratio:.2f}; peak {figures['peak-memory-bytes'] / 2**20:.0f} MiB with both"
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
