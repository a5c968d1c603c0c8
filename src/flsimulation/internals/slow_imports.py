"""Modules that Lightning imports and a run hardly uses: a third of all that a run would import.

Lightning and PyTorch's optimizers import ``torch._dynamo``, the larger part of ``torch.compile``, for
three names that say whether and where something is compiled. TorchMetrics imports matplotlib to name
types of its plots. What PyTorch itself has written in Python, as some losses under ``vmap``, imports
symbolic shapes to ask whether a plain bool is true. TorchMetrics imports SciPy's signals to add a name to
them.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from flsimulation.internals.deferred import defer, imported, is_imported

DYNAMO = "torch._dynamo"
"""Behind ``torch.compile``; imports SymPy, the inductor and ``torch.distributed`` with its tensors."""
SHAPES = "torch.fx.experimental.symbolic_shapes"
"""Sizes of tensors that are not numbers, for ``torch.compile``; imports SymPy."""
PLOTS = "torchmetrics.utilities.plot"
"""Draws a metric's values; imports matplotlib's pyplot."""
SIGNALS = "scipy.signal"
"""Imports most of SciPy; TorchMetrics adds ``hamming`` for users of SciPy before 1.1."""


def defer_slow_imports() -> None:
    """Let a process of our own import these modules at their first use."""
    defer(
        DYNAMO,
        {"OptimizedModule": OptimizedModule, "disable": disable, "graph_break": graph_break},
    )
    questions = ("expect_true", "guard_or_false", "guard_or_true", "statically_known_true")
    defer(SHAPES, {"sym_eq": sym_eq} | {name: _question(name) for name in questions})
    defer(SIGNALS, {"hamming": None})
    types = dict.fromkeys(("_AX_TYPE", "_CMAP_TYPE"), object)
    drawing = ("plot_single_or_multi_val", "plot_confusion_matrix", "plot_curve")
    defer(
        PLOTS,
        {
            **types,
            "_PLOT_OUT_TYPE": tuple[object, object],  # as TorchMetrics has it without matplotlib
            **{name: _drawing(name) for name in drawing},
        },
    )


class _Compiled(type):
    """Asks the class itself what is an instance of it: none is before it exists."""

    def __instancecheck__(cls, instance: object) -> bool:
        own = getattr(sys.modules[DYNAMO], "OptimizedModule", ()) if is_imported(DYNAMO) else ()
        return isinstance(instance, own)


class OptimizedModule(metaclass=_Compiled):
    """A module that ``torch.compile`` returned, for ``isinstance``."""


def graph_break(msg: str = "") -> None:
    """End a graph that is being compiled: none is."""


def disable(
    fn: Callable[..., Any] | None = None, recursive: bool = True, **options: Any
) -> Callable[..., Any]:
    """The function, left out of what is compiled from the time when something can be."""
    if fn is None:
        return functools.partial(disable, recursive=recursive, **options)
    own: list[Callable[..., Any]] = []

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not own:
            if not is_imported(DYNAMO):
                return fn(*args, **kwargs)
            own.append(imported(DYNAMO).disable(fn, recursive, **options))
        return own[0](*args, **kwargs)

    return call


def sym_eq(x: Any, y: Any) -> Any:
    """Whether two shapes are equal, whose sizes may be symbolic."""
    shapes = isinstance(x, list | tuple) and isinstance(y, list | tuple)
    if shapes and all(type(size) is int for size in (*x, *y)):
        return list(x) == list(y)
    return imported(SHAPES).sym_eq(x, y)


def _question(name: str) -> Callable[..., Any]:
    """A question whether something is true, which may be symbolic."""

    def ask(asked: Any, *args: Any, **kwargs: Any) -> Any:
        if type(asked) is bool:
            return asked
        return getattr(imported(SHAPES), name)(asked, *args, **kwargs)

    ask.__name__ = name
    return ask


def _drawing(name: str) -> Callable[..., Any]:
    def draw(*args: Any, **kwargs: Any) -> Any:
        return getattr(imported(PLOTS), name)(*args, **kwargs)

    draw.__name__ = name
    return draw
