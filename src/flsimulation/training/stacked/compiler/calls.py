"""How many calls a training step makes, by which its trace's time is known before it is made."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pytorch_lightning as pl
from torch.utils._python_dispatch import TorchDispatchMode

from flsimulation import seeds
from flsimulation.data.leaves import Leaves
from flsimulation.training.form import Form
from flsimulation.training.logged import Log
from flsimulation.training.memory import is_out_of_memory
from flsimulation.training.stacked.compiler.facts import TYPICAL, Facts
from flsimulation.training.stacked.compiler.rewritten import Rewritten
from flsimulation.training.stacked.compiler.step import loss_of, named_tensors, watched
from flsimulation.training.work import Calls


def calls_of(
    module: pl.LightningModule,
    x: Leaves,
    y: Leaves,
    form: Form,
    constants: Mapping[str, Any] = MappingProxyType({}),
) -> Calls | None:
    """ATen's calls of one client's step and its gradients; None if it fails, as its trace does.

    Parameters
    ----------
    module : LightningModule
        The model; not changed.
    x, y, form
        A batch, and what the step receives.
    constants
        Numbers of the Trainer.
    """
    try:
        traced = _counted(module, x, y, form, constants, Rewritten())
        alone = _counted(module, x, y, form, constants, contextlib.nullcontext())
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        return None
    return Calls(traced.calls, traced.writes, alone.calls)


def _counted(
    module: pl.LightningModule,
    x: Leaves,
    y: Leaves,
    form: Form,
    constants: Mapping[str, Any],
    inside: contextlib.AbstractContextManager[object],
) -> _Counting:
    """The calls of a step, taken inside another mode. Raises what the step raises."""
    own = watched(copy.deepcopy(module), Log(training=True), Facts(TYPICAL, constants))
    counting = _Counting()
    with seeds.global_streams(0), counting, inside:
        loss, _ = loss_of(own, x, y, form, [*named_tensors(own)])
        loss.backward()  # type: ignore[no-untyped-call]
    return counting


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what it hands on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls, self.writes = 0, False

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Count a call."""
        self.calls += 1
        self.writes |= func._schema.is_mutable  # type: ignore[attr-defined]
        return func(*args, **(kwargs or {}))
