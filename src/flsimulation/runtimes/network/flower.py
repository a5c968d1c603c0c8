"""Calls of Flower's command line ``flwr``: submit, list, follow and stop runs."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from flsimulation.errors import InputError, RunError
from flsimulation.host.files import write_atomic
from flsimulation.host.proxies import spare_local_names
from flsimulation.internals.flower_words import (
    COMMAND_LINE,
    FINISHED,
    LOGS,
    PENDING,
    STARTING,
)
from flsimulation.runtimes.network.answering import check_answers
from flsimulation.security.home import is_insecure, known_ca

_CONNECTION = "flsim"  # our name of the SuperLink in Flower's configuration
_UNKNOWN = "unknown"  # our word for the status of a run that is not listed
_FLWR = (sys.executable, "-m", COMMAND_LINE)
_SUBMIT_SECONDS = 30.0  # that Ctrl-C waits for the answer to a submission
_LOGS_SECONDS = (
    60.0  # timeout for the logs of all runs: flwr waits for a log that does not exist yet
)


@dataclass(frozen=True)
class FlowerRun:
    """A run as Flower lists it."""

    id: str
    status: str
    """Flower's own word, such as ``running`` or ``finished:completed``."""
    submitted: str
    """When, UTC: ``2026-01-31 12:00:00Z``."""

    @property
    def is_over(self) -> bool:
        """Whether it is over for Flower; its server may still be writing the end."""
        return self.status.startswith(FINISHED)

    @property
    def has_begun(self) -> bool:
        """Whether its server has been started, and has a log."""
        return self.status not in (PENDING, STARTING, _UNKNOWN)


class Flower:
    """Flower's command ``flwr`` for one SuperLink, with a separate configuration.

    Parameters
    ----------
    superlink : str
        ``host:port``.
    home : Path
        Folder for Flower's configuration; the user's own is not changed.
    ca : str, optional
        The CA's certificate, as PEM, by which the SuperLink is recognized; by default the one that
        this machine knows.
    """

    def __init__(self, superlink: str, home: Path, ca: str | None = None) -> None:
        spare_local_names()  # flwr uses the environment's proxy
        self._superlink = superlink
        self._home = home
        self._ca = None if is_insecure() else known_ca()
        if ca is not None and self._ca is not None:
            self._ca = write_atomic(home / "ca.pem", ca)
        connection: dict[str, str | bool] = {"address": superlink, "insecure": self._ca is None}
        if self._ca is not None:
            connection["root-certificates"] = str(self._ca)
        config = {"superlink": {"default": _CONNECTION, _CONNECTION: connection}}
        (home / "config.toml").write_text(tomli_w.dumps(config), encoding="utf-8")

    @property
    def superlink(self) -> str:
        """``host:port`` of the SuperLink."""
        return self._superlink

    def check(self) -> None:
        """Check that the SuperLink answers.

        Raises
        ------
        InputError
            If it does not answer, or with a certificate that is not accepted.
        """
        check_answers(self._superlink, self._ca)

    def answers(self) -> bool:
        """Whether the SuperLink answers."""
        try:
            self.check()
        except InputError:
            return False
        return True

    def submit(self, config: Mapping[str, bool | float | int | str]) -> str:
        """Submit a run; returns its id.

        Raises
        ------
        RunError
            If the SuperLink refuses it.
        """
        folder = self._home / "app"
        write_app(folder, config)
        return self.submit_app(folder)

    def submit_app(self, folder: Path) -> str:
        """Submit the Flower app in a folder; returns the run's id. Raises `RunError`."""
        process = subprocess.Popen(  # noqa: S603
            [*_FLWR, "run", str(folder), _CONNECTION, "--format", "json"],
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process
        )
        try:
            out, err = process.communicate()
        except BaseException:  # Ctrl-C: nobody would follow a run that is accepted in the meantime
            with contextlib.suppress(subprocess.TimeoutExpired):
                out, _ = process.communicate(timeout=_SUBMIT_SECONDS)
                if run_id := _json_of(out).get("run-id"):
                    self.stop(str(run_id))
            process.kill()
            raise
        answer = _json_of(out)
        if process.returncode or not answer.get("run-id"):
            text = str(answer.get("error-message") or err or out)
            raise RunError(f"the SuperLink at {self._superlink} refused the run: {_one_line(text)}")
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
            start_new_session=True,  # Ctrl-C is for this process, which stops the run
        )
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        try:
            yield iter(process.stdout)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    def stop(self, run_id: str) -> bool:
        """Stop a run: its server gets SIGINT. False if it was over, or could not be stopped."""
        done = subprocess.run(  # noqa: S603
            [*_FLWR, "stop", run_id, _CONNECTION],
            env=self._environment(),
            capture_output=True,
            check=False,
            start_new_session=True,
        )
        return done.returncode == 0

    def state(self, run_id: str) -> str:
        """A run's status as Flower reports it, such as ``finished:completed``."""
        runs: Any = self._list("--run-id", run_id).get("runs") or [{}]
        return str(runs[0].get("status", _UNKNOWN))

    def runs(self) -> tuple[FlowerRun, ...]:
        """Every run since the SuperLink started, newest first.

        Raises
        ------
        RunError
            If the SuperLink does not list them.
        """
        answer: Any = self._list()
        if not answer.get("success"):
            text = _one_line(str(answer.get("error-message", "")))
            raise RunError(f"the SuperLink at {self._superlink} does not list its runs: {text}")
        found = [
            FlowerRun(str(run["run-id"]), str(run["status"]), str(run["pending-at"]))
            for run in answer.get("runs", [])
        ]
        return tuple(sorted(found, key=lambda run: run.submitted, reverse=True))

    def logs(self, run_ids: Sequence[str]) -> dict[str, list[str]]:
        """The lines of each run's log so far; a run without a log yet has none."""
        mark = f"flsim-log-{secrets.token_hex(8)} "
        try:
            done = subprocess.run(  # noqa: S603
                [sys.executable, "-c", LOGS, mark, _CONNECTION, *run_ids],
                env=self._environment(),
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=_LOGS_SECONDS,
                start_new_session=True,
            )
            text = done.stdout
        except subprocess.TimeoutExpired as late:
            text = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else ""
        parts = [part.partition("\n") for part in text.split(mark)[1:]]
        return {run_id: [] for run_id in run_ids} | {
            run_id: log.splitlines() for run_id, _, log in parts
        }

    def _list(self, *options: str) -> dict[str, Any]:
        done = subprocess.run(  # noqa: S603
            [*_FLWR, "list", _CONNECTION, *options, "--format", "json"],
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
        )
        return _json_of(done.stdout)

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "FLWR_HOME": str(self._home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PYTHONUNBUFFERED": "1",
        }


@contextlib.contextmanager
def flower(superlink: str, ca: str | None = None) -> Iterator[Flower]:
    """Flower's command line for one SuperLink, inside the block; see `Flower`."""
    with tempfile.TemporaryDirectory(prefix="flsim-flower-") as folder:
        yield Flower(superlink, Path(folder), ca)


def write_app(folder: Path, config: Mapping[str, bool | float | int | str]) -> None:
    """Write the Flower app of a run: no code, only the names of the installed components.

    Parameters
    ----------
    folder : Path
        Created if it does not exist.
    config : mapping
        The run config: the experiment, flattened, and keys of the driver.
    """
    from flsimulation import __version__

    folder.mkdir(parents=True, exist_ok=True)
    components = {
        "serverapp": "flsimulation.node.server_app:app",
        "clientapp": "flsimulation.node.client_app:app",
    }
    app = {"publisher": "flsimulation", "components": components, "config": dict(config)}
    project = {"name": "flsimulation", "version": __version__, "license": {"text": "Apache-2.0"}}
    table = {"project": project, "tool": {"flwr": {"app": app}}}
    (folder / "pyproject.toml").write_text(tomli_w.dumps(table), encoding="utf-8")


def _json_of(text: str) -> dict[str, Any]:
    """The JSON object in a command's output, which may contain other text before it."""
    start = text.find("{")
    try:
        found, _ = json.JSONDecoder().raw_decode(text[start:]) if start >= 0 else ({}, 0)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "without a reason"
