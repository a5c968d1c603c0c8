"""One wave of a cohort: clients that take their steps together, as one stacked program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from flsimulation.errors import ClientError
from flsimulation.training.batches import Batches
from flsimulation.training.failures import (
    loss_not_finite,
    no_step,
    too_late,
    weights_not_finite,
)
from flsimulation.training.jobs import State, Trained
from flsimulation.training.logged import reduced
from flsimulation.training.scores import scores
from flsimulation.training.stacked.compiler.given import Given, Step
from flsimulation.training.stacked.descent import Descent
from flsimulation.training.stacked.inputs import WaveDraws, WaveInputs
from flsimulation.training.stacked.plan import Plan
from flsimulation.training.stacked.replays import Replays, usable
from flsimulation.training.stacked.rows import diverged_clients, mean_of_rows
from flsimulation.training.stacked.stack import Stack, WaveTerms


@dataclass(frozen=True)
class Wave:
    """Clients that were trained together."""

    clients: tuple[int, ...]
    """Their places among the jobs."""
    results: list[Trained | ClientError]
    """One for each client, without its model."""
    weights: State
    """Their models' parameters and buffers, [clients, ...] where they are the clients' own; on the
    device that trained them."""
    own: frozenset[str]
    """Names of the weights that are the clients' own."""
    examples: np.ndarray
    """Examples of each client, int64 [clients]."""

    def state(self, place: int) -> State:
        """The model of the client at this place of the wave; views, not copies."""
        return {
            name: value[place] if name in self.own else value
            for name, value in self.weights.items()
        }

    def first(self, count: int) -> Wave:
        """The wave with only the first of its clients."""
        if count == len(self.clients):
            return self
        weights = {
            name: value[:count] if name in self.own else value
            for name, value in self.weights.items()
        }
        results, examples = self.results[:count], self.examples[:count]
        return Wave(self.clients[:count], results, weights, self.own, examples)

    def averaged(self) -> Wave:
        """The wave with its sound clients' mean model, weighted by examples, in place of all."""
        share = np.array(
            [
                0 if isinstance(r, ClientError) else n
                for r, n in zip(self.results, self.examples, strict=True)
            ]
        )
        if not share.any():
            return Wave(self.clients, self.results, {}, frozenset(), self.examples)
        sound = torch.from_numpy(np.flatnonzero(share))
        mean = torch.from_numpy(share[share > 0] / share.sum())
        whole = len(sound) == len(share)
        weights = {}
        for name, value in self.weights.items():
            if name in self.own:
                rows = (value if whole else value[sound.to(value.device)]).reshape(len(sound), -1)
                value = mean_of_rows(rows, mean).view(value.shape[1:])
            weights[name] = value
        return Wave(self.clients, self.results, weights, frozenset(), self.examples)

    def on_cpu(self) -> Wave:
        """The wave with its weights in the CPU's memory; views of them if they are there."""
        weights = {name: value.cpu() for name, value in self.weights.items()}
        return replace(self, weights=weights)


class WaveFit:
    """One wave's training, from the global model to the clients' own.

    Parameters
    ----------
    stack : Stack
        Of the cohort.
    terms : WaveTerms
        Of the round.
    clients : list of Batches
        The wave's.
    seeds : sequence of callables
        Each returns the seed of a client's draws; called only if its step draws.
    """

    def __init__(
        self,
        stack: Stack,
        terms: WaveTerms,
        clients: list[Batches],
        seeds: Sequence[Callable[[], int]],
    ) -> None:
        self._stack, self._terms, self._clients = stack, terms, clients
        self._programs = stack.programs
        self._plan = Plan(clients, stack.epochs, stack.accumulate)
        self._rare = self._plan.rare(stack.work, terms.waves)
        count = len(clients)
        names = stack.programs.names
        self._origin, moving, self._shared = (
            [terms.start.get(name, stack.tensors[name]) for name in own]
            for own in (names.trained, names.moving, names.shared)
        )
        self._leaves, self._moving = (
            [
                t.expand(count, *t.shape).clone(memory_format=torch.contiguous_format)
                for t in tensors
            ]
            for tensors in (self._origin, moving)
        )
        self._before = [*self._origin, *moving]
        self._values = torch.zeros(
            *(1 + len(self._programs.how), self._plan.steps, count),
            dtype=torch.float64,
            device=stack.device,
        )  # losses, then what was logged
        self._ended: dict[int, list[Tensor]] = {}  # weights of clients that were done early
        self._late = np.zeros(count, bool)
        self._failed: dict[int, ClientError] = {}
        self._inputs = WaveInputs((stack.x, stack.y), stack.like, clients, stack.device)
        self._draws = WaveDraws(stack.programs, seeds, stack.device)
        self._descent: Descent | None = None
        self._replays: Replays | None = None

    def run(self, places: tuple[int, ...]) -> Wave:
        """Train the wave's clients, which have these places in their cohort."""
        began = self._stack.clock.monotonic()
        with torch.no_grad():
            if self._terms.rates is None:
                parts = self._stack, self._terms, self._plan, self._leaves, self._origin
                self._descent = Descent(*parts)
                self._leaves = [leaf.detach() for leaf in self._descent.leaves]
            if (graphs := usable(self._stack, self._descent)) is not None:
                tensors = self._leaves, self._moving, self._shared
                whole = graphs, self._stack, self._terms, self._plan
                self._replays = Replays(*whole, tensors, self._descent, self._draws)
            self._take_steps()
            for place, rows in self._ended.items():
                for leaf, row in zip(self._leaves, rows, strict=True):
                    leaf[place] = row
            names = self._programs.names
            own = dict(
                zip((*names.trained, *names.moving), (*self._leaves, *self._moving), strict=True)
            )
            stands = {name: self._stack.aliases.get(name, name) for name in self._terms.start}
            weights = {
                name: own.get(stands[name], value).detach().to(self._stack.kinds[name])
                for name, value in self._terms.start.items()
            }
            self._values = self._values.cpu()  # a GPU's work is done here
            seconds = (self._stack.clock.monotonic() - began) / len(places)
            results = self._results(own, seconds)
        mine = frozenset(name for name in weights if stands[name] in own)
        examples = np.array([client.examples for client in self._clients])
        return Wave(places, results, weights, mine, examples)

    def _take_steps(self) -> None:
        plan, expires = self._plan, self._terms.expires
        for step in range(plan.steps):
            if expires is not None and self._stack.clock.time() > expires:
                self._late = plan.lasts > step
                return
            facts = self._facts(step)
            if self._replays is not None and (found := self._replays.take(step, facts)) is not None:
                self._values[:, step] = found
            else:
                self._launch(step, facts)
            if self._descent is not None and plan.moves(step):
                self._descent.schedule(step)
                for place in plan.ending(step):  # the others' steps move it too
                    self._ended[place] = [leaf[place].clone() for leaf in self._leaves]

    def _launch(self, step: int, facts: list[Tensor]) -> None:
        """Take a step call by call."""
        for first, last, rows in self._plan.runs(step):
            if (text := self._programs.failure(rows.shape[1])) is not None:
                self._failed |= {p: ClientError("error", text) for p in range(first, last)}
                continue
            taken = self._take_step(first, last, rows, facts)
            self._values[0, step, first:last] = taken.losses
            for index, value in enumerate(taken.logged, 1):
                self._values[index, step, first:last] = value
            if self._descent is not None:
                self._descent.add(taken.gradients, first, last)
        if self._descent is not None and self._plan.moves(step):
            self._descent.load_rates()
            self._descent.move()

    def _facts(self, step: int) -> list[Tensor]:
        """Numbers of the fit that a step computes with."""
        if not (names := self._programs.names.facts):
            return []
        known = {**self._plan.facts(step), "federated_round": self._terms.round}
        return [torch.tensor(known[name], device=self._stack.device) for name in names]

    def _take_step(self, first: int, last: int, rows: np.ndarray, facts: list[Tensor]) -> Step:
        """Losses and gradients of neighbouring clients; without an optimizer also their step."""
        x, y = self._inputs.of(first, rows)
        whole = last - first == len(self._clients)
        trained, moving = (
            own if whole else [tensor[first:last] for tensor in own]
            for own in (self._leaves, self._moving)
        )
        draws = self._draws.of(first, last, rows.shape[1])
        size, rates = (last - first, rows.shape[1]), self._terms.rates
        rare = size in self._rare
        program = (
            self._programs.by_autograd(rates) if rare else self._programs.program(*size, rates)
        )
        scales = [] if self._descent is None else self._descent.scales(first, last)
        taken = program(Given(trained, moving, self._shared, x, y, facts, draws, scales))
        for tensor, moved in zip(moving, taken.moved, strict=True):
            tensor.copy_(moved)
        return taken

    def _results(self, own: State, seconds: float) -> list[Trained | ClientError]:
        values, weights = self._values.numpy(), self._plan.last_epoch
        taken = np.where(weights > 0, values[0], 0)  # others may not be finite
        losses = (taken * weights).sum(0) / np.maximum(weights.sum(0), 1)
        unsound = diverged_clients(own, self._before)
        found: list[Trained | ClientError] = []
        for place in range(len(self._clients)):
            if self._late[place]:
                found.append(too_late())
            elif (failed := self._inputs.failed.get(place) or self._failed.get(place)) is not None:
                found.append(failed)
            elif self._plan.lasts[place] == 0:
                found.append(no_step())
            elif not np.isfinite(losses[place]):
                found.append(loss_not_finite(losses[place]))
            elif (name := unsound.get(place)) is not None:
                found.append(weights_not_finite(name))
            else:
                found.append(self._trained(place, float(losses[place]), seconds))
        return found

    def _trained(self, place: int, loss: float, seconds: float) -> Trained:
        weights = self._plan.last_epoch[:, place]
        batches = np.flatnonzero(weights)
        values = self._values.numpy()[1:, batches, place].T
        logged = reduced(self._programs.how, values, weights[batches])
        return Trained(scores(logged, {"loss": loss}), int(self._plan.taken[place]), seconds, {})
