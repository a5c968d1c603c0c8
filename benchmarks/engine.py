"""Ways to take many clients' steps, on one workload: what the stacked engine is made of.

The same cohort, batches and start for each way, in turns: one client after the other (a bare loop);
stacked clients by vmap and autograd; the traced step replayed by Python; the same as TorchScript,
whose replay does not hold Python's lock. The last two on one core and on two, with the optimizer
outside, and for plain SGD with its steps taken in the graph.

With ``--counted`` what the numbers of training/work.py stand for, in processor time of one thread, in
turns, for a perceptron, a CNN and a recurrent network: tracing a step with all that follows; a step's
calls; what the engine ``direct`` adds to them in a step and in a fit; and a client's step stacked.

    python benchmarks/engine.py [W1 | W2] [--clients-at-once 5 10 20] [--repeats 7] [--json FILE]
    python benchmarks/engine.py --counted [--repeats 7] [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flsimulation  # noqa: F401 - before torch: it lets OpenMP's waiting threads sleep
import numpy as np
import torch
from torch.nn import functional
from results import command_line, json_file, write
from workloads import WORKLOADS, experiment

from flsimulation import seeds
from flsimulation.client.workspace import Workspace
from flsimulation.data.leaves import each
from flsimulation.training import Batches, Job, Terms
from flsimulation.training.alone import detached
from flsimulation.training.stacked.compiler import program as programs
from flsimulation.training.stacked.compiler.calls import calls_of
from flsimulation.training.stacked.compiler.torchscript import compiled
from flsimulation.training.stacked.engine import StackedEngine
from flsimulation.training.stacked.trainer import StackedTrainer
from flsimulation.training.stacked.wave import WaveTerms, WaveFit

COUNTED = {"perceptron": "W2", "CNN": "W3", "recurrent": "W7"}
STEPS = 19  # of a long fit; a short one has a step


def bare(space: Workspace, cohort: range, state: dict[str, torch.Tensor]) -> None:
    module = space.module
    for partition in cohort:
        module.load_state_dict(state)
        optimizer: Any = module.configure_optimizers()
        for x, y in space.train_batches(partition, 1):
            optimizer.zero_grad()
            functional.cross_entropy(module(x), y).backward()
            optimizer.step()


class Counted:
    """A workload's model in both engines, in one thread of this process."""

    def __init__(self, workload: str) -> None:
        self.space = space = Workspace.load(experiment(workload, 20, "direct"), processes=1)
        self.spec = experiment(workload, 20, "stacked").train
        self.data = space.data.dataset.x_train, space.data.dataset.y_train
        few = [each(lambda t: t[:4], part) for part in self.data]
        self.calls = calls_of(space.module, few[0], few[1], space.prepared.form)
        self.module: Any = detached(copy.deepcopy(space.module))
        self.batch = [each(lambda t: t[: self.spec.batch_size], part) for part in self.data]

    def turn(self) -> dict[str, float]:
        """Processor seconds of a trace, and of one client's calls, steps and fits."""
        trace = taken(self._traced)
        calls = taken(self._called) / STEPS
        short, long = (self._fit(self.space.engine, 8, steps) for steps in (1, STEPS))
        clients = self.stacked.at_once(self.space.experiment.cohort_size)
        brief, whole = (self._fit(self.stacked, clients, steps) for steps in (1, STEPS))
        step = (long - short) / (STEPS - 1)
        stacked = (whole - brief) / (STEPS - 1)
        return {
            "trace": trace,
            "calls": calls,
            "direct-step": step,
            "direct-fit": short - step,
            "stacked-step": stacked,
            "stacked-fit": brief - stacked,
        }

    def _traced(self) -> None:
        self.stacked = StackedEngine(
            self.space.module, self.spec, *self.data, prepared=self.space.prepared
        )

    def _called(self) -> None:
        for step in range(STEPS):
            self.module.training_step(self.batch, step).backward()

    def _fit(self, engine: Any, clients: int, steps: int) -> float:
        """Processor seconds of one client's fit of so many steps, the second time."""
        state, jobs = self.space.initial_state(), [self._job(i, steps) for i in range(clients)]
        engine.practise(state, jobs, Terms(average=True))
        return taken(lambda: engine.practise(state, jobs, Terms(average=True))) / clients

    def _job(self, place: int, steps: int) -> Job:
        size = steps * self.spec.batch_size
        rows = (np.arange(size) + place * size) % len(self.data[1])
        stream = functools.partial(seeds.rng, 0, "practice")
        batches = Batches(
            *(*self.data, rows, self.spec.batch_size, stream), prepared=self.space.prepared
        )
        return Job(place, batches, int, round=1)


def taken(work: Callable[[], object]) -> float:
    """Seconds of the processor."""
    began = time.process_time()
    work()
    return time.process_time() - began


def count(options: argparse.Namespace) -> None:
    """Print, for each model, medians of the turns, and what they are in calls of its own step."""
    own = {name: Counted(workload) for name, workload in COUNTED.items()}
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in own}
    for turn in range(options.repeats + 1):
        for name, counted in own.items():
            found = counted.turn()
            if turn:  # the first time things are made
                turns[name].append(found)
    rows = list[dict[str, Any]]()
    for name, counted in own.items():
        medians = {key: statistics.median(t[key] for t in turns[name]) for key in turns[name][0]}
        made, alone = counted.calls.made, counted.calls.alone
        rows.append({"what": name, "calls": made, "calls-alone": alone, "seconds": medians})
        beside = medians["direct-step"] - medians["calls"]
        print(
            f"{name}: {made} calls traced, {alone} alone of {medians['calls'] / alone * 1e6:.0f} us; trace "
            f"{medians['trace']:.2f} s; direct {medians['direct-step'] * 1e3:.2f} ms a step, of which "
            f"{beside * 1e3:.2f} beside the calls, and {medians['direct-fit'] * 1e3:.2f} a fit; stacked "
            f"{medians['stacked-step'] * 1e3:.2f} ms and {medians['stacked-fit'] * 1e3:.2f}"
        )
    if options.json:
        write(options.json, command_line(), {"repeats": options.repeats, "counted": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload", nargs="?", default="W2", choices=WORKLOADS)
    parser.add_argument("--clients-at-once", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--counted", action="store_true", help="the numbers of training/work.py")
    parser.add_argument("--json", type=json_file, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.counted:
        count(options)
        return
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
