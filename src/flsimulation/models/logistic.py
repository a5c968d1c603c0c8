"""Multinomial logistic regression, the convex model of the FedProx and q-FFL papers."""

from __future__ import annotations

from torch import Tensor, nn

from flsimulation.models.classifier import Classifier, Optimizer


class Logistic(Classifier):
    """Softmax regression: one layer, ``inputs``-``classes``, trained with SGD.

    Source: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous
    Networks", MLSys 2020, section 5.1.

    Parameters
    ----------
    inputs, classes : int
        Width of the input and number of classes; by default those of MNIST.
    learning_rate, optimizer, momentum
        See `Classifier`.
    """

    def __init__(
        self,
        inputs: int = 784,
        classes: int = 10,
        learning_rate: float = 0.01,
        optimizer: Optimizer = "sgd",
        momentum: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, optimizer, momentum)
        self.layer_1 = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, classes] of inputs [batch, ...]."""
        logits: Tensor = self.layer_1(x.flatten(1))
        return logits
