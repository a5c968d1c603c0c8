"""Flower's own command line, as this program uses it: submit, follow, stop a run."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from flsimulation.errors import InputError, RunError

_CONNECTION = "flsim"  # our name of the SuperLink in Flower's configuration
_HEALTH_SECONDS = 5.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # not through a proxy
_FLWR = (sys.executable, "-m", "flwr.cli.app")


class Flower:
    """Flower's command ``flwr`` for one SuperLink, with a configuration of its own.

    Parameters
    ----------
    superlink : str
        ``host:port``.
    home : Path
        Folder for Flower's configuration; the user's own is left alone.
    """

    def __init__(self, superlink: str, home: Path) -> None:
        self._superlink = superlink
        self._home = home
        connection = {"address": superlink, "insecure": True}
        config = {"superlink": {"default": _CONNECTION, _CONNECTION: connection}}
        (home / "config.toml").write_text(tomli_w.dumps(config), encoding="utf-8")

    def check(self) -> None:
        """See that the SuperLink is there.

        Raises
        ------
        InputError
            If it does not answer.
        """
        url = f"http://{self._superlink}/health"
        try:
            with _DIRECT.open(url, timeout=_HEALTH_SECONDS):
                return
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise InputError(
                f"runtime.superlink {self._superlink}: no SuperLink answers there ({reason}); "
                f"start one with `flsim up` or `flsim superlink`, or name another with --superlink"
            ) from None

    def answers(self) -> bool:
        """Whether the SuperLink is there."""
        try:
            self.check()
        except InputError:
            return False
        return True

    def submit(self, config: Mapping[str, bool | float | int | str]) -> str:
        """Submit a run; gives its id.

        Raises
        ------
        RunError
            If the SuperLink refuses it.
        """
        folder = self._home / "app"
        write_app(folder, config)
        return self.submit_app(folder)

    def submit_app(self, folder: Path) -> str:
        """Submit the Flower app in a folder; gives the run's id. Raises `RunError`."""
        done = subprocess.run(  # noqa: S603
            [*_FLWR, "run", str(folder), _CONNECTION, "--format", "json"],
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,  # Ctrl-C is for us
        )
        answer = _json_of(done.stdout)
        if done.returncode or not answer.get("run-id"):
            text = str(answer.get("error-message") or done.stderr or done.stdout)
            raise RunError(f"the SuperLink at {self._superlink} took no run: {_one_line(text)}")
        return str(answer["run-id"])

    @contextlib.contextmanager
    def follow(self, run_id: str) -> Iterator[Iterator[str]]:
        """The lines of a run's log, as they come, until the run is over."""
        process = subprocess.Popen(  # noqa: S603
            [*_FLWR, "log", run_id, _CONNECTION, "--stream"],
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for us: we stop the run
        )
        assert process.stdout is not None  # noqa: S101 - it was asked for
        try:
            yield iter(process.stdout)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    def stop(self, run_id: str) -> None:
        """Stop a run; nothing happens if it is over."""
        subprocess.run(  # noqa: S603
            [*_FLWR, "stop", run_id, _CONNECTION],
            env=self._environment(),
            capture_output=True,
            check=False,
            start_new_session=True,
        )

    def state(self, run_id: str) -> str:
        """Flower's own word for the state of a run, such as ``finished:completed``."""
        done = subprocess.run(  # noqa: S603
            [*_FLWR, "list", _CONNECTION, "--run-id", run_id, "--format", "json"],
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        runs: Any = _json_of(done.stdout).get("runs") or [{}]
        return str(runs[0].get("status", "unknown"))

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "FLWR_HOME": str(self._home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PYTHONUNBUFFERED": "1",
        }


@contextlib.contextmanager
def flower(superlink: str) -> Iterator[Flower]:
    """Flower's command line for one SuperLink, inside the block."""
    with tempfile.TemporaryDirectory(prefix="flsim-flower-") as home:
        yield Flower(superlink, Path(home))


def write_app(folder: Path, config: Mapping[str, bool | float | int | str]) -> None:
    """Write the Flower app of a run: no code, only the names of the installed components.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    config : mapping
        The run config: the experiment, flattened, and keys of the driver.
    """
    from flsimulation import __version__

    folder.mkdir(parents=True, exist_ok=True)
    components = {
        "serverapp": "flsimulation.network.server_app:app",
        "clientapp": "flsimulation.network.client_app:app",
    }
    app = {"publisher": "flsimulation", "components": components, "config": dict(config)}
    project = {"name": "flsimulation", "version": __version__, "license": {"text": "Apache-2.0"}}
    table = {"project": project, "tool": {"flwr": {"app": app}}}
    (folder / "pyproject.toml").write_text(tomli_w.dumps(table), encoding="utf-8")


def _json_of(text: str) -> dict[str, object]:
    """The JSON object in a command's output, whatever stands before it."""
    start = text.find("{")
    try:
        found, _ = json.JSONDecoder().raw_decode(text[start:]) if start >= 0 else ({}, 0)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "it gave no reason"
