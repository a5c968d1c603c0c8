"""What a step calls that `vmap` has no form for, written in calls for which it has one.

``vmap`` falls back to one call for each client where it knows no better, so that a graph of many clients
grows with their number and is no program for another. So the few such calls that models are made
of are written out: cells of recurrent networks, attention, bags of embeddings. The results are
compared with those of the calls themselves (`is_same_alone`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from flsimulation.training.stacked.compiler import images
from flsimulation.training.stacked.compiler.attention import attention, multi_head_attention
from flsimulation.training.stacked.compiler.autocast import cast, kept
from flsimulation.training.stacked.compiler.facts import Fact
from flsimulation.training.stacked.compiler.inside import ASKED
from flsimulation.training.stacked.compiler.layers import (
    bernoulli,
    embedding,
    normal,
    normalize,
    pack,
    recurrent,
    unpack,
    weight_norm,
    zeros,
)
from flsimulation.training.stacked.compiler.normalization import batch_norm, group_norm

_DROPOUTS = (
    *(functional.dropout, functional.alpha_dropout, functional.feature_alpha_dropout),
    *(functional.dropout1d, functional.dropout2d, functional.dropout3d),
)
_MAKERS = (
    *(torch.zeros, torch.ones, torch.full, torch.empty),
    *(torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like),
    *(Tensor.new_zeros, Tensor.new_ones, Tensor.new_full, Tensor.new_empty, Tensor.clone),
)


class Undropped(TorchFunctionMode):
    """Lets dropout with probability 0 draw nothing: what it draws decides nothing."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function, or what stands for it."""
        given = dict(kwargs or {})
        if func in _DROPOUTS and _argument(args, given, 1, "p", 0.5) == 0:
            return args[0] if args else given["input"]
        if func in (torch.tensor, torch.as_tensor) and args and isinstance(args[0], Fact):
            return args[0].tensor(given.get("dtype"))
        return self.called(func, args, given)

    def called(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call any other function."""
        return func(*args, **kwargs)


class Rewritten(Undropped):
    """Writes out the calls that ``vmap`` has no form for.

    Parameters
    ----------
    zero : Tensor, optional
        0 for each client: tensors that the step makes become the client's own by it, so that it
        can write into them.
    """

    def __init__(self, zero: Tensor | None = None) -> None:
        super().__init__()
        self._zero = zero

    def called(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call the function, or what stands for it."""
        args, kwargs = cast(func, args, kwargs)
        return kept(func, self._called(func, args, kwargs), args)

    def _called(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if (written := _WRITTEN.get(func)) is not None:
            result = written(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if self._zero is not None and func in _MAKERS:
            zero = self._zero.to(result.dtype)
            return result | zero if result.dtype == torch.bool else result + zero
        return result


def zero_of(x: Tensor) -> Tensor:
    """0, as a sum over none of a tensor's numbers: batched where the tensor is."""
    return x.detach().flatten()[:0].sum()


class _WithoutFallback:
    """How many threads need it at once; the setting is the process's."""

    def __init__(self) -> None:
        self._lock, self._count, self._before = threading.Lock(), 0, True

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        functorch: Any = torch._C._functorch
        with self._lock:
            if self._count == 0:
                self._before = functorch._is_vmap_fallback_enabled()
                functorch._set_vmap_fallback_enabled(False)
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1
                if self._count == 0:
                    functorch._set_vmap_fallback_enabled(self._before)


without_fallback = _WithoutFallback()
"""Lets ``vmap`` raise an error instead of one call for each client."""


def _argument(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], place: int, name: str, default: Any
) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _gru_cell(
    x: Tensor, h: Tensor, w: Tensor, u: Tensor, b: Tensor | None = None, c: Tensor | None = None
) -> Tensor:
    """As `torch.nn.GRUCell` is documented."""
    ours, theirs = functional.linear(x, w, b).chunk(3, -1), functional.linear(h, u, c).chunk(3, -1)
    reset, update = (torch.sigmoid(a + b) for a, b in zip(ours[:2], theirs[:2], strict=True))
    new = torch.tanh(ours[2] + reset * theirs[2])
    return new + update * (h - new)


def _lstm_cell(
    x: Tensor,
    state: Sequence[Tensor],
    w: Tensor,
    u: Tensor,
    b: Tensor | None = None,
    c: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `torch.nn.LSTMCell` is documented."""
    gates = functional.linear(x, w, b) + functional.linear(state[0], u, c)
    into, forget, new, out = gates.chunk(4, -1)
    cell = torch.sigmoid(forget) * state[1] + torch.sigmoid(into) * torch.tanh(new)
    return torch.sigmoid(out) * torch.tanh(cell), cell


def _rnn_cell(activation: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """As `torch.nn.RNNCell` is documented."""

    def cell(
        x: Tensor, h: Tensor, w: Tensor, u: Tensor, b: Tensor | None = None, c: Tensor | None = None
    ) -> Tensor:
        return activation(functional.linear(x, w, b) + functional.linear(h, u, c))

    return cell


def _bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,  # noqa: ARG001
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,  # noqa: ARG001
    padding_idx: int | None = None,
) -> Any:
    """As `embedding_bag` is documented, for bags of one size."""
    extras = (offsets, max_norm, per_sample_weights, padding_idx)
    if any(extra is not None for extra in extras) or scale_grad_by_freq or sparse:
        return NotImplemented
    rows = functional.embedding(input, weight)
    if mode == "max":
        return rows.amax(1)
    return rows.mean(1) if mode == "mean" else rows.sum(1)


def _permutation(n: int, **kwargs: Any) -> Tensor:
    """What is drawn in its place is a permutation, too: only the shape matters here."""
    return torch.randint(0, max(1, n), (n,), **kwargs)


_WRITTEN: dict[Any, Callable[..., Any]] = {
    torch.gru_cell: _gru_cell,
    torch.lstm_cell: _lstm_cell,
    torch.rnn_tanh_cell: _rnn_cell(torch.tanh),
    torch.rnn_relu_cell: _rnn_cell(torch.relu),
    torch.gru: recurrent("gru"),
    torch.lstm: recurrent("lstm"),
    torch.rnn_tanh: recurrent("tanh"),
    torch.rnn_relu: recurrent("relu"),
    functional.scaled_dot_product_attention: attention,
    functional.multi_head_attention_forward: multi_head_attention,
    functional.embedding: embedding,
    functional.embedding_bag: _bag,
    functional.batch_norm: batch_norm,
    functional.group_norm: group_norm,
    torch.randperm: _permutation,
    **images.WRITTEN,
    functional.normalize: normalize,
    torch._weight_norm: weight_norm,
    torch._pack_padded_sequence: pack,
    torch._pad_packed_sequence: unpack,
    torch.zeros: zeros,
    torch.normal: normal,
    torch.bernoulli: bernoulli,
    Tensor.bernoulli: bernoulli,
    **ASKED,
}
