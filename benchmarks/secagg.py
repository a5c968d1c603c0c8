"""Cost of secure aggregation: seconds and bytes of a round against plain FedAvg.

The default model (136,074 parameters) on parts of MNIST, one local epoch of 60 examples, so that the
protocol is most of a round. In one process and on a network of processes on this machine (a SuperLink and
as many clients, `flsim superlink` and `flsim client`). Runs with and without secure aggregation alternate;
a figure is the median over all rounds but each run's first. ``apart`` is the largest difference of a
number of the final model from plain FedAvg's.

    python benchmarks/secagg.py [--process 10 50 100] [--network 2 10] [--repeats 2] [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from network import BIN, free_port, programs
from results import command_line, json_file, write
from safetensors.numpy import load_file

import flsimulation
from flsimulation.privacy.graph import plan_for
from flsimulation.rundir import RunRecord

EXAMPLES = 60  # of a client


def sets_of(clients: int, rounds: int, *, secure: bool) -> list[str]:
    return [
        f"data.clients={clients}",
        f"data.examples-per-client={EXAMPLES}",
        f"strategy.rounds={rounds}",
        "evaluate.central-every=0",
        "evaluate.clients=0",
        "train.engine=direct",
        "train.device=cpu",
        f"privacy.secure-aggregation={str(secure).lower()}",
    ]


def in_process(clients: int, rounds: int, folder: Path) -> Callable[[bool, str], Path]:
    def run(secure: bool, name: str) -> Path:
        spec = flsimulation.load_experiment(None, sets_of(clients, rounds, secure=secure))
        flsimulation.run(spec, folder / name)
        return folder / name

    return run


def on_network(clients: int, rounds: int, folder: Path, port: int) -> Callable[[bool, str], Path]:
    def run(secure: bool, name: str) -> Path:
        sets = [f"--set={item}" for item in sets_of(clients, rounds, secure=secure)]
        command = [str(BIN / "flsim"), "run", "--runtime=network", f"--superlink=127.0.0.1:{port}"]
        subprocess.run([*command, *sets, "--quiet", f"--out=runs/{name}"], check=True, cwd=folder)
        return folder / "runs" / name

    return run


def commands(clients: int, port: int) -> list[list[str]]:
    own, flsim = free_port(), str(BIN / "flsim")
    superlink = [flsim, "superlink", f"--port={port}", f"--clients-port={own}"]
    return [
        [*superlink, f"--metrics-port={free_port()}"],
        *(
            [
                *(flsim, "client", f"--superlink=127.0.0.1:{own}", f"--name=client-{number}"),
                f"--metrics-port={free_port()}",
            ]
            for number in range(clients)
        ),
    ]


def compared(run: Callable[[bool, str], Path], clients: int, repeats: int) -> dict[str, Any]:
    """Figures of runs with and without, which alternate."""
    lines: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    apart = 0.0
    for repeat in range(repeats):
        models = {}
        for secure in (False, True):
            path = run(secure, f"{'secure' if secure else 'plain'}-{repeat}")
            lines[secure] += list(RunRecord(path).rounds)[1:]
            models[secure] = load_file(path / "model.safetensors")
        gaps = [np.abs(own - models[False][name]).max() for name, own in models[True].items()]
        apart = max(apart, float(max(gaps)))
    plan = plan_for(clients, 0.2, 0.1)
    seconds = {s: statistics.median(line["seconds"]["total"] for line in lines[s]) for s in lines}
    sent = {s: [line["bytes"]["up"] + line["bytes"]["down"] for line in lines[s]] for s in lines}
    sizes = {s: statistics.median(own) / clients for s, own in sent.items()}
    return {
        "clients": clients,
        "neighbours": plan.neighbours,
        "threshold": plan.threshold,
        "plain-seconds": round(seconds[False], 3),
        "secure-seconds": round(seconds[True], 3),
        "more-seconds": round(seconds[True] - seconds[False], 3),
        "plain-bytes-per-client": round(sizes[False]),
        "secure-bytes-per-client": round(sizes[True]),
        "apart": apart,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--process", type=int, nargs="*", default=[10, 50, 100])
    parser.add_argument("--network", type=int, nargs="*", default=[2, 10])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=json_file)
    given = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {"process": [], "network": []}
    for clients in given.process:
        with tempfile.TemporaryDirectory() as name:
            run = in_process(clients, given.rounds, Path(name))
            found["process"].append(compared(run, clients, given.repeats))
        print("process", found["process"][-1], flush=True)
    for clients in given.network:
        with tempfile.TemporaryDirectory() as name:
            port, folder = free_port(), Path(name)
            (folder / "runs").mkdir()
            with programs(folder, commands(clients, port), port):
                run = on_network(clients, given.rounds, folder, port)
                found["network"].append(compared(run, clients, given.repeats))
        print("network", found["network"][-1], flush=True)
    if given.json is not None:
        write(given.json, command_line(), found)


if __name__ == "__main__":
    main()
