"""MNIST among a thousand clients of two digits each, with sizes by a power law.

Source: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous
Networks", MLSys 2020, section 5.1, in the form of its authors' program (github.com/litian96/FedProx,
data/mnist/generate_niid.py), which Palihawadana et al., "FedSim", Neurocomputing 483, 2022, use.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flsimulation.data import load_dataset
from flsimulation.experiment.spec import Data

_LEAST = 5  # images of each of a client's two digits
_TRAINED = 0.9  # share of a client's images that it trains on


def power_law(seed: int = 0, clients: int = 1000) -> dict[str, Any]:
    """Divide all 70,000 images, each pixel standardised.

    Client k holds digits k and k + 1 modulo 10: five of each, and of what is left a share drawn
    from a lognormal distribution.

    Parameters
    ----------
    seed : int
        Of the draws.
    clients : int
        A multiple of 10.

    Returns
    -------
    dict
        Inputs float32 [n, 784] and labels, training and test parts of the clients joined, and each
        training image's client.
    """
    rng = np.random.default_rng(seed)
    whole = load_dataset(Data(dataset="mnist"), seed=0)
    x = np.concatenate([whole.x_train.numpy(), whole.x_test.numpy()]).reshape(-1, 784) * 255
    y = np.concatenate([whole.y_train.numpy(), whole.y_test.numpy()])
    x = ((x - x.mean(0)) / (x.std(0) + 0.001)).astype(np.float32)
    heaps = [list(rng.permutation(np.flatnonzero(y == digit))) for digit in range(10)]
    left = np.array([len(heap) for heap in heaps]) - 2 * _LEAST * clients // 10
    shares = rng.lognormal(0, 2, (10, clients // 10, 2))  # of a digit: clients, as first or second
    shares *= left[:, None, None] / shares.sum((1, 2), keepdims=True)

    def take(digit: int, count: int) -> list[int]:
        return [heaps[digit].pop() for _ in range(count)]

    digits = [(k % 10, (k + 1) % 10) for k in range(clients)]
    held = [take(a, _LEAST) + take(b, _LEAST) for a, b in digits]
    for client, both in enumerate(digits):
        for place, digit in enumerate(both):
            count = int(shares[digit, client // 10, place])
            held[client] += take(digit, count) if count < len(heaps[digit]) else []
    train, test, owners = list[int](), list[int](), list[int]()
    for client, images in enumerate(held):
        mixed, kept = rng.permutation(images), int(_TRAINED * len(images))
        train += mixed[:kept].tolist()
        test += mixed[kept:].tolist()
        owners += [client] * kept
    return {
        "x_train": x[train],
        "y_train": y[train],
        "x_test": x[test],
        "y_test": y[test],
        "owners": np.array(owners),
    }
