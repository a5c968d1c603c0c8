"""The loss of each single example, for many states of one model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from flsimulation.errors import ModelError, RunError, describe_error
from flsimulation.studies.audit.curves import Values
from flsimulation.training import State
from flsimulation.training.alone import detached, take, unnoticed
from flsimulation.training.form import examples_of
from flsimulation.training.precision import in_precision

_LEAST = 1e-15  # a loss below it is rounding: the confidence is not distinguished from 1


class Losses:
    """What the module's ``training_step`` returns for an example alone, in float64 and evaluation mode.

    A confident model's losses differ only far behind the point, where float32 has rounded them.

    Parameters
    ----------
    module : LightningModule
        The model; not changed.
    """

    def __init__(self, module: pl.LightningModule) -> None:
        self._module = detached(in_precision(module, "64-true")).eval()
        self._stacks = True

    def of(self, state: State, batches: Iterable[Any]) -> Values:
        """Losses of all examples of the batches in their order, float64 [n].

        Raises
        ------
        ModelError
            If the module returns no loss for an example alone.
        RunError
            If a loss is not finite.
        """
        self._module.load_state_dict(state)
        with torch.no_grad(), unnoticed():
            found = torch.cat([self._batch(batch) for batch in batches])
        if not bool(found.isfinite().all()):
            raise RunError("the loss of an example is not finite: the model's weights diverged")
        return np.asarray(found.double().numpy())

    def _batch(self, batch: Any) -> Tensor:
        """[n], all examples in one call where the step is possible under vmap, else one by one."""
        if self._stacks:
            try:
                return torch.vmap(self._one, randomness="different")(batch)
            except ModelError:
                raise
            except Exception:  # what a step may do that vmap does not allow is not known before
                self._stacks = False
        count = examples_of(batch)
        try:
            return torch.stack([self._one(_row(batch, i)) for i in range(count)])
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"an audit needs the loss of single examples, but training_step fails for a batch of "
                f"one ({describe_error(error)}); make it accept that"
            ) from error

    def _one(self, example: Any) -> Tensor:
        batch = tree_map(lambda tensor: tensor.unsqueeze(0), example)
        return loss_of(take(self._module, "training_step", batch)).detach().reshape(())


def _row(batch: Any, place: int) -> Any:
    cut: Callable[[Tensor], Tensor] = lambda tensor: tensor[place]  # noqa: E731
    return tree_map(cut, batch)


def loss_of(output: Any) -> Tensor:
    """The loss that a ``training_step`` returned, with its gradient. Raises `ModelError`."""
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise ModelError(
            "an audit needs the loss of training_step, which returns none; return it, or {'loss': ...}"
        )
    return loss


def confidence(losses: Values) -> Values:
    """The logit of the probability of the true class, log(p / (1 - p)) for a cross-entropy -log p.

    Source: Carlini et al. (2022), section V-A: it is close to normally distributed over models.
    """
    losses = np.maximum(losses, _LEAST)
    return np.asarray(-losses - np.log(-np.expm1(-losses)))
