"""Memory of an evaluation: peak of a run whose test set is large, by the size of its batches.

The shipped U-Net on images of 128 x 128 pixels, trained in batches of 4. Each run is a process of its
own; `auto` is the size that the run measures by itself.

    python benchmarks/memory.py [--sizes 4 1000]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

DATA = """
import numpy as np

def images(test=400, side=128):
    rng = np.random.default_rng(0)
    masks = np.zeros((24 + test, side, side), np.int64)
    for mask, (row, column) in zip(masks, rng.integers(4, side - 40, (len(masks), 2))):
        mask[row : row + 32, column : column + 32] = 1
    x = (masks[:, None] + rng.normal(0, 0.3, (len(masks), 1, side, side))).astype("f4")
    return dict(x_train=x[:24], y_train=masks[:24], x_test=x[24:], y_test=masks[24:])
"""

EXPERIMENT = """
[data]
dataset = "data.py:images"
[model]
class = "unet"
args = { width = 32 }
[train]
batch-size = 4
engine = "lightning"
[strategy]
rounds = 1
"""


def peak(folder: Path, size: int) -> tuple[float, float]:
    """Peak memory in MiB and seconds of a run with this size of a batch; 0 for the measured one."""
    out = folder / f"run-{size}"
    command = [sys.executable, "-m", "flsimulation", "run", str(folder / "seg.toml")]
    command += ["--quiet", "--out", str(out), "--set", f"evaluate.batch-size={size}"]
    subprocess.run(command, check=True)
    manifest = json.loads((out / "manifest.json").read_text())
    return manifest["peak-memory-bytes"] / 2**20, manifest["seconds"]


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[4])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data.py").write_text(DATA)
        (folder / "seg.toml").write_text(EXPERIMENT)
        for size in [0, *parser.parse_args().sizes]:
            memory, seconds = peak(folder, size)
            print(
                f"batches of {size or 'auto':>5}: {memory:7,.0f} MiB, {seconds:5.1f} s", flush=True
            )


if __name__ == "__main__":
    main()
