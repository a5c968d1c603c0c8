"""Every flsim command and every Python block of the README runs, in the README's order."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from flsimulation import load_experiment
from flsimulation.cli.main import main

pytestmark = pytest.mark.seconds

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = [
    shlex.split(line.removeprefix("$ "))
    for block in blocks("console")
    for line in block.splitlines()
    if line.startswith("$ ")
]


def test_the_readme_names_two_make_targets_that_exist() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    named = [words[1] for words in COMMANDS if words[0] == "make"]
    assert named == ["run", "test"]
    assert set(named) <= set(targets)


def test_every_command_and_python_block_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    monkeypatch.chdir(tmp_path)
    commands = [words[1:] for words in COMMANDS if words[0] == "flsim"]
    assert len(commands) == 13
    for words in commands:
        arguments = [  # a paper is begun; its end takes the minutes that stand there
            "0.05" if before == "--minutes" else word
            for before, word in zip(["", *words], words, strict=False)
        ]
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        captured = capsys.readouterr()
        assert (caught.value.code, captured.err) == (0, ""), arguments
    assert (tmp_path / "data.png").stat().st_size > 10_000
    assert (tmp_path / "partition.png").stat().st_size > 10_000
    assert (tmp_path / "runs" / "scripted" / "plots" / "accuracy.png").is_file()
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    assert re.match(r"0\.8\d+ runs/", capsys.readouterr().out)


def test_the_experiment_in_the_readme_is_valid(tmp_path: Path) -> None:
    (text,) = blocks("toml")
    path = tmp_path / "mine.toml"
    path.write_text(text)
    assert load_experiment(path).strategy.parameters == {"proximal-mu": 0.01}
