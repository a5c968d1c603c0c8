"""Normal numbers from the keystream of AES: faster than PyTorch's and NumPy's.

A key is drawn from what a client's noise comes from (`draws`): ``torch.Generator.manual_seed`` keeps 32 bits of a
seed, so that whoever sees a noisy gradient could try all of them.

Source: Box and Muller, "A Note on the Generation of Random Normal Deviates" (1958): of two uniform numbers
one is the angle of a point, the other its distance from the origin; both its coordinates are normal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from flsimulation.privacy.draws import Draws, fill_words

_LARGEST = 2.0**31  # of a word with a sign
_LEAST = 2.0**-64  # of a squared uniform number: half of the smallest that a word makes, but none


class Normals:
    """Adds normal numbers to tensors.

    Parameters
    ----------
    sizes : sequence of int
        Numbers of each tensor.
    device : device
        Where the tensors are.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        pairs, on_cpu = -(-sum(sizes) // 2), device.type == "cpu"
        self._stream = np.empty(2 * pairs, np.int32)
        words = torch.from_numpy(self._stream)
        self._words = words[:pairs], words[pairs:]
        self._made = torch.empty(3, pairs)  # distances, and the coordinates of points at distance 1
        self._there = self._made if on_cpu else self._made.to(device)
        self._least = torch.tensor(_LEAST)
        self._where: list[tuple[int, slice]] = []
        self._parts: list[tuple[Tensor, Tensor]] = []
        start = 0
        for place, size in enumerate(sizes):
            for coordinate in (0, 1):  # the first ones of all points, then the second ones
                skipped = coordinate * pairs
                first, last = max(start, skipped), min(start + size, skipped + pairs)
                if first < last:
                    self._where.append((place, slice(first - start, last - start)))
                    points = self._there[:, first - skipped : last - skipped]
                    self._parts.append((points[1 + coordinate], points[0]))
            start += size

    def add(
        self,
        into: Sequence[Tensor],
        generators: Sequence[Draws],
        deviations: Sequence[float],
    ) -> None:
        """Add each client's numbers, one client after the other, so that they stay in a core's cache.

        Parameters
        ----------
        into : sequence of Tensor
            [clients, size] each.
        generators : sequence of Draws
            The clients' own: a key is drawn from each.
        deviations : sequence of float
            Of the clients' numbers.
        """
        rows = zip(*(into[place][:, own].unbind() for place, own in self._where), strict=True)
        for generator, deviation, parts in zip(generators, deviations, rows, strict=True):
            self._draw(generator)
            for part, (coordinates, distances) in zip(parts, self._parts, strict=True):
                part.addcmul_(coordinates, distances, value=deviation)

    def _draw(self, own: Draws) -> None:
        fill_words(own, self._stream)
        distances, cosines, sines = self._made.unbind()
        distances.copy_(self._words[0])
        torch.addcmul(self._least, distances, distances, value=_LARGEST**-2, out=distances)
        distances.log_().neg_().sqrt_()
        sines.copy_(self._words[1]).mul_(math.pi / _LARGEST)
        torch.cos(sines, out=cosines)
        sines.sin_()
        if self._there is not self._made:
            self._there.copy_(self._made)
