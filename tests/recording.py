"""Stands for a GPU's recorder of graphs: what is recorded are ATen's calls, with all numbers as they were."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes calls and what they returned; what they wrote into is put back by `undo`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made: list[tuple[Any, Any, Any, Any]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in written(func, args, kwargs or {}):
            self._before.setdefault(tensor.untyped_storage().data_ptr(), (tensor, tensor.clone()))
        result = func(*args, **(kwargs or {}))
        self._made.append((func, args, kwargs or {}, result))
        return result

    def undo(self) -> None:
        for tensor, before in self._before.values():
            tensor.copy_(before)

    def again(self) -> None:
        """Make the calls on the same tensors; results go where the first ones were."""
        for func, args, kwargs, first in self._made:
            result = func(*args, **kwargs)
            if not any(r.alias_info for r in func._schema.returns):
                for old, new in zip(tree_leaves(first), tree_leaves(result), strict=True):
                    if isinstance(old, Tensor):
                        old.copy_(new)


def written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """Tensors that a call writes into."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            yield from (own for own in tree_leaves(value) if isinstance(own, Tensor))


class Noted:
    """A recorder on the CPU.

    Parameters
    ----------
    fails : callable, optional
        Called before a work is recorded; returns what to do after each time that it is done again.
    room : int
        Bytes that are a moderate part of the memory.
    """

    def __init__(self, fails: Callable[[], Any] | None = None, room: int = 1 << 40) -> None:
        self._fails, self._room = fails, room
        self.replays = self.recorded = self.apart_calls = 0
        self._alive: weakref.WeakSet[Calls] = weakref.WeakSet()
        self.durations: list[float] = []
        """Of works that are measured, in their order."""

    @property
    def alive(self) -> int:
        """Recordings that are still held."""
        return len(self._alive)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        after = self._fails() if self._fails is not None else None
        calls = Calls()
        with calls:
            work()
        calls.undo()
        self.recorded += 1
        self._alive.add(calls)

        def replay() -> None:
            self.replays += 1
            calls.again()
            if after is not None:
                after(calls)

        return replay

    def apart(self, works: Sequence[Callable[[], None]]) -> None:
        self.apart_calls += 1
        for work in reversed(works):  # none needs another
            work()

    def seconds(self, work: Callable[[], None]) -> float:
        work()
        return self.durations.pop(0)

    def peak(self, work: Callable[[], None]) -> int:
        work()
        return 1

    def has_room(self, size: int) -> bool:
        return size <= self._room
