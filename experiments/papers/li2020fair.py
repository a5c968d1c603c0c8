"""Fashion-MNIST's three hardest classes, one for each of three clients.

Source: Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020, in
the comparison with agnostic federated learning (Mohri, Sivek, Suresh 2019), whose data these are.
"""

from __future__ import annotations

from typing import Any

from flsimulation.models.classifier import Batch
from torch import Tensor

from flsimulation.data import load_dataset
from flsimulation.experiment.spec import Data
from flsimulation.models.logistic import Logistic

CLASSES = {"t-shirt": 0, "pullover": 2, "shirt": 6}
"""Name here, number in Fashion-MNIST; in the order of clients and of labels."""


def three_classes() -> dict[str, Any]:
    """Images of three classes, each pixel standardised by all 60,000 training images.

    Returns
    -------
    dict
        Inputs float32 [18,000 and 3,000, 784], labels 0 to 2, and each training image's client,
        which is its label.
    """
    whole = load_dataset(Data(dataset="fashion-mnist"), seed=0)
    x = 255 * whole.x_train.flatten(1)
    mean, spread = x.mean(0), x.std(0, correction=0) + 0.001
    found: dict[str, Any] = {"classes": tuple(CLASSES)}
    for part in ("train", "test"):
        images, labels = getattr(whole, f"x_{part}").flatten(1), getattr(whole, f"y_{part}")
        own = sum(labels == number for number in CLASSES.values()).bool()
        found[f"x_{part}"] = ((255 * images[own] - mean) / spread).numpy()
        numbers = sum(new * (labels[own] == old) for new, old in enumerate(CLASSES.values()))
        found[f"y_{part}"] = numbers.numpy()
    return found | {"owners": found["y_train"]}


class Fashions(Logistic):
    """Logistic regression that logs each class's accuracy, for classes of one size."""

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss, the accuracy, and under its name the accuracy of each class (0..1).

        A class's accuracy is the mean over its own images; over all images, a third of which are
        its own, that is three times the mean of what is its own and right.
        """
        super().validation_step(batch, batch_idx)
        x, y = batch
        right: Tensor = self(x).argmax(dim=1) == y
        for number, name in enumerate(CLASSES):
            own = (right & (y == number)).float().mean()
            self.log(name, len(CLASSES) * own)
