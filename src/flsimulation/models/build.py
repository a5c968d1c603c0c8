"""From the experiment's [model] to a LightningModule."""

from __future__ import annotations

import inspect
from typing import Any

import pytorch_lightning as pl
import torch
from torch.nn.parameter import is_lazy
from torchmetrics import Metric

from flsimulation import seeds
from flsimulation.data.dataset import Dataset
from flsimulation.errors import ModelError, describe_error
from flsimulation.experiment.importing import import_object
from flsimulation.experiment.spec import Model
from flsimulation.experiment.suggest import did_you_mean, nearest
from flsimulation.models.cnn import CNN
from flsimulation.models.lightning_modules import defines, package_of
from flsimulation.models.logistic import Logistic
from flsimulation.models.lstm import LSTM
from flsimulation.models.mlp import MLP, TwoNN
from flsimulation.models.sizes import sizes_for
from flsimulation.models.unet import UNet

MODELS: dict[str, type[pl.LightningModule]] = {
    "mlp": MLP,
    "2nn": TwoNN,
    "cnn": CNN,
    "logistic": Logistic,
    "unet": UNet,
    "lstm": LSTM,
}
"""The shipped models by name."""

_SENDABLE = (
    *(torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool),
)  # the types that NumPy, and so Flower's arrays, know too


def build_model(spec: Model, dataset: Dataset, seed: int) -> pl.LightningModule:
    """Build the model with seeded initial weights.

    Raises
    ------
    ModelError
        If the class cannot be found, is no LightningModule, refuses its arguments, or cannot be
        trained and sent as it is.
    """
    with seeds.global_streams(seeds.integer(seed, "model")):
        module = instantiate(spec.class_, model_arguments(spec, dataset))
    for part in module.modules():
        if isinstance(part, Metric):
            part.persistent(False)  # counts of examples are no part of the model
    if (want := _want(module)) is not None:
        raise ModelError(f"model.class {spec.class_!r} {want}")
    return module


def model_arguments(spec: Model, dataset: Dataset) -> dict[str, Any]:
    """Keyword arguments of the model's class.

    A shipped model takes the sizes of its first and last layer and its task from the data set,
    unless the experiment names them; a user's own class gets the experiment's arguments alone.

    Raises
    ------
    ModelError
        If a shipped model has no form for the data set.
    """
    sizes = sizes_for(spec.class_, dataset) if spec.class_ in MODELS else {}
    return {**sizes, **spec.args}


def instantiate(name: str, arguments: dict[str, Any]) -> pl.LightningModule:
    """Call the class that ``name`` names. Raises `ModelError`."""
    cls = _model_class(name)
    try:
        return cls(**arguments)
    except Exception as error:
        raise ModelError(_refusal(name, cls, arguments, error)) from error


def require_argument(spec: Model, argument: str, key: str) -> None:
    """Raise `ModelError`, which names the key, if the model's class takes no such argument."""
    takes = inspect.signature(_model_class(spec.class_)).parameters
    if argument in takes or any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        return
    raise ModelError(
        f"{key} is the argument {argument} of the model, but {spec.class_!r} does not take it (it takes: "
        f"{', '.join(takes) or 'no arguments'}); add it to the class and use it in configure_optimizers, "
        f"or leave the key out"
    )


def _model_class(name: str) -> type[pl.LightningModule]:
    if name in MODELS:
        return MODELS[name]
    if ":" not in name:
        raise ModelError(
            f"model.class must be one of {', '.join(MODELS)}, or your own 'module:Class' or "
            f"'path/to/file.py:Class', got {name!r}{did_you_mean(nearest(name, MODELS))}"
        )
    cls = import_object(name, "model.class", ModelError)
    if not isinstance(cls, type) or package_of(cls) is None:
        raise ModelError(f"model.class {name!r} is {_kind(cls)}")
    return cls


def _kind(named: Any) -> str:
    """What a name stands for that is no LightningModule's, and the remedy."""
    base = "pytorch_lightning.LightningModule"
    if isinstance(named, type) and issubclass(named, torch.nn.Module):
        return (
            f"a torch.nn.Module without training_step and configure_optimizers; derive it from "
            f"{base} and add them, or wrap it in a class that does"
        )
    if isinstance(named, torch.nn.Module):
        return f"a model that is built already; name its class, {type(named).__name__}"
    if isinstance(named, type):
        return f"a class that is not derived from {base}; name one that is"
    return f"no class but a {type(named).__name__}; name a class that is derived from {base}"


def _want(module: pl.LightningModule) -> str | None:
    """What keeps a module from being trained in a federation, or None."""
    for hook in ("training_step", "configure_optimizers"):
        if not defines(hook, module):
            return f"has no {hook}; add it as Lightning documents it"
    if not any(parameter.requires_grad for parameter in module.parameters()):
        return "has no parameter that can be trained; leave some with requires_grad"
    for name, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor):
            return f"keeps {name}, which is no tensor, in its state_dict; only tensors are averaged"
        if is_lazy(value):
            return f"has the lazy parameter {name}; give its size, so that all clients agree on it"
        if value.dtype not in _SENDABLE:
            return f"has {name} of type {value.dtype}, which cannot be sent; use float32"
    return None


def _refusal(name: str, cls: type, arguments: dict[str, Any], error: Exception) -> str:
    takes = ", ".join(inspect.signature(cls).parameters) or "no arguments"
    text = f"model.args {arguments!r} cannot build {name!r}: {describe_error(error)}; it takes: {takes}"
    if isinstance(error, AttributeError) and "'dict' object" in str(error):
        return f"{text}; a table of model.args is a dict there, so that its keys are read as [...]"
    return text
