"""Seconds a round: FLSimulation beside a bare PyTorch loop that does the same steps.

Both sides use the same partitions, cohorts, batches and initial weights; the loop trains client
after client on one thread, averages and evaluates by hand. Rounds of the two sides alternate in one
process, so that both meet the same machine; FLSimulation writes its run directory meanwhile. The
first two rounds of each side are left out. The command stops if the two sides' models part.

    python benchmarks/rounds.py [W1 W2 W3 W4] [--rounds 20] [--repeats 3] [--engine E] [--device D]
        [--json FILE]
"""

from __future__ import annotations

import argparse
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
from results import command_line, json_file, write
from workloads import WORKLOADS, experiment

from flsimulation.client.workspace import Workspace
from flsimulation.events import Checkpoint, PhaseStarted, RoundFinished
from flsimulation.runtimes.inprocess import run_in_process
from flsimulation.host.usage import peak_memory_bytes
from flsimulation.rundir.writer import RunDirectory

_LEFT_OUT = 2  # rounds, in which either side does things for the first time


class Turns:
    """A sink that stops the federation after each round until the loop has done the same round."""

    def __init__(self) -> None:
        self.ours, self.theirs = threading.Semaphore(1), threading.Semaphore(0)
        self.cohort: tuple[int, ...] = ()
        self.seconds: list[float] = []
        self.model: Any = None

    def __call__(self, event: Any) -> None:
        if isinstance(event, PhaseStarted) and event.phase == "train":
            self.ours.acquire()
            self.cohort = event.cohort
            self.began = time.perf_counter()
        elif isinstance(event, Checkpoint):
            self.model = event.arrays
        elif isinstance(event, RoundFinished):
            self.seconds.append(time.perf_counter() - self.began)
            self.judged = event.central is not None
            self.theirs.release()


def bare_round(
    space: Workspace,
    state: dict[str, torch.Tensor],
    cohort: tuple[int, ...],
    number: int,
    *,
    judge: bool,
) -> dict[str, torch.Tensor]:
    """The same round as anyone would write it."""
    module, dataset = space.module, space.data.dataset
    device = module.device
    total: dict[str, torch.Tensor] = {}
    examples = 0
    for partition in cohort:
        module.load_state_dict(state)
        optimizer: Any = module.configure_optimizers()
        batches = space.train_batches(partition, number)
        for x, y in batches:
            optimizer.zero_grad()
            functional.cross_entropy(module(x.to(device)), y.to(device)).backward()
            optimizer.step()
        for name, value in module.state_dict().items():
            total[name] = total.get(name, 0) + value.detach() * batches.examples
        examples += batches.examples
    state = {name: value / examples for name, value in total.items()}
    if judge:
        module.load_state_dict(state)
        with torch.inference_mode():
            for x, y in zip(dataset.x_test.split(1000), dataset.y_test.split(1000), strict=True):
                int((module(x.to(device)).argmax(1) == y.to(device)).sum())
    return state


def compare(workload: str, rounds: int, engine: str, device: str) -> Iterator[dict[str, Any]]:
    spec = experiment(workload, rounds, engine, device)
    space, other = Workspace.load(spec), Workspace.load(spec)
    other.module.to(device)
    turns, threads = Turns(), torch.get_num_threads()
    with TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder), spec)
        federation = threading.Thread(
            target=run_in_process, args=(spec, [directory, turns], space), daemon=True
        )
        federation.start()
        state = other.initial_state()
        for number in range(1, rounds + 1):
            turns.theirs.acquire()
            torch.set_num_threads(1)
            began = time.perf_counter()
            state = bare_round(other, state, turns.cohort, number, judge=turns.judged)
            state = {name: value.cpu() for name, value in state.items()}
            seconds = time.perf_counter() - began
            torch.set_num_threads(threads)
            if number == 1:
                check_same(turns.model, state)
            state = {n: torch.from_numpy(turns.model[n].numpy().copy()) for n in turns.model}
            yield {
                "round": number,
                "judged": turns.judged,
                "flsimulation": turns.seconds[-1],
                "bare": seconds,
            }
            turns.ours.release()
        federation.join()


def check_same(ours: Any, theirs: dict[str, torch.Tensor]) -> None:
    """Stop unless one round from the same model gave the same.

    Not to rounding: where a ReLU's input is a rounding away from 0, one side may pass a gradient
    on that the other does not.
    """
    apart = sum(float(((torch.from_numpy(ours[n].numpy()) - theirs[n]) ** 2).sum()) for n in ours)
    size = sum(float((value**2).sum()) for value in theirs.values())
    if not (apart / size) ** 0.5 < 2e-2:
        raise SystemExit(f"not the same work: the models are {(apart / size) ** 0.5:.1e} apart")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", metavar="W", help="W1 to W4 (default: all)")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--engine", default="auto", help="train.engine of FLSimulation")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="of both sides")
    parser.add_argument("--threads", type=int, help="PyTorch threads of FLSimulation")
    parser.add_argument("--json", type=json_file, help="also write the figures here")
    options = parser.parse_args()
    if unknown := sorted(set(options.workloads) - WORKLOADS.keys()):
        parser.error(f"{unknown[0]} is no workload; choose from {', '.join(WORKLOADS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU; use cpu")
    if options.threads:
        torch.set_num_threads(options.threads)
    results = []
    for workload in options.workloads or WORKLOADS:
        rows: list[dict[str, Any]] = []
        for _ in range(options.repeats):
            rows += list(compare(workload, options.rounds, options.engine, options.device))[
                _LEFT_OUT:
            ]
        sides = {side: [row[side] for row in rows] for side in ("flsimulation", "bare")}
        medians = {side: statistics.median(seconds) for side, seconds in sides.items()}
        ratio = statistics.median(row["flsimulation"] / row["bare"] for row in rows)
        results.append(
            {
                "workload": workload,
                "what": WORKLOADS[workload]["what"],
                "rounds": len(rows),
                "median-seconds": medians,
                "least-seconds": {side: min(seconds) for side, seconds in sides.items()},
                "median-ratio": ratio,
            }
        )
        print(
            f"{workload}: flsimulation {medians['flsimulation']:.3f} s, bare loop "
            f"{medians['bare']:.3f} s a round (median of {len(rows)}); ratio {ratio:.2f}",
            flush=True,
        )
    print(f"peak {peak_memory_bytes() / 2**20:.0f} MiB with both sides")
    if options.json:
        write(options.json, command_line(), results)


if __name__ == "__main__":
    main()
