"""Normal numbers of PyTorch, three times as fast as NumPy's, from all that a NumPy generator knows.

``torch.Generator.manual_seed`` keeps 32 bits of a seed: whoever sees a noisy gradient could try all of them.
So the whole state of PyTorch's Mersenne Twister is drawn instead. Where noise has to hide something, none of both is
used (`draws`).
"""

from __future__ import annotations

import functools
from typing import Any, cast

import numpy as np
import torch

from flsimulation.errors import RunError
from flsimulation.privacy.draws import Draws, SecretDraws

_WORDS = 624  # of 32 bits, the state of a Mersenne Twister
_BEGIN = 24  # bytes of the seed and the position before them, which are those of a new generator
_TRIED, _LIMIT = 4, 2**20  # numbers, and what they are below: of one word each


def fill_normal(into: torch.Tensor, deviation: float, own: Draws) -> None:
    """Fill a vector with noise.

    Parameters
    ----------
    into : Tensor
        On the CPU, [n].
    deviation : float
        Standard deviation of each number.
    own : Draws
        It goes on. Of a generator of NumPy the numbers are PyTorch's.
    """
    if isinstance(own, SecretDraws):
        into.copy_(torch.from_numpy(own.standard_normal(len(into)))).mul_(deviation)
    else:
        into.normal_(0.0, deviation, generator=normals(cast(np.random.Generator, own)))


def normals(own: np.random.Generator) -> torch.Generator:
    """A CPU's generator whose state is drawn from another one.

    Parameters
    ----------
    own : Generator
        It goes on.

    Raises
    ------
    RunError
        If this version of PyTorch has its state in another form.
    """
    if not _has_form():
        raise RunError(
            f"torch {torch.__version__} has the state of its random numbers in a form that is not known, so that "
            f"noise cannot be drawn; install the version in constraints.txt"
        )
    return _with_state(own.integers(2**32, size=_WORDS, dtype=np.uint64))


def _with_state(words: np.ndarray) -> torch.Generator:
    found = torch.Generator().manual_seed(0)
    state = found.get_state()
    state[_BEGIN : _BEGIN + words.nbytes] = torch.from_numpy(words.view(np.uint8))
    found.set_state(state)
    return found


@functools.cache
def _has_form() -> bool:
    """Whether a generator with a state returns what NumPy's Mersenne Twister does."""
    words = np.random.default_rng(0).integers(2**32, size=_WORDS, dtype=np.uint64)
    theirs = np.random.MT19937()
    key: Any = {"key": words.astype(np.uint32), "pos": _WORDS}
    theirs.state = {"bit_generator": "MT19937", "state": key}
    try:
        own = _with_state(words)
    except RuntimeError:  # of another length
        return False
    found = torch.empty(_TRIED, dtype=torch.int64).random_(0, _LIMIT, generator=own)
    return found.tolist() == [int(word) % _LIMIT for word in theirs.random_raw(_TRIED)]
