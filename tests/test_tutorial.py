"""The tutorial's commands run as they stand, in both languages the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.test_containers import needed

ROOT = Path(__file__).parent.parent
PORTS = (8080, 8081, 9090)
ANSWERS = {
    "doctor": r"Docker Engine \d+",
    "config --services": r"superlink",
    "--version": r"^flsim \d+\.\d+",
    "fedmedian": r"completed: 1 of 1 rounds",
    "partition": r"2 clients, 10000 of 60000 training examples",
    "--no-run": r"http://localhost:9090",
    "curl": r'"status":"success"',
    "--clients 3": r"completed: 3 of 3 rounds",
    "status": r"round\s+3 of 3|3 of 3",
}
"""Part of a command to what its output must have."""


def commands(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_both_languages_have_the_same_commands_and_ten_sections() -> None:
    assert commands("tutorial.md") == commands("tutorial.pl.md")
    for page in ("tutorial.md", "tutorial.pl.md"):
        headings = re.findall(r"^## (\d+)\. ", (ROOT / "docs" / page).read_text(), re.MULTILINE)
        assert headings == [str(number) for number in range(1, 11)]


def taken() -> list[int]:
    found = []
    for port in PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                found.append(port)
    return found


@pytest.mark.containers
@needed
def test_every_command_of_the_tutorial_runs(tmp_path: Path) -> None:
    if "CI" not in os.environ and (ports := taken()):
        pytest.skip(f"ports {ports} are taken on this machine")
    copy = tmp_path / "flsimulation"
    ignored = shutil.ignore_patterns("2*", ".venv", ".git", "__pycache__", ".*_cache", "dist")
    shutil.copytree(ROOT, copy, ignore=ignored)
    (copy / ".venv").symlink_to(Path(sys.executable).parent.parent)
    environment = os.environ | {"COMPOSE_PROJECT_NAME": "flsimulation-tutorial"}
    first, *rest = commands("tutorial.md")
    assert first == "make run"  # made this environment; the run itself comes again below
    answered = set()
    try:
        for command in rest:
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=copy,
                env=environment,
                capture_output=True,
                text=True,
                timeout=900,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            for part, pattern in ANSWERS.items():
                if part in command.removeprefix(".venv/bin/flsim"):
                    assert re.search(pattern, done.stdout, re.MULTILINE), (
                        f"{command}\n{done.stdout}"
                    )
                    answered.add(part)
        assert answered == ANSWERS.keys()
        (run,) = [path for path in (copy / "runs").glob("2*") if not is_fedmedian(path)]
        manifest = json.loads((run / "manifest.json").read_text())
        assert len(manifest["data"]["histogram"]) == 3
    finally:
        down = ["docker", "compose", "down", "--volumes", "--timeout", "5"]
        subprocess.run(down, cwd=copy, env=environment, capture_output=True, check=False)


def is_fedmedian(run: Path) -> bool:
    return "fedmedian" in (run / "experiment.toml").read_text()
