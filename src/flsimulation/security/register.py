"""The register of a network's clients: which key a name belongs to.

A name belongs to the key that first held it. The register is a file on the server's machine, beside
the run directories; who can write there decides who may join. A SuperLink follows it, see
`flsimulation.node.admission`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flsimulation.errors import InputError
from flsimulation.host.files import write_atomic
from flsimulation.security.keys import check_name, fingerprint, public_of

FILE_NAME = ".clients.json"
"""Beside the file that stores which client holds which partition."""
MOST_REFUSED = 20
"""Refusals of the last time that are kept with their names."""

_LARGEST_BYTES = 4096  # of a file with a public key


@dataclass(frozen=True)
class Admitted:
    """A client that may join."""

    name: str
    key: str
    """Public key, in OpenSSH's form."""
    node: int = 0
    """Flower's id of the client's node at the SuperLink that runs; 0 before it has one."""
    revoked: bool = False

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the key."""
        return fingerprint(self.key)


class NameTaken(InputError):  # noqa: N818 - said to users as it is
    """The name belongs to another key, or the key has another name."""


class Register:
    """The clients in a register's file.

    Parameters
    ----------
    path : Path
        The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def clients(self) -> list[Admitted]:
        """Every client that was admitted, by name, revoked ones too."""
        return _clients(self._read())

    def refused(self) -> dict[str, int]:
        """Number of refusals by ``NAME FINGERPRINT``, the latest last."""
        found = self._read().get("refused", {})
        return {str(who): int(times) for who, times in found.items()}

    def names(self) -> dict[int, str]:
        """Name of every node that the running SuperLink registered."""
        return {one.node: one.name for one in self.clients() if one.node and not one.revoked}

    def is_admitted(self, name: str, key: str) -> bool:
        """Whether a client with this name and this key may join."""
        return any((one.name, one.key, one.revoked) == (name, key, False) for one in self.clients())

    def admit(self, name: str, key: str) -> Admitted:
        """Admit a client; without effect if it is admitted.

        Raises
        ------
        NameTaken
            If the name belongs to another key, the key has another name, or it was revoked.
        """
        with self._changing() as content:
            clients = _clients(content)
            new = Admitted(check_name(name, "NAME"), key)
            for one in clients:
                if (one.name, one.key) == (name, key) and not one.revoked:
                    return one
                if one.key == key:
                    why = "is revoked" if one.revoked else f"belongs to {one.name}"
                    raise NameTaken(f"{name}: the key {one.fingerprint} {why}; make another key")
                if one.name == name and not one.revoked:
                    raise NameTaken(
                        f"{name}: this name belongs to the key {one.fingerprint}, got "
                        f"{new.fingerprint}; choose another name, or, if that key is lost, flsim revoke "
                        f"{name} and admit it again"
                    )
            content["clients"] = [asdict(one) for one in (*clients, new)]
            return new

    def revoke(self, name: str) -> Admitted:
        """Revoke a client's admission. Raises `InputError` if there is no such client."""
        with self._changing() as content:
            clients = _clients(content)
            for place, one in enumerate(clients):
                if one.name == name and not one.revoked:
                    clients[place] = replace(one, revoked=True)
                    content["clients"] = [asdict(each) for each in clients]
                    return one
        known = ", ".join(one.name for one in clients if not one.revoked) or "no client"
        raise InputError(f"NAME {name}: not admitted; admitted: {known}")

    def note_refusal(self, name: str, key: str) -> None:
        """Count that a name was claimed with a key that it does not belong to."""
        with self._changing() as content:
            who = f"{name} {fingerprint(key)}"
            found = {k: v for k, v in content.get("refused", {}).items() if k != who}
            found[who] = content.get("refused", {}).get(who, 0) + 1
            content["refused"] = dict(list(found.items())[-MOST_REFUSED:])

    def set_nodes(self, nodes: dict[str, int]) -> None:
        """Store Flower's id of the node of each key; 0 for the others."""
        with self._changing() as content:
            clients = [replace(one, node=nodes.get(one.key, 0)) for one in _clients(content)]
            content["clients"] = [asdict(one) for one in clients]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """The content, which is written at the block's end; one process at a time."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _give_to_owner(Path(lock.name))
            content = self._read()
            before = json.dumps(content)
            yield content
            if json.dumps(content) != before:
                _give_to_owner(write_atomic(self._path, json.dumps(content, indent=2) + "\n"))

    def _read(self) -> dict[str, Any]:
        """The content. A damaged file raises: an empty register would let others take the names."""
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise InputError(f"{self._path}: is damaged; restore it, or remove it and admit again")
        return found


def _give_to_owner(path: Path) -> None:
    """Make the folder's owner that of a file that root wrote: a SuperLink is not root."""
    if os.geteuid() == 0:
        owner = path.parent.stat()
        with contextlib.suppress(PermissionError):
            os.chown(path, owner.st_uid, owner.st_gid)


def _clients(content: dict[str, Any]) -> list[Admitted]:
    return [Admitted(**one) for one in content.get("clients", [])]


def wait_for_admission(folder: Path, name: str, key: str) -> Path:
    """Leave a public key where the SuperLink of this machine takes it; returns the file."""
    path = folder / f"{name}.pub"
    write_atomic(path, f"{key} {name}\n")
    return path


def waiting(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """File, name and key of every client that waits in a folder; others' files are skipped.

    Clients can write there, so that it may hold anything: links, pipes and large files are not read.
    """
    if folder.is_symlink():  # to where others wait
        return
    for path in sorted(folder.glob("*.pub")):
        try:
            text = _small_text(path)
            yield path, check_name(path.stem), public_of(text, path.name)
        except (OSError, ValueError, InputError):
            continue


def _small_text(path: Path) -> str:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError("not a file")
        return file.read(_LARGEST_BYTES).decode()
