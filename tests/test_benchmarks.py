"""The benchmarks' figures: how they are written, compared and shown. Nothing is measured or installed."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
PEERS = BENCHMARKS / "peers"
MODULES = (
    *(
        "results",
        "workloads",
        "environments",
        "process_tree",
        "compared",
        "peers",
        "overhead",
        "loop",
        "rounds",
    ),
    "figure_tables",
    "benchmarks_page",
    "fidelity_page",
)


@pytest.fixture(scope="module")
def modules() -> Iterator[Any]:
    """The scripts' modules, imported as the scripts import them and forgotten afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        patch.syspath_prepend(BENCHMARKS)
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    for name in MODULES:
        sys.modules.pop(name)


# results.py


def test_results_are_written_with_command_and_machine(modules: Any, tmp_path: Path) -> None:
    path = tmp_path / "rounds.json"
    modules.results.write(path, "python benchmarks/rounds.py W1", [{"ratio": 0.5}])
    record = json.loads(path.read_text())
    assert list(record) == ["command", "date", "machine", "results"]
    assert record["command"] == "python benchmarks/rounds.py W1"
    assert record["results"] == [{"ratio": 0.5}]
    assert record["machine"]["python"] == platform.python_version()
    assert [entry.name for entry in tmp_path.iterdir()] == ["rounds.json"]


def test_machine_is_named_by_the_system(
    modules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU 7 \nmodel\t: 3\n")
    (tmp_path / "meminfo").write_text("MemTotal:       2048 kB\nMemFree: 1 kB\n")
    monkeypatch.setattr(modules.results, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(modules.results, "_MEMINFO", tmp_path / "meminfo")
    machine = modules.results.machine()
    assert machine["processor"] == "Some CPU 7"
    assert machine["memory-bytes"] == 2_097_152
    assert machine["cores"] == os.cpu_count()


def test_machine_without_those_files(
    modules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules.results, "_CPUINFO", tmp_path / "none")
    monkeypatch.setattr(modules.results, "_MEMINFO", tmp_path / "none")
    machine = modules.results.machine()
    assert machine["processor"] == platform.machine()
    assert machine["memory-bytes"] is None


def test_command_line_as_typed(modules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/command.py", "10k cohort", "--repeats", "1"])
    assert modules.results.command_line() == (
        "python benchmarks/command.py '10k cohort' --repeats 1"
    )


def test_json_file_is_refused_before_the_run(modules: Any, tmp_path: Path) -> None:
    assert modules.results.json_file(str(tmp_path / "a.json")) == tmp_path / "a.json"
    for path in (tmp_path / "none" / "a.json", tmp_path):
        with pytest.raises(argparse.ArgumentTypeError, match=f"{path} cannot be written"):
            modules.results.json_file(str(path))


@pytest.mark.parametrize(
    "name",
    [
        "rounds",
        "engine",
        "overhead",
        "command",
        "network",
        "threads",
        "peers",
        "privacy",
        "dpsgd",
        "secagg",
    ],
)
def test_every_benchmark_writes_this_form(name: str) -> None:
    text = (BENCHMARKS / f"{name}.py").read_text()
    assert '"--json", type=json_file' in text
    assert "write(options.json, command_line(), " in text


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("*.json")), ids=str)
def test_kept_results_have_the_form(path: Path) -> None:
    record = json.loads(path.read_text())
    assert list(record) == ["command", "date", "machine", "results"]
    program, _, _ = path.stem.partition("-")  # <program>.json, or <program>-<what>.json
    assert record["command"].startswith(f"python benchmarks/{program}.py ")


# peers.py


def a_run(peers: Any, rounds: list[float], **changes: Any) -> Any:
    given = {
        "command_seconds": 10.0,
        "peak_bytes": 100 * 2**20,
        "accuracy": 0.95,
        "steps": 3800,
        "versions": {"torch": "2"},
    }
    return peers.Run(rounds=rounds, **(given | changes))


def test_steps_of_the_workloads(modules: Any) -> None:
    experiment, steps = modules.workloads.experiment, modules.peers.steps
    assert steps(experiment("W1", 20)) == 20 * 10 * 19  # 600 images in batches of 32
    assert steps(experiment("W2", 20)) == 20 * 100 * 6
    assert steps(experiment("W10", 20)) == 20 * 10 * 19
    assert steps(experiment("W10s", 20)) == 20 * 100 * 6


def test_workloads_as_the_peers_read_them(modules: Any, tmp_path: Path) -> None:
    described, experiment = modules.peers.described, modules.workloads.experiment
    w1, w2 = (described(experiment(name, 20), tmp_path / "d.npz") for name in ("W1", "W2"))
    assert w1 == {
        "model": "mlp",
        "clients": 100,
        "cohort": 10,
        "batch": 32,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "evaluate_every": 1,
        "rounds": 20,
        "seed": 0,
        "data": str(tmp_path / "d.npz"),
    }
    other = {"clients": 1000, "cohort": 100, "batch": 10, "optimizer": "sgd"}
    assert w2 == w1 | other | {"learning_rate": 0.1, "evaluate_every": 5}
    w9 = w2 | {"model": "CharacterLSTM", "learning_rate": 0.05}
    assert described(experiment("W9s", 20), tmp_path / "d.npz") == w9
    w9 |= {"clients": 100, "cohort": 10, "batch": 32}
    assert described(experiment("W9", 20), tmp_path / "d.npz") == w9


def test_a_run_leaves_out_its_first_two_rounds(modules: Any) -> None:
    assert a_run(modules.peers, [9, 9, 1, 4, 2]).round_seconds == 2
    assert a_run(modules.peers, [9, 7]).round_seconds == 8  # there are no others


def test_peers_are_compared_by_the_medians_of_their_runs(modules: Any) -> None:
    peers = modules.peers
    found = {
        "bare": [a_run(peers, [9, 9, s], accuracy=0.95) for s in (2.0, 4.0, 3.0)],
        "other": [
            a_run(peers, [9, 9, 6.0], command_seconds=30.0, peak_bytes=10),
            a_run(peers, [9, 9, 1.0], command_seconds=20.0, peak_bytes=30),
            a_run(peers, [9, 9, 7.5], command_seconds=70.0, peak_bytes=20),
        ],
    }
    bare, other = peers.compared("W1", found, 3800, 3)
    assert (bare["median-seconds"], bare["least-seconds"], bare["ratio"]) == (3.0, 2.0, 1.0)
    assert (other["median-seconds"], other["least-seconds"], other["ratio"]) == (6.0, 1.0, 2.0)
    assert (other["command-seconds"], other["peak-bytes"]) == (30.0, 20)
    assert (bare["odd"], other["odd"]) == ("", "")


def test_without_the_bare_loop_there_is_no_ratio(modules: Any) -> None:
    (row,) = modules.peers.compared("W1", {"pfl": [a_run(modules.peers, [1, 1, 1])]}, 3800, 1)
    assert row["ratio"] is None
    assert row["odd"] == ""
    assert modules.peers.table([row]).splitlines()[1].split()[:4] == ["pfl", "1.000", "1.000", "-"]


@pytest.mark.parametrize(
    ("changes", "odd"),
    [
        ({"accuracy": 0.921}, ""),
        ({"accuracy": 0.919}, "accuracy not within 0.03 of bare's"),
        ({"accuracy": 0.981}, "accuracy not within 0.03 of bare's"),
        ({"steps": 3799}, "3799 steps, not 3800"),
    ],
)
def test_other_work_is_marked(modules: Any, changes: dict[str, Any], odd: str) -> None:
    peers = modules.peers
    right = a_run(peers, [1, 1, 1])
    found = {"bare": [right], "pfl": [right, a_run(peers, [1, 1, 1], **changes), right]}
    rows = peers.compared("W1", found, 3800, 3)
    assert [row["odd"] for row in rows] == ["", odd]
    assert ("OTHER WORK" in peers.table(rows)) == bool(odd)


def test_table_of_peers(modules: Any) -> None:
    rows = modules.peers.compared("W1", {"bare": [a_run(modules.peers, [9, 9, 0.5])]}, 3800, 1)
    assert modules.peers.table(rows).split("\n")[1].split() == [
        *("bare", "0.500", "0.500", "1.00", "10.0", "100", "0.9500")
    ]


def test_a_run_that_fails_does_not_take_the_others_figures_along(
    modules: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    peers, turns = modules.peers, iter(range(100))

    def run_peer(peer: str, *_: Any) -> Any:
        if (turn := next(turns)) in (1, 3, 4):  # pfl twice, and once bare
            raise peers.FailedRun("ended with status 1: ValueError: boom")
        return a_run(peers, [9, 9, turn])

    monkeypatch.setattr(peers, "run_peer", run_peer)
    monkeypatch.setattr(peers, "pythons", lambda *_: {"bare": None, "pfl": None})
    monkeypatch.setattr(peers, "write_data", lambda *_: None)
    command = ["peers.py", "W1", "--peers", "bare", "pfl", "--json", str(tmp_path / "f.json")]
    monkeypatch.setattr(sys, "argv", [*command, "--rounds", "20"])
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        peers.main()
    assert caught.value.code == 1
    assert signal.getsignal(signal.SIGTERM) is handler  # it would be that of processes forked later
    orphan = int(subprocess.check_output(["sh", "-c", "sleep 600 >&- 2>&- & echo $!"]))
    adopted = orphan in modules.process_tree.descendants(os.getpid())
    os.kill(orphan, signal.SIGKILL)
    assert not adopted  # what later tests leave behind would be this process's
    rows = json.loads((tmp_path / "f.json").read_text())["results"]
    assert [(row["peer"], row["median-seconds"], row["failed"]) for row in rows] == [
        ("bare", 1, 1),
        ("pfl", 5, 2),
    ]
    shown = capsys.readouterr()
    assert "W1 pfl, 1 of 3: ended with status 1: ValueError: boom\n" in shown.err
    assert shown.out.count("FAILED RUNS: ") == 2


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("", "no output"),
        ("one\ntwo\n=====\n\n", "two"),
        (
            "Traceback\n  File\ntorch.X.ConnectError: port 29500\n====\npfl.py FAILED\n----\n",
            "torch.X.ConnectError: port 29500",
        ),
        ("[rank0]: ValueError: no\nTerminated\n", "[rank0]: ValueError: no"),
    ],
)
def test_the_line_that_says_why_a_run_failed(modules: Any, log: str, line: str) -> None:
    assert modules.peers.last_error(log) == line


def test_flsimulations_figures_are_those_of_its_run_directory(modules: Any, tmp_path: Path) -> None:
    files = {
        "rounds.jsonl": [
            {"round": 1, "seconds": {"total": 2.0}, "central": {"accuracy": 0.5}},
            {"round": 2, "seconds": {"total": 1.0}, "central": {"accuracy": 0.75}},
            {"round": 3, "seconds": {"total": 3.0}, "central": None},
        ],
        "clients.jsonl": [
            {"round": 1, "partition": 0, "phase": "train", "steps": 19},
            {"round": 3, "partition": 0, "phase": "final"},
            {"round": 2, "partition": 0, "phase": "train", "steps": 18},
        ],
        "manifest.json": [{"versions": {"torch": "2", "flsimulation": "1", "numpy": "3"}}],
    }
    (tmp_path / "run").mkdir()
    for name, lines in files.items():
        (tmp_path / "run" / name).write_text("\n".join(json.dumps(line) for line in lines))
    assert modules.peers._inside(tmp_path) == {
        "rounds": [2.0, 1.0, 3.0],
        "accuracy": 0.75,
        "steps": 37,
        "versions": {"torch": "2", "flsimulation": "1"},
    }


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["W3"],
            "peers.py: W3 is no workload; choose from W1, W2, W5, W6, W7, W8, W9, W10, "
            "W5s, W6s, W7s, W8s, W9s, W10s\n",
        ),
        (
            ["--peers", "bare", "fedml"],
            "peers.py: fedml is no peer; choose from bare, flsimulation, flower, flower-lightning, "
            "pfl, fluke, fedlab\n",
        ),
        (["--repeats", "0"], "peers.py: --rounds and --repeats must be at least 1\n"),
        (["--seed", "-1"], "peers.py: --seed must be at least 0, got -1\n"),
    ],
)
def test_bad_input_is_one_line(
    modules: Any,
    arguments: list[str],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["peers.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        modules.peers.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == line


def test_no_pip_is_one_line(
    modules: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["peers.py"])
    monkeypatch.setattr(modules.environments, "missing_tools", lambda: "ensurepip")
    with pytest.raises(SystemExit, match="2"):
        modules.peers.main()
    message = "peers.py: this Python lacks ensurepip, which makes the peers' environments\n"
    assert capsys.readouterr().err == message


def test_every_peer_has_a_script_and_exact_versions(modules: Any) -> None:
    for peer in set(modules.peers.PEERS) - {"flsimulation"}:
        assert (PEERS / f"{peer}.py").is_file()
        lines = (PEERS / f"{peer}.txt").read_text().splitlines()
        packages = [line for line in lines if not line.startswith("#")]
        assert all(line.count("==") == 1 for line in packages), peer
        assert "torch==2.13.0" in packages


@pytest.mark.seconds
@pytest.mark.parametrize("model", ["mlp", "NormalizedCNN"])
def test_the_bare_loop_does_the_workloads_steps(model: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"x_train": 60, "x_test": 1000}
    images = {name: rng.integers(0, 256, (n, 1, 28, 28), np.uint8) for name, n in arrays.items()}
    labels = {"y_train": np.arange(60) % 10, "y_test": np.arange(1000) % 10}
    np.savez(tmp_path / "data.npz", **images, **labels)
    workload = {
        "model": model,
        "clients": 6,
        "cohort": 2,
        "batch": 4,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "evaluate_every": 2,
        "rounds": 3,
        "seed": 0,
        "data": str(tmp_path / "data.npz"),
    }
    (tmp_path / "workload.json").write_text(json.dumps(workload))
    environment = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(PEERS / "shared")}
    command = [sys.executable, str(PEERS / "bare.py"), "workload.json", "result.json"]
    subprocess.run(command, cwd=tmp_path, env=os.environ | environment, check=True)
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(result["rounds"]) == 3
    assert result["steps"] == 3 * 2 * 3  # ten images in batches of four
    assert 0 <= result["accuracy"] <= 1


@pytest.mark.parametrize(
    ("peer", "workload", "said"),
    [("pfl", "W6", True), ("fedlab", "W10s", True), ("pfl", "W5", False), ("fluke", "W6", False)],
)
def test_what_a_peer_cannot_do_is_said(modules: Any, peer: str, workload: str, said: bool) -> None:
    rows = modules.peers.compared(workload, {peer: [a_run(modules.peers, [1, 1, 1])]}, 3800, 1)
    assert ("BatchNorm's statistics are not averaged" in modules.peers.table(rows)) == said


def test_workloads_on_one_data_set_share_its_file(
    modules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    monkeypatch.setattr(modules.peers, "write_data", lambda path, _: written.append(path))
    specs = {name: modules.workloads.experiment(name, 1) for name in ("W5", "W9", "W6", "W9s")}
    mnist, text = tmp_path / "W5.npz", tmp_path / "W9.npz"
    found = modules.peers.data_files(specs, tmp_path)
    assert found == {"W5": mnist, "W9": text, "W6": mnist, "W9s": text}
    assert written == [mnist, text]


@pytest.mark.parametrize(
    ("workload", "arguments"), [("W9", {"sequences": 20}), ("W10", {"images": 20})]
)
def test_data_are_written_as_they_were_made(
    modules: Any, workload: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    workloads = modules.workloads
    made = getattr(workloads, {"W9": "markov_text", "W10": "noisy_pictures"}[workload])(**arguments)
    spec = workloads.experiment(workload, 1)
    data = spec.data.model_copy(update={"args": arguments})
    modules.peers.write_data(tmp_path / "d.npz", spec.model_copy(update={"data": data}))
    with np.load(tmp_path / "d.npz") as file:
        assert {name: file[name].dtype for name in file.files} == {
            name: array.dtype for name, array in made.items()
        }
        assert all(np.array_equal(file[name], array) for name, array in made.items())


# environments.py


def test_an_environment_is_kept_while_its_list_is_the_same(
    modules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments = modules.environments
    installed: list[list[str]] = []

    def create(folder: Path, **_: Any) -> None:
        (folder / "bin").mkdir(parents=True, exist_ok=True)
        (folder / "bin" / "python").touch()

    monkeypatch.setattr(environments.venv, "create", create)
    monkeypatch.setattr(
        environments, "_pip", lambda python, name, arguments, say: installed.append(arguments)
    )
    lock, said = tmp_path / "pfl.txt", []
    lock.write_text("# by hand\npfl==0.6.0\ntorch==2.13.0\n")
    for _ in range(2):
        environments.prepare(tmp_path / "pfl", lock, said.append)
    assert installed == [
        ["torch==2.13.0", "--constraint", str(lock)],
        ["--no-deps", "--requirement", str(lock)],
    ]
    assert said == [f"pfl: a new environment in {tmp_path / 'pfl'}, 2 packages"]
    lock.write_text("pfl==0.6.1\ntorch==2.13.0\n")
    environments.prepare(tmp_path / "pfl", lock, said.append)
    assert len(installed) == 4


def test_a_failed_installation_is_one_line(modules: Any, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Collecting pfl\necho 'ERROR: no such version'\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(modules.environments.InstallError) as caught:
        modules.environments._pip(python, "pfl", [], lambda _: None)
    assert str(caught.value) == "pfl: not installed: ERROR: no such version"


# process_tree.py

LEAVES_ONE_BEHIND = """
import os, sys, time
from pathlib import Path
import process_tree
script = "(trap '' TERM; sleep 300 & echo $! > pid; wait) & while [ ! -s pid ]; do sleep 0.05; done; sleep 1; exit 3"
process_tree._GRACE_SECONDS = 0.2
with process_tree.adopted_orphans():
    status, seconds, peak = process_tree.run(["sh", "-c", script], Path.cwd(), dict(os.environ), 600)
    print(status, peak > 0, seconds >= 1, process_tree.descendants(os.getpid()))
    try:
        process_tree.run(["sleep", "300"], Path.cwd(), dict(os.environ), 0.5)
    except TimeoutError:
        print("ended", process_tree.descendants(os.getpid()))
"""


@pytest.mark.seconds
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_is_left_of_a_program(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEAVES_ONE_BEHIND],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(BENCHMARKS)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "3 True True []\nended []\n"
    left = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{left}").exists()


# docs/benchmarks_page.py


def test_page_shows_results_with_command_and_machine(modules: Any, tmp_path: Path) -> None:
    row = {
        "workload": "W1",
        "what": "ten clients",
        "rounds": 18,
        "median-ratio": 0.357,
        "median-seconds": {"flsimulation": 0.1934, "bare": 11.844},
    }
    machine = {
        "processor": "Some CPU",
        "cores": 2,
        "gpu": "Some GPU",
        "memory-bytes": 24 * 2**30,
        "system": "Linux 6",
        "python": "3.11.7",
        "torch": "2.13.0+cpu",
        "threads": 2,
    }
    record = {"command": "python benchmarks/rounds.py W1", "date": "2026-01-02", "results": [row]}
    (tmp_path / "rounds.json").write_text(json.dumps(record | {"machine": machine}))
    page = modules.benchmarks_page.benchmarks_page(tmp_path)
    assert "| W1: ten clients | 0.193 | 11.84 | 0.36 | 18 |\n" in page
    assert (
        "\n`python benchmarks/rounds.py W1`, 2026-01-02; Some CPU, 2 cores, Some GPU, 24 GiB, Linux 6, "
        "Python 3.11.7, PyTorch 2.13.0+cpu.\n"
    ) in page
    assert (
        "`python benchmarks/peers.py --json benchmarks/results/peers.json` measures them." in page
    )
    assert "`python benchmarks/rounds.py --json" not in page


def test_page_shows_the_loop_in_processes_where_it_was_measured(modules: Any) -> None:
    row = {
        "workload": "W5",
        "what": "dropout",
        "rounds": 18,
        "median-ratio": 0.4,
        "median-seconds": {"flsimulation": 0.2, "bare": 0.5},
    }
    several = row | {
        "processes": 2,
        "processes-ratio": 0.8,
        "median-seconds": row["median-seconds"] | {"processes": 0.25},
    }
    assert modules.figure_tables.rounds([row, several]).splitlines() == [
        "| workload | FLSimulation, s | plain loop, s | ratio | in processes, s | ratio to these | rounds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| W5: dropout | 0.200 | 0.500 | 0.40 |  |  | 18 |",
        "| W5: dropout | 0.200 | 0.500 | 0.40 | 0.250 | 0.80 | 18 |",
    ]


def test_page_shows_peers_and_what_is_odd(modules: Any) -> None:
    row = {
        "workload": "W2",
        "rounds": 20,
        "repeats": 3,
        "peer": "pfl",
        "ratio": 2.0,
        "versions": {"torch": "2", "pfl": "0.6.0"},
        "odd": "7 steps, not 8",
        "failed": 0,
        "median-seconds": 1.25,
        "least-seconds": 0.5,
        "command-seconds": 30.04,
        "peak-bytes": 3 * 2**20,
        "accuracy": 0.8765,
    }
    alone = row | {"peer": "bare", "ratio": None, "versions": {"torch": "2"}, "odd": ""}
    text = modules.figure_tables.peers(
        [row, alone, row | {"workload": "W1", "odd": "", "failed": 2}]
    )
    assert text.split("\n")[:7] == [
        "W2, runs of 20 rounds, 3 of each peer:",
        "",
        "| W2 | round, s | least, s | ratio to bare | command, s | peak, MiB | accuracy |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| pfl (pfl 0.6.0); **other work: 7 steps, not 8** "
        "| 1.25 | 0.500 | 2.00 | 30.0 | 3 | 0.876 |",
        "| bare | 1.25 | 0.500 |  | 30.0 | 3 | 0.876 |",
        "",
    ]
    assert "W1, runs of 20 rounds, 3 of each peer:" in text
    assert "\n| pfl (pfl 0.6.0); 2 of its runs failed | 1.25 |" in text
    unlike = modules.figure_tables.peers([row | {"odd": "", "unlike": "no averages of buffers"}])
    assert "\n| pfl (pfl 0.6.0); no averages of buffers | 1.25 |" in unlike


def test_page_shows_what_a_round_costs(modules: Any) -> None:
    results = {
        "median": {"seconds": {"10": 0.005, "100": 0.0109}, "round": 0.00436, "client": 65e-6},
        "least": {"seconds": {"10": 0.004, "100": 0.0085}, "round": 0.0035, "client": 5e-5},
    }
    text = modules.figure_tables.overhead(results)
    assert "| 10 | 5.00 | 4.00 |\n| 100 | 10.90 | 8.50 |\n" in text
    assert text.endswith(
        "4.36 ms per round and 65 µs per client (median) and 3.50 ms per round and 50 µs per client (least).\n"
    )


def test_page_shows_private_clients_beside_others(modules: Any) -> None:
    row = {"clients": 1000, "cohort": 500, "accuracy": 0.8, "round-seconds": 0.5, "ratio": 1.0}
    private = {"epsilon": 8.0, "noise-multiplier": 1.2, "epsilon-pld": 7.5, "ratio": 1.1}
    text = modules.figure_tables.privacy([{**row, "epsilon": None}, {**row, **private}])
    assert "\n| 1,000 | 500 | none |  |  | 0.800 | 0.500 | 1.00 |\n" in text
    assert "\n| 1,000 | 500 | 8 | 1.200 | 7.50 | 0.800 | 0.500 | 1.10 |\n" in text


def test_page_shows_dp_sgd_and_secure_aggregation_beside_none(modules: Any) -> None:
    row = {"model": "mlp", "accuracy": 0.9, "round-seconds": 0.5, "ratio": 1.0, "epsilon": None}
    private = {"epsilon": 8.0, "noise-multiplier": 1.2, "epsilon-pld": 7.5, "ratio": 2.9}
    text = modules.figure_tables.dpsgd([row, {**row, **private}])
    assert "\n| mlp | none |  |  | 0.900 | 0.500 | 1.00 |\n" in text
    assert "\n| mlp | 8 | 1.200 | 7.50 | 0.900 | 0.500 | 2.90 |\n" in text
    own = {
        "clients": 10,
        "neighbours": 9,
        "threshold": 5,
        "apart": 4e-4,
        "plain-seconds": 0.05,
        "secure-seconds": 0.13,
        "more-seconds": 0.08,
        "plain-bytes-per-client": 1635588,
        "secure-bytes-per-client": 1639846,
    }
    text = modules.figure_tables.secagg({"process": [own], "network": [], "containers": []})
    cells = "| process | 10 | 9 | 0.05 | 0.13 | 0.08 | 1,635,588 | 1,639,846 | 4.0e-04 |"
    assert text.splitlines()[2:] == [cells]


def test_the_line_through_the_cohorts_is_straight(modules: Any) -> None:
    found = modules.overhead.line({10: [0.003, 0.005], 110: [0.008, 0.01]}, min)
    assert found["seconds"] == {10: 0.003, 110: 0.008}
    assert (found["round"], found["client"]) == (pytest.approx(0.0025), pytest.approx(5e-5))


def test_the_fidelity_page_says_which_runs_a_gpu_made(modules: Any) -> None:
    def row(*gpus: str | None) -> dict[str, Any]:
        return {"runs": [{"gpu": gpu} for gpu in gpus]}

    runs = modules.fidelity_page._runs
    assert runs({"rows": [row(None, None), row(None)]}) == "3 runs"
    mixed = {"rows": [row(None, "A"), row("A", "B")]}
    assert runs(mixed) == "4 runs, 2 of them on one A, 1 of them on one B"


@pytest.mark.parametrize(("seed", "expected"), [(7, 7), (None, 0)])
def test_peers_have_the_seed_and_the_rounds_that_were_asked_for(
    modules: Any, seed: int | None, expected: int
) -> None:
    specs = modules.peers.specs_of(argparse.Namespace(rounds=6, seed=seed), ["W1", "W9"])
    assert [(own.seed, own.strategy.rounds) for own in specs.values()] == [(expected, 6)] * 2
    assert [modules.peers.described(own, Path())["seed"] for own in specs.values()] == [
        expected
    ] * 2
