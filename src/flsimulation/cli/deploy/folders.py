"""Checks of ``flsim doctor`` on the disk: free space and permissions."""

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
    """Whether there is enough free space for images or results."""
    try:
        while not path.exists() and path != path.parent:
            path = path.parent
        free = shutil.disk_usage(path).free
    except OSError as error:
        return Check("warning", f"disk for {what}: {path} cannot be examined ({error.strerror})")
    found = f"disk for {what}: {free / 1e9:.1f} GB free at {path}"
    if free >= needed:
        return Check("good", found)
    return Check("bad", f"{found}, {needed / 1e9:g} GB needed; {remedy}")


def runs_check(runs: Path) -> Check:
    """Whether the run directories can be written."""
    place = runs if runs.exists() else runs.parent
    writable = os.access(place, os.W_OK | os.X_OK)
    try:
        owner = place.owner()
    except (KeyError, OSError):
        owner = f"user {place.stat().st_uid}"  # a user id without a name
    if not writable:
        return Check(
            "bad",
            f"{place} belongs to {owner} and is not writable for you; sudo chown -R {getpass.getuser()} {place}",
        )
    if place == runs:
        return Check("good", f"results: {runs} is writable and belongs to {owner}")
    return Check("good", f"results: {runs} does not exist yet and can be created")


def readable_checks(folders: Iterable[Path]) -> Iterator[Check]:
    """Whether the containers' users, different from this one, can read the mounted folders."""
    for folder in folders:
        for path in (folder, *folder.rglob("*")) if folder.is_dir() else ():
            needed = 0o005 if path.is_dir() else 0o004
            if path.exists() and path.stat().st_mode & needed != needed:
                text = f"{path} cannot be read in containers; chmod -R a+rX {folder}"
                yield Check("bad", text)
                break
