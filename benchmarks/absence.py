"""How soon a client that is killed outright is missed: seconds until the terminal names it.

A SuperLink and three clients, each a program of its own on this machine, run a model that takes its
time. In the second round all processes of one client are killed at once, as at the end of a machine;
the clock runs until ``flsim run`` shows which client disconnected.

    python benchmarks/absence.py [--repeats 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from network import free_port, wait_for_health
from results import command_line, json_file, write

FLSIM = (sys.executable, "-m", "flsimulation")
CLIENTS = ("a", "b", "c")
SLOW = """
import time
from flsimulation.models import MLP

class Slow(MLP):
    def training_step(self, batch, index):
        if len(batch[0]) > 2:  # two are only for practice
            time.sleep(0.5)
        return super().training_step(batch, index)
"""


def start(folder: Path, name: str, *arguments: str) -> subprocess.Popen[bytes]:
    with (folder / f"{name}.log").open("ab") as log:
        command = [*FLSIM, *arguments, f"--metrics-port={free_port()}"]
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def kill_session(session: int) -> None:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[3]) == session:
                os.kill(int(stat.parent.name), signal.SIGKILL)


def missed_after(folder: Path, port: int, victim: subprocess.Popen[bytes]) -> float:
    """Kill a client in round 2 of a run; returns the seconds until a line shows that one disconnected."""
    options = (
        f"--superlink=127.0.0.1:{port}",
        *(f"--set={key}" for key in ("data.clients=3", "data.examples-per-client=400")),
        *("--set=model.class=slow.py:Slow", "--set=strategy.rounds=3"),
    )
    command = [*FLSIM, "run", "--runtime=network", *options]
    killed = missed = 0.0
    with subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as run:
        for line in run.stdout or ():
            if line.split()[:1] == ["1/3"]:
                time.sleep(1.0)
                kill_session(victim.pid)
                killed = time.perf_counter()
            elif "disconnected" in line and killed and not missed:
                missed = time.perf_counter()
                run.terminate()
    return missed - killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=json_file)
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory(prefix="flsim-bench-") as place:
        folder, port = Path(place), free_port()
        (folder / "runs").mkdir()
        (folder / "slow.py").write_text(SLOW)
        own = free_port()
        address = (f"--port={port}", f"--clients-port={own}")
        superlink = start(folder, "superlink", "superlink", *address)
        where = (f"--superlink=127.0.0.1:{own}", f"--allow-models-in={folder}")
        clients = {n: start(folder, n, "client", *where, f"--name={n}") for n in CLIENTS}
        try:
            wait_for_health(port)
            for _ in range(options.repeats):
                found.append(missed_after(folder, port, clients["b"]))
                print(f"missed after {found[-1]:.1f} s", flush=True)
                clients["b"].wait()
                clients["b"] = start(folder, "b", "client", *where, "--name=b")
        finally:
            for program in (*clients.values(), superlink):
                kill_session(program.pid)
                program.wait()
    print(f"median {statistics.median(found):.1f} s, longest {max(found):.1f} s")
    if options.json:
        write(options.json, command_line(), {"seconds": found})


if __name__ == "__main__":
    main()
