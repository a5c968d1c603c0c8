"""What OpenMP's waiting threads cost: one epoch of the default model, alone and beside a busy twin.

600 made-up examples, batch 32, Adam, PyTorch's own number of threads. Each measurement is a process
of its own, since OpenMP reads the policy when it is loaded; the policies alternate.

    python benchmarks/threads.py [--repeats 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from typing import Any

from results import command_line, json_file, write

EPOCHS = """
import time, torch
from torch import nn
from torch.nn import functional
model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 10))
optimizer = torch.optim.Adam(model.parameters())
x, y = torch.rand(600, 784), torch.randint(0, 10, (600,))
def epoch():
    for batch in torch.randperm(600).split(32):
        optimizer.zero_grad()
        functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
epoch()
seconds, began = [], time.perf_counter()
while time.perf_counter() - began < 4:
    start = time.perf_counter()
    epoch()
    seconds.append(time.perf_counter() - start)
seconds.sort()
print(1000 * seconds[len(seconds) // 2])
"""


def milliseconds(policy: str, processes: int) -> float:
    """Median epoch of the slowest of so many processes at once."""
    environment = {**os.environ, "OMP_WAIT_POLICY": policy}
    if policy != "PASSIVE":
        environment.pop("OMP_WAIT_POLICY", None)
    if policy == "1 thread":
        environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-c", EPOCHS]
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    return max(float(process.communicate()[0]) for process in started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=json_file, help="also write the figures here")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    for processes in (1, 2):
        found: dict[str, list[float]] = {"default": [], "PASSIVE": [], "1 thread": []}
        for _ in range(options.repeats):
            for policy, values in found.items():
                values.append(milliseconds(policy, processes))
        for policy, values in found.items():
            median = statistics.median(values)
            results.append(
                {"processes": processes, "policy": policy, "median-ms": median, "all-ms": values}
            )
            print(
                f"{processes} at once, {policy:8s} {median:8.1f} ms an epoch  (all: {[round(v, 1) for v in values]})"
            )
    if options.json:
        write(options.json, command_line(), results)


if __name__ == "__main__":
    main()
