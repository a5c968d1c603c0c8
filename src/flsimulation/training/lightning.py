"""One client's update and one client's evaluation, with Lightning's own Trainer.

The readable reference: ClientUpdate of McMahan et al., "Communication-Efficient Learning of Deep
Networks from Decentralized Data" (AISTATS 2017), algorithm 1, for any LightningModule.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch

from flsimulation import seeds
from flsimulation.clock import SYSTEM, Clock
from flsimulation.errors import ClientError, InputError, describe_error
from flsimulation.experiment.spec import Train
from flsimulation.host.quiet import quiet_lightning
from flsimulation.host.warned import NOBODY, Warned, pass_on
from flsimulation.models.lightning_modules import defines, is_sigterm
from flsimulation.training.batches import Batches
from flsimulation.training.callbacks import Deadline, Proximal, Rates, TrainingLoss
from flsimulation.training.failures import (
    first_diverged,
    loss_not_finite,
    no_step,
    weights_not_finite,
)
from flsimulation.training.jobs import State, Trained
from flsimulation.training.measured import Measured, keep_undefined
from flsimulation.training.products import in_tf32, takes_tf32
from flsimulation.training.rates import rate_factor
from flsimulation.training.scores import scores
from flsimulation.training.trainers import KeptTrainer, require_own_steps, takes_gpu
from flsimulation.training.watching import Watched


def require_device(spec: Train) -> None:
    """Raise `InputError` if the experiment requests a device that is not available."""
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise InputError("train.device is 'cuda', but PyTorch sees no GPU; use 'auto' or 'cpu'")


def as_on_device(spec: Train) -> Train:
    """How clients train on the device that is available: as Lightning's Trainer does.

    On a CPU it takes ``bf16-mixed`` in place of ``16-mixed``, and warns of it; so does this.

    Raises
    ------
    InputError
        As `require_device`.
    """
    require_device(spec)
    if spec.precision != "16-mixed" or takes_gpu(spec):
        return spec
    text = (
        "train.precision = '16-mixed' is 'bf16-mixed' on a CPU, as with Lightning's Trainer; "
        "set 'bf16-mixed', or train on a GPU"
    )
    pass_on([Warned(NOBODY, text)])
    return spec.model_copy(update={"precision": "bf16-mixed"})


class LocalTrainer:
    """Trains and evaluates clients one after the other, with one Lightning Trainer.

    Every fit starts from a fresh copy of the module, so that neither optimizer state nor anything
    else the module keeps can pass from one client to the next. Settings of the Trainer that a module
    changes (``self.trainer.limit_train_batches = ...``) do stay: leave them alone.

    Parameters
    ----------
    module : LightningModule
        The model; never changed.
    spec : Train
        Epochs, gradient clipping, device.
    clock : Clock
        The clock to use.

    Raises
    ------
    InputError
        If the experiment requests a device that is not available, or a way to train that a module
        which optimizes by itself would not follow.
    """

    def __init__(self, module: pl.LightningModule, spec: Train, clock: Clock = SYSTEM) -> None:
        quiet_lightning()
        self.module = module
        self._spec, self._clock = spec, clock
        self._trainer: KeptTrainer | None = None
        require_device(spec)
        require_own_steps(module, spec)

    @property
    def uses_gpu(self) -> bool:
        """Whether it trains on a GPU."""
        return takes_gpu(self._spec)

    @property
    def gpu(self) -> str | None:
        """Name of the GPU that it trains on."""
        return torch.cuda.get_device_name() if self.uses_gpu else None

    @property
    def can_evaluate(self) -> bool:
        """Whether the module has a ``validation_step`` (or a ``test_step``)."""
        return any(defines(step, self.module) for step in ("validation_step", "test_step"))

    def fit(
        self,
        state: State,
        batches: Batches,
        *,
        seed: int,
        validation: Batches | None = None,
        proximal_mu: float = 0.0,
        expires: float | None = None,
        round: int = 0,
    ) -> Trained:
        """Train a copy of the module for the experiment's local epochs.

        Parameters
        ----------
        state : dict of Tensor
            The global model; not changed.
        batches : Batches
            The client's training part.
        seed : int
            Of the random draws inside the module (dropout, augmentation).
        validation : Batches, optional
            Run the module's validation loop on these after each epoch.
        proximal_mu : float
            Weight of FedProx's term mu/2 |w - w_global|^2; 0 for none.
        expires : float, optional
            Unix time in seconds after which to give up.
        round : int
            Number of the round, which the module has as ``federated_round``.

        Raises
        ------
        ClientError
            If the module raises, its loss or weights are not finite, or time is up.
        """
        began = self._clock.monotonic()
        module = self._module(state, round)
        kinds = {name: value.dtype for name, value in module.state_dict().items()}
        keep_undefined(module)
        loss = TrainingLoss()
        extra: list[pl.Callback] = [loss]
        if proximal_mu > 0:
            extra.append(Proximal(proximal_mu, module))
        if expires is not None:
            extra.append(Deadline(expires, self._clock))
        extra.append(Rates(rate_factor(self._spec, round)))
        trainer = self._run("fit", module, batches, validation, extra, seed)
        if module.automatic_optimization and loss.mean is None:
            raise no_step()
        result = exchanged(module, kinds)
        logged = scores(trainer.callback_metrics, {} if loss.mean is None else {"loss": loss.mean})
        if not np.isfinite(mean := logged.get("loss", 0.0)):
            raise loss_not_finite(mean)
        if (name := first_diverged(result, state)) is not None:
            raise weights_not_finite(name)
        return Trained(logged, trainer.global_step, self._clock.monotonic() - began, result)

    def evaluate(
        self,
        state: State,
        batches: Batches,
        *,
        seed: int = 0,
        expires: float | None = None,
        round: int = 0,
    ) -> Measured:
        """Scores of a model: the means over examples of what its validation step logs.

        The value of a metric object is that over all examples.

        Parameters
        ----------
        state, batches
            The model and the examples.
        seed : int
            Of the random draws inside the module.
        expires : float, optional
            Unix time in seconds after which to give up.
        round : int
            Number of the round.

        Raises
        ------
        ClientError
            If the module raises or time is up.
        """
        stage = "validate" if defines("validation_step", self.module) else "test"
        extra: list[pl.Callback] = [Deadline(expires, self._clock)] if expires is not None else []
        module = self._module(state, round)
        with Watched(module) as watched:
            trainer = self._run(stage, module, batches, None, [*extra, watched], seed)
        return watched.measured(trainer.callback_metrics)

    def _module(self, state: State, round: int) -> pl.LightningModule:
        module: Any = copy.deepcopy(self.module)
        module.load_state_dict(state)
        module.federated_round = round
        if not defines("print", module):  # a line of each client of each round
            module.print = silent
        return cast(pl.LightningModule, module)

    def _run(
        self,
        stage: str,
        module: pl.LightningModule,
        batches: Batches,
        validation: Batches | None,
        extra: list[pl.Callback],
        seed: int,
    ) -> pl.Trainer:
        """Fit, validate or test with the kept Trainer; a Trainer that failed is not kept."""
        kept, self._trainer = self._trainer or KeptTrainer(self._spec, type(module)), None
        trainer = kept.rewound(extra)
        try:
            with seeds.global_streams(seed), in_tf32(takes_tf32(self._spec)):
                if stage == "fit":
                    trainer.fit(module, batches, validation)
                else:
                    getattr(trainer, stage)(module, batches, verbose=False)
        except ClientError:
            raise
        except (Exception, SystemExit) as error:
            raise client_error(error) from error
        self._trainer = kept
        return trainer


def client_error(error: BaseException) -> ClientError:
    """What a module raised, as its client's error. Raises `KeyboardInterrupt` if it was that."""
    if _was_interrupted(error):
        raise KeyboardInterrupt from None
    return ClientError("error", _explained(error))


def _explained(error: BaseException) -> str:
    """The error in one line, with the remedy where Lightning misses a metric to monitor."""
    text = describe_error(error)
    if "conditioned on metric" not in text:
        return text
    return f"{text}; set train.validate = true if validation_step logs it"


def _was_interrupted(error: BaseException) -> bool:
    """Whether Lightning ended because of Ctrl-C, which it turns into an exit, or of SIGTERM."""
    return is_sigterm(error) or (
        isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
    )


def exchanged(module: pl.LightningModule, kinds: Mapping[str, torch.dtype]) -> State:
    """Parameters and buffers on the CPU, in the types that they had before the fit."""
    return {
        name: value.detach().to("cpu", kinds.get(name, value.dtype))
        for name, value in module.state_dict().items()
    }


def silent(*_: Any, **__: Any) -> None:
    """Print nothing."""
