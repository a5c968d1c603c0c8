"""Norms and weighted sums of single examples' gradients, without the gradients where that costs less.

The gradient of one example by a linear layer's weight is a product of what the layer received and of
the gradient by what it returned: its norm follows from these two, and the weighted sum over examples
is one product. A convolution is linear in its patches. An embedding is linear in rows that are all
zeros but one.

Sources: Goodfellow, "Efficient Per-Example Gradient Computations" (2015); Li et al., "Large Language
Models Can Be Strong Differentially Private Learners" (ICLR 2022), the norm of a sequence; Bu et al.,
"Differentially Private Optimization on Large Model at Small Cost" (ICML 2023), which of both ways costs
less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

_PATCHES = 2**20  # numbers
_LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d, nn.Embedding)


@dataclass(frozen=True)
class Layer:
    """A layer that a step calls once, and whose parameters nothing else uses."""

    name: str
    module: nn.Module
    parameters: tuple[str, ...]
    """Names of its weight, and of its bias if it has one."""
    shape: tuple[int, ...]
    """Of what it returns for a batch of one."""


def layers_of(
    module: nn.Module, call: Callable[[], object], trained: frozenset[str]
) -> list[Layer]:
    """The layers of a module whose gradients follow from what they receive and return.

    Parameters
    ----------
    module : Module
        The model.
    call : callable
        Calls it with one example.
    trained : frozenset of str
        Names of the parameters that are trained.
    """
    shapes: dict[str, list[torch.Size]] = {}
    seen: dict[int, int] = {}
    for _, parameter in module.named_parameters(remove_duplicate=False):
        seen[id(parameter)] = seen.get(id(parameter), 0) + 1
    candidates = {
        name: part
        for name, part in module.named_modules()
        if _is_plain(part) and all(seen[id(p)] == 1 for p in part.parameters(recurse=False))
    }
    handles = [
        part.register_forward_hook(
            lambda _, __, result, name=name: shapes.setdefault(name, []).append(result.shape)
        )
        for name, part in candidates.items()
    ]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for name, part in candidates.items():
        own = tuple(f"{name}.{n}" if name else n for n, _ in part.named_parameters(recurse=False))
        called = shapes.get(name, [])
        if len(called) == 1 and called[0][:1] == (1,) and trained.issuperset(own):
            found.append(Layer(name, part, own, tuple(called[0])))
    return found


def _is_plain(part: nn.Module) -> bool:
    if type(part) not in _LAYERS or part._forward_hooks or part._forward_pre_hooks:
        return False
    if isinstance(part, nn.Conv2d):
        return part.groups == 1 and part.padding_mode == "zeros" and part.padding != "same"
    if isinstance(part, nn.Embedding):
        return part.max_norm is None and not part.scale_grad_by_freq and not part.sparse
    return True


class Products:
    """What makes the gradients of a layer's parameters, of many clients' examples.

    Parameters
    ----------
    layer : Layer
        The layer.
    received : Tensor
        What it received, [clients, examples, 1, ...].
    gradient : Tensor
        By what it returned, [clients, examples, 1, ...].
    """

    def __init__(self, layer: Layer, received: Tensor, gradient: Tensor) -> None:
        self._clients, self._examples = gradient.shape[:2]
        many = self._clients * self._examples
        self._layer, part = layer, layer.module
        self._whole: Tensor | None = None  # gradients of single examples, [many, out * in]
        self._in = received
        self._bias: Tensor | None = None  # the same by the bias, [many, out]
        if isinstance(part, nn.Conv2d):
            x = _padded(received.reshape(many, *received.shape[3:]), part)
            self._out = gradient.reshape(many, part.out_channels, -1).transpose(1, 2)
            size, places = part.weight[0].numel() * part.out_channels, self._out.shape[1]
            if _is_small(places, size):
                self._in = _patches(x, part, gradient.shape[-2:])  # [many, places, in]
            else:
                self._whole = x.new_empty(many, size)
                step = max(1, _PATCHES // (places * part.weight[0].numel()))
                for i in range(0, many, step):  # of patches that a core's caches hold
                    patches = _patches(x[i : i + step], part, gradient.shape[-2:])
                    into = self._whole[i : i + step].view(-1, part.out_channels, patches.shape[2])
                    torch.bmm(self._out[i : i + step].transpose(1, 2), patches, out=into)
        elif isinstance(part, nn.Embedding):
            self._in = received.reshape(many, -1)  # [many, places]
            self._out = gradient.reshape(many, self._in.shape[1], -1)
            if part.padding_idx is not None:
                self._out = self._out * (self._in != part.padding_idx).unsqueeze(-1)
        else:
            self._in = received.reshape(many, -1, received.shape[-1])
            self._out = gradient.reshape(many, -1, gradient.shape[-1])

    def squares(self) -> Tensor:
        """Squared norms of the gradients of single examples, [clients * examples]."""
        g = self._out
        if isinstance(self._layer.module, nn.Embedding):
            same = (self._in.unsqueeze(1) == self._in.unsqueeze(2)).to(g.dtype)
            return (torch.bmm(g, g.transpose(1, 2)) * same).sum((1, 2))
        if self._whole is None and not _is_small(g.shape[1], self._in.shape[2] * g.shape[2]):
            self._whole = torch.bmm(g.transpose(1, 2), self._in).reshape(len(g), -1)
        if self._whole is not None:
            found = _squares(self._whole)
        elif g.shape[1] == 1:
            found = _squares(self._in) * _squares(g)
        else:
            a = self._in
            found = (torch.bmm(a, a.transpose(1, 2)) * torch.bmm(g, g.transpose(1, 2))).sum((1, 2))
        if len(self._layer.parameters) == 2:
            self._bias = g.sum(1)
            found = found + _squares(self._bias)
        return found

    def without_infinities(self) -> None:
        """Have zeros in place of what is not finite, so that a weight of 0 leaves it out."""
        if self._in.is_floating_point():
            self._in = self._in.nan_to_num(0.0, 0.0, 0.0)
        self._out = self._out.nan_to_num(0.0, 0.0, 0.0)
        if self._whole is not None:
            self._whole = self._whole.nan_to_num(0.0, 0.0, 0.0)
        if self._bias is not None:
            self._bias = self._bias.nan_to_num(0.0, 0.0, 0.0)

    def sums(self, weights: Tensor) -> list[Tensor]:
        """The weighted sum over each client's examples, [clients, ...] for each parameter.

        Parameters
        ----------
        weights : Tensor
            [clients, examples]
        """
        clients, part = self._clients, self._layer.module
        shapes = [parameter.shape for parameter in part.parameters(recurse=False)]
        if self._whole is not None:
            found = [_weighted(self._whole, weights)]
        else:
            g = (self._out * weights.reshape(-1, 1, 1)).reshape(clients, -1, self._out.shape[-1])
            if isinstance(part, nn.Embedding):
                first = torch.arange(clients, device=g.device).view(-1, 1) * part.num_embeddings
                rows = (self._in.reshape(clients, -1) + first).reshape(-1)
                whole = g.new_zeros(clients * part.num_embeddings, part.embedding_dim)
                found = [whole.index_add(0, rows, g.reshape(len(rows), -1))]
            else:
                a = self._in.reshape(clients, g.shape[1], -1)
                found = [torch.bmm(g.transpose(1, 2), a)]
        if isinstance(part, nn.Conv2d):  # whose patches have their channels last
            out, channels, *kernel = shapes[0]
            found = [found[0].reshape(clients, out, *kernel, channels).movedim(-1, 2)]
        if self._bias is not None:
            found.append(_weighted(self._bias, weights))
        return [t.reshape(clients, *shape) for t, shape in zip(found, shapes, strict=True)]


def _weighted(rows: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum over each client's rows, [clients, ...]."""
    return torch.bmm(weights.unsqueeze(1), rows.view(*weights.shape, -1))


def _squares(rows: Tensor) -> Tensor:
    """Squared norms of rows, [rows]."""
    found: Tensor = torch.linalg.vector_norm(rows.flatten(1), dim=1)
    return found.square()


def _is_small(places: int, size: int) -> bool:
    """Whether products of places cost less than a weight's gradient, with as many numbers as ``size``."""
    return places == 1 or 2 * places * places <= size


def _padded(x: Tensor, part: nn.Conv2d) -> Tensor:
    """Images with what a convolution puts around them, [images, height, width, channels]."""
    if not isinstance(part.padding, str):
        high, wide = part.padding
        x = functional.pad(x, (wide, wide, high, high))
    return x.permute(0, 2, 3, 1).contiguous()


def _patches(x: Tensor, part: nn.Conv2d, size: torch.Size) -> Tensor:
    """What each place of a convolution's result sees, [images, places, kernel * channels].

    A view that is copied once, in rows of a kernel's width times the channels: `unfold` of images takes ten
    times as long on a CPU.
    """
    image, row, column, channel = x.stride()
    (down, right), (below, beside) = part.stride, part.dilation
    windows = x.as_strided(
        (len(x), *size, *part.kernel_size, x.shape[3]),
        (image, row * down, column * right, row * below, column * beside, channel),
        x.storage_offset(),
    )
    return windows.reshape(len(x), size.numel(), -1)
