"""One client's fit without a Trainer: Lightning's loops for one optimizer on one device.

The order of the steps and of a module's hooks is that of Lightning 2.6: `fit_loop.py`,
`training_epoch_loop.py` and `optimization/automatic.py` of its package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loops.optimization.automatic import Closure, ClosureResult
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from flsimulation.models.lightning_modules import package_of
from flsimulation.training.around import Around
from flsimulation.training.batches import Batches
from flsimulation.training.configured import Configured
from flsimulation.training.facts import Facts, Progress, Strategy
from flsimulation.training.form import examples_of, moved
from flsimulation.training.noted import Noted
from flsimulation.training.rates import scale_rates


class Loop:
    """One fit.

    Parameters
    ----------
    module : LightningModule
        The client's own copy; it is trained in place.
    hooks : mapping
        The module's own hooks, by name.
    takes_index : bool
        Whether ``training_step`` takes the batch's number.
    batches : Batches
        The client's.
    progress : Progress
        At its beginning.
    around : Around
        The rest.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        hooks: Mapping[str, Any],
        takes_index: bool,
        batches: Batches,
        progress: Progress,
        around: Around,
    ) -> None:
        self._module, self._batches, self._around = module, batches, around
        self._own: Any = {name: getattr(module, name) for name in hooks}
        self._takes_index, self.progress = takes_index, progress
        self.noted = Noted(progress)
        self._transfers = not _TRANSFERS.isdisjoint(hooks)
        self._is_plain = (
            _OF_STEPS.isdisjoint(hooks)
            and around.precision.is_plain
            and around.device.type == "cpu"
            and progress.accumulate == 1
        )
        wrapper = package_of(type(module)).core.optimizer.LightningOptimizer
        self._strategy = Strategy(progress, around.device, wrapper, self._take_step)
        facts: Any = Facts(progress, self._strategy, around.precision.plugin, around.clip or None)
        vars(module).update(log=self.noted.log, log_dict=self.noted.log_dict)
        module.trainer = facts
        self._batch: Any = None
        self._index = 0
        self._outputs: dict[str, Any] = {}
        self._loss_of_batch: Tensor | None = None

    def run(self) -> None:
        """Train the module. Raises `NeedsTrainer`, `ClientError`, and what the module raises."""
        self._hook("setup", stage=TrainerFn.FITTING)
        self._around.precision.convert(self._module)
        if self._around.device.type != "cpu" or "to" in self._own:
            self._module.to(self._around.device)
        self._configure()
        self._hook("on_fit_start")
        self._hook("zero_grad")
        if len(self._batches):
            with torch.enable_grad():
                self._train()
        self._hook("on_fit_end")
        self._hook("teardown", stage=TrainerFn.FITTING)

    def release(self) -> None:
        """Let go of all, which would otherwise stay until the garbage collector comes."""
        module = self._module
        vars(self).clear()
        module.trainer = None
        vars(module).pop("log", None)
        vars(module).pop("log_dict", None)

    def _hook(self, name: str, *args: Any, **named: Any) -> Any:
        """Call a hook if the module has it."""
        own = self._own.get(name)
        return None if own is None else own(*args, **named)

    def _configure(self) -> None:
        made = self._module.configure_optimizers()
        self._configured = Configured(made, self.progress, self._own.get("lr_scheduler_step"))
        self._optimizer = self._configured.optimizer

    def _train(self) -> None:
        scale_rates(self._optimizer, self._around.rate_factor)
        self._hook("on_train_start")
        for _ in range(self.progress.epochs):
            self.noted.begin_epoch()
            self._hook("on_train_epoch_start")
            self._train_plainly() if self._is_plain else self._train_epoch()
            self.noted.begin_end()
            self._hook("on_train_epoch_end")
            self.noted.end_step()
            self.progress.epoch += 1
        self._hook("on_train_end")

    def _train_epoch(self) -> None:
        progress, last = self.progress, len(self._batches) - 1
        check = self._around.check_time
        for index, batch in enumerate(self._batches):
            self._batch, self._index = self._ready(batch), index
            progress.is_last = index == last
            if check is not None:
                check()
            if self._hook("on_train_batch_start", self._batch, index) == -1:
                progress.is_last = True
                self._configured.after_batch(self._index, stepped=self._is_step)
                return
            self._train_batch()

    def _train_plainly(self) -> None:
        """Train an epoch of a module without hooks around its step: the same, in fewer calls."""
        progress, last, by_step = self.progress, len(self._batches) - 1, self._configured.by_step
        check, closure = self._around.check_time, self._plain_closure()
        step: Any = self._optimizer.step
        for index, batch in enumerate(self._batches):
            self._batch, self._index, progress.is_last = batch, index, index == last
            if check is not None:
                check()
            step(closure)
            progress.steps += 1
            if by_step or index == last:
                self._configured.after_batch(self._index, stepped=self._is_step)
            self.noted.add(self._loss_of_batch, examples_of(self._batch))

    def _plain_closure(self) -> Callable[[], Tensor | None]:
        training_step, noted, optimizer = self._module.training_step, self.noted, self._optimizer
        before = self._before_step if self._around.clip or self._around.proximal else None
        own = getattr(optimizer.zero_grad, "__func__", None) is not torch.optim.Optimizer.zero_grad
        zero_grad = None if own else _forget_gradients

        def closure() -> Tensor | None:
            noted.begin_step()
            given = (self._batch, self._index) if self._takes_index else (self._batch,)
            output = training_step(*given)
            noted.end_step()
            loss = output if type(output) is Tensor else self._loss_in(output)
            optimizer.zero_grad() if zero_grad is None else zero_grad(optimizer)
            if loss is None:
                Closure.warning_cache.warn(_NO_LOSS)
            else:
                loss.backward()  # type: ignore[no-untyped-call]
            if before is not None:
                before()
            self._loss_of_batch = loss
            return loss

        return closure

    def _train_batch(self) -> None:
        if self._is_step:
            if (own := self._own.get("optimizer_step")) is None:
                self._take_step(self._closure)
            else:
                (wrapped,) = self._strategy._lightning_optimizers
                own(self.progress.epoch, self._index, wrapped, self._closure)
            self.progress.steps += 1
        else:
            self._closure()
        self._configured.after_batch(self._index, stepped=self._is_step)
        self._note()
        self._hook("on_train_batch_end", self._outputs, self._batch, self._index)

    def _ready(self, batch: Any) -> Any:
        """The batch in the fit's precision and on its device."""
        around = self._around
        batch = around.precision.converted(batch)
        if not self._transfers:
            return batch if around.device.type == "cpu" else moved(batch, around.device)
        module = self._module
        batch = module.on_before_batch_transfer(batch, 0)
        batch = module.transfer_batch_to_device(batch, around.device, 0)
        return module.on_after_batch_transfer(batch, 0)

    @property
    def _is_step(self) -> bool:
        """Whether the optimizer steps after this batch; otherwise gradients are accumulated."""
        return self.progress.is_last or (self._index + 1) % self.progress.accumulate == 0

    def _closure(self) -> Tensor | None:
        """Training step, gradients to zero, backward."""
        with torch.enable_grad():
            loss = self._loss()
            if self._index % self.progress.accumulate == 0:
                self._zero_grad()
            if loss is None:
                Closure.warning_cache.warn(_NO_LOSS)
            else:
                self._backward(loss)
        return self._outputs.get("loss")

    def _loss(self) -> Tensor | None:
        """Take the module's step for the batch; its loss, divided for an accumulation."""
        self.noted.begin_step()
        with self._around.precision.step():
            also = (self._index,) if self._takes_index else ()
            output: Any = self._module.training_step(self._batch, *also)
        self.noted.end_step()
        return self._loss_in(output)

    def _loss_in(self, output: Any) -> Tensor | None:
        """The loss in what a training step returned, divided for an accumulation."""
        result = ClosureResult.from_training_step_output(output, self.progress.accumulate)
        self._outputs = {} if result.loss is None else result.asdict()
        return result.closure_loss

    def _zero_grad(self) -> None:
        self._hook("on_before_zero_grad", self._optimizer)
        if (own := self._own.get("optimizer_zero_grad")) is None:
            self._optimizer.zero_grad()
        else:
            own(self.progress.epoch, self._index, self._optimizer)

    def _backward(self, loss: Tensor) -> None:
        loss = self._around.precision.scaled(loss)
        self._hook("on_before_backward", loss)
        if (own := self._own.get("backward")) is None:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            own(loss)
        self._hook("on_after_backward")

    def _take_step(self, closure: Callable[[], Any], **options: Any) -> Any:
        """One step of the optimizer, which calls the closure."""
        precision, optimizer = self._around.precision, self._optimizer
        if precision.scaler is not None:
            return precision.take_step(optimizer, closure, self._before_step, **options)

        def whole() -> Any:
            found = closure()
            self._before_step()
            return found

        return optimizer.step(closure=whole, **options)

    def _before_step(self) -> None:
        """Change the gradients before the optimizer takes them."""
        around, optimizer = self._around, self._optimizer
        if around.proximal is not None:
            around.proximal.add_to(optimizer)
        self._hook("on_before_optimizer_step", optimizer)
        if (own := self._own.get("configure_gradient_clipping")) is not None:
            clip = around.clip or None
            own(optimizer, gradient_clip_val=clip, gradient_clip_algorithm=None)
        elif around.clip:
            around.precision.plugin.clip_gradients(optimizer, around.clip)

    def _note(self) -> None:
        """Keep the batch's loss and what was logged."""
        self.noted.add(self._outputs.get("loss"), examples_of(self._batch))


def _forget_gradients(optimizer: torch.optim.Optimizer) -> None:
    """What ``zero_grad`` does, without its notes for the profiler."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


_TRANSFERS = {"transfer_batch_to_device", "on_before_batch_transfer", "on_after_batch_transfer"}
_OF_STEPS = _TRANSFERS | {
    *("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "optimizer_zero_grad"),
    *("on_before_backward", "on_after_backward", "on_before_optimizer_step", "optimizer_step"),
    *("configure_gradient_clipping", "lr_scheduler_step", "backward"),
}
_NO_LOSS = (
    "`training_step` returned `None`. If this was on purpose, ignore this warning..."  # Lightning's
)
