"""What ``flsim doctor`` looks at on the disk: room, and who may read and write."""

from __future__ import annotations

import getpass
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Check:
    """One line of the doctor."""

    level: Literal["good", "warning", "bad"]
    text: str


def disk_check(what: str, path: Path, needed: int, remedy: str) -> Check:
    """Free space where Docker or the results lie."""
    try:
        while not path.exists() and path != path.parent:
            path = path.parent
        free = shutil.disk_usage(path).free
    except OSError as error:
        return Check("warning", f"disk for {what}: {path} cannot be looked at ({error.strerror})")
    found = f"disk for {what}: {free / 1e9:.1f} GB free at {path}"
    if free >= needed:
        return Check("good", found)
    return Check("bad", f"{found}, {needed / 1e9:g} GB are needed; {remedy}")


def runs_check(runs: Path) -> Check:
    """Whether results can be written."""
    place = runs if runs.exists() else runs.parent
    writable = os.access(place, os.W_OK | os.X_OK)
    try:
        owner = place.owner()
    except (KeyError, OSError):
        owner = f"user {place.stat().st_uid}"  # a number without a name
    if not writable:
        return Check(
            "bad",
            f"{place} belongs to {owner} and you may not write there; sudo chown -R {getpass.getuser()} {place}",
        )
    if place == runs:
        return Check("good", f"results: {runs} is writable, it belongs to {owner}")
    return Check("good", f"results: {runs} is not there yet and can be made")


def readable_checks(folders: Iterable[Path]) -> Iterator[Check]:
    """Whether the containers' users, who are others here, can read the folders that they are given."""
    for folder in folders:
        for path in (folder, *folder.rglob("*")) if folder.is_dir() else ():
            needed = 0o005 if path.is_dir() else 0o004
            if path.exists() and path.stat().st_mode & needed != needed:
                text = f"{path} cannot be read in containers; chmod -R a+rX {folder}"
                yield Check("bad", text)
                break
