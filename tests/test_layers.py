"""Imports go one way, and the public names are those that are documented."""

from __future__ import annotations

import ast
from pathlib import Path

import flsimulation

PACKAGE = Path(flsimulation.__file__).parent

LAYERS = (
    ("errors", "seeds", "internals"),
    ("host",),
    ("experiment",),
    ("data", "events"),
    ("models", "messages"),
    ("training",),
    ("client", "rundir", "metrics"),
    ("server", "report"),
    ("runtimes",),
    ("runner",),
    ("node",),
    ("studies",),
    ("cli",),
    ("__main__",),
)
"""From the ground up: a module imports only from its own part and from those above it here."""

HEIGHT = {part: height for height, parts in enumerate(LAYERS) for part in parts}


def imports(path: Path) -> list[str]:
    """Parts of the package that a module imports anywhere, inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [name.split(".")[1] for name in names if name.startswith("flsimulation.")]
    return found


def test_every_module_imports_only_what_stands_before_it_in_the_flow() -> None:
    seen = 0
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        for other in imports(path):
            seen += 1
            low_enough = HEIGHT[other] < HEIGHT[part] or other == part
            assert low_enough, f"{path.relative_to(PACKAGE)} must not import {other}"
    assert seen > 100


def test_no_module_is_longer_than_three_hundred_lines() -> None:
    long = [p.name for p in PACKAGE.rglob("*.py") if len(p.read_text().splitlines()) > 300]
    assert long == []


def test_the_public_names_are_pinned_and_there() -> None:
    assert flsimulation.__all__ == [
        "Experiment",
        "FLSimulationError",
        "InputError",
        "RunError",
        "RunResult",
        "__version__",
        "load_experiment",
        "load_model",
        "resume",
        "run",
    ]
    for name in flsimulation.__all__:
        assert getattr(flsimulation, name) is not None


def test_the_tests_see_the_installed_package_or_the_editable_one_not_a_stray_copy() -> None:
    assert PACKAGE.name == "flsimulation"
    assert (PACKAGE / "data" / "mnist" / "train-images-idx3-ubyte.gz").stat().st_size == 9_719_438
