"""The whole command: seconds, start-up and memory of ``flsim run``, and rounds of large populations.

Each run is a program of its own, as a user starts it, with evaluation, the run directory and the
report; the runs alternate. W1 and W2 are those of workloads.py; ``1k`` and ``1M`` are W2's clients,
100 a round, of populations of a thousand and of a million that draw their examples; ``10k cohort``
is a round of 10,000 clients of ten examples. Start-up is the command less the run itself.

    python benchmarks/command.py [W1 W2 1k 1M "10k cohort"] [--repeats 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from results import command_line, json_file, write
from workloads import experiment

from flsimulation.experiment import Experiment, dump_toml
from flsimulation.rundir import RunRecord


def drawn(clients: int, cohort: int, examples: int, rounds: int) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "population",
            "data": {
                "clients": clients,
                "partition": "drawn",
                "examples-per-client": examples,
                "validation-fraction": 0.0,
            },
            "model": {"args": {"optimizer": "sgd", "learning_rate": 0.1}},
            "train": {"batch-size": 10},
            "strategy": {"rounds": rounds, "fraction-train": cohort / clients},
            "evaluate": {"clients": 0, "central-every": 0},
        }
    )


RUNS = {
    "W1": lambda: experiment("W1", 20),
    "W2": lambda: experiment("W2", 20),
    "1k": lambda: drawn(1000, 100, 60, 20),
    "1M": lambda: drawn(1_000_000, 100, 60, 20),
    "10k cohort": lambda: drawn(1_000_000, 10_000, 10, 3),
}


def measured(spec: Experiment) -> dict[str, float]:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "experiment.toml"
        file.write_text(dump_toml(spec))
        command = [sys.executable, "-m", "flsimulation", "run", str(file), "--json", "--quiet"]
        began = time.perf_counter()
        done = subprocess.run(
            [*command, "--out", "run"], cwd=folder, check=True, capture_output=True, text=True
        )
        whole = time.perf_counter() - began
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        rounds = [line["seconds"]["total"] for line in RunRecord(Path(folder) / "run").rounds]
    return {
        "command": whole,
        "start-up": whole - result["seconds"],
        "round": statistics.median(rounds[2:] or rounds),
        "peak-bytes": result["peak_memory_bytes"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", help=", ".join(RUNS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=json_file)
    options = parser.parse_args()
    chosen = options.runs or list(RUNS)
    if unknown := sorted(set(chosen) - RUNS.keys()):
        parser.error(f"{unknown[0]} is none of {', '.join(RUNS)}")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    for _ in range(options.repeats):
        for name in chosen:
            found[name].append(measured(RUNS[name]()))
    results = []
    print(f"{'run':12}{'command, s':>12}{'start-up, s':>12}{'a round, s':>12}{'peak, MiB':>12}")
    for name, rows in found.items():
        middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        results.append({"run": name, "median": middle, "all": rows})
        print(
            f"{name:12}{middle['command']:12.1f}{middle['start-up']:12.1f}{middle['round']:12.3f}"
            f"{middle['peak-bytes'] / 2**20:12.0f}"
        )
    if options.json:
        write(options.json, command_line(), results)


if __name__ == "__main__":
    main()
