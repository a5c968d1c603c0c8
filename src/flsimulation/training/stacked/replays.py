"""A wave's steps by graphs: those that all of its clients take, in batches of one size."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from flsimulation.training.batches import rows_at
from flsimulation.training.stacked.compiler.draws import drawn
from flsimulation.training.stacked.compiler.given import Given
from flsimulation.training.stacked.descent import Descent
from flsimulation.training.stacked.graphs import Work
from flsimulation.training.stacked.inputs import WaveDraws
from flsimulation.training.stacked.plan import Plan
from flsimulation.training.stacked.stack import Stack, WaveTerms
from flsimulation.training.stacked.standing import Graphs, Inputs, Standing


class Replays:
    """Takes steps of a wave by graphs, after the first that its optimizer needs without one.

    Parameters
    ----------
    graphs : Graphs
        Of the trainer.
    stack : Stack
        Of the cohort.
    terms : WaveTerms
        Of the round.
    plan : Plan
        Of the wave's clients.
    tensors : lists of Tensor
        The clients' parameters and the buffers that a step changes, [clients, ...], and what no
        client changes. The lists get other tensors once a graph is used.
    descent : Descent, optional
        Where the programs do not take the steps themselves.
    draws : WaveDraws
        The clients'.
    """

    def __init__(
        self,
        graphs: Graphs,
        stack: Stack,
        terms: WaveTerms,
        plan: Plan,
        tensors: tuple[list[Tensor], list[Tensor], list[Tensor]],
        descent: Descent | None,
        draws: WaveDraws,
    ) -> None:
        self._graphs, self._stack, self._terms, self._plan = graphs, stack, terms, plan
        self._leaves, self._moving, self._shared = tensors
        self._descent, self._draws = descent, draws
        self._clients = len(plan.lasts)
        self._form = self._clients, terms.rates, terms.proximal_mu, descent and descent.form
        self._standing: Standing | None = None
        rare = plan.rare(stack.work, terms.waves)
        whole = {
            step: rows
            for step, rows in plan.whole().items()
            if (self._clients, rows.shape[1]) not in rare
        }
        self._rows = self._uploaded(whole)

    def take(self, step: int, facts: Sequence[Tensor]) -> Tensor | None:
        """Take a step if there is a graph of it; losses and logged values, [1 + logged, clients].

        Parameters
        ----------
        step : int
            Of the plan.
        facts : sequence of Tensor
            Numbers of the fit.
        """
        rows = self._rows.get(step)
        if rows is None or not self._has_begun():
            return None
        standing = self._standing or self._place()
        known = standing.graphs.get(rows.shape[1]) or self._recorded(standing, rows, facts)
        if known is None:
            self._rows.clear()
            return None
        inputs, graph = known
        self._fill(inputs, rows, facts)
        self._draws.into(inputs.draws, rows.shape[1])
        if self._descent is not None:
            self._descent.load_rates()
        graph()
        return inputs.values

    def _has_begun(self) -> bool:
        """Whether the optimizer, if there is one, has all that it keeps."""
        descent, known = self._descent, self._graphs.known(self._form)
        if descent is None or descent.has_begun:
            return True
        return known is not None and descent.begin(known.zeroed)

    def _uploaded(self, whole: dict[int, np.ndarray]) -> dict[int, Tensor]:
        """Rows on the device by step, of sizes that are worth a graph; one copy for each size."""
        found: dict[int, Tensor] = {}
        for size in {rows.shape[1] for rows in whole.values()}:
            steps = [step for step, rows in whole.items() if rows.shape[1] == size]
            if self._stack.programs.failure(size) is not None:
                continue
            if self._graphs.is_worth(self._form, size, len(steps)):
                table = torch.from_numpy(np.stack([whole[step] for step in steps]))
                found |= dict(zip(steps, table.to(self._stack.device), strict=True))
        return found

    def _place(self) -> Standing:
        """Have all that graphs work on where it was when they were recorded."""
        self._standing = standing = self._graphs.standing(self._form)
        placed = standing.placed
        if self._descent is not None:
            self._leaves[:] = self._descent.place(placed)
        else:
            self._leaves[:] = placed("leaves", self._leaves)
        self._moving[:] = placed("moving", self._moving)
        # those of the first wave may be the module's own
        self._shared[:] = placed("shared", [tensor.clone() for tensor in self._shared])
        return standing

    def _recorded(
        self, standing: Standing, rows: Tensor, facts: Sequence[Tensor]
    ) -> tuple[Inputs, Work] | None:
        """A graph of a step of this size, after a trial with random numbers of no client."""
        programs, examples = self._stack.programs, rows.shape[1]
        draws = programs.draws(examples)
        inputs = Inputs.made(rows.reshape(-1), len(facts), draws, len(programs.how), self._clients)
        self._fill(inputs, rows, facts)
        device = rows.device
        generators = [torch.Generator(device).manual_seed(i) for i in range(self._clients)]
        for own, numbers in zip(inputs.draws, drawn(draws, generators, device), strict=True):
            own.copy_(numbers)
        state = [*self._leaves, *self._moving, inputs.values]
        if self._descent is not None:
            state += self._descent.state
            self._descent.load_rates()
        graph = None
        while graph is None and self._graphs.why_not is None:
            graph = self._graphs.record(self._work(inputs, examples), state, self._clients)
        if graph is None:
            return None
        standing.add(examples, inputs, graph)
        return inputs, graph

    def _fill(self, inputs: Inputs, rows: Tensor, facts: Sequence[Tensor]) -> None:
        inputs.rows.copy_(rows.reshape(-1))
        for own, fact in zip(inputs.facts, facts, strict=True):
            own.copy_(fact)

    def _work(self, inputs: Inputs, examples: int) -> Work:
        """A step of all clients that reads and writes at fixed places only."""
        stack, descent, clients = self._stack, self._descent, self._clients
        rates, apart = self._terms.rates, self._graphs.apart
        program = (
            functools.partial(apart, rates=rates)
            if apart
            else stack.programs.program(clients, examples, rates)
        )

        def work() -> None:
            x, y = rows_at((stack.x, stack.y), inputs.rows, (clients, examples))
            tensors = self._leaves, self._moving, self._shared, x, y
            given = Given(*tensors, inputs.facts, inputs.draws)
            taken = program(given)
            for tensor, moved in zip(self._moving, taken.moved, strict=True):
                tensor.copy_(moved)
            values = [value.double() for value in (taken.losses, *taken.logged)]
            inputs.values.copy_(torch.stack(values))
            if descent is not None:
                descent.add(taken.gradients, 0, clients)
                descent.move()

        return work


def usable(stack: Stack, descent: Descent | None) -> Graphs | None:
    """The trainer's graphs; None on a CPU, and where the first reason not to use them is told."""
    graphs = stack.graphs
    if graphs is None or graphs.why_not is not None:
        return None
    reason = descent.why_not_recorded if descent is not None else None
    if stack.accumulate > 1:
        reason = "gradients of several batches are added up"
    if stack.scaled:
        reason = "with train.precision = '16-mixed' each client may leave out a step of its own"
    if stack.transforms:
        reason = "a transform changes batches on the CPU"
    elif any(part.device.type != stack.device.type for part in stack.data):
        reason = "the data set is not in its memory"
    if reason is not None:
        graphs.stop(reason)
        return None
    return graphs
