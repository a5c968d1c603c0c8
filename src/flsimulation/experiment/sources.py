"""Digests of the user's own files that an experiment names, so that all machines use the same ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flsimulation.errors import InputError
from flsimulation.experiment.flat import flatten
from flsimulation.experiment.importing import file_of
from flsimulation.experiment.spec import Experiment

SOURCES = "driver.sources"
"""Key of a run config: SHA-256 of each file that the experiment names, by key, as JSON."""
_KEYS = ("model.class", "data.dataset", "data.transform", "data.evaluation-transform")
"""Not ``data.reader``: it reads a site's own data, and may be the site's own."""


def sources_of(experiment: Experiment) -> dict[str, str]:
    """Run config with the digests of the experiment's files here; empty if it names none.

    Parameters
    ----------
    experiment : Experiment
        Its keys that hold ``path/to/file.py:name``.
    """
    found = {}
    for key, reference in _references(flatten(experiment)).items():
        if (path := Path(reference.rpartition(":")[0])).is_file():
            found[key] = _digest(path)
    return {SOURCES: json.dumps(found, sort_keys=True)} if found else {}


def check_sources(config: Mapping[str, Any]) -> None:
    """Check that this machine's files are those of the machine that submitted the run.

    Parameters
    ----------
    config : mapping
        The run config: the experiment, flattened, and digests by `sources_of`, if there are any.

    Raises
    ------
    InputError
        In one sentence that names the key, both digests and the remedy.
    """
    expected = json.loads(config.get(SOURCES, "{}"))
    for key, reference in _references(config).items():
        path = file_of(reference)
        if key not in expected or path is None:
            continue
        if (own := _digest(path)) != expected[key]:
            raise InputError(
                f"{key} {reference!r}: {path} has sha256 {own[:16]} on this machine, and "
                f"{expected[key][:16]} on the one that submitted the run; copy it from there, or submit "
                f"the run again"
            )


def _references(config: Mapping[str, Any]) -> dict[str, str]:
    named = {key: str(config.get(key) or "") for key in _KEYS}
    return {k: value for k, value in named.items() if value.rpartition(":")[0].endswith(".py")}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
