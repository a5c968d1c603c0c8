"""The whole command: seconds, start-up and memory of ``flsim run``, and rounds of large populations.

Each run is a program of its own, as a user starts it, with evaluation, the run directory and the
report; the runs alternate, with a program that only imports PyTorch. ``default`` is the default
experiment, W1 and W2 are those of workloads.py; ``1k`` and ``1M`` are W2's clients, 100 a round, of
populations of a thousand and of a million that draw their examples; ``10k cohort`` is a round of
10,000 clients of ten examples. The first round ends when its line is printed, and begins as much
earlier as it says that it took; start-up is the command less the run. The import and the first run
are made once before, unmeasured: what Python has not compiled yet is then, as by an installation.

    python benchmarks/command.py [default W1 W2 1k 1M "10k cohort"] [--repeats 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from results import command_line, json_file, write
from workloads import experiment

from flsimulation.experiment import Experiment, dump_toml, load_experiment
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


ALONE = "import torch"
"""The program that each run is compared with."""
RUNS = {
    "default": lambda: load_experiment(None),
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
        began = time.perf_counter()
        printed = first_round_printed([*FLSIM, "run", str(file), "--out", "run"], folder)
        whole = time.perf_counter() - began
        record = RunRecord(Path(folder) / "run")
        manifest = record.manifest
        rounds = [line["seconds"]["total"] for line in record.rounds]
    return {
        "command": whole,
        "first-round": printed - began - rounds[0],
        "first-round-ended": printed - began,
        "start-up": whole - manifest["seconds"],
        "round": statistics.median(rounds[2:] or rounds),
        "peak-bytes": manifest["peak-memory-bytes"],
    }


FLSIM = [sys.executable, "-m", "flsimulation"]
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


def first_round_printed(command: list[str], folder: str) -> float:
    """Run a command to its end; the time at which it printed the line of the first round."""
    found, at_once = 0.0, ENVIRONMENT | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=folder, env=at_once, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if not found and re.match(r"\s*1/\d", line):
                found = time.perf_counter()
    if running.returncode or not found:
        raise SystemExit(f"{' '.join(command)} ended with {running.returncode}")
    return found


def imported_alone() -> dict[str, float]:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", ALONE], check=True, env=ENVIRONMENT)
    return {"command": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", help=", ".join(RUNS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=json_file)
    options = parser.parse_args()
    chosen = options.runs or list(RUNS)
    if unknown := sorted(set(chosen) - RUNS.keys()):
        parser.error(f"{unknown[0]} is none of {', '.join(RUNS)}")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in [ALONE, *chosen]}
    imported_alone()
    measured(RUNS[chosen[0]]())
    for _ in range(options.repeats):
        for name in chosen:
            found[ALONE].append(imported_alone())
            found[name].append(measured(RUNS[name]()))
    results = []
    print(
        "run             command  1st begun  1st ended  import torch  ratio  start-up  round  MiB"
    )
    for name, rows in found.items():
        middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        results.append({"run": name, "median": middle, "all": rows})
        print(f"{name:12}{middle['command']:9.2f} s", end="")
        if name != ALONE:
            alone = results[0]["median"]["command"]
            print(
                f"{middle['first-round']:9.2f} s{middle['first-round-ended']:9.2f} s"
                f"{alone:12.2f} s{middle['first-round-ended'] / alone:7.2f}"
                f"{middle['start-up']:8.2f} s{middle['round']:7.3f}{middle['peak-bytes'] / 2**20:5.0f}",
                end="",
            )
        print()
    if options.json:
        write(options.json, command_line(), results)


if __name__ == "__main__":
    main()
