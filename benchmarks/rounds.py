"""Seconds a round: FLSimulation beside a bare PyTorch loop that does the same steps.

All sides use the same partitions, cohorts, batches, initial weights and random numbers; the loop
(loop.py) trains client after client on one thread, averages and evaluates by hand. A third side is the
same loop in as many forked processes as there are cores. Rounds of the sides alternate in one process,
so that all meet the same machine; FLSimulation writes its run directory meanwhile. The first two rounds
of each side are left out; the command stops if the sides' models part in them. Every workload has a process of
its own, whose largest memory is told; that of forked processes is not in it. With ``--device cuda`` the
sides are FLSimulation and the loop, both on the GPU.

    python benchmarks/rounds.py [W1 W2 ...] [--rounds 20] [--repeats 3] [--engine E] [--device D]
        [--processes 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import flsimulation  # noqa: F401 - before torch: it lets OpenMP's waiting threads sleep
import torch
from loop import Loop, Processes
from results import command_line, json_file, write
from workloads import ON_GPUS, WORKLOADS, experiment

from flsimulation.client.workspace import Workspace
from flsimulation.events import Checkpoint, PhaseStarted, RoundFinished
from flsimulation.runtimes.inprocess import run_in_process
from flsimulation.host.usage import peak_memory_bytes
from flsimulation.rundir.writer import RunDirectory

SIDES = ("flsimulation", "bare", "processes")
_LEFT_OUT = 2  # rounds, in which a side does things for the first time; their models are compared
_APART = 2e-2  # of what a round changed, from which on two models are not the same
_APART_IN = {"W3": 5e-2}  # a client's 60 steps at a rate of 0.1 enlarge what rounding begins


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


def compare(
    workload: str, rounds: int, engine: str, device: str, processes: int
) -> Iterator[dict[str, Any]]:
    """Rounds of all sides, one after the other; a row for each round."""
    spec = experiment(workload, rounds, engine, device)
    space = Workspace.load(spec, measures=True)
    turns = Turns()
    with (
        TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        bare_sides(space, device, processes) as sides,
    ):
        directory = RunDirectory(Path(folder), spec)
        federation = threading.Thread(
            target=run_in_process, args=(spec, [directory, turns], space), daemon=True
        )
        federation.start()
        state = space.initial_state()
        for number in range(1, rounds + 1):
            turns.theirs.acquire()
            ours = {n: torch.from_numpy(turns.model[n].numpy().copy()) for n in turns.model}
            row = {"round": number, "judged": turns.judged, "engine": space.engine.name}
            row["flsimulation"] = turns.seconds[-1]
            for side, loop in sides.items():
                began = time.perf_counter()
                theirs = loop.round(state, turns.cohort, number, judge=turns.judged)
                row[side] = time.perf_counter() - began
                if number <= _LEFT_OUT:
                    check_same(space.module, state, ours, theirs, _APART_IN.get(workload, _APART))
            state = ours
            yield row
            turns.ours.release()
        federation.join()


@contextmanager
def bare_sides(space: Workspace, device: str, processes: int) -> Iterator[dict[str, Any]]:
    """The bare loop, and with more than one process also the loop in these, by name of the side."""
    loop = Loop(space, device)
    sides: dict[str, Any] = {"bare": loop}
    if processes > 1:
        sides["processes"] = Processes(loop, processes)
    try:
        yield sides
    finally:
        if processes > 1:
            sides["processes"].close()


def check_same(
    module: torch.nn.Module,
    before: dict[str, torch.Tensor],
    ours: dict[str, torch.Tensor],
    theirs: dict[str, torch.Tensor],
    most: float = _APART,
) -> None:
    """Stop unless one round from the same model, ``before``, gave the same.

    Not to rounding: where a ReLU's input is a rounding away from 0, one side may pass a gradient
    on that the other does not.
    """
    if (found := apart(module, before, ours, theirs)) >= most:
        raise SystemExit(
            f"not the same work: the models are {found:.1e} of the round's change apart"
        )


def apart(
    module: torch.nn.Module,
    before: dict[str, torch.Tensor],
    ours: dict[str, torch.Tensor],
    theirs: dict[str, torch.Tensor],
) -> float:
    """The difference between two models as a share of what a round changed, in norms.

    That of the parameters or that of the buffers, whichever is larger: statistics change by much more
    than weights. Integers are counters, which must be equal.
    """
    if any(not torch.equal(ours[n], theirs[n]) for n in ours if not ours[n].is_floating_point()):
        return math.inf
    trained = dict(module.named_parameters(remove_duplicate=False)).keys()
    floating = {n for n in ours if ours[n].is_floating_point()}
    return max(
        distance(ours, theirs, names) / distance(theirs, before, names)
        for names in (floating & trained, floating - trained)
        if names
    )


def distance(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], names: Iterable[str]
) -> float:
    return math.sqrt(sum(float(((one[n] - other[n]).double() ** 2).sum()) for n in names)) or 1e-30


def measured(workload: str, options: argparse.Namespace) -> dict[str, Any]:
    """The workload's figures, from a process in which nothing else was."""
    if options.threads:
        torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for _ in range(options.repeats):
        rows += list(
            compare(workload, options.rounds, options.engine, options.device, options.processes)
        )[_LEFT_OUT:]
    return summary(workload, rows, options.processes) | {"peak-bytes": peak_memory_bytes()}


def summary(workload: str, rows: Sequence[dict[str, Any]], processes: int) -> dict[str, Any]:
    """Medians and least seconds of each side, and the ratios of FLSimulation to the others."""
    sides = {side: [row[side] for row in rows] for side in SIDES if side in rows[0]}
    ratios = {
        side: statistics.median(row["flsimulation"] / row[side] for row in rows)
        for side in SIDES[1:]
        if side in sides
    }
    return {
        "workload": workload,
        "what": WORKLOADS[workload]["what"],
        "engine": rows[0]["engine"],
        "rounds": len(rows),
        "median-seconds": {side: statistics.median(seconds) for side, seconds in sides.items()},
        "least-seconds": {side: min(seconds) for side, seconds in sides.items()},
        "median-ratio": ratios["bare"],
        **(
            {"processes": processes, "processes-ratio": ratios["processes"]}
            if len(ratios) > 1
            else {}
        ),
    }


def line(result: dict[str, Any]) -> str:
    """A workload's figures, for people."""
    medians = result["median-seconds"]
    text = (
        f"{result['workload']}: flsimulation ({result['engine']}) {medians['flsimulation']:.3f} s, "
        f"bare loop {medians['bare']:.3f} s a round (median of {result['rounds']}); "
        f"ratio {result['median-ratio']:.2f}"
    )
    if "processes" in medians:
        text += (
            f"; in {result['processes']} processes {medians['processes']:.3f} s, "
            f"ratio {result['processes-ratio']:.2f}"
        )
    return f"{text}; peak {result['peak-bytes'] / 2**20:.0f} MiB with all sides"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "workloads",
        nargs="*",
        metavar="W",
        help="W1 to W12, W5s to W10s (default: all; on a CPU without W11 and W12)",
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--engine", default="auto", help="train.engine of FLSimulation")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="of all sides")
    parser.add_argument("--threads", type=int, help="PyTorch threads of FLSimulation")
    parser.add_argument(
        "--processes", type=int, help="of the third side (default: the cores; 1: no third side)"
    )
    parser.add_argument("--json", type=json_file, help="also write the figures here")
    options = parser.parse_args()
    if unknown := sorted(set(options.workloads) - WORKLOADS.keys()):
        parser.error(f"{unknown[0]} is no workload; choose from {', '.join(WORKLOADS)}")
    if options.rounds <= _LEFT_OUT:
        parser.error(f"--rounds must be more than {_LEFT_OUT}, which are left out")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU; use cpu")
    if options.device == "cuda" and (options.processes or 1) > 1:
        parser.error("--processes: forked processes cannot use a GPU; leave it out")
    if options.processes is None:
        options.processes = 1 if options.device == "cuda" else os.cpu_count() or 1
    return options


def main() -> None:
    options = parsed()
    results = []
    left_out = ON_GPUS if options.device == "cpu" else ()
    for workload in options.workloads or [name for name in WORKLOADS if name not in left_out]:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            results.append(alone.submit(measured, workload, options).result())
        print(line(results[-1]), flush=True)
    if options.json:
        write(options.json, command_line(), results)


if __name__ == "__main__":
    main()
