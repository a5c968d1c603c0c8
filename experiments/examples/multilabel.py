"""Films with several genres each: 20 features, and for each of four genres 0 or 1."""

import numpy as np

GENRES = ["comedy", "crime", "drama", "romance"]


def films(number: int = 2000, seed: int = 0) -> dict[str, object]:
    """Features drawn with a seed; a genre applies where a linear function of them is high."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(number, 20)).astype(np.float32)
    y = (x @ rng.normal(size=(20, len(GENRES))) > 1).astype(np.float32)
    split = number * 4 // 5
    return {
        "x_train": x[:split],
        "y_train": y[:split],
        "x_test": x[split:],
        "y_test": y[split:],
        "classes": GENRES,
    }
