"""Models: LightningModules that ship with the package, and the way to one's own."""

from flsimulation.models.build import MODELS, build_model, instantiate, model_arguments
from flsimulation.models.cnn import CNN
from flsimulation.models.logistic import Logistic
from flsimulation.models.mlp import MLP, TwoNN

__all__ = [
    "CNN",
    "MLP",
    "MODELS",
    "Logistic",
    "TwoNN",
    "build_model",
    "instantiate",
    "model_arguments",
]
