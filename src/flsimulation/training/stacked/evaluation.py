"""One model's scores on many clients' held-out parts: those of one size take the step together."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flsimulation import seeds
from flsimulation.data.leaves import Leaves, each, first, one, stacked
from flsimulation.errors import ClientError
from flsimulation.training.batches import Batches, gathered
from flsimulation.training.direct import DirectEvaluator, EvaluationStep
from flsimulation.training.jobs import State
from flsimulation.training.measured import Arrays
from flsimulation.training.memory import free_unused, is_out_of_memory
from flsimulation.training.preparation import PLAIN, Preparation
from flsimulation.training.products import in_tf32
from flsimulation.training.scores import scores
from flsimulation.training.stacked.compiler.comparison import exactly, is_close
from flsimulation.training.stacked.compiler.passes import epsilon
from flsimulation.training.stacked.compiler.step import NotStackable
from flsimulation.training.stacked.effects import Draws, random_states, unless_another_drew

_PASS_BYTES = 40 * 2**20  # written by a pass's operations: more does not stay in the caches
_PASS_EXAMPLES = 2000
_BATCHES = 3  # largest batches that the examples of a pass may fill
_WORTH = 3  # clients; fewer are as fast one by one
_COMPARED = 4  # clients of a size's first pass, which also take the step alone


class StackedEvaluator:
    """Evaluates many clients in one step, if the scores equal those of each client by itself.

    Parameters
    ----------
    direct : DirectEvaluator
        Has the model and its step.
    x, y : Tensor or dict of Tensor
        Inputs and targets of the data set, [n, ...].
    prepared : Preparation
        How batches are prepared for the module.
    """

    def __init__(
        self, direct: DirectEvaluator, x: Leaves, y: Leaves, prepared: Preparation = PLAIN
    ) -> None:
        self._direct, self._data, self._prepared = direct, (x, y), prepared
        self._can, self._round = True, 0
        self._most: dict[int, int] = {}  # clients of a pass, by the examples of each

    def evaluate(
        self,
        state: State,
        clients: Sequence[Batches],
        alone: Callable[[int], dict[str, float] | ClientError],
        expires: float | None = None,
        *,
        round: int = 0,
    ) -> Iterator[dict[int, dict[str, float] | ClientError]]:
        """Score the model; yields the results as they come.

        Parameters
        ----------
        state : dict of Tensor
            The model; not changed.
        clients : sequence of Batches
            The clients' held-out parts.
        alone : callable
            Scores the client at a place, where that cannot be done together with others.
        expires : float, optional
            Unix time in seconds after which all are left to ``alone``.
        round : int
            Number of the round.

        Yields
        ------
        dict
            By place in ``clients``.
        """
        self._round = round
        sizes: dict[int, list[int]] = {}
        for place, client in enumerate(clients):
            sizes.setdefault(client.examples if len(client) == 1 else 0, []).append(place)
        for size, places in sorted(sizes.items()):
            while places:
                most = self._most.get(size, _COMPARED) if size and self._can else 1
                if size:  # a pass takes little more memory than one batch may
                    most = max(1, min(most, _BATCHES * clients[places[0]].parts[1] // size))
                some, places = places[:most], places[most:]
                if len(some) < _WORTH or (
                    expires is not None and self._direct.clock.time() > expires
                ):
                    yield from ({place: alone(place)} for place in some)
                else:
                    yield self._together(state, clients, some, alone)

    def _together(
        self,
        state: State,
        clients: Sequence[Batches],
        places: list[int],
        alone: Callable[[int], dict[str, float] | ClientError],
    ) -> dict[int, dict[str, float] | ClientError]:
        some = [clients[place] for place in places]
        try:
            return dict(zip(places, self._scores(state, some), strict=True))
        except Exception as error:  # the step may do anything that it does not do for one client
            too_large = is_out_of_memory(error)
        if too_large:  # for so many; one that was not compared yet has too few left to be worth it
            free_unused()
            self._most[some[0].examples] = max(1, len(some) // 2)
        found = {place: alone(place) for place in places}
        # Either the examples of one of them made it fail, or it always will.
        self._can = too_large or any(isinstance(s, ClientError) for s in found.values())
        return found

    def _scores(self, state: State, clients: Sequence[Batches]) -> list[dict[str, float]]:
        """Scores of clients that have one batch each, of one size."""
        step = self._taken(state, *self._inputs(clients))
        if not step.states:
            values = torch.stack(step.values, 1).tolist()
            return [scores(self._direct.scores([step._replace(values=own)])) for own in values]
        values = torch.stack(step.values, 1).tolist() if step.values else [[] for _ in clients]
        arrays = {key: tensor.cpu().numpy() for key, tensor in step.states.items()}
        return [
            self._direct.restored(step._replace(values=own), _of_client(arrays, place))
            for place, own in enumerate(values)
        ]

    def _inputs(self, clients: Sequence[Batches]) -> list[Leaves]:
        """Inputs and labels of all clients, [clients, batch, ...]."""
        rows = np.concatenate([client.index_batches() for client in clients])
        if self._prepared.evaluation is None:
            return gathered(self._data, rows, self._direct.device)
        pairs = [client.taken(own) for client, own in zip(clients, rows, strict=True)]
        whole = (stacked([pair[part] for pair in pairs]) for part in (0, 1))
        return [each(lambda tensor: tensor.to(self._direct.device), part) for part in whole]

    @unless_another_drew
    def _taken(self, state: State, x: Leaves, y: Leaves) -> EvaluationStep:
        """The step for x [clients, batch, ...] and y; each of its values is [clients]."""
        steps = list[EvaluationStep]()

        def step(x: Leaves, y: Leaves) -> list[Tensor]:
            steps.append(self._direct.first_step(self._prepared.form.batch(x, y), first(x)))
            return [*steps[-1].values, *steps[-1].states.values()]

        size = first(x).shape[1]
        known = size in self._most
        self._direct.load(state, self._round)
        with seeds.global_streams(0), torch.inference_mode(), in_tf32(self._direct.tf32):
            streams = random_states()
            values, most = (vmap(step)(x, y), 0) if known else _compared(step, x, y)
            if random_states() != streams or not self._direct.is_new:
                raise Draws("draws random numbers or changes the module")
        if any(_names(own) != _names(steps[0]) for own in steps):
            raise NotStackable("logs something else for many clients at once")
        if not known:
            self._most[size] = most
        numbers = len(steps[0].how)
        states = dict(zip(steps[0].states, values[numbers:], strict=True))
        return steps[0]._replace(values=values[:numbers], states=states)


def _names(step: EvaluationStep) -> tuple[Any, ...]:
    """All that is the same for clients that take the step together."""
    return step.how, step.sizes, [*step.states]


def _of_client(arrays: Mapping[tuple[str, str], np.ndarray], place: int) -> dict[str, Arrays]:
    """One client's states of each score, of arrays [clients, ...]."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for (score, name), array in arrays.items():
        found.setdefault(score, {})[name] = array[place, ...]  # a view, also of a number
    return dict(found)


def _compared(step: Callable[..., list[Tensor]], x: Leaves, y: Leaves) -> tuple[list[Tensor], int]:
    """The step for clients of a size not seen before, and how many of them make a pass."""
    with exactly(), warnings.catch_warnings():
        warnings.filterwarnings("error", "There is a performance drop")  # vmap would loop
        values: list[Tensor] = vmap(step)(x, y)
    with exactly(), _Written() as written:  # type: ignore[no-untyped-call]
        clients, size = first(x).shape[:2]
        singles = [step(one(x, place), one(y, place)) for place in range(clients)]
    alone = [torch.stack(each) for each in zip(*singles, strict=True)]
    pairs = zip(values, alone, strict=True)
    if not all(is_close(own, other, written.eps, 1.0) for own, other in pairs):
        raise NotStackable("does something else for many clients at once")
    most = min(_PASS_BYTES * clients // max(1, written.bytes), _PASS_EXAMPLES // size)
    return values, max(1, most)


class _Written(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that operations write inside the block, and notes their coarsest type."""

    bytes = 0
    eps = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not any(given.alias_info for given in func._schema.returns):
            found = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.nbytes for tensor in found)
            self.eps = max(self.eps, epsilon(found))
        return result
