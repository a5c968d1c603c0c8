"""Multinomial logistic regression, the convex model of the FedProx and q-FFL papers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from flsimulation.models.supervised import Optimizer, Supervised, flat


class Logistic(Supervised):
    """Softmax regression: one layer, ``inputs``-``classes``, trained with SGD.

    Source: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous
    Networks", MLSys 2020, section 5.1.

    Parameters
    ----------
    inputs, classes : int
        Width of the input and number of classes; by default those of MNIST.
    learning_rate, optimizer, momentum, **options
        See `Supervised`.
    """

    def __init__(
        self,
        inputs: int = 784,
        classes: int = 10,
        learning_rate: float = 0.01,
        optimizer: Optimizer = "sgd",
        momentum: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, optimizer, momentum, outputs=classes, **options)
        self.layer_1 = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Output [batch, classes] for inputs [batch, ...]."""
        return self.output(self.layer_1(flat(x)))
