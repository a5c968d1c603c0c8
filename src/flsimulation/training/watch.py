"""Which layers and losses a step of a module calls, and with what."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

CLASSES = (functional.cross_entropy, functional.nll_loss)
PAIRS = (
    *(functional.mse_loss, functional.l1_loss, functional.smooth_l1_loss, functional.huber_loss),
    *(functional.binary_cross_entropy, functional.binary_cross_entropy_with_logits),
)


class Layer(NamedTuple):
    """A layer that was called."""

    name: str
    module: nn.Module
    inputs: list[Tensor]


class Loss(NamedTuple):
    """A loss function that was called."""

    function: Callable[..., Any]
    output: Tensor
    """Of the model."""
    labels: Tensor
    options: dict[str, Any]


class Watch(TorchFunctionMode):
    """Notes inside the block which layers and losses are called.

    Parameters
    ----------
    module : Module
        Its parts are the layers.
    sound : callable, optional
        Called with the tensors that a layer returns; ``unsound`` are the layers for which it
        returns False.
    """

    def __init__(
        self, module: nn.Module, sound: Callable[[list[Tensor]], bool] | None = None
    ) -> None:
        super().__init__()
        self.first: Layer | None = None
        self.entered: list[Layer] = []
        """Layers that were called and have not returned, the innermost last."""
        self.last: Layer | None = None
        """The layer with parameters of its own that returned last."""
        self.unsound: list[Layer] = []
        self.losses: list[Loss] = []
        self.refused: Loss | None = None
        """The loss function that raised."""
        self.refusal: Exception | None = None
        """What it raised."""
        self._module, self._sound = module, sound
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Watch:
        """Add the hooks."""
        for name, part in self._module.named_modules():
            if name and not isinstance(part, nn.modules.loss._Loss):
                self._handles += [
                    part.register_forward_pre_hook(self._entering(name)),
                    part.register_forward_hook(self._left),
                ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the hooks."""
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func in CLASSES or func in PAIRS:
            given = [*args, *(options[k] for k in ("input", "target") if k in options)]
            if len(given) > 1 and isinstance(given[0], Tensor) and isinstance(given[1], Tensor):
                return self._lost(Loss(func, given[0], given[1], options), args)
        return func(*args, **options)

    def _lost(self, loss: Loss, args: Any) -> Any:
        self.losses.append(loss)
        try:
            return loss.function(*args, **loss.options)
        except Exception as error:
            self.refused, self.refusal = loss, error
            raise

    def refused_by(self, error: BaseException) -> Layer | None:
        """The innermost layer that an error has left; none whose own error the step has caught."""
        left = list[Any]()
        trace = error.__traceback__
        while trace is not None:
            left.append(trace.tb_frame.f_locals.get("self"))
            trace = trace.tb_next
        inner = (e for e in reversed(self.entered) if any(own is e.module for own in left))
        return next(inner, None)

    def _entering(self, name: str) -> Callable[[nn.Module, Any], None]:
        def enter(module: nn.Module, inputs: Any) -> None:
            self.entered.append(Layer(name, module, _tensors(inputs)))
            if self.first is None and not any(module.children()):
                self.first = self.entered[-1]

        return enter

    def _left(self, module: nn.Module, _: Any, output: Any) -> None:
        while self.entered and self.entered[-1].module is not module:
            self.entered.pop()  # a layer whose error the step has caught
        layer = self.entered.pop() if self.entered else Layer("", module, [])
        if any(True for _ in module.parameters(recurse=False)):
            self.last = layer
        if self._sound is not None and not self._sound(_tensors(output)):
            self.unsound.append(layer)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
