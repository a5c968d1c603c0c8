"""One set of words for what a user may have meant."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import flsimulation
from flsimulation.experiment.suggest import did_you_mean, nearest, remedy

PACKAGE = Path(flsimulation.__file__).parent


@pytest.mark.parametrize(
    ("word", "known", "near"),
    [
        ("epoch", ["epochs", "engine"], "epochs"),
        ("label", ["a", "Label"], "Label"),  # capitals do not count
        ("MNIST", ["mnist", "fashion-mnist"], "mnist"),
        ("x", ["X", "x"], "X"),  # of two alike the first
        ("zzz", ["epochs", "engine"], None),
        ("epoch", [], None),
    ],
)
def test_the_nearest_of_the_known_words(word: str, known: list[str], near: str | None) -> None:
    assert nearest(word, known) == near


def test_the_end_of_an_error_names_the_nearest_word_or_all_that_are_known() -> None:
    assert did_you_mean("epochs") == "; did you mean 'epochs'?"
    assert did_you_mean(None) == ""
    assert remedy("epoch", ["epochs", "engine"]) == "; did you mean 'epochs'?"
    assert remedy("zzz", iter(["epochs", "engine"])) == "; known: epochs, engine"
    assert remedy("zzz", []) == "; known: none"


def test_no_other_module_looks_for_near_words_itself() -> None:
    found = {
        path.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import) and "difflib" in {alias.name for alias in node.names}
    }
    assert found == {"suggest.py"}
