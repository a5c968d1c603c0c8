"""The character LSTM of McMahan et al., "Communication-Efficient Learning ...", AISTATS 2017."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from flsimulation.models.supervised import Optimizer, Supervised


class LSTM(Supervised):
    """An embedding of tokens, two LSTM layers and a linear layer, trained with SGD.

    Source: section 3 of the paper, which predicts the next of 80 characters at each of 80 places.
    Under ``classification``, ``regression`` and ``multilabel`` the output is that of the last place.

    Parameters
    ----------
    vocabulary, classes : int
        Number of tokens, and width of the output; under ``language`` that is the vocabulary's.
    embedding, hidden : int
        Width of the embedding and of each LSTM layer.
    learning_rate, optimizer, momentum, **options
        See `Supervised`.
    """

    def __init__(
        self,
        vocabulary: int = 80,
        classes: int = 80,
        embedding: int = 8,
        hidden: int = 256,
        learning_rate: float = 1.0,
        optimizer: Optimizer = "sgd",
        momentum: float = 0.0,
        **options: Any,
    ) -> None:
        options = {"task": "language", **options}
        super().__init__(learning_rate, optimizer, momentum, outputs=classes, **options)
        self.each = options["task"] == "language"
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, num_layers=2, batch_first=True)
        self.last = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, tokens, classes] of tokens int64 [batch, tokens]; of the last place alone."""
        states, _ = self.lstm(self.embedding(x))
        return self.output(self.last(states if self.each else states[:, -1]))
