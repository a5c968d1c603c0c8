from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from flsimulation.errors import DataError, InputError, ModelError
from flsimulation.experiment.importing import import_object


@pytest.fixture(autouse=True)
def _same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def refused(reference: str, error: type[InputError] = ModelError) -> str:
    with pytest.raises(error) as caught:
        import_object(reference, "model.class", error)
    assert type(caught.value) is error
    text = str(caught.value)
    assert text.startswith(f"model.class {reference!r}: ")
    assert "\n" not in text
    return text


def test_an_installed_module() -> None:
    assert import_object("math:floor", "k")(2.5) == 2
    assert import_object("os:path.join", "k")("a", "b") == "a/b"


def test_a_file(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", "class Net:\n    depth = 3\n")
    assert import_object(f"{file}:Net", "k").depth == 3
    assert import_object(f"{file}:Net.depth", "k") == 3


def test_a_file_is_executed_once_until_it_changes(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", "class A: pass\nclass B(A): pass\n")
    first = import_object(f"{file}:A", "k")
    assert issubclass(import_object(f"{file}:B", "k"), first)
    write(file, "class A: new = True\n")
    assert import_object(f"{file}:A", "k").new


def test_a_file_imports_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "neighbour_of_mine.py", "size = 7\n")
    file = write(tmp_path / "mine.py", "from neighbour_of_mine import size\n")
    assert import_object(f"{file}:size", "k") == 7


def test_a_module_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "module_in_cwd.py", "x = 5\n")
    monkeypatch.chdir(tmp_path)
    assert import_object("module_in_cwd:x", "k") == 5


def test_a_folder_never_hides_what_is_installed(tmp_path: Path) -> None:
    write(tmp_path / "colorsys.py", "raise RuntimeError\n")
    file = write(tmp_path / "mine.py", "import colorsys\nhsv = colorsys.rgb_to_hsv\n")
    assert import_object(f"{file}:hsv", "k")(0, 0, 0) == (0, 0, 0)


@pytest.mark.parametrize("reference", ["Net", "mine.py", ":Net", "mine.py:"])
def test_the_form_is_explained(reference: str) -> None:
    assert "write it as module:name or path/to/file.py:name" in refused(reference)


def test_no_such_file(tmp_path: Path) -> None:
    text = refused(f"{tmp_path}/none.py:Net")
    assert f"there is no file {tmp_path}/none.py; name an existing Python file" in text


def test_no_such_module() -> None:
    text = refused("no_such_module_here:Net", DataError)
    assert "no module named 'no_such_module_here'; install it, or name a file" in text


def test_no_such_attribute_names_the_nearest(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", "class Network: pass\n")
    assert "has no attribute 'Netwrok'; did you mean 'Network'?" in refused(f"{file}:Netwrok")
    assert "has no attribute 'zzz'; known: Network" in refused(f"{file}:zzz")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = 1\nraise ValueError('bo\\nom')\n", "raised ValueError: bo om (mine.py:2)"),
        ("import no_such_thing\n", "raised ModuleNotFoundError: No module named 'no_such_thing'"),
        ("def broken(:\n", "raised SyntaxError: invalid syntax (mine.py, line 1)"),
        ("import sys\nsys.exit(3)\n", "raised SystemExit: 3 (mine.py:2)"),
    ],
)
def test_an_import_that_fails(tmp_path: Path, text: str, said: str) -> None:
    before = set(sys.modules)
    file = write(tmp_path / "mine.py", text)
    assert f"importing it {said}" in refused(f"{file}:Net")
    assert not [name for name in set(sys.modules) - before if name.startswith("mine_")]


def test_a_module_whose_own_import_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "needs_more.py", "import no_such_thing\n")
    monkeypatch.chdir(tmp_path)
    assert "importing it raised ModuleNotFoundError" in refused("needs_more:Net")


SCRIPT = """
from flsimulation import load_experiment, run

class Net: pass

run(load_experiment(None, ["data.clients=7"]))

class Later: pass
"""


def test_the_script_in_progress_is_not_executed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "one.py", "raise RuntimeError\n")
    script = ModuleType("__main__")
    script.__file__, script.Net = str(file), int  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "__main__", script)
    monkeypatch.chdir(tmp_path)
    assert import_object(f"{file}:Net", "k") is int
    assert import_object("one:Net", "k") is int
    text = refused(f"{file}:Later")
    assert "the script in progress has not defined 'Later'; define it above the call of" in text


def test_a_class_of_a_notebooks_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = ModuleType("__main__")
    notebook.Net = int  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    assert import_object("__main__:Net", "k") is int
    assert "put it into a file and name it as path/to/file.py:Gone" in refused("__main__:Gone")


def test_a_script_that_is_imported_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "script_without_guard.py", SCRIPT)
    monkeypatch.chdir(tmp_path)
    for source in (str(file), "script_without_guard"):
        assert import_object(f"{source}:Net", "k").__name__ == "Net"
        text = refused(f"{source}:Later")
        assert "importing it starts a run before 'Later' is defined; put the call of run()" in text
        assert 'below `if __name__ == "__main__":`' in text
    assert not (tmp_path / "runs").exists()


def test_a_file_that_imports_such_a_script_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "neighbour_that_runs.py", SCRIPT)
    file = write(tmp_path / "mine.py", "from neighbour_that_runs import Net\n")
    assert "importing it starts a run before 'Net' is defined" in refused(f"{file}:Net")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "text", ["from colorsys import mine\n", "import colorsys\ncolorsys.mine()\n"]
)
def test_a_neighbour_that_an_installed_module_hides_is_named(tmp_path: Path, text: str) -> None:
    hidden = write(tmp_path / "colorsys.py", "def mine(): pass\n")
    file = write(tmp_path / "mine.py", text)
    said = f"; {hidden} is hidden by the installed module 'colorsys': rename it"
    assert refused(f"{file}:mine").endswith(said)


def test_a_file_may_have_the_name_of_a_module_that_it_imports(tmp_path: Path) -> None:
    file = write(tmp_path / "colorsys.py", "import colorsys\nhsv = colorsys.rgb_to_hsv\n")
    assert import_object(f"{file}:hsv", "k")(0, 0, 0) == (0, 0, 0)
    file = write(tmp_path / "bisect.py", "import bisect\nbisect.nothing\n")
    assert "rename it" not in refused(f"{file}:x")
