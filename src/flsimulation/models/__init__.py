"""Models: LightningModules that ship with the package, and the way to one's own."""

from flsimulation.models.build import (
    MODELS,
    build_model,
    instantiate,
    model_arguments,
    require_argument,
)
from flsimulation.models.cnn import CNN
from flsimulation.models.logistic import Logistic
from flsimulation.models.lstm import LSTM
from flsimulation.models.mlp import MLP, TwoNN
from flsimulation.models.supervised import Supervised
from flsimulation.models.unet import UNet

__all__ = [
    "CNN",
    "LSTM",
    "MLP",
    "MODELS",
    "Logistic",
    "Supervised",
    "TwoNN",
    "UNet",
    "build_model",
    "instantiate",
    "model_arguments",
    "require_argument",
]
