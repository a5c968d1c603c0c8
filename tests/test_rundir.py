"""A run directory, read: one reader, one rule for scores, one wording of what is damaged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flsimulation import InputError, RunResult, load_experiment, load_model, run
from flsimulation.events import BOOKKEEPING, RESERVED, RunStarted, scores_of, source_of
from flsimulation.rundir import RunRecord
from flsimulation.rundir.jsonlines import last_round, read_lines
from flsimulation.rundir.reader import can_resume, is_reported, report_of, run_directories
from flsimulation.rundir.storage import claimed


def written(path: Path, rounds: list[Any], **manifest: Any) -> Path:
    """A run directory with these lines in rounds.jsonl."""
    path.mkdir()
    fields = {"name": "x", "state": "completed", "rounds": len(rounds), "seconds": 2.5}
    fields |= {"peak-memory-bytes": 7, "weights-sha256": "ab", **manifest}
    (path / "manifest.json").write_text(json.dumps(fields))
    (path / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rounds))
    return path


def line(round: int, central: Any = None, federated: Any = None) -> dict[str, Any]:
    return {"round": round, "central": central, "federated": federated}


@pytest.mark.parametrize(
    ("central", "federated", "source", "scores"),
    [
        ({"loss": 1.0}, {"loss": 2.0}, "central", {"loss": 1.0}),
        (None, {"loss": 2.0}, "federated", {"loss": 2.0}),
        ({}, {"loss": 2.0}, "federated", {"loss": 2.0}),  # the module logs nothing on the test set
        (None, None, None, {}),
    ],
)
def test_the_test_sets_scores_count_else_the_clients(
    central: Any, federated: Any, source: str | None, scores: dict[str, float]
) -> None:
    round = line(1, central, federated)
    assert (source_of(round), scores_of(round)) == (source, scores)


def test_a_result_is_that_of_the_last_model_that_was_evaluated(tmp_path: Path) -> None:
    rounds = [
        line(1, {"accuracy": 0.9, "loss": 0.1}, {"accuracy": 0.8, "loss": 0.2}),
        line(2, None, {"accuracy": 0.7, "loss": None}),  # a loss that was not finite
        line(3),
    ]
    path = written(tmp_path / "run", rounds)
    assert RunRecord(path).result() == RunResult(
        "x", "completed", 3, 0.7, None, 2.5, 7, str(path), "ab"
    )
    assert RunRecord(path).last_evaluated["round"] == 2


@pytest.mark.seconds
def test_a_runs_directory_says_what_the_run_returned(make_experiment: Any, tmp_path: Path) -> None:
    seen: list[Any] = []
    result = run(make_experiment(strategy={"rounds": 1}), tmp_path / "run", [seen.append])
    record = RunRecord(tmp_path / "run")
    assert record.result() == result
    (began,) = [event for event in seen if isinstance(event, RunStarted)]
    told, ours = vars(record.started()), vars(began)
    assert {key for key in ours if told[key] != ours[key]} <= {"engine", "not_stacked", "gpu"}
    assert record.checkpoint().round == 1
    weights = load_model(tmp_path / "run").state_dict()
    assert {n: v.tolist() for n, v in record.weights().items()} == {
        n: v.tolist() for n, v in weights.items()
    }
    assert record.trained(until=1) == [(p, None) for p in range(4)]
    assert record.trained(until=0) == []


def test_a_client_of_no_site_has_its_number_for_a_name(tmp_path: Path) -> None:
    run = RunRecord(written(tmp_path / "run", []))
    (run.path / "experiment.toml").write_text('[data]\nsites = ["berlin"]\n')
    assert [run.client_name(partition) for partition in (0, 1, -2)] == ["0 (berlin)", "1", "-2"]


def test_lines_count_by_their_round(make_experiment: Any, tmp_path: Path) -> None:
    rounds = [line(3), line(2), line(3, {"loss": 1.0})]
    record = RunRecord(written(tmp_path / "run", rounds))
    assert [found["round"] for found in record.rounds] == [2, 3]
    assert record.rounds[-1]["central"] == {"loss": 1.0}


@pytest.mark.parametrize(
    "tail", [b"", b"\n\n", b'{"round": 3, "cen', b'{"round": 3, "cen\n', b"\0\0\0", b'{"x": "\xc3']
)
def test_what_a_crash_leaves_at_the_end_is_no_line(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"round": 1}\n\n{"round": 2}\n' + tail)
    assert list(read_lines(path, "round")) == [{"round": 1}, {"round": 2}]
    assert last_round(path) == 2


def test_a_line_that_lacks_only_its_newline_counts(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"round": 1}\n{"round": 2}')
    assert list(read_lines(path, "round")) == [{"round": 1}, {"round": 2}]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ('{"round": 1, "cen', "Unterminated string"),
        ("[1]", "must be a JSON object, got list"),
        ('{"round": "1"}', "round must be a whole number, got '1'"),
        ("{}", "round must be a whole number, got None"),
    ],
)
def test_another_damaged_line_is_named(tmp_path: Path, bad: str, why: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"round": 1}}\n{bad}\n{{"round": 2}}\n')
    with pytest.raises(InputError) as caught:
        list(read_lines(path, "round"))
    told = str(caught.value)
    assert told.startswith(f"{path}:2: damaged: {why}")
    assert told.endswith("; delete the line to continue without it")
    assert last_round(path) == 2


def test_a_file_that_is_not_there_has_no_lines_and_one_that_cannot_be_read_is_named(
    tmp_path: Path,
) -> None:
    assert list(read_lines(tmp_path / "none.jsonl")) == []
    assert last_round(tmp_path / "none.jsonl") == 0
    with pytest.raises(InputError, match=rf"^{tmp_path}: cannot be read: Is a directory$"):
        list(read_lines(tmp_path))


def test_what_is_there_is_found(tmp_path: Path) -> None:
    for name, rounds in (("a", [line(1)]), ("b", [])):
        written(tmp_path / name, rounds)
    (tmp_path / "c").mkdir()
    assert run_directories(tmp_path) == [tmp_path / "b", tmp_path / "a"]
    assert [can_resume(tmp_path / name) for name in "abc"] == [True, False, False]
    assert report_of(tmp_path / "a") is None
    assert not is_reported(tmp_path / "a")
    (tmp_path / "a" / "report.html").touch()
    assert report_of(tmp_path / "a") == tmp_path / "a" / "report.html"
    assert is_reported(tmp_path / "a")
    with pytest.raises(
        InputError, match=rf"^{tmp_path}/c: is not a run directory; it contains neither"
    ):
        RunRecord(tmp_path / "c")


def test_names_that_are_no_scores_are_taken() -> None:
    assert sorted(BOOKKEEPING) == ["epochs", "num-examples", "seconds", "steps", "unclipped"]
    assert sorted(RESERVED - BOOKKEEPING) == ["error", "partition", "phase", "reason", "round"]


@pytest.mark.seconds
def test_who_reads_a_run_directory_needs_no_torch_and_no_flower() -> None:
    code = "import sys, flsimulation.report; print({'torch', 'flwr'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"round": 1, "central": 5}', "central must be an object of numbers, or null, got 5"),
        ('{"round": 1, "cohort": [1, "x"]}', "cohort must be a list of whole numbers, or null"),
        ('{"round": true}', "round must be a whole number, got True"),
        ('{"round": 1, "x": ' + "[" * 50_000, "its values are nested too deeply"),
        ('{"round": 1, "failures": {"lost": 1.5}}', "failures must be an object of whole numbers"),
    ],
)
def test_a_line_of_another_shape_is_damaged(tmp_path: Path, content: str, why: str) -> None:
    path = written(tmp_path / "run", [line(1)])
    (path / "rounds.jsonl").write_text(f'{content}\n{{"round": 2}}\n')
    with pytest.raises(InputError, match=re.escape(f"rounds.jsonl:1: damaged: {why}")):
        _ = RunRecord(path).rounds


def test_a_manifest_of_another_shape_is_damaged(tmp_path: Path) -> None:
    path = written(tmp_path / "run", [line(1)], data={"histogram": {"0": "many"}})
    with pytest.raises(InputError, match=r"manifest.json: damaged: data.histogram must be"):
        _ = RunRecord(path).manifest


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    path = written(tmp_path / "run", [line(1)])
    (path / "rounds.jsonl").unlink()
    os.mkfifo(path / "rounds.jsonl")
    with pytest.raises(InputError, match=r"rounds.jsonl: is not a file"):
        _ = RunRecord(path).rounds


@pytest.mark.parametrize("name", [".lock", "checkpoint", "checkpoint/round-000001.safetensors"])
def test_a_run_is_not_written_through_a_link(tmp_path: Path, name: str) -> None:
    path, elsewhere = written(tmp_path / "run", [line(1)]), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).symlink_to(elsewhere / "file" if name == ".lock" else elsewhere)
    with pytest.raises(InputError, match="is a symbolic link"), claimed(path):
        raise AssertionError("not refused")
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../x", "/x", "x/../y", "..", "x.", "x\n", "C:x", "a\\b", "", "é"]
)
def test_a_name_cannot_leave_the_folder_of_runs(name: str) -> None:
    with pytest.raises(InputError, match="name must"):
        load_experiment(overrides=[f"name={json.dumps(name)}"])
