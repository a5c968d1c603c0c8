"""``flsim client``: its key, its admission, and what it allows; then it runs."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flsimulation.errors import InputError
from flsimulation.host.files import write_atomic
from flsimulation.internals.flower_words import CLIENT_APP, KEY, LINK, ROOTS
from flsimulation.node.allowed import AllowList
from flsimulation.node.node import Node
from flsimulation.node.own_site import OwnSite
from flsimulation.runtimes.network.answering import check_accepts
from flsimulation.runtimes.network.names import ALLOWED
from flsimulation.security import home, keys
from flsimulation.security.register import wait_for_admission

_LOOK_SECONDS = 0.1
_LATER_SECONDS = 1.0  # between two looks for a SuperLink that is not started yet
_ADMITTED_SECONDS = 60.0  # that a SuperLink of this machine may take; without it, the client tries


@dataclass(frozen=True)
class Joining:
    """What a client needs to join a network.

    Parameters
    ----------
    superlink : str
        ``host:port`` where the SuperLink serves its clients.
    name : str
        The client's name.
    partition : int, optional
        The partition to hold; by default the server assigns one.
    allowed : AllowList
        The code that it runs besides the installed package's.
    """

    superlink: str
    name: str
    partition: int | None
    allowed: AllowList

    def __post_init__(self) -> None:
        keys.check_name(self.name)
        if not re.fullmatch(r"[^\s/]+:[0-9]+", self.superlink):
            raise InputError(
                f"--superlink {self.superlink}: write it as host:port, e.g. superlink:8081"
            )

    def describe(self) -> list[str]:
        """One line each: who it is, whom it trusts, whose data it has, and what it accepts."""
        lines = [f"{'name':<12}{self.name}", f"{'SuperLink':<12}{self.superlink}"]
        if home.is_insecure():
            lines.append(f"{'TLS':<12}off ({home.INSECURE})")
        else:
            public = keys.ensure_key(home.home().key(self.name))
            lines.append(f"{'key':<12}{keys.fingerprint(public)}")
            lines.append(f"{'CA':<12}{home.trusted_ca()}")
        if (site := OwnSite.of_environment()) is not None:
            lines.append(f"{'site':<12}{site.name}, {site.path}")
        lines.append(f"{'runs':<12}the installed package's models and data sets")
        return lines + [f"{'':<12}{entry}" for entry in self.allowed.entries]

    def run(self, metrics_port: int, metrics_for: str | None) -> None:
        """Join the network until SIGTERM or Ctrl-C; see `Node.run`."""
        from flsimulation.metrics.client import ClientMetrics

        metrics = ClientMetrics(self.name)
        where = (LINK, self.superlink, "--node-config", self._config())
        arguments = (*where, *self._identity())
        node = Node("client", arguments, CLIENT_APP, metrics.registry, metrics.count)
        with self._allowed() as environment:
            node.run(metrics_port, metrics_for, environment)

    def _config(self) -> str:
        partition = "" if self.partition is None else f" partition-id={self.partition}"
        return f'name="{self.name}"{partition}'

    def _identity(self) -> tuple[str, ...]:
        """Arguments for TLS and the key, after the key was left for admission."""
        if home.is_insecure():
            print(f"flsim: {home.WARNING}", flush=True)
            return ("--insecure",)
        place, ca = home.home(), home.trusted_ca()
        public = keys.ensure_key(place.key(self.name))
        if why := check_accepts(self.superlink, ca):
            print(f"flsim: {why}; the client tries again until it does", flush=True)
        port = int(self.superlink.rpartition(":")[2])
        self._be_admitted(place.waiting_at(port), public)
        key = str(place.key(self.name))
        return (ROOTS, str(ca), KEY, key)

    def _be_admitted(self, folder: Path, public: str) -> None:
        """Wait until a SuperLink of this machine has taken the public key; elsewhere, say what to do."""
        print(f"flsim: client {self.name}, {keys.fingerprint(public)}", flush=True)
        if (left := self._leave(folder, public)) is None:
            later = threading.Thread(target=self._leave_later, args=(folder, public), daemon=True)
            later.start()
            return
        until = time.monotonic() + _ADMITTED_SECONDS
        while left.exists() and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)

    def _leave_later(self, folder: Path, public: str) -> None:
        """Leave the public key once a SuperLink of this machine is there."""
        while self._leave(folder, public) is None:
            time.sleep(_LATER_SECONDS)

    def _leave(self, folder: Path, public: str) -> Path | None:
        """The public key's file in the SuperLink's folder.

        None if the SuperLink is another machine's, is not started yet, or has just made the folder.
        """
        if not folder.is_dir():
            return None
        with contextlib.suppress(OSError):
            return wait_for_admission(folder, self.name, public)
        return None

    @contextlib.contextmanager
    def _allowed(self) -> Iterator[dict[str, str]]:
        import tempfile

        with tempfile.TemporaryDirectory(prefix="flsim-allowed-") as folder:
            path = Path(folder) / "allowed.json"
            self.allowed.write(path)
            yield {ALLOWED: str(path)}


def make_key(name: str) -> list[str]:
    """Make a client's key if it has none; leave ``NAME.pub`` here. Returns lines for the user."""
    public = keys.ensure_key(home.home().key(keys.check_name(name)))
    try:
        path = write_atomic(Path(f"{name}.pub"), f"{public} {name}\n")
    except OSError as error:
        raise InputError(
            f"{name}.pub: cannot be written in this folder ({error.strerror or error}); run the "
            "command in another one"
        ) from None
    return [
        f"{path}  {keys.fingerprint(public)}",
        f"on the server's machine: flsim admit {name} {path}; compare the fingerprint",
    ]
