"""Microscope images of round cells, and a mask for each: 1 where a cell is, 0 elsewhere."""

import numpy as np


def cells(number: int = 200, side: int = 32, seed: int = 0) -> dict[str, object]:
    """Images float32 [n, 1, side, side] with noise, masks int64 [n, side, side]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    masks = np.zeros((number, side, side), np.int64)
    for mask in masks:
        for _ in range(3):
            row, column, radius = *rng.integers(4, side - 4, 2), rng.integers(3, 7)
            mask[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = 1
    images = (masks[:, None] + rng.normal(0, 0.5, (number, 1, side, side))).astype(np.float32)
    split = number * 4 // 5
    return {
        "x_train": images[:split],
        "y_train": masks[:split],
        "x_test": images[split:],
        "y_test": masks[split:],
        "classes": ["background", "cell"],
    }
