"""FLSimulation beside its peers: the same workloads in other simulators of federated learning.

Workloads W1, W2 and W5 to W10 of workloads.py. Each run is a program of its own; the peers alternate. ``bare``
is a plain PyTorch loop, the others run their own simulator as their documentation means it, with
the settings that suit this many cores (each says which, in ``peers/<name>.py``); ``flsimulation``
is ``flsim run`` with its evaluation, logs and run directory. Every peer has its own virtual
environment with the packages of ``peers/<name>.txt``, made the first time.

A round is from the start of local training to the end of aggregation, and of the evaluation where
there is one, as seen from inside; the first two are left out. The command is all of the program with
its imports; the peak is the memory of all its processes together. A peer that took another number
of optimizer steps than the workload has, or whose model is not as good as that of the bare loop, is
marked: it did other work. (With few rounds, while models still gain much in each, chance does so too.)
What a peer cannot do of a workload is said.
A run that fails is told and counted, and the others go on; the command ends with status 1 then.

    python benchmarks/peers.py [W1 W2 ...] [--peers bare flower ...] [--rounds 20] [--repeats 3]
                               [--seed N] [--environments DIR] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from compared import Run, compared, table
from results import command_line, json_file, write
from workloads import WORKLOADS, experiment

import environments
import process_tree
from flsimulation.data import load_dataset
from flsimulation.experiment import Experiment, dump_toml
from flsimulation.rundir import RunRecord

HERE = Path(__file__).resolve().parent / "peers"
PEERS = ("bare", "flsimulation", "flower", "flower-lightning", "pfl", "fluke", "fedlab")
COMPARED = ("W1", "W2", "W5", "W6", "W7", "W8", "W9", "W10")
SMALL = tuple(f"{name}s" for name in COMPARED[2:])  # only by name
CACHE = Path.home() / ".cache" / "flsim-bench"
_LIMIT_SECONDS = 3600.0  # of one run
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class FailedRun(Exception):
    """A run that gave no figures; the message is one line."""


def steps(spec: Experiment) -> int:
    """Optimizer steps that the workload has."""
    batches = math.ceil(60_000 // spec.data.clients / spec.train.batch_size)
    return spec.strategy.rounds * spec.cohort_size * spec.train.epochs * batches


def described(spec: Experiment, data: Path) -> dict[str, Any]:
    """The workload as peers/shared/peer.py reads it."""
    name = spec.model.class_.rpartition(":")[2]
    defaults = (
        {"optimizer": "adam", "learning_rate": 1e-3} if name == "mlp" else {"optimizer": "sgd"}
    )
    model = defaults | spec.model.args
    return {
        "model": name,
        "clients": spec.data.clients,
        "cohort": spec.cohort_size,
        "batch": spec.train.batch_size,
        "optimizer": model["optimizer"],
        "learning_rate": model["learning_rate"],
        "evaluate_every": spec.evaluate.central_every,
        "rounds": spec.strategy.rounds,
        "seed": spec.seed,
        "data": str(data),
    }


def write_data(path: Path, spec: Experiment) -> None:
    """The experiment's data for every peer, images as bytes."""
    data = load_dataset(spec.data, spec.seed)
    parts = {
        name: getattr(data, name).numpy() for name in ("x_train", "y_train", "x_test", "y_test")
    }
    if parts["x_train"].dtype.kind == "f":
        parts |= {
            name: np.rint(255 * parts[name]).astype(np.uint8) for name in ("x_train", "x_test")
        }
    np.savez(path, **parts)


def data_files(specs: Mapping[str, Experiment], folder: Path) -> dict[str, Path]:
    """A file with each workload's data, by the workload's name; one for each data set."""
    found: dict[str, Path] = {}
    for name, spec in specs.items():
        same = (other for other in found if specs[other].data.dataset == spec.data.dataset)
        if (known := next(same, None)) is not None:
            found[name] = found[known]
            continue
        found[name] = folder / f"{name}.npz"
        write_data(found[name], spec)
    return found


def run_peer(peer: str, python: Path, spec: Experiment, data: Path) -> Run:
    """Run the peer in an empty folder of its own."""
    with tempfile.TemporaryDirectory(prefix="flsim-peers-") as name:
        folder = Path(name)
        if peer == "flsimulation":
            (folder / "experiment.toml").write_text(dump_toml(spec))
            command = [str(python), "-m", "flsimulation", "run", "experiment.toml"]
            return _measured([*command, "--quiet", "--out", "run"], folder, dict(os.environ))
        (folder / "workload.json").write_text(json.dumps(described(spec, data)))
        launcher = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            f"{os.cpu_count()}",
        ]
        command = [str(python), *(launcher if peer == "pfl" else []), str(HERE / f"{peer}.py")]
        environment = os.environ | _QUIET
        environment |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(HERE / "shared")}
        environment.pop("OMP_WAIT_POLICY", None)  # which FLSimulation sets when it is imported
        return _measured([*command, "workload.json", "result.json"], folder, environment)


def _measured(command: list[str], folder: Path, environment: dict[str, str]) -> Run:
    try:
        status, seconds, peak = process_tree.run(command, folder, environment, _LIMIT_SECONDS)
    except TimeoutError:
        raise FailedRun(f"not done after {_LIMIT_SECONDS:.0f} s") from None
    if status:
        log = (folder / "log").read_text(errors="replace")
        raise FailedRun(f"ended with status {status}: {last_error(log)}")
    return Run(**_inside(folder), command_seconds=seconds, peak_bytes=peak)


def last_error(log: str) -> str:
    """The line of a program's output that says most of why it ended."""
    lines = [line.strip() for line in log.splitlines() if re.search("[a-z]", line)]
    errors = [line for line in lines if re.match(r"(\S+: )?[\w.]*(Error|Exception)\b", line)]
    return (errors or lines or ["no output"])[-1]


def _inside(folder: Path) -> dict[str, Any]:
    """What the run says of itself: a peer's result, or FLSimulation's run directory."""
    if (result := folder / "result.json").is_file():
        found = json.loads(result.read_text())
        return {key: found[key] for key in ("rounds", "accuracy", "steps", "versions")}
    run = RunRecord(folder / "run")
    return {
        "rounds": [line["seconds"]["total"] for line in run.rounds],
        "accuracy": [line["central"]["accuracy"] for line in run.rounds if line["central"]][-1],
        "steps": sum(line["steps"] for line in run.clients() if line["phase"] == "train"),
        "versions": {name: run.manifest["versions"][name] for name in ("torch", "flsimulation")},
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def refuse(problem: str) -> NoReturn:
    say(f"peers.py: {problem}")
    raise SystemExit(2)


def pythons(peers: Sequence[str], folder: Path) -> dict[str, Path]:
    """The Python of each peer's environment; ``flsimulation`` has this one."""
    return {
        peer: Path(sys.executable)
        if peer == "flsimulation"
        else environments.prepare(folder / peer, HERE / f"{peer}.txt", say)
        for peer in peers
    }


def _terminated(*_: Any) -> NoReturn:
    raise SystemExit(143)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", metavar="W", help=f"default: {', '.join(COMPARED)}")
    parser.add_argument("--peers", nargs="+", metavar="PEER", help=", ".join(PEERS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, help="default: that of the workload")
    parser.add_argument("--environments", type=Path, default=CACHE, metavar="DIR")
    parser.add_argument("--json", type=json_file, help="also write the figures here")
    options = parser.parse_args()
    names, peers = options.workloads or list(COMPARED), options.peers or list(PEERS)
    for kind, given, known in (("workload", names, COMPARED + SMALL), ("peer", peers, PEERS)):
        if unknown := sorted(set(given) - set(known)):
            refuse(f"{unknown[0]} is no {kind}; choose from {', '.join(known)}")
    if options.rounds < 1 or options.repeats < 1:
        refuse("--rounds and --repeats must be at least 1")
    if options.seed is not None and options.seed < 0:
        refuse(f"--seed must be at least 0, got {options.seed}")
    if missing := environments.missing_tools():
        refuse(f"this Python lacks {missing}, which makes the peers' environments")
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        with process_tree.adopted_orphans():
            python = pythons(peers, options.environments.resolve())
            written = measure(names, peers, python, specs_of(options, names), options.repeats)
    except environments.InstallError as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    if options.json:
        write(options.json, command_line(), written)
    runs = sum(len(row["all"]) for row in written)
    raise SystemExit(int(runs < len(names) * len(peers) * options.repeats))


def specs_of(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Experiment]:
    """The experiments of the workloads, with the rounds and the seed that were asked for."""
    specs = {name: experiment(name, options.rounds) for name in names}
    if options.seed is None:
        return specs
    return {name: own.model_copy(update={"seed": options.seed}) for name, own in specs.items()}


def measure(
    names: Sequence[str],
    peers: Sequence[str],
    python: dict[str, Path],
    specs: Mapping[str, Experiment],
    repeats: int,
) -> list[dict[str, Any]]:
    """Run every peer on every workload, and print a table for each; give them as results."""
    found: dict[str, dict[str, list[Run]]] = {name: {peer: [] for peer in peers} for name in names}
    with tempfile.TemporaryDirectory(prefix="flsim-peers-") as folder:
        data = data_files(specs, Path(folder))
        for repeat in range(1, repeats + 1):
            for name in names:
                for peer in peers:
                    turn = f"{name} {peer}, {repeat} of {repeats}"
                    try:
                        run = run_peer(peer, python[peer], specs[name], data[name])
                    except FailedRun as error:
                        say(f"{turn}: {error}")
                        continue
                    found[name][peer].append(run)
                    say(
                        f"{turn}: {run.round_seconds:.3f} s a round, "
                        f"{run.command_seconds:.0f} s in all"
                    )
    written = []
    for name in names:
        rows = compared(name, found[name], steps(specs[name]), repeats)
        print(f"{name}: {WORKLOADS[name]['what']}\n{table(rows)}\n", flush=True)
        for row in rows:
            runs = [vars(run) for run in found[name][row["peer"]]]
            written.append(
                {
                    "workload": name,
                    "rounds": specs[name].strategy.rounds,
                    "repeats": repeats,
                    **row,
                    "all": runs,
                }
            )
    return written


if __name__ == "__main__":
    main()
