"""Models as PyTorch's state_dicts, to Flower's records and back.

Apart from `arrays`: what only reads records, as the process that follows a run does, needs no PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flwr.app import ArrayRecord
from torch import Tensor, from_numpy

from flsimulation.messages.arrays import HeldArray, joined


def record_of(state: Mapping[str, Tensor]) -> ArrayRecord:
    """A state_dict as a record. Its tensors are on the CPU, not copied, and must not be changed."""
    return joined({name: HeldArray(value.detach().numpy()) for name, value in state.items()})


def held_state(record: ArrayRecord) -> dict[str, Tensor]:
    """A record's model as a state_dict; a copy, so that changes do not affect the record."""
    return {name: from_numpy(np.array(array.numpy())) for name, array in record.items()}
