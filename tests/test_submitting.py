"""Submitting a run by Flower's command: what it answers, and Ctrl-C before it has answered."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import PATIENCE, wait_for

COMMAND = """
import json, pathlib, sys, time
folder, (verb, *rest) = pathlib.Path(sys.argv[1]), sys.argv[2:]
with (folder / "calls").open("a") as calls:
    calls.write(f"{verb} {rest[0] if verb == 'stop' else ''}\\n")
if verb == "run":
    while not (folder / "accepted").exists():
        time.sleep(0.02)
    print(json.dumps({"success": True, "run-id": "77"}), flush=True)
"""
SUBMIT = """
import pathlib, sys
from flsimulation.runtimes.network import flower
folder = pathlib.Path(sys.argv[1])
flower._FLWR = (sys.executable, str(folder / "flwr.py"), str(folder))
(folder / "home").mkdir()
print(flower.Flower("127.0.0.1:1", folder / "home").submit_app(folder))
"""


@pytest.fixture
def submit(tmp_path: Path) -> subprocess.Popen[str]:
    """A program that submits a run; Flower's command is one that answers when it may."""
    (tmp_path / "flwr.py").write_text(COMMAND)
    return subprocess.Popen(
        [sys.executable, "-c", SUBMIT, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_the_id_of_the_run_is_what_flower_answers(
    submit: subprocess.Popen[str], tmp_path: Path
) -> None:
    (tmp_path / "accepted").touch()
    assert submit.communicate(timeout=PATIENCE) == ("77\n", "")


def test_a_run_that_is_accepted_after_ctrl_c_is_stopped(
    submit: subprocess.Popen[str], tmp_path: Path
) -> None:
    calls = tmp_path / "calls"
    wait_for("the submission", lambda: calls.exists() and calls.read_text() == "run \n")
    submit.send_signal(signal.SIGINT)
    (tmp_path / "accepted").touch()
    out, err = submit.communicate(timeout=PATIENCE)
    assert (submit.returncode, out) == (-signal.SIGINT, ""), err
    assert calls.read_text() == "run \nstop 77\n"
