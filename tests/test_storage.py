"""A run directory has one writer, and says how its run ended: killed, or on a full disk."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import PATIENCE

from flsimulation import InputError, RunError, RunResult, resume, run
from flsimulation.events import (
    EngineReported,
    Event,
    Judged,
    RoundFinished,
    RunFinished,
    RunStarted,
)
from flsimulation.experiment import dump_toml
from flsimulation.host.files import write_atomic
from flsimulation.rundir import RunRecord
from flsimulation.rundir.checkpoint import write_checkpoint
from flsimulation.rundir.jsonlines import JsonLines, last_round, read_lines
from flsimulation.rundir.manifest import KILLED, settle
from flsimulation.rundir.storage import claimed, is_claimed, storing
from flsimulation.rundir.writer import RunDirectory

pytestmark = pytest.mark.seconds

Make = Callable[..., Any]
FULL = "cannot be written: the disk is full; free some space there"


def manifest(run_dir: Path) -> dict[str, Any]:
    return dict(json.loads((run_dir / "manifest.json").read_text()))


def after_round(number: int, what: Callable[[], object]) -> Callable[[Event], None]:
    """A sink that does something when a round is complete."""

    def sink(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.round == number:
            what()

    return sink


def test_a_run_in_progress_is_known_by_its_lock_and_has_no_second_writer(
    make_experiment: Make, tmp_path: Path
) -> None:
    path, seen = tmp_path / "run", []

    def look() -> None:
        with pytest.raises(InputError, match="another process is writing this run; wait for"):
            resume(path)
        assert settle(path) is None
        seen.append((RunRecord(path).manifest["state"], manifest(path)["rounds"]))

    run(make_experiment(), path, [after_round(1, look), after_round(2, look)])
    assert seen == [("running", 1), ("running", 2)]
    assert not is_claimed(path)
    assert (manifest(path)["state"], manifest(path)["rounds"]) == ("completed", 2)


KILL = """
import os, signal, sys
from flsimulation import load_experiment, run
from flsimulation.events import RoundFinished

def sink(event):
    if isinstance(event, RoundFinished) and event.round == 2:
        os.kill(os.getpid(), signal.SIGKILL)

run(load_experiment(sys.argv[1]), sys.argv[2], [sink])
"""


@pytest.fixture(scope="module")
def whole(make_experiment: Make, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run of four rounds that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return run(make_experiment(strategy={"rounds": 4}), out)


def test_a_killed_run_reads_as_interrupted_and_resumes_to_the_same_model(
    make_experiment: Make, whole: RunResult, tmp_path: Path
) -> None:
    path, file = tmp_path / "run", tmp_path / "experiment.toml"
    file.write_text(dump_toml(make_experiment(strategy={"rounds": 4})))
    done = subprocess.run([sys.executable, "-c", KILL, str(file), str(path)], check=False)
    assert done.returncode == -9
    assert manifest(path)["state"] == "running"  # it could write nothing more
    assert RunRecord(path).manifest["state"] == "interrupted"
    assert RunRecord(path).manifest["rounds"] == 2
    flsim = [sys.executable, "-m", "flsimulation"]
    subprocess.run([*flsim, "report", str(path)], check=True)
    ended = manifest(path)
    assert (ended["state"], ended["rounds"], ended["error"]) == ("interrupted", 2, KILLED)
    assert KILLED in (path / "report.html").read_text()
    assert not (path / ".reserve").exists()
    result = resume(path)
    assert (result.state, result.weights_sha256) == ("completed", whole.weights_sha256)
    assert [line["round"] for line in RunRecord(path).rounds] == [1, 2, 3, 4]


def test_a_round_that_is_killed_while_it_is_written_does_not_count(
    make_experiment: Make, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    run(make_experiment(), path)
    fields = manifest(path) | {"state": "running", "rounds": 0}
    (path / "manifest.json").write_text(json.dumps(fields))
    with (path / "rounds.jsonl").open("a") as file:
        file.write('{"round": 3, "cen')
    assert settle(path) == fields | {"state": "interrupted", "error": KILLED, "rounds": 2}
    assert settle(path) is None


@pytest.mark.parametrize("content", [None, "{", '{"state": 3}', "[]", '{"name": "x"}'])
def test_what_is_no_manifest_is_left_alone(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    assert settle(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"] * (content is not None)


def test_a_lock_goes_with_the_block_also_where_a_fork_is_left(tmp_path: Path) -> None:
    with claimed(tmp_path):
        assert is_claimed(tmp_path)
        left = os.fork()
        if left == 0:  # pragma: no cover - the fork
            signal.pause()
    try:
        assert not is_claimed(tmp_path)
    finally:
        os.kill(left, 9)
        os.waitpid(left, 0)


def test_an_error_of_the_disk_is_one_sentence_with_the_file(tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match=rf"^{tmp_path}/no/f: cannot be written: No such file"),
        storing(tmp_path),
    ):
        write_atomic(tmp_path / "no" / "f", "x")


def test_a_line_that_does_not_fit_is_taken_back_whole(
    tmp_path: Path, small_disk: Callable[[Path], AbstractContextManager[Any]]
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        path = tmp_path / "disk" / "lines.jsonl"
        lines = JsonLines(path, lambda _: True)
        lines.append({"round": 1})
        disk.fill()
        with pytest.raises(OSError, match=re.escape(f"No space left on device: '{path}'")):
            lines.append({"round": 2, "text": "x" * 10_000})  # more than the page has left
        disk.free()
        lines.append({"round": 3})
        assert [line["round"] for line in read_lines(path)] == [1, 3]


def error_of(*arguments: Any) -> str:
    """What a run fails of; the error itself, and all that it holds, is let go."""
    try:
        run(*arguments)
    except RunError as error:
        return str(error)
    raise AssertionError("it did not fail")


@pytest.mark.parametrize(
    ("rounds", "file"),
    [(1, "checkpoint/round-000002.strategy.safetensors"), (4, "model.safetensors")],
)
def test_a_full_disk_fails_the_run_in_a_sentence_and_it_can_be_resumed(
    make_experiment: Make,
    whole: RunResult,
    tmp_path: Path,
    small_disk: Callable[[Path], AbstractContextManager[Any]],
    recorder: Any,
    rounds: int,
    file: str,
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        path = tmp_path / "disk" / "run"
        experiment = make_experiment(strategy={"rounds": 4})
        told = error_of(experiment, path, [recorder, after_round(rounds, disk.fill)])
        assert told == f"{path}/{file}: {FULL}"
        ended = manifest(path)
        assert (ended["state"], ended["rounds"]) == ("failed", rounds)
        assert ended["error"] == told
        (end,) = recorder.of(RunFinished)  # for the metrics and the view, too
        assert (end.state, end.rounds, end.error) == ("failed", rounds, ended["error"])
        disk.free()
        result = resume(path)
        assert (result.state, result.weights_sha256) == ("completed", whole.weights_sha256)
        assert (path / "model.safetensors").is_file()
        assert RunRecord(path).manifest["rounds"] == 4


def test_a_disk_that_is_full_from_the_start_is_one_line(
    make_experiment: Make,
    tmp_path: Path,
    small_disk: Callable[[Path], AbstractContextManager[Any]],
) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(dump_toml(make_experiment()))
    with small_disk(tmp_path / "disk") as disk:
        disk.fill()
        out = tmp_path / "disk" / "run"
        command = [sys.executable, "-m", "flsimulation", "run", str(file), f"--out={out}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (1, f"flsim: {out}/experiment.toml: {FULL}\n")
        assert "Report" not in done.stdout


DIGESTING = """
import sys
import torch
from flsimulation.cli.main import program
from flsimulation.data.dataset import Dataset

def digest(self):
    x = torch.eye(1500)
    for _ in range(40):
        x = x @ x
    return str(float(x.sum()))

Dataset.digest = property(digest)
program()
"""


@pytest.mark.parametrize("data", ["mnist", "own"])
def test_an_error_while_the_data_is_digested_is_one_line_and_its_status(
    make_experiment: Make, tmp_path: Path, data: str
) -> None:
    """A thread that ends with the program aborts it if it is inside PyTorch."""
    file, out = tmp_path / "experiment.toml", tmp_path / "experiment.toml" / "run"
    file.write_text(dump_toml(make_experiment()))
    given = [str(file)] if data == "own" else ["--set=data.clients=2"]
    command = [sys.executable, "-c", DIGESTING, "run", *given, f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"flsim: {out}: ")
    assert done.stderr.count("\n") == 1


def test_the_command_says_how_to_resume_after_a_full_disk(
    make_experiment: Make,
    tmp_path: Path,
    small_disk: Callable[[Path], AbstractContextManager[Any]],
) -> None:
    code = (
        "import sys; from flsimulation import runner; from tests.conftest import Disk\n"
        "from tests.test_storage import after_round\n"
        "from flsimulation.cli.main import main\n"
        "from pathlib import Path; run = runner.run\n"
        "fill = after_round(1, Disk(Path(sys.argv.pop())).fill)\n"
        "runner.run = lambda e, out, sinks, opened: run(e, out, [*sinks, fill], opened)\n"
        "main(sys.argv[1:])"
    )
    file = tmp_path / "experiment.toml"
    file.write_text(dump_toml(make_experiment()))
    with small_disk(tmp_path / "disk"):
        out = tmp_path / "disk" / "run"
        done = subprocess.run(
            [sys.executable, "-c", code, "run", str(file), f"--out={out}", str(tmp_path / "disk")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr == (
            f"flsim: {out}/checkpoint/round-000002.strategy.safetensors: {FULL}; "
            f"resume with `flsim run --resume {out}`\n"
        )


BATCHNORM = "BatchNorm1d keeps running statistics"


@pytest.mark.parametrize(
    ("known", "reported", "engine", "not_stacked"),
    [
        (None, [], None, None),
        (None, [("stacked", None)], "stacked", None),
        (None, [("lightning", BATCHNORM), ("lightning", "it")], "lightning", f"{BATCHNORM}; it"),
        ("stacked", [("lightning", BATCHNORM)], "lightning, stacked", BATCHNORM),
    ],
)
def test_the_manifest_names_every_engine_that_clients_report(
    make_experiment: Make,
    tmp_path: Path,
    known: str | None,
    reported: list[tuple[str, str | None]],
    engine: str | None,
    not_stacked: str | None,
) -> None:
    experiment = make_experiment()
    directory = RunDirectory(tmp_path, experiment)
    started = RunStarted(experiment, {}, 10, "d", None, (), 3, 2, engine=known)
    for event in (started, *(EngineReported(*told) for told in reported)):
        directory(event)
    written = manifest(tmp_path)
    assert (written["engine"], written["not-stacked"]) == (engine, not_stacked)
    assert written["data"]["digest"] == "d"


def of_kind(kind: type[Event], what: Callable[[], object]) -> Callable[[Event], None]:
    """A sink that does something at each event of a kind."""
    return lambda event: what() if isinstance(event, kind) else None


def test_a_checkpoint_is_written_while_the_model_is_evaluated_and_its_line_follows(
    make_experiment: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, judged, written = tmp_path / "run", threading.Event(), list[tuple[int, int]]()

    def when_judged(folder: Path, round: int, *rest: Any) -> None:
        assert judged.wait(PATIENCE)  # for ever, if the round waited for its checkpoint
        judged.clear()
        write_checkpoint(folder, round, *rest)
        written.append((round, last_round(path / "rounds.jsonl")))

    monkeypatch.setattr("flsimulation.rundir.writer.write_checkpoint", when_judged)
    seen = list[int]()
    look = of_kind(RoundFinished, lambda: seen.append(len(written)))
    run(make_experiment(strategy={"rounds": 3}), path, [of_kind(Judged, judged.set), look])
    assert written == [(1, 0), (2, 1), (3, 2)]
    assert seen == [1, 2, 3]


def test_of_two_errors_of_the_disk_the_first_is_told(
    make_experiment: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, *_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "first"))

    def fail_too(self: JsonLines, line: Any) -> None:
        raise OSError(errno.EIO, "Input/output error", "second")

    path = tmp_path / "run"
    monkeypatch.setattr("flsimulation.rundir.writer.write_checkpoint", fail)
    spoil = of_kind(Judged, lambda: monkeypatch.setattr(JsonLines, "append", fail_too))
    with pytest.raises(RunError, match=f"^{path}/checkpoint/first: {FULL}$"):
        run(make_experiment(), path, [spoil])
    assert (manifest(path)["state"], manifest(path)["rounds"]) == ("failed", 0)
