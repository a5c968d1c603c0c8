"""Steps that a GPU repeats as one CUDA graph, in place of hundreds of launches from Python.

A graph is recorded work: calls on tensors at fixed places of memory, with all of Python's numbers as they
were. So a wave's tensors stay where they are (`standing.py`), and a graph is used only after the same steps
without it have made the same bits. docs/decisions/0032 has the reasons.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from flsimulation.errors import describe_error
from flsimulation.host.warned import NOBODY, Warned, pass_on
from flsimulation.training.memory import free_unused, is_out_of_memory

Work: TypeAlias = Callable[[], object]
"""Calls on the device; what it returns is not read."""

_SHARE = 2  # of a GPU's free memory for one more graph: 1 / 2, as for a wave
_WARM, _COMPARED = (
    2,
    2,
)  # steps before a graph is recorded (TorchScript optimizes at its second), and after
_STREAMS = 16


class Recorder(Protocol):
    """Records work on a device."""

    def record(self, work: Work) -> Work:
        """What does the same work again; the work itself is not done. Raises what it raises."""

    def apart(self, works: Sequence[Work]) -> None:
        """Do works of which none needs another's results, where they may overlap."""

    def seconds(self, work: Work) -> float:
        """Seconds that the device takes for a work."""

    def peak(self, work: Work) -> int:
        """Bytes that a work takes at most beside what is there before."""

    def has_room(self, size: int) -> bool:
        """Whether so many bytes are a moderate part of the memory that is free."""


class CudaRecorder:
    """Records CUDA graphs; those that exist use one pool of memory, of which nothing is read later.

    Parameters
    ----------
    device : device
        The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs = weakref.WeakSet[torch.cuda.CUDAGraph]()  # in the pool
        self._streams: list[torch.cuda.Stream] = []

    def record(self, work: Work) -> Work:
        """A graph of the work. Raises what the work raises, and what a graph cannot hold."""
        graph = torch.cuda.CUDAGraph()
        if not self._graphs:  # PyTorch gives up a pool with the last graph in it
            self._pool = torch.cuda.graph_pool_handle()
        # after an error PyTorch's block leaves its own stream as the current one
        with (
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            work()
        self._graphs.add(graph)
        return graph.replay

    def apart(self, works: Sequence[Work]) -> None:
        """Do works side by side while a graph is recorded; otherwise one after the other.

        In a graph no memory of one stream is used again by another. Outside it might be.
        """
        if not torch.cuda.is_current_stream_capturing():
            for work in works:
                work()
            return
        missing = min(len(works), _STREAMS) - len(self._streams)
        cuda: Any = torch.cuda
        self._streams += [cuda.Stream(self._device) for _ in range(missing)]
        current = torch.cuda.current_stream(self._device)
        used = self._streams[: len(works)]
        for stream in used:
            stream.wait_stream(current)
        for place, work in enumerate(works):
            with torch.cuda.stream(used[place % len(used)]):
                work()
        for stream in used:
            current.wait_stream(stream)

    def seconds(self, work: Work) -> float:
        """Seconds between two events around a work."""
        cuda: Any = torch.cuda
        begin, end = (cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self._device)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize(self._device)
        return begin.elapsed_time(end) / 1000  # type: ignore[no-any-return]

    def peak(self, work: Work) -> int:
        """Bytes that a work takes at most, by PyTorch's count."""
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        work()
        return torch.cuda.max_memory_allocated(self._device) - before

    def has_room(self, size: int) -> bool:
        """Whether it is at most half of what is free; PyTorch's own reserve counts as free."""
        torch.cuda.empty_cache()
        return size <= torch.cuda.mem_get_info(self._device)[0] // _SHARE


def recorder_on(device: torch.device) -> Recorder | None:
    """What records work on a device; None on a CPU, which needs no graphs."""
    return CudaRecorder(device) if device.type == "cuda" else None


def recorded(recorder: Recorder, work: Work, state: Sequence[Tensor]) -> Work | str:
    """A graph that does to the state exactly what the work does, or why there is none.

    Some steps are done and then undone: the state is as before.

    Parameters
    ----------
    recorder : Recorder
        Of the device.
    work : callable
        A step: it changes the state, and reads nothing that is not at a fixed place.
    state : sequence of Tensor
        All that the work changes.

    Returns
    -------
    callable or str
        The graph, or the reason as the end of a sentence.
    """
    before = [tensor.clone() for tensor in state]
    try:
        _after(work, state, before, _WARM)
        theirs = _after(work, state, before, _COMPARED)
        replay = recorder.record(work)
        ours = _after(replay, state, before, _COMPARED)
        if not all(map(same_bits, ours, theirs)):
            return "its first steps differ from those without a graph"
        return replay
    except Exception as error:  # whatever a user's step calls, and whatever of it has no graph
        reason = _reason(error)
    finally:
        _restore(state, before)
    free_unused()  # not in the handler, where the error still holds its frames
    return reason


def _after(
    work: Work, state: Sequence[Tensor], before: Sequence[Tensor], steps: int
) -> list[Tensor]:
    """The state after some steps from what it was before."""
    _restore(state, before)
    for _ in range(steps):
        work()
    return [tensor.clone() for tensor in state]


def _restore(state: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    for tensor, value in zip(state, before, strict=True):
        tensor.copy_(value)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape and type are equal bit for bit, NaN included."""
    ours, theirs = (tensor.reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(ours, theirs)


def tell(text: str) -> None:
    """Have a line after the run's table say why steps take longer than they could."""
    pass_on([Warned(NOBODY, text)])


def _reason(error: Exception) -> str:
    if is_out_of_memory(error):
        return "its memory does not hold a graph (lower train.batch-size)"
    return f"a graph of the step cannot be made ({describe_error(error)})"
