"""``train.precision = "16-mixed"`` for clients that train together: each has a scale of its loss of its own.

Gradients are taken of scaled losses, so that float16 holds small ones, and divided by the scale again. A client
whose gradients overflow leaves its step out, and its scale is halved; its neighbours take theirs. From then on the
clients' optimizers have taken different numbers of steps, which Adam's corrections go by. So clients
that left out different steps have an optimizer's state of their own, and step one group after the other.
Source: ``torch.amp.GradScaler``, as Lightning's ``MixedPrecision`` calls it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_FIRST, _GROWTH, _BACKOFF, _INTERVAL = 2.0**16, 2.0, 0.5, 2_000  # GradScaler's defaults

Kept: TypeAlias = list[dict[str, Any]]
"""What an optimizer keeps, by parameter."""


class Scales:
    """The scales of a wave's losses, which adapt to each client's gradients.

    Parameters
    ----------
    clients : int
        How many.
    accumulate : int
        Batches for each step of the optimizer, by which a loss is divided before it is scaled.
    device : device
        Of the gradients.
    """

    def __init__(self, clients: int, accumulate: int, device: torch.device) -> None:
        self._accumulate = accumulate
        self.values = torch.full((clients,), _FIRST, device=device)
        """float32 [clients]."""
        self._taken = torch.zeros(clients, dtype=torch.int32, device=device)  # in a row

    def of(self, first: int, last: int) -> Tensor:
        """What losses of the clients ``first`` to ``last - 1`` are multiplied by."""
        return self.values[first:last] / self._accumulate

    def unscaled(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients, [clients, ...] each, without the scale."""
        share = self.values.double().reciprocal().float()
        return [
            None if g is None else g * share.to(g.dtype).view(-1, *[1] * (g.ndim - 1))
            for g in gradients
        ]

    def update(self, finite: Tensor) -> None:
        """Halve the scales of clients that left out a step, and double those that took many in a row.

        Parameters
        ----------
        finite : Tensor
            Whether each client took its step, bool [clients].
        """
        taken = torch.where(finite, self._taken + 1, 0)
        grows = taken == _INTERVAL
        grown = self.values * _GROWTH
        grown = torch.where(grows & grown.isfinite(), grown, self.values)
        self.values = torch.where(finite, grown, self.values * _BACKOFF)
        self._taken = torch.where(grows, 0, taken)


def finite_clients(gradients: Sequence[Tensor | None]) -> Tensor:
    """Whether all of a client's gradients, [clients, ...] each, are finite; bool [clients]."""
    own = [g.reshape(len(g), -1).isfinite().all(1) for g in gradients if g is not None]
    return torch.stack(own).all(0)


class _Group(NamedTuple):
    """Clients whose optimizers have taken as many steps."""

    rows: list[int]
    kept: Kept

    def of(self, places: list[int]) -> _Group:
        """Some of the clients, by their places in the group; nothing is shared with it."""
        if places == [*range(len(self.rows))]:
            return self
        kept = [{n: _rows(value, places) for n, value in own.items()} for own in self.kept]
        return _Group([self.rows[place] for place in places], kept)

    def split(self, finite: Sequence[bool]) -> tuple[_Group, _Group]:
        """Those who take a step, and those who do not."""
        places = range(len(self.rows))
        take, leave = (
            [p for p in places if finite[self.rows[p]] is which] for which in (True, False)
        )
        return self.of(take), self.of(leave)

    @property
    def key(self) -> str:
        """Equal for groups whose clients' optimizers have come equally far."""
        return repr([[(n, _number(v)) for n, v in sorted(own.items())] for own in self.kept])

    def with_(self, other: _Group) -> _Group:
        """Both groups, which have equal keys, in the order of the clients."""
        pairs = zip(self.kept, other.kept, strict=True)
        kept = [
            {
                n: torch.cat([value, theirs[n]]) if _number(value) is None else value
                for n, value in own.items()
            }
            for own, theirs in pairs
        ]
        whole = _Group([*self.rows, *other.rows], kept)
        return whole.of(sorted(range(len(whole.rows)), key=whole.rows.__getitem__))


class Groups:
    """An optimizer's steps for clients of which some leave some out.

    Parameters
    ----------
    optimizer : Optimizer
        Over stacked parameters.
    leaves : sequence of Parameter
        The stacked parameters, [clients, ...] each.
    """

    def __init__(self, optimizer: Optimizer, leaves: Sequence[nn.Parameter]) -> None:
        self._optimizer, self._leaves = optimizer, leaves
        rows = [*range(len(leaves[0]))]
        self._groups = [_Group(rows, [dict(optimizer.state.get(leaf, {})) for leaf in leaves])]

    def step(self, gradients: Sequence[Tensor | None], finite: Sequence[bool]) -> None:
        """Take a step of the clients whose gradients are finite; the others stay as they are."""
        found = [group.split(finite) for group in self._groups]
        changes = any(take.rows and leave.rows for take, leave in found)
        groups = [self._stepped(take, gradients) for take, _ in found if take.rows]
        groups += [leave for _, leave in found if leave.rows]
        self._groups = _merged(groups) if changes or len(groups) > 1 else groups

    def _stepped(self, group: _Group, gradients: Sequence[Tensor | None]) -> _Group:
        wholes = [leaf.data for leaf in self._leaves]
        every = len(group.rows) == len(wholes[0])
        for leaf, gradient in zip(self._leaves, gradients, strict=True):
            if not every:
                leaf.data = leaf.data[group.rows]
            leaf.grad = gradient if every or gradient is None else gradient[group.rows]
        state = zip(self._leaves, group.kept, strict=True)
        self._optimizer.state = defaultdict(dict, {leaf: own for leaf, own in state if own})
        self._optimizer.step()
        for leaf, whole in zip(self._leaves, wholes, strict=True):
            leaf.grad = None
            if not every:
                whole[group.rows] = leaf.data
                leaf.data = whole
        return _Group(group.rows, [self._optimizer.state.get(leaf, {}) for leaf in self._leaves])


def _merged(groups: Sequence[_Group]) -> list[_Group]:
    """The groups, those of equal keys as one."""
    found = dict[str, _Group]()
    for group in groups:
        key = group.key
        found[key] = found[key].with_(group) if key in found else group
    return [*found.values()]


def _rows(value: Any, places: list[int]) -> Any:
    """Rows of what is kept for each client; a copy of what is one number for all."""
    if not isinstance(value, Tensor):
        return value
    return value[places] if value.ndim else value.clone()


def _number(value: Any) -> Any:
    """What is one number for all clients; None for what each has."""
    if not isinstance(value, Tensor):
        return repr(value)
    return None if value.ndim else float(value)
