"""Overhead of a round on a network: FLSimulation beside stock Flower, same model, same clients.

Both sides run the same ClientApp (one epoch of the default model on each client's part of MNIST, then
an evaluation of the new model) behind Flower's SuperLink on this machine. Stock Flower is
``flower-superlink``, ``flower-supernode`` and ``FedAvg.start`` as they come; FLSimulation is
``flsim superlink``, ``flsim client`` and ``flsim run --runtime network``. Blocks of the two sides
alternate. The overhead is what a round takes above the training itself: the longest training, or
where the clients share too few cores, all of it divided by the cores. First rounds are left out.

    python benchmarks/network.py [--clients 2 10] [--repeats 2] [--without-stock] [--without-tls] [--json FILE]

``--without-tls`` adds FLSimulation without TLS and without keys of clients (``FLSIM_INSECURE``).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import tomli_w
from results import command_line, json_file, write

from flsimulation.experiment import Experiment, flatten, load_experiment
from flsimulation.rundir import RunRecord
from flsimulation.runtimes.network.flower import Flower

BIN = Path(sys.executable).parent
CORES = os.cpu_count() or 1
SETTLE_SECONDS = 20.0  # after the start, so that imports are over
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def programs(
    folder: Path, commands: list[list[str]], port: int, more: dict[str, str] | None = None
) -> Iterator[None]:
    """Run the programs inside the block, once the first of them answers."""
    environment = os.environ | QUIET | (more or {}) | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    running = []
    try:
        for number, command in enumerate(commands):
            home = folder / f"home{number}"
            home.mkdir()
            with (folder / f"{number}.log").open("wb") as log:
                running.append(
                    subprocess.Popen(
                        command,
                        env=environment | {"FLWR_HOME": str(home)},
                        cwd=folder,
                        stdout=log,
                        stderr=log,
                    )
                )
            if number == 0:
                wait_for_health(port)
        time.sleep(SETTLE_SECONDS + 2 * len(commands))
        yield
    finally:
        for program in reversed(running):
            program.terminate()
        for program in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(15)
            program.kill()
            program.wait()


def wait_for_health(port: int) -> None:
    """Wait for a SuperLink, with or without TLS; its certificate does not matter here."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for _, scheme in itertools.product(range(300), ("https", "http")):
        with (
            contextlib.suppress(OSError, HTTPException),
            urllib.request.urlopen(f"{scheme}://127.0.0.1:{port}/health", context=context),
        ):
            return
        time.sleep(0.1)
    raise SystemExit("no SuperLink answers")


def experiment(clients: int, rounds: int, examples: int) -> Experiment:
    sets = {
        "data.clients": clients,
        "data.examples-per-client": examples,
        "strategy.rounds": rounds,
        "evaluate.central-every": 0,
        "evaluate.clients": 0,
    }
    return load_experiment(None, [f"{key}={value}" for key, value in sets.items()])


def insecure(spec: Experiment, folder: Path) -> list[dict[str, float]]:
    return ours(spec, folder, {"FLSIM_INSECURE": "1"})


def ours(
    spec: Experiment, folder: Path, more: dict[str, str] | None = None
) -> list[dict[str, float]]:
    port, own, clients = free_port(), free_port(), spec.data.clients
    superlink = ["superlink", f"--port={port}", f"--clients-port={own}"]
    commands = [
        [str(BIN / "flsim"), *superlink, f"--metrics-port={free_port()}"],
        *(
            [
                *(str(BIN / "flsim"), "client", f"--superlink=127.0.0.1:{own}"),
                *(f"--name=client-{number}", f"--metrics-port={free_port()}"),
            ]
            for number in range(clients)
        ),
    ]
    file = folder / "experiment.toml"
    file.write_text(tomli_w.dumps(spec.model_dump(by_alias=True)))
    with programs(folder, commands, port, more):
        subprocess.run(
            [
                *(str(BIN / "flsim"), "run", str(file), "--runtime=network", "--quiet"),
                *(f"--superlink=127.0.0.1:{port}", "--out=runs/bench"),
            ],
            check=True,
            cwd=folder,
            env=os.environ | (more or {}),
        )
    run = RunRecord(folder / "runs" / "bench")
    answers, found = list(run.clients()), []
    for line in run.rounds:
        fits = [
            answer["seconds"]
            for answer in answers
            if (answer["round"], answer["phase"]) == (line["round"], "train")
        ]
        found.append(measured(line["seconds"]["total"], fits))
    return found[1:]


def stock(spec: Experiment, folder: Path) -> list[dict[str, float]]:
    port, clients = free_port(), spec.data.clients
    where = ["--insecure", "--superlink", f"127.0.0.1:{port}"]
    commands = [
        [
            *(str(BIN / "flower-superlink"), "--insecure", "--host", "127.0.0.1"),
            *("--port", str(port), "--disable-runtime-dependency-installation"),
        ],
        *(
            [
                *(str(BIN / "flower-supernode"), *where, "--port", str(free_port())),
                *("--node-config", f"partition-id={number} num-partitions={clients}"),
            ]
            for number in range(clients)
        ),
    ]
    app = folder / "app"
    shutil.copytree(Path(__file__).parent / "stock_flower", app)
    components = {"serverapp": "stock_server:app", "clientapp": "flsimulation.client.app:app"}
    table: dict[str, Any] = {
        "project": {"name": "stock", "version": "0.1.0", "license": {"text": "Apache-2.0"}},
        "tool": {
            "flwr": {
                "app": {"publisher": "bench", "components": components, "config": flatten(spec)}
            }
        },
    }
    (app / "pyproject.toml").write_text(tomli_w.dumps(table))
    events = []
    with programs(folder, commands, port):
        home = folder / "driver"
        home.mkdir()
        flower = Flower(f"127.0.0.1:{port}", home)
        with flower.follow(flower.submit_app(app)) as lines:
            for line in lines:
                if "stock-event " in line:
                    events.append(json.loads(line.partition("stock-event ")[2]))
                if len([e for e in events if "began" in e]) > spec.strategy.rounds:
                    break
    began = [event["began"] for event in events if "began" in event]
    fits = [event["fits"] for event in events if "fits" in event]
    seconds = [after - before for before, after in itertools.pairwise(began)]
    return [measured(s, f) for s, f in zip(seconds, fits, strict=True)][1:]


def measured(seconds: float, fits: list[float]) -> dict[str, float]:
    training = max(max(fits), sum(fits) / CORES)
    return {"round": seconds, "training": training, "overhead": seconds - training}


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[2, 10])
    parser.add_argument("--rounds", type=int, default=8, help="of FLSimulation, in each block")
    parser.add_argument("--stock-rounds", type=int, default=3, help="of stock Flower")
    parser.add_argument("--examples", type=int, default=5000, help="in all clients together")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--without-stock", action="store_true", help="only FLSimulation")
    parser.add_argument("--without-tls", action="store_true", help="also FLSimulation without TLS")
    parser.add_argument("--json", type=json_file)
    options = parser.parse_args()
    results = []
    print(
        f"{'clients':>7}  {'side':14}{'rounds':>7}{'round, s':>10}{'training':>10}{'overhead':>10}"
    )
    for clients in options.clients:
        sides = [("FLSimulation", ours, options.rounds)]
        sides += [("without TLS", insecure, options.rounds)] if options.without_tls else []
        sides += [] if options.without_stock else [("stock Flower", stock, options.stock_rounds)]
        rounds: dict[str, list[dict[str, float]]] = {side: [] for side, _, _ in sides}
        examples = options.examples // clients
        for _ in range(options.repeats):
            for side, run, number in sides:
                with tempfile.TemporaryDirectory(prefix="flsim-bench-") as folder:
                    rounds[side] += run(experiment(clients, number, examples), Path(folder))
        for side, found in rounds.items():
            middle = medians(found)
            results.append({"clients": clients, "side": side, "rounds": found, "median": middle})
            print(
                f"{clients:7}  {side:14}{len(found):7}{middle['round']:10.2f}"
                f"{middle['training']:10.2f}{middle['overhead']:10.2f}",
                flush=True,
            )
    if options.json:
        write(options.json, command_line(), results)


if __name__ == "__main__":
    main()
