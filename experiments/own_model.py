"""A LightningModule as anyone would write it; nothing in it knows that it is trained federated."""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional


class SmallConvNet(pl.LightningModule):
    """One convolution with batch normalisation and dropout, trained with SGD and a schedule."""

    def __init__(self, channels: int = 8, learning_rate: float = 0.1, dropout: float = 0.2):
        super().__init__()
        self.save_hyperparameters()
        self.features = nn.Sequential(
            nn.Conv2d(1, channels, kernel_size=5, padding=2),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(4),  # [batch, channels, 7, 7]
            nn.Flatten(),
            nn.Dropout(dropout),
        )
        self.head = nn.Linear(channels * 7 * 7, 10)

    def forward(self, x):
        return self.head(self.features(x))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = functional.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("val_loss", functional.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(dim=1) == y).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.learning_rate)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}
