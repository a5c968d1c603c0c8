"""What dropout draws in DP-SGD, from each client's own stream.

It must be as secret as the noise: who knows it sees that all that is drawn after an example changes if
that one is left out, and with it more of a sum than the clipping norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from flsimulation.privacy.draws import Draws, fill_words
from flsimulation.training.stacked.compiler.draws import Draw

_WORDS = 2**32


def is_dropout(draws: Sequence[Draw]) -> bool:
    """Whether a step draws zeros and ones with fixed probabilities only."""
    return all(draw.fill == "bernoulli_" for draw in draws)


def dropped(
    draws: Sequence[Draw],
    generators: Sequence[Draws],
    sizes: Sequence[int],
    most: int,
    device: torch.device,
) -> list[Tensor]:
    """What the examples of a step draw, [clients, examples, ...] for each draw.

    Parameters
    ----------
    draws : sequence of Draw
        Of the step of one example.
    generators : sequence of Draws
        The clients' own.
    sizes : sequence of int
        Examples of each client. Those that fill up a sample draw nothing, so that a client's draws do not
        depend on others; theirs are zeros.
    most : int
        Examples of a client with those that fill it up.
    device : device
        Where the result shall be.
    """
    if not draws:
        return []
    each = [math.prod(draw.shape) for draw in draws]
    words = np.empty((len(sizes), most, sum(each)), np.uint32)
    for own, size, rows in zip(generators, sizes, words, strict=True):
        fill_words(own, rows[:size])
    found = []
    for draw, last, count in zip(draws, np.cumsum(each), each, strict=True):
        ones = words[:, :, last - count : last] < round(float(draw.args[0]) * _WORDS)
        for size, rows in zip(sizes, ones, strict=True):
            rows[size:] = False
        numbers = torch.from_numpy(ones).to(device, draw.dtype)
        found.append(numbers.view(len(sizes), most, *draw.shape))
    return found
