"""Which of two ways of a step a GPU takes less time for: all clients as one program, or side by side."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import nn

from flsimulation.errors import describe_error
from flsimulation.training.memory import free_unused
from flsimulation.training.stacked.compiler.given import Given, Step
from flsimulation.training.stacked.compiler.program import StepPrograms
from flsimulation.training.stacked.graphs import Recorder, tell
from flsimulation.training.stacked.standing import Graphs
from flsimulation.training.timing import FASTER

Rates: TypeAlias = tuple[float, ...] | None
Apart: TypeAlias = Callable[[Given, Rates], Step]

ONE, STREAMS = "one-program", "streams"
"""As in the manifest, the way that is not taken."""
_TURNS, _WARM = 3, 2
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def convolves(module: nn.Module) -> bool:
    """Whether a module has convolutions, which are slow for many clients at once."""
    return any(isinstance(part, _CONVOLUTIONS) for part in module.modules())


def choose(
    graphs: Graphs,
    programs: StepPrograms,
    size: tuple[int, int],
    rates: Rates,
    before: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Choose between a step of all clients and each client's own, side by side.

    Parameters
    ----------
    graphs : Graphs
        Where the choice is noted.
    programs : StepPrograms
        Of the step.
    size : pair of int
        Clients at once, and examples of the largest batch.
    rates : tuple of float, optional
        Learning rates where programs take the steps themselves.
    before : mapping, optional
        What was returned when this run chose; not measured again.

    Returns
    -------
    dict of float
        Seconds of a client's step: ``stacked`` in the way that is taken, and in the other by its
        name. Empty where only one is possible.
    """
    found = dict(before or {})
    try:
        apart = programs.apart(graphs.recorder.apart)
        if before is None:
            with torch.no_grad():
                found = _measured(programs, apart, graphs.recorder, size, rates)
        if ONE in found:
            graphs.apart = apart
        return found
    except Exception as error:  # what a user's step does, or what a graph cannot hold
        reason = describe_error(error)
    free_unused()  # not in the handler, where the error still holds its frames
    tell(f"whether clients' steps side by side are faster on the GPU was not measured ({reason})")
    return {}


def _measured(
    programs: StepPrograms,
    apart: Apart,
    recorder: Recorder,
    size: tuple[int, int],
    rates: Rates,
) -> dict[str, float]:
    clients, examples = size
    alone = programs.given(1, examples)
    if not recorder.has_room(clients * recorder.peak(functools.partial(apart, alone, rates))):
        return {}
    program = functools.partial(programs.program(*size, rates), programs.given(*size))
    beside = functools.partial(apart, programs.given(*size), rates)
    one, streams = (_seconds(recorder, work) / clients for work in (program, beside))
    if streams < FASTER * one:
        return {"stacked": streams, ONE: one}
    return {"stacked": one, STREAMS: streams}


def _seconds(recorder: Recorder, work: Callable[[], object]) -> float:
    for _ in range(_WARM):
        work()
    graph = recorder.record(work)
    graph()
    return statistics.median(recorder.seconds(graph) for _ in range(_TURNS))
