"""Cost of secure aggregation: seconds and bytes of a round against plain FedAvg.

The default model (136,074 parameters) on parts of MNIST, one local epoch of 60 examples, so that the
protocol is most of a round. In one process, on a network of processes on this machine (a SuperLink and
as many clients, `flsim superlink` and `flsim client`), and on a network of containers (compose.yaml, with
Docker). Runs with and without secure aggregation alternate;
a figure is the median over all rounds but each run's first. ``apart`` is the largest difference of a
number of the final model from plain FedAvg's.

    python benchmarks/secagg.py [--process 10 50 100] [--network 2 10] [--containers 2 10] [--repeats 2] [--rounds 5]
                                [--json FILE]
"""

from __future__ import annotations

import argparse
import os
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
ROOT = Path(__file__).parent.parent


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


class Containers:
    """A Compose project with as many clients as asked, on ports of its own."""

    def __init__(self, clients: int, folder: Path) -> None:
        ports = ("SUPERLINK", "CLIENTS", "PROMETHEUS", "GRAFANA")
        self._runs = folder / "runs"
        self._environment = {
            **os.environ,
            **{f"{name}_PORT": str(free_port()) for name in ports},
            "CLIENTS": str(clients),
            "RUNS": str(self._runs),
            "COMPOSE_PROJECT_NAME": "flsimulation-benchmark",
        }

    def __call__(self, *arguments: str) -> None:
        command = ["docker", "compose", *arguments]
        subprocess.run(
            command, cwd=ROOT, env=self._environment, check=True, stdout=subprocess.DEVNULL
        )

    def run(self, rounds: int) -> Callable[[bool, str], Path]:
        clients = int(self._environment["CLIENTS"])

        def run(secure: bool, name: str) -> Path:
            sets = [f"--set={item}" for item in sets_of(clients, rounds, secure=secure)]
            self("run", "--rm", "--no-TTY", "run", *sets, "--quiet", f"--out=runs/{name}")
            return self._runs / name

        return run


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
    parser.add_argument("--containers", type=int, nargs="*", default=[2, 10])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=json_file)
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {"process": [], "network": [], "containers": []}
    for clients in options.process:
        with tempfile.TemporaryDirectory() as name:
            run = in_process(clients, options.rounds, Path(name))
            found["process"].append(compared(run, clients, options.repeats))
        print("process", found["process"][-1], flush=True)
    for clients in options.network:
        with tempfile.TemporaryDirectory() as name:
            port, folder = free_port(), Path(name)
            (folder / "runs").mkdir()
            with programs(folder, commands(clients, port), port):
                run = on_network(clients, options.rounds, folder, port)
                found["network"].append(compared(run, clients, options.repeats))
        print("network", found["network"][-1], flush=True)
    for clients in options.containers:
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / "runs").mkdir()
            compose = Containers(clients, Path(name))
            try:
                compose("build", "superlink")
                compose("up", "--detach", "--wait", "superlink", "client")
                run = compose.run(options.rounds)
                found["containers"].append(compared(run, clients, options.repeats))
            finally:
                compose("down", "--volumes", "--timeout", "5")
        print("containers", found["containers"][-1], flush=True)
    if options.json is not None:
        write(options.json, command_line(), found)


if __name__ == "__main__":
    main()
