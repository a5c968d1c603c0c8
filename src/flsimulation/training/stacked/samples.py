"""What a step is tried with before clients train: a few examples, and sizes of a batch."""

from __future__ import annotations

import numpy as np

from flsimulation.data.leaves import Leaves, examples, one
from flsimulation.training.stacked.compiler.step import NotStackable
from flsimulation.training.transforms import Draws, Transform
from flsimulation.training.work import Calls, Work

_POWERS = 10  # of 2, sizes of a batch
_EXAMPLES = 32  # of the data set, enough to trace a step


def some(x: Leaves, y: Leaves, transform: Transform | None) -> tuple[Leaves, Leaves]:
    """Examples as the step receives them, on the CPU."""
    if transform is not None:
        return transform(x, y, np.arange(min(_EXAMPLES, examples(x))), Draws(0))
    return one(x, slice(_EXAMPLES)), one(y, slice(_EXAMPLES))


def probed(largest: int) -> list[int]:
    """Sizes of a batch at which a step is looked at before it is needed."""
    return [1 << power for power in range(_POWERS) if 1 << power < largest] + [
        min(largest, 1 << _POWERS)
    ]


def check_worth(work: Work, calls: Calls | None) -> None:
    """Raise `NotStackable` if the clients are trained one by one before a trace would pay off."""
    if calls is not None and not work.is_worth_tracing(calls):
        raise NotStackable(
            f"{work.steps} training steps in all are too few to prepare for training many clients "
            f"at once"
        )
