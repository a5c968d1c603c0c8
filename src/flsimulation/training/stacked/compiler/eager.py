"""A module's step by autograd: for many clients under vmap, and for each of them alone."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from flsimulation import seeds
from flsimulation.data.leaves import Leaves, each, first, one
from flsimulation.errors import describe_error, place_of
from flsimulation.training.form import PAIR, Form
from flsimulation.training.logged import CannotTake, Log, Logged
from flsimulation.training.memory import is_out_of_memory
from flsimulation.training.stacked.compiler.comparison import exactly
from flsimulation.training.stacked.compiler.draws import (
    Draw,
    Recording,
    Served,
    drawn,
    only_drew,
)
from flsimulation.training.stacked.compiler.facts import FIRST, TYPICAL, Facts, NeedsValue
from flsimulation.training.stacked.compiler.given import Given, Names, Step
from flsimulation.training.stacked.compiler.step import (
    NotStackable,
    StepFails,
    alone_step,
    changes,
    facts_of,
    loss_of,
    named_tensors,
    stacked_step,
    tensors_of,
    watched,
)
from flsimulation.training.stacked.compiler.trace import refusal
from flsimulation.training.stacked.effects import Draws, foreign_random_states, unless_another_drew

_LOOKED_AT = 11  # examples of a batch, by which is seen what a step changes
# Of losses for which ways of a step are compared: none overflows, and few gradients are too small.
_SCALE = 256.0
_SEED = 2_718_281_828  # which no step sets itself


class Observed(NamedTuple):
    """What one client's step does beside its results."""

    how: list[Logged]
    """How it logs."""
    draws: list[Draw]
    """What it draws, in this order."""
    changed: list[str]
    """Names of the tensors of the module that it changes."""


class EagerStep:
    """The step of a module that nothing has been made of yet.

    Parameters
    ----------
    module : LightningModule
        The model; copied.
    x, y : Tensor or dict of Tensor
        Examples of the data set, [n, ...]; n may be small.
    form : Form
        What the step receives.
    scaled : bool
        Whether losses are scaled before gradients are taken.

    Raises
    ------
    NotStackable
        If the step fails, or changes a parameter that it trains.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        x: Leaves,
        y: Leaves,
        form: Form = PAIR,
        *,
        names: Names | None = None,
        writes: bool = False,
        constants: Mapping[str, Any] = MappingProxyType({}),
        scaled: bool = False,
    ) -> None:
        self.constants, self._scaled, self.writes = constants, scaled, writes
        """Whether the step writes into tensors that it makes."""
        self.module = copy.deepcopy(module)
        self.data, self.form = (x, y), form
        self._observed: dict[int, Observed | StepFails] = {}
        self.names = names or self._found()

    def given(self, clients: int, examples: int, scales: Sequence[float] | None = None) -> Given:
        """What a step is taken from: the module's own tensors for all clients, real examples.

        With ``scales`` each client has the weights times a number of its own.
        """
        named = named_tensors(self.module)
        trained, moving = (
            [torch.stack([named[name].detach()] * clients) for name in names]
            for names in (self.names.trained, self.names.moving)
        )
        for tensor in trained:
            for own, scale in zip(tensor, scales or (), strict=scales is not None):
                own *= scale
        shared = [named[name].detach() for name in self.names.shared]
        x, y = self._batches(clients, examples)
        draws, device = self.observed(examples).draws, first(x).device
        generators = [torch.Generator(device).manual_seed(place) for place in range(clients)]
        facts = [torch.tensor(TYPICAL[name], device=device) for name in self.names.facts]
        factors = [torch.full((clients,), _SCALE, device=device)] if self._scaled else []
        numbers = drawn(draws, generators, device)
        return Given(trained, moving, shared, x, y, facts, numbers, factors)

    def stacked(self, given: Given) -> tuple[Step, list[Logged]]:
        """All clients' step by vmap, and how its values are logged. Raises `NotStackable`."""
        log = Log(training=True)
        with torch.enable_grad():
            trained = [tensor.detach().requires_grad_() for tensor in given.trained]
            module = self.watched(log)
            try:
                with Served(given.draws):
                    values = stacked_step(
                        *(module, self.names, given._replace(trained=trained), self.form),
                        writes=self.writes,
                    )
            except (Exception, SystemExit) as error:
                if is_out_of_memory(error):
                    raise
                raise refusal(error) from error
        return Step.taken(values, len(log.how), len(self.names.moving)), log.how

    def alone(self, given: Given) -> Step:
        """One client's step without vmap, as one of many; the client is the first of those given."""
        log = Log(training=True)
        module = self.watched(log)
        try:
            with Served([tensor[0] for tensor in given.draws]):
                values = alone_step(module, self.names, given, self.form)
        except (CannotTake, NotStackable) as reason:
            raise NotStackable(f"training_step {reason}") from None
        many = [None if v is None else v[None] for v in values]
        return Step.taken(many, len(log.how), len(self.names.moving))

    def observed(self, examples: int) -> Observed:
        """What a step of one client with so many examples does. Raises `NotStackable`."""
        if (known := self._observed.get(examples)) is None:
            try:
                known = self._observe(examples)
            except StepFails as failure:
                known = failure
            self._observed[examples] = known
        if isinstance(known, StepFails):
            raise known
        return known

    def watched(self, log: Log, facts: Mapping[str, Any] = TYPICAL) -> pl.LightningModule:
        """A copy of the module whose step logs to ``log`` and knows these numbers of a fit."""
        module = copy.deepcopy(self.module)
        for part in module.modules():
            if isinstance(part, nn.RNNBase):  # cuDNN's form of its weights, by their addresses
                vars(part)["flatten_parameters"] = _nothing
        return watched(module, log, Facts(facts, self.constants))

    def in_double(self) -> EagerStep:
        """The same step in float64."""
        x, y = (
            each(lambda t: t.double() if t.is_floating_point() else t, part) for part in self.data
        )
        module = copy.deepcopy(self.module).double()
        return EagerStep(
            *(module, x, y, self.form),
            names=self.names,
            writes=self.writes,
            constants=self.constants,
            scaled=self._scaled,
        )

    def _found(self) -> Names:
        parameters = dict(self.module.named_parameters())
        trained = [name for name, p in parameters.items() if p.requires_grad]
        moving = self.observed(min(_LOOKED_AT, len(first(self.data[0])))).changed
        for name in moving:
            if name in trained:
                raise NotStackable(f"training_step changes the parameter {name}")
        rest = named_tensors(self.module).keys() - {*trained, *moving}
        shared = [name for name in named_tensors(self.module) if name in rest]
        return Names(trained, moving, shared, self._facts_read())

    def _facts_read(self) -> list[str]:
        """Numbers of the fit that the step computes with."""
        x, y = self._batches(1, min(_LOOKED_AT, len(first(self.data[0]))))
        device = first(x).device
        values = {name: torch.tensor(value, device=device) for name, value in TYPICAL.items()}
        module = self.watched(Log(training=True), values)
        read = facts_of(module).read
        with seeds.global_streams(0):
            try:
                loss_of(module, one(x, 0), one(y, 0), self.form, [*named_tensors(module)])
            except (Exception, SystemExit) as error:
                raise _unlike_number(error, read) from error
        return [name for name in TYPICAL if name in read]

    def _batches(self, clients: int, examples: int) -> list[Leaves]:
        rows = torch.arange(clients * examples) % len(first(self.data[0]))

        def taken(tensor: Tensor) -> Tensor:
            return tensor[rows].view(clients, examples, *tensor.shape[1:])

        return [each(taken, part) for part in self.data]

    @unless_another_drew
    def _observe(self, examples: int) -> Observed:
        x, y = self._batches(1, examples)
        log = Log(training=True)
        module = self.watched(log, FIRST)
        before, recording = tensors_of(module), Recording()
        values = {name: tensor.detach().clone() for name, tensor in named_tensors(module).items()}
        with seeds.global_streams(_SEED), exactly(), torch.enable_grad():
            foreign = foreign_random_states()
            try:
                with recording:
                    loss_of(module, one(x, 0), one(y, 0), self.form, [*before])
            except (NotStackable, CannotTake, NeedsValue) as reason:
                raise refusal(reason) from None
            except (Exception, SystemExit) as error:
                if is_out_of_memory(error):
                    raise
                text = describe_error(error)
                fails = f"training_step fails for a batch of {examples} ({text})"
                raise StepFails(fails, text) from error
            if foreign_random_states() != foreign:
                raise Draws("training_step draws random numbers by Python's or NumPy's random")
            if any(draw.device != first(x).device for draw in recording.draws):
                raise NotStackable("training_step draws random numbers on another device")
            if not only_drew(recording.draws, _SEED, first(x).device):
                raise NotStackable("training_step sets the state of PyTorch's random numbers")
        changed = changes(before, tensors_of(module))
        after = named_tensors(module)  # PyTorch writes into some without saying so
        changed += [n for n, v in values.items() if n not in changed and _differ(v, after[n])]
        return Observed(log.how, recording.draws, changed)


def _nothing() -> None:
    """Do nothing."""


def _unlike_number(error: BaseException, read: Collection[str]) -> NotStackable:
    """Why a step that fails with facts in place of numbers cannot have them."""
    if isinstance(error, NotStackable | CannotTake | NeedsValue) or not read:
        return refusal(error)
    said = " and ".join(name for name in TYPICAL if name in read)
    return NotStackable(f"training_step uses {said} as what only a number is{place_of(error)}")


def _differ(one: Tensor, other: Tensor) -> bool:
    return not torch.equal(one.nan_to_num(), other.detach().nan_to_num())
