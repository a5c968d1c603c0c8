"""Damaged input of all kinds; the whole of it is ``benchmarks/fuzz.py --cases 100000``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def fuzz() -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import fuzz
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return fuzz


def test_no_damage_of_a_thousand_causes_more_than_an_error_of_this_package(fuzz: Any) -> None:
    assert fuzz.fuzz(1000) == []


def test_what_is_not_damaged_is_read(fuzz: Any, tmp_path: Path) -> None:
    for kind, (parts, read) in fuzz.KINDS.items():
        for name, content in parts().items():
            path = tmp_path / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        read(tmp_path / kind)


HARMFUL = {
    "raise KeyError('x')": "KeyError: 'x'",
    "(folder.parent / 'y').write_text('')": "OutsideError: open",
    "(folder.parent / 'y').mkdir()": "OutsideError: os.mkdir",
    "fuzz.signal.raise_signal(fuzz.signal.SIGALRM)": "HangError: took more than",
    "raise fuzz.FLSimulationError('')": "FLSimulationError without a text",
}
"""What a reader does, and what is said of it."""


def test_what_must_not_happen_is_noticed() -> None:
    """In a process of its own: the hook that watches writes stays for good."""
    program = (
        "import sys; sys.path.insert(0, 'benchmarks'); import fuzz\n"
        "for does in sys.argv[1:]:\n"
        "    read = lambda folder: exec(does)\n"
        "    fuzz.KINDS = {'x': fuzz.Kind(lambda: {'a': b'abc'}, read)}\n"
        "    (failure,) = fuzz.fuzz(1, kinds=('x',), tell=[].append); print(failure.what)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *HARMFUL],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    found = done.stdout.splitlines()
    assert len(found) == len(HARMFUL), done.stderr
    for line, what in zip(found, HARMFUL.values(), strict=True):
        assert line.startswith(what)
