"""Lets a SuperLink's nodes follow the register of clients, and admits those of its own machine."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from flsimulation.security.keys import fingerprint
from flsimulation.security.register import FILE_NAME, NameTaken, Register, waiting


def register_beside(memory: str | Path) -> Register:
    """The register beside the file that stores which client holds which partition."""
    return Register(Path(memory).with_name(FILE_NAME))


def make_writable_like(folder: Path, other: Path) -> None:
    """Make a folder with the permissions of another: clients of other users may have to write there."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)  # those may replace it
    try:
        with contextlib.suppress(PermissionError):  # it is there, and another user's
            os.fchmod(handle, other.stat().st_mode & 0o777)
    finally:
        os.close(handle)


class Nodes(Protocol):
    """Registration of nodes at a SuperLink."""

    def register(self, key: str, name: str) -> int:
        """Register the node of a public key; returns its id."""

    def unregister(self, node: int) -> None:
        """Reject a node's requests from now on."""


class Admission:
    """Registers the nodes of admitted clients, and unregisters those of revoked ones.

    Parameters
    ----------
    register : Register
        Who is admitted.
    folder : Path
        Where clients of this machine leave their public keys; it need not exist.
    nodes : Nodes
        The SuperLink's registration, which is empty at its start.
    apart : mapping of str to Path, optional
        Folder of each client that alone can write there; no key that is elsewhere gets its name.
    names : str
        Regular expression of the whole names that `folder` may give; all by default.
    """

    def __init__(
        self,
        register: Register,
        folder: Path,
        nodes: Nodes,
        apart: Mapping[str, Path] | None = None,
        names: str = ".*",
    ) -> None:
        self._register, self._folder, self._nodes = register, folder, nodes
        self._apart, self._names = apart or {}, re.compile(names)
        self._known: dict[str, int] = {}  # node of each key that is registered
        self._refused: set[tuple[str, str]] = set()  # printed once
        self._stored: dict[str, int] | None = None

    def look(self) -> None:
        """Admit those who wait, and register what is new in the register."""
        came = list(self._came())
        for _, name, key, why_not in came:
            self._admit(name, key, why_not)
        for one in self._register.clients():
            if not one.revoked and one.key not in self._known:
                self._known[one.key] = self._nodes.register(one.key, one.name)
                print(f"flsim: client {one.name} is admitted, {one.fingerprint}", flush=True)
            elif one.revoked and one.key in self._known:
                self._nodes.unregister(self._known.pop(one.key))
                print(f"flsim: client {one.name} is revoked, {one.fingerprint}", flush=True)
        if self._known != self._stored:
            self._register.set_nodes(self._known)
            self._stored = dict(self._known)
        for path, _, _, _ in came:  # it may start now
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _came(self) -> Iterator[tuple[Path, str, str, str]]:
        """File, name and key of each who waits, and why the name cannot be had there, or ""."""
        for path, name, key in waiting(self._folder):
            why_not = ""
            if name in self._apart:
                why_not = "this name is that of a client with a folder of its own for its key"
            elif not self._names.fullmatch(name):
                why_not = (
                    f"not a name of --admit-names; compare the fingerprint and flsim admit {name}"
                )
            yield path, name, key, why_not
        for owner, folder in self._apart.items():
            for path, name, key in waiting(folder):
                yield path, name, key, "" if name == owner else f"this is the folder of {owner}"

    def _admit(self, name: str, key: str, why_not: str) -> None:
        try:
            if why_not and not self._register.is_admitted(name, key):
                raise NameTaken(f"{name}: {why_not}")
            self._register.admit(name, key)
        except NameTaken as error:
            self._register.note_refusal(name, key)
            if (name, key) not in self._refused:
                self._refused.add((name, key))
                print(f"flsim: a client with {fingerprint(key)} is refused: {error}", flush=True)
