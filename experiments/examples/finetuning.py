"""A model that was trained before, on other digits: its layers are frozen, a new last one learns."""

import numpy as np
import pytorch_lightning as pl
import torch
from torch.nn import functional

from flsimulation import load_model
from flsimulation.data import load_dataset
from flsimulation.experiment.spec import Data


def digits(classes: list[int], examples: int = 600) -> dict[str, object]:
    """MNIST with these digits alone, ``examples`` of each to train on."""
    mnist = load_dataset(Data(), seed=0)
    y_train, y_test = mnist.y_train.numpy(), mnist.y_test.numpy()
    train = np.concatenate([np.flatnonzero(y_train == digit)[:examples] for digit in classes])
    test = np.flatnonzero(np.isin(y_test, classes))
    return {
        "x_train": mnist.x_train[train],
        "y_train": np.searchsorted(classes, y_train[train]),
        "x_test": mnist.x_test[test],
        "y_test": np.searchsorted(classes, y_test[test]),
        "classes": [str(digit) for digit in classes],
    }


class FineTuned(pl.LightningModule):
    """The convolutions and the hidden layer of a run's model, and a last layer of its own."""

    def __init__(self, backbone: str, classes: int = 5, learning_rate: float = 0.1):
        super().__init__()
        self.learning_rate = learning_rate
        self.backbone = load_model(backbone)
        self.backbone.requires_grad_(False)
        self.head = torch.nn.Linear(self.backbone.layer_2.in_features, classes)
        self.backbone.layer_2 = torch.nn.Identity()

    def forward(self, x):
        return self.head(torch.relu(self.backbone(x)))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return functional.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("val_loss", functional.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.head.parameters(), lr=self.learning_rate)
