"""Ways to take many clients' steps, on one workload: what the stacked engine is made of.

The same cohort, batches and start for each way, in turns: one client after the other (a bare loop);
stacked clients by vmap and autograd; the traced step replayed by Python; the same as TorchScript,
whose replay does not hold Python's lock. The last two on one core and on two, with the optimizer
outside, and for plain SGD with its steps taken in the graph.

    python benchmarks/engine.py [W1 | W2] [--clients-at-once 5 10 20] [--repeats 7] [--json FILE]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flsimulation  # noqa: F401 - before torch: it lets OpenMP's waiting threads sleep
import torch
from torch.nn import functional
from results import command_line, json_file, write
from workloads import WORKLOADS, experiment

from flsimulation.client.workspace import Workspace
from flsimulation.training.stacked.compiler import program as programs
from flsimulation.training.stacked.compiler.torchscript import compiled
from flsimulation.training.stacked.trainer import StackedTrainer
from flsimulation.training.stacked.wave import WaveTerms, WaveFit


def bare(space: Workspace, cohort: range, state: dict[str, torch.Tensor]) -> None:
    module = space.module
    for partition in cohort:
        module.load_state_dict(state)
        optimizer: Any = module.configure_optimizers()
        for x, y in space.train_batches(partition, 1):
            optimizer.zero_grad()
            functional.cross_entropy(module(x), y).backward()
            optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload", nargs="?", default="W2", choices=WORKLOADS)
    parser.add_argument("--clients-at-once", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=json_file, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec = experiment(options.workload, 1, "stacked")
    space = Workspace.load(spec, clients=0)
    dataset, state = space.data.dataset, space.initial_state()
    trainer = StackedTrainer(space.module, spec.train, dataset.x_train, dataset.y_train)
    stack, cohort = trainer._stack, range(spec.cohort_size)
    pool = ThreadPoolExecutor(2, initializer=lambda: torch.set_num_threads(1))

    def stacked(at_once: int, rates: Any, threads: int) -> None:
        waves = [cohort[i : i + at_once] for i in range(0, len(cohort), at_once)]

        def train(places: range) -> None:
            clients = [space.train_batches(partition, 1) for partition in places]
            WaveFit(stack, WaveTerms(state, rates, 0.0, None), clients).run(
                tuple(places)
            ).averaged()

        list((map if threads == 1 else pool.map)(train, waves))

    ways: dict[str, Callable[[], None]] = {"bare loop": lambda: bare(space, cohort, state)}
    forms: dict[str, Any] = {
        "vmap and autograd": None,
        "traced, by Python": lambda module: module,
        "traced, TorchScript": compiled,
    }

    def way(form: str, at_once: int, rates: Any, threads: int) -> Callable[[], None]:
        known: dict[Any, Any] = {}

        def run() -> None:
            programs.compiled = forms[form] or compiled
            template = stack.programs._template
            if forms[form] is None:
                stack.programs._template = lambda _: None
            before, stack.programs._programs = stack.programs._programs, known
            try:
                stacked(at_once, rates, threads)
            finally:
                stack.programs._programs, stack.programs._template = before, template

        return run

    for at_once in options.clients_at_once:
        for form in forms:
            for threads in (1, 2) if forms[form] else (1,):
                ways[f"{form}, {at_once} at once, {threads} thread(s)"] = way(
                    form, at_once, None, threads
                )
        if trainer._rates is not None:
            for threads in (1, 2):
                name = f"TorchScript with SGD in it, {at_once} at once, {threads} thread(s)"
                ways[name] = way("traced, TorchScript", at_once, trainer._rates, threads)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.enable_grad():
        for repeat in range(options.repeats + 1):
            for name, run in ways.items():
                began = time.perf_counter()
                run()
                if repeat:  # the first time things are made
                    seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    ratios = {name: median / medians["bare loop"] for name, median in medians.items()}
    for name, median in medians.items():
        print(f"{name:50}{median:7.3f} s{ratios[name]:6.2f}")
    if options.json:
        results = {
            "workload": options.workload,
            "repeats": options.repeats,
            "ways": [
                {"way": name, "median-seconds": medians[name], "ratio": ratios[name]}
                for name in medians
            ],
        }
        write(options.json, command_line(), results)


if __name__ == "__main__":
    main()
