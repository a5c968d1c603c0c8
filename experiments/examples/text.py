"""Short messages, positive or negative: words become numbers, an Embedding and a GRU read them."""

import numpy as np
import pytorch_lightning as pl
import torch
import torchmetrics
from torch import nn
from torch.nn import functional

GOOD = ["lovely", "great", "happy", "brilliant", "thanks"]
BAD = ["awful", "late", "sad", "broken", "refund"]
OTHER = [
    "the",
    "a",
    "my",
    "bus",
    "phone",
    "coffee",
    "day",
    "was",
    "is",
    "so",
    "very",
    "today",
    "again",
    "with",
    "and",
]
WORDS = ["<padding>", *GOOD, *BAD, *OTHER]
LENGTH = 12


def messages(number: int = 900, seed: int = 0) -> dict[str, object]:
    """Word numbers int64 [n, 12], filled up with 0; label 1 if good words outnumber bad ones."""
    rng = np.random.default_rng(seed)
    x = np.zeros((number, LENGTH), np.int64)
    for row in x:
        length = rng.integers(6, LENGTH + 1)
        row[:length] = rng.integers(11, len(WORDS), length)
        telling = rng.choice(length, 3, replace=False)
        row[telling] = rng.integers(1, 11, 3)
    y = ((x > 0) & (x < 6)).sum(1) > ((x > 5) & (x < 11)).sum(1)
    split = number * 4 // 5
    return {
        "x_train": x[:split],
        "y_train": y[:split].astype(int),
        "x_test": x[split:],
        "y_test": y[split:].astype(int),
        "classes": ["negative", "positive"],
    }


class Reader(pl.LightningModule):
    """Embedding, GRU and a linear layer over the state after the last word."""

    def __init__(self, learning_rate: float = 0.01):
        super().__init__()
        self.learning_rate = learning_rate
        self.embedding = nn.Embedding(len(WORDS), 16, padding_idx=0)
        self.gru = nn.GRU(16, 32, batch_first=True)
        self.head = nn.Linear(32, 2)
        self.f1 = torchmetrics.classification.MulticlassF1Score(2, average="macro")

    def forward(self, x):
        states, _ = self.gru(self.embedding(x))
        last = (x > 0).sum(1) - 1
        return self.head(states[torch.arange(len(x)), last])

    def training_step(self, batch, batch_idx):
        x, y = batch
        return functional.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.f1(logits, y)
        self.log("val_loss", functional.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean())
        self.log("f1", self.f1)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)
