"""What a layer or a loss was given that it does not take, in one line with the remedy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flsimulation.data.task import IGNORED
from flsimulation.training.watch import CLASSES, PAIRS, Layer, Loss, Watch

_SIZES = {
    nn.Linear: (-1, "in_features"),
    nn.modules.conv._ConvNd: (1, "in_channels"),
    nn.modules.batchnorm._BatchNorm: (1, "num_features"),
    nn.GroupNorm: (1, "num_channels"),
    nn.RNNBase: (-1, "input_size"),
}  # where in an input's shape the size is that this attribute names
_DIMENSIONS: dict[type[nn.Module], int] = {
    nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3,
    nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 2, nn.ConvTranspose3d: 3,
}  # fmt: skip
_PAIR = 2  # tensors of a batch: inputs and labels


def kind(tensor: Tensor) -> str:
    """A tensor's type without PyTorch's name: ``float32``."""
    return str(tensor.dtype).removeprefix("torch.")


def described(tensor: Tensor, batch: int | None = None) -> str:
    """Shape and type: ``of shape [batch, 3] float32``; ``batch`` is the number of examples."""
    shape = [str(size) for size in tensor.shape]
    if shape and tensor.shape[0] == batch:
        shape[0] = "batch"
    return f"of shape [{', '.join(shape)}] {kind(tensor)}"


def of_layer(watch: Watch, batch: Sequence[Tensor], error: BaseException) -> str | None:
    """Why the innermost layer that an error has left refuses its input; None if it is not known."""
    layer = watch.refused_by(error)
    if layer is None or not layer.inputs or not batch:
        return None
    given, count = layer.inputs[0], len(batch[0])
    wanted = _wanted(layer, given)
    if wanted is None:
        return None
    takes, remedy = wanted
    is_first = watch.first is not None and watch.first.module is layer.module
    name = f"the first layer `{layer.name}`" if is_first else f"layer `{layer.name}`"
    takes = f"{name} ({type(layer.module).__name__}) takes {takes}"
    gets = f"gets an input {described(given, count)}"
    if len(batch) > _PAIR:
        return f"{takes}, but {gets}; {remedy}"
    also = "" if given.shape == batch[0].shape else f" and {gets}"
    return f"batches have inputs {described(batch[0], count)}, but {takes}{also}; {remedy}"


def _wanted(layer: Layer, given: Tensor) -> tuple[str, str] | None:
    """What the layer takes where the input is not that, and the remedy."""
    module = layer.module
    if isinstance(module, nn.Embedding):
        return _of_embedding(module, given)
    own = next(module.parameters(recurse=False), None)
    for known, (place, name) in _SIZES.items():
        if not isinstance(module, known):
            continue
        if (dimensions := _DIMENSIONS.get(type(module))) is not None:
            if given.ndim not in (dimensions + 1, dimensions + 2):
                axes = ", ".join(["batch", "channels", *["size"] * dimensions])
                return f"[{axes}]", "change the inputs' shape, for example with x.unsqueeze(1)"
            place = given.ndim - dimensions - 1
        if given.ndim <= place or not given.ndim:
            return None
        size, has = getattr(module, name), given.shape[place]
        if size != has:
            return f"{name} = {size}", f"set its {name} to {has}, or change the data"
        if own is not None and own.dtype != given.dtype:
            takes = kind(own)
            return takes, f"convert its input with x.to(torch.{takes})"
    return None


def _of_embedding(module: nn.Embedding, given: Tensor) -> tuple[str, str] | None:
    if given.dtype not in (torch.int32, torch.int64):
        remedy = "use whole numbers as inputs of the data set, or convert with x.long()"
        return "whole numbers (int64)", remedy
    low, high = (int(given.min()), int(given.max())) if given.numel() else (0, 0)
    if low < 0 or high >= module.num_embeddings:
        remedy = f"set its num_embeddings to {high + 1}" if low >= 0 else "use numbers from 0 on"
        return f"numbers from 0 to {module.num_embeddings - 1}, not {low} to {high}", remedy
    return None


def of_loss(watch: Watch, error: BaseException) -> str | None:
    """Why a loss refuses the labels; None if it did not raise the error, or if it is not known."""
    if (loss := watch.refused) is None or watch.refusal is not error:
        return None
    return _of_classes(loss, watch.last) if loss.function in CLASSES else _of_pairs(loss)


def _of_classes(loss: Loss, last: Layer | None) -> str | None:
    output, labels, name = loss.output, loss.labels, loss.function.__name__
    count = len(output) if output.ndim else 0
    if output.ndim < 2:
        return None
    wanted = (*output.shape[:1], *output.shape[2:])
    if labels.shape == output.shape and labels.is_floating_point():
        return None
    if labels.shape != wanted:
        return (
            f"{name} gets labels {described(labels, count)} for an output "
            f"{described(output, count)}; it takes one class per example: labels of shape "
            f"[{', '.join(['batch', *map(str, wanted[1:])])}]"
        )
    if labels.dtype not in (torch.int64, torch.uint8):
        return (
            f"{name} gets labels of type {kind(labels)}, but takes int64; convert them with "
            f"y.long() if they are classes, or use mse_loss if they are numbers"
        )
    return _out_of_range(loss, last, output.shape[1])


def _out_of_range(loss: Loss, last: Layer | None, outputs: int) -> str | None:
    counted = loss.labels[loss.labels != loss.options.get("ignore_index", IGNORED)]
    low, high = (int(counted.min()), int(counted.max())) if counted.numel() else (0, 0)
    if low >= 0 and high < outputs:
        return None
    sizes = (
        [getattr(last.module, n, None) for n in ("out_features", "out_channels")] if last else []
    )
    layer = f"last layer `{last.name}`" if last and outputs in sizes else "output"
    remedy = f"set it to {high + 1}" if low >= 0 else "number the classes from 0 on"
    plural = "outputs" if outputs > 1 else "output"
    return (
        f"labels go from {low} to {high}, but the model's {layer} has {outputs} {plural}; {remedy}"
    )


def _of_pairs(loss: Loss) -> str | None:
    output, labels, name = loss.output, loss.labels, loss.function.__name__
    count = len(output) if output.ndim else 0
    if output.shape != labels.shape:
        return (
            f"{name} gets an output {described(output, count)} and labels "
            f"{described(labels, count)}; make the shapes equal, for example with "
            f"{_alike(output, labels)}"
        )
    if labels.dtype != output.dtype:
        return (
            f"{name} gets labels of type {kind(labels)}, but takes {kind(output)}; convert them "
            f"with y.to(torch.{kind(output)})"
        )
    return None


def _alike(output: Tensor, labels: Tensor) -> str:
    """Code that makes the shapes equal, found by its result and not by its looks."""
    axis = next((i for i in range(output.ndim) if labels.shape == _without(output, i)), None)
    if axis is not None and axis > 0:
        return f"output.squeeze({axis if axis < output.ndim - 1 else -1})"
    if labels.numel() == output.numel():
        return "y.view_as(output)"
    if labels.ndim == output.ndim - 1 and output.ndim > 1 and labels.shape == output[:, 0].shape:
        classes = "" if labels.is_floating_point() else ", or cross_entropy, which takes classes"
        return f"one output {'channel ' * (output.ndim > 2)}instead of {output.shape[1]}{classes}"
    return "y.view_as(output)"


def _without(output: Tensor, axis: int) -> tuple[int, ...] | None:
    """Shape without an axis of size 1; None where it is larger."""
    shape = tuple(output.shape)
    return None if shape[axis] != 1 else shape[:axis] + shape[axis + 1 :]


def broadcast(watch: Watch) -> str | None:
    """The loss that compares every output with every label, if one does; PyTorch only warns."""
    for loss in watch.losses:
        output, labels = loss.output, loss.labels
        if loss.function not in PAIRS or output.shape == labels.shape:
            continue
        both = torch.broadcast_tensors(output, labels)  # type: ignore[no-untyped-call]
        if both[0].numel() > output.numel():
            count = len(output) if output.ndim else 0
            return (
                f"{loss.function.__name__} compares each output {described(output, count)} with "
                f"each label {described(labels, count)}, which trains towards the labels' mean; use "
                f"{_alike(output, labels)}"
            )
    return None
