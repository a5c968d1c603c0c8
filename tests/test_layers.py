"""Imports go one way, and the public names are those that are documented."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import flsimulation

PACKAGE = Path(flsimulation.__file__).parent

LAYERS = (
    ("clock", "errors", "seeds", "internals"),
    ("host",),
    ("security", "experiment"),
    ("data", "events"),
    ("models", "messages", "privacy"),
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

PUBLIC = {
    "flwr": {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"},
    "flwr_datasets": {"flwr_datasets", "flwr_datasets.partitioner"},
    "ray": {"ray", "ray.exceptions"},
}
"""By library: the modules that it publishes; everything else of it is named in ``internals`` only."""

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


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Module and name of every import anywhere in a module; an imported module has no name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)


def is_private(module: str, name: str) -> bool:
    """Whether what is imported is one of the libraries' that they do not publish."""
    library = module.split(".")[0]
    if library not in PUBLIC or f"{module}.{name}" in PUBLIC[library]:
        return False
    published = getattr(import_module(module), "__all__", None)  # Ray's exceptions have none
    return (
        module not in PUBLIC[library]
        or name.startswith("_")
        or bool(name and published is not None and name not in published)
    )


def private_names(source: str) -> list[str]:
    """Private names of other libraries in a module: imported, reached through one, or written."""
    tree = ast.parse(source)
    found = [f"{module}.{name}" for module, name in imported(tree) if is_private(module, name)]
    ours = {a.asname or a.name.split(".")[0] for a in _aliases(tree, tuple(PUBLIC))}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.fullmatch(r"_[a-z]\w*", node.attr):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            found += (
                [f"{root.id}.{node.attr}"] if isinstance(root, ast.Name) and root.id in ours else []
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            modules = re.findall(r"^(flwr\.[\w.]+)$|\b(?:from|import) (flwr[\w.]+)", node.value)
            found += [m for pair in modules for m in pair if m and m not in PUBLIC["flwr"]]
            found += [node.value] if node.value in ("_message_id", "_task_id", "_node_id") else []
    return found


def _aliases(tree: ast.AST, libraries: tuple[str, ...]) -> Iterator[ast.alias]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a for a in node.names if a.name.split(".")[0] in libraries)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in libraries:
            yield from node.names


def test_private_names_of_flower_and_ray_are_in_internals_only() -> None:
    paths = list(PACKAGE.rglob("*.py"))
    found = {str(path.relative_to(PACKAGE)): private_names(path.read_text()) for path in paths}
    inside = {name: found.pop(name) for name in list(found) if name.startswith("internals/")}
    assert sum(len(names) for names in inside.values()) > 20
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "line",
    [
        "from flwr.supercore.run import Run",
        "from flwr.serverapp import _hidden",
        "from flwr.app import make_message",
        "def f():\n    import flwr.server",
        "from flwr.serverapp.strategy import strategy_utils",
        "from ray._private import worker",
        "import ray\nray._private.worker",
        "import flwr.app\nflwr.app._metadata",
        "import_module('flwr.supercore.cli')",
        "program = 'import sys\\nfrom flwr.cli.app import app'",
        "vars(message.metadata)['_message_id'] = '1'",
    ],
)
def test_a_private_name_is_seen_however_it_is_used(line: str) -> None:
    assert private_names(line)


@pytest.mark.parametrize(
    "line",
    [
        "from flwr.serverapp import Grid, strategy",
        "from flwr.serverapp.strategy import FedAvg",
        "import ray\nray.get(self._running)",
        "'the class of ``flwr.serverapp.strategy``'",
        "from flwr_datasets import partitioner as flower",
    ],
)
def test_public_names_are_free(line: str) -> None:
    assert private_names(line) == []


ON_A_CLOCK = (
    *("client", "messages", "server", "training", "runtimes/inprocess.py", "runtimes/simulated.py"),
    *("runtimes/ray/grid.py", "node/grid.py", "node/outbox.py"),
)
"""Between a round and its clients: what time it is comes from a `clock.Clock`."""


def test_what_is_between_a_round_and_its_clients_is_handed_a_clock() -> None:
    places = [PACKAGE / place for place in ON_A_CLOCK]
    files = [
        file for place in places for file in (place.rglob("*.py") if place.is_dir() else [place])
    ]
    assert len(files) > 40
    for file in files:
        nodes = list(ast.walk(ast.parse(file.read_text())))
        names = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
        names += [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)]
        assert not {"time", "datetime"} & set(names), f"{file} must take a clock"


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
