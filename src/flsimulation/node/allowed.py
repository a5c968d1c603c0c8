"""The code that a client runs: the installed package's, and what its allow-list names.

A run's Flower app is not executed on a client: whatever app arrives, the installed package's own
ClientApp answers. What an experiment names besides (a model, a function that reads data, a transform) is
imported only if it is allowed, from the client's own files, with the content that they had at its start.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flsimulation.errors import InputError
from flsimulation.experiment.importing import import_only
from flsimulation.runtimes.network.names import ALLOWED

_MODELS = "flsimulation.models"


@dataclass(frozen=True)
class Allowed:
    """One entry of an allow-list."""

    name: str
    """The object of a file or a module, or ``*`` for each in the files of a folder."""
    path: str
    """A file, a folder, or the name of a module."""
    sha256: str = ""
    """Of a file; "" for a folder's files, which may change, and for modules."""

    def __str__(self) -> str:
        if self.name == "*":
            return f"{self.path}: every file in it, unpinned"
        pinned = f" sha256 {self.sha256}" if self.sha256 else " installed, unpinned"
        return f"{self.path}:{self.name}{pinned}"


@dataclass(frozen=True)
class AllowList:
    """What a client allows."""

    entries: tuple[Allowed, ...] = ()

    def find(self, reference: str) -> str:
        """What is imported for an experiment's ``module:name`` or ``file.py:name``.

        The experiment names files of the machine that submitted it. Where the client has no other file
        at that path, its own allowed file of the same name is meant.

        Raises
        ------
        InputError
            If it is not allowed.
        """
        source, _, name = reference.rpartition(":")
        if not source.endswith(".py"):
            named = any((one.path, one.name) == (source, name) for one in self.entries)
            if named or _is_shipped(source, name):
                return reference
            raise _not_allowed(reference)
        path = Path(source).expanduser().resolve()
        inside = any(one.name == "*" and path.is_relative_to(one.path) for one in self.entries)
        if inside and name.isidentifier():  # no attribute of what the file imports
            return reference
        entry = self._entry_of(path, name, reference)
        if not Path(entry.path).is_file() or _digest(Path(entry.path)) != entry.sha256:
            raise InputError(
                f"the file is not the one that this client allows (sha256 {entry.sha256})"
            )
        return f"{entry.path}:{name}"

    def _entry_of(self, path: Path, name: str, reference: str) -> Allowed:
        files = [one for one in self.entries if one.sha256 and one.name == name]
        found = {one.path: one for one in files if one.path == str(path)}
        if not found:
            here = _digest(path) if os.access(path, os.R_OK) else None
            named = [one for one in files if Path(one.path).name == path.name]
            found = {one.path: one for one in named if here in (None, one.sha256)}
        if len(found) > 1:
            raise InputError(f"this client allows several files of this name: {', '.join(found)}")
        if not found:
            raise _not_allowed(reference)
        return next(iter(found.values()))

    def write(self, path: Path) -> None:
        """Write the list to a file."""
        path.write_text(json.dumps([asdict(one) for one in self.entries]), encoding="utf-8")


def _is_shipped(source: str, name: str) -> bool:
    """Whether it is a class of the package's own models: nothing else of the package, nor of what it
    imports, does only what an experiment says.
    """
    ours = source == _MODELS or source.startswith(f"{_MODELS}.")
    return ours and name.isidentifier() and name[0].isupper()


def _not_allowed(reference: str) -> InputError:
    return InputError(
        f"this client does not allow it (flsim client --allow-model {reference}, or the path of its "
        "own copy)"
    )


def read_allowed(specs: Sequence[str], folders: Sequence[Path]) -> AllowList:
    """The allow-list of the command line.

    Parameters
    ----------
    specs : sequence of str
        ``file.py:Name``, ``file.py:Name@SHA256`` or ``module:Name``.
    folders : sequence of Path
        Folders whose files are all allowed.

    Raises
    ------
    InputError
        If a file does not exist or has another digest.
    """
    entries = [_entry(spec) for spec in specs]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"--allow-models-in {folder}: no such folder")
        entries.append(Allowed("*", str(folder.resolve())))
    return AllowList(tuple(entries))


def _entry(spec: str) -> Allowed:
    reference, _, pinned = spec.partition("@")
    source, _, name = reference.rpartition(":")
    if not source or not name:
        raise InputError(f"--allow-model {spec}: write it as file.py:Name or module:Name")
    if not source.endswith(".py"):
        return Allowed(name, source)
    path = Path(source).expanduser().resolve()
    if not path.is_file():
        raise InputError(f"--allow-model {spec}: there is no file {path}")
    found = _digest(path)
    if pinned and pinned.removeprefix("sha256:").lower() != found:
        raise InputError(f"--allow-model {spec}: the sha256 of {path} is {found}; check the file")
    return Allowed(name, str(path), found)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def import_only_allowed() -> None:
    """From now on, import for experiments only what the file in ``FLSIM_ALLOWED`` allows."""
    entries = json.loads(Path(os.environ[ALLOWED]).read_text(encoding="utf-8"))
    import_only(AllowList(tuple(Allowed(**entry) for entry in entries)).find)
