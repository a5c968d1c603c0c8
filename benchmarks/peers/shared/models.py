"""The models of workloads W5 to W10: Lightning modules as their users write them.

Peers whose environment has no Lightning take them for plain modules, and call ``forward`` alone. The
classes of a model's output are its second dimension, so that ``cross_entropy`` and ``argmax(1)``
serve them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule
else:
    try:
        from pytorch_lightning import LightningModule
    except ImportError:
        from torch.nn import Module as LightningModule


class Learner(LightningModule):
    """What they have in common: the cross-entropy, SGD and the accuracy."""

    def __init__(self, learning_rate: float = 0.05) -> None:
        super().__init__()
        self.learning_rate = learning_rate

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = functional.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.log("loss", functional.cross_entropy(logits, y))
        self.log("accuracy", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)


class DropoutPerceptron(Learner):
    """784-128-256-10 with ReLU, and a dropout behind each hidden layer."""

    def __init__(self, learning_rate: float = 0.05) -> None:
        super().__init__(learning_rate)
        self.layers = nn.Sequential(
            *(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Dropout(0.2)),
            *(nn.Linear(128, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, 10)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, 10] of images [batch, 1, 28, 28]."""
        logits: Tensor = self.layers(x)
        return logits


class NormalizedCNN(Learner):
    """conv16-BN-conv32-BN-dropout-fc, each convolution with ReLU and pooling."""

    def __init__(self, learning_rate: float = 0.05) -> None:
        super().__init__(learning_rate)
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 7 * 7, 10)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, 10] of images [batch, 1, 28, 28]."""
        logits: Tensor = self.layers(x)
        return logits


class RowGRU(Learner):
    """A GRU that reads an image row by row."""

    def __init__(self, learning_rate: float = 0.05) -> None:
        super().__init__(learning_rate)
        self.gru = nn.GRU(28, 64, batch_first=True)
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, 10] of images [batch, 1, 28, 28]."""
        states, _ = self.gru(x.squeeze(1))
        logits: Tensor = self.last(states[:, -1])
        return logits


class RowTransformer(Learner):
    """Two encoder layers over the rows of an image, and the mean of what they make of them."""

    def __init__(self, learning_rate: float = 0.05) -> None:
        super().__init__(learning_rate)
        self.first = nn.Linear(28, 64)
        self.places = nn.Parameter(0.02 * torch.randn(28, 64))
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, 10] of images [batch, 1, 28, 28]."""
        rows = self.encoder(self.first(x.squeeze(1)) + self.places)
        logits: Tensor = self.last(rows.mean(1))
        return logits


class CharacterLSTM(Learner):
    """The next of 80 characters, at each place of a text."""

    def __init__(self, learning_rate: float = 0.05) -> None:
        super().__init__(learning_rate)
        self.embedding = nn.Embedding(80, 64)
        self.lstm = nn.LSTM(64, 128, batch_first=True)
        self.last = nn.Linear(128, 80)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, 80, places] of tokens int64 [batch, places]."""
        states, _ = self.lstm(self.embedding(x))
        logits: Tensor = self.last(states)
        return logits.transpose(1, 2)


class Block(nn.Module):
    """Two convolutions with BatchNorm beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm_1 = nn.BatchNorm2d(after)
        self.conv_2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm_2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Features [batch, after, height / stride, width / stride]."""
        inner = self.norm_2(self.conv_2(torch.relu(self.norm_1(self.conv_1(x)))))
        return torch.relu(inner + self.shortcut(x))


class ResNet8(Learner):
    """One block each of 16, 32 and 64 channels: the ResNet for CIFAR10 with n = 1."""

    def __init__(self, learning_rate: float = 0.05) -> None:
        super().__init__(learning_rate)
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, 10] of images [batch, 3, 32, 32]."""
        logits: Tensor = self.layers(x)
        return logits
