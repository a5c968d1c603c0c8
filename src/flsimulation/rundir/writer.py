"""Writing the run directory during the run, so that a killed run can be read and resumed."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from flsimulation.errors import InputError
from flsimulation.events import (
    Checkpoint,
    ClientReplied,
    EngineReported,
    Event,
    RoundFinished,
    RunFinished,
    RunStarted,
)
from flsimulation.experiment import Experiment, dump_toml
from flsimulation.host.beside import Beside
from flsimulation.host.files import write_atomic
from flsimulation.host.usage import machine_memory_bytes, peak_memory_bytes
from flsimulation.messages.weights import weights_sha256
from flsimulation.rundir.checkpoint import safetensors_of, state_of, write_checkpoint
from flsimulation.rundir.jsonlines import JsonLines
from flsimulation.rundir.layout import (
    CHECKPOINT,
    CLIENTS,
    EXPERIMENT,
    LIGHTNING_MODEL,
    MODEL,
    ROUNDS,
)
from flsimulation.rundir.manifest import Manifest
from flsimulation.rundir.storage import storing

_CUT_SHORT = ("failed", "interrupted")
_PACKAGES = ("flsimulation", "torch", "pytorch-lightning", "flwr", "flwr-datasets", "numpy")


def create_run_directory(name: str, out: str | Path | None = None) -> Path:
    """Create a new run directory: ``out``, else ``runs/<utc-time>-<name>``.

    Raises
    ------
    InputError
        If ``out`` is not an empty folder, or the folder cannot be created.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    path = Path(out) if out is not None else Path("runs") / f"{stamp}-{name}"
    number = 1
    while True:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            if out is not None:
                return _empty(path)
            number += 1  # another run of this name began in the same second
            path = path.with_name(f"{stamp}-{name}-{number}")
        except OSError as error:
            reason = error.strerror or error
            raise InputError(
                f"{path}: cannot be created ({reason}); choose another path with --out"
            ) from None


def _empty(path: Path) -> Path:
    if not path.is_dir() or any(path.iterdir()):
        raise InputError(f"--out {path}: is not an empty folder; choose a new one, or use --resume")
    return path


class RunDirectory:
    """A sink that writes the run's files.

    Checkpoints are written in a thread, while the new model is evaluated; a round's line follows when
    its checkpoint is complete.

    Parameters
    ----------
    path : Path
        An existing folder, empty or that of the run to resume.
    experiment : Experiment
        The run's experiment, written in full.
    done : int
        Rounds of the run to keep; lines of later rounds are removed.
    resumes : int
        How often the run was resumed, this time included.
    """

    def __init__(self, path: Path, experiment: Experiment, done: int = 0, resumes: int = 0) -> None:
        self.path = path
        self._experiment = experiment
        self._checkpoint: Checkpoint | None = None
        self._beside = Beside()
        self._description: dict[str, Any] = {}
        self._engines: set[tuple[str, str | None]] = set()  # each with why not stacked

        def keep(line: Mapping[str, Any]) -> bool:
            return int(line["round"]) <= done and line.get("phase") != "final"

        with storing(path):
            write_atomic(path / EXPERIMENT, dump_toml(experiment))
            self._rounds = JsonLines(path / ROUNDS, keep)
            self._clients = JsonLines(path / CLIENTS, keep)
            self._manifest = Manifest(path, _fields(experiment, done, resumes))

    def __call__(self, event: Event) -> None:
        """Write the content of an event.

        Raises
        ------
        RunError
            If it cannot be written; but never at the end of a run that failed or was interrupted.
        """
        if isinstance(event, RunFinished) and event.state in _CUT_SHORT:
            self._give_up(event)
            return
        with storing(self.path):
            try:
                self._store(event)
            except OSError:
                self._beside.finish()  # the checkpoint's error came first
                raise

    def _store(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._description = _description(event)
            self._describe(event.engine, event.not_stacked)
        elif isinstance(event, EngineReported):
            self._describe(event.engine, event.not_stacked)
        elif isinstance(event, ClientReplied):
            self._clients.append(_client_line(event))
        elif isinstance(event, Checkpoint):
            self._checkpoint = event
            model, strategy = safetensors_of(event.arrays), state_of(event.strategy)
            given = self.path / CHECKPOINT, event.round, model, strategy
            self._beside.start(functools.partial(write_checkpoint, *given))
        elif isinstance(event, RoundFinished):
            self._beside.finish()
            self._rounds.append(event.record())
            with contextlib.suppress(OSError):  # the line is written, and readers count lines
                self._manifest.update({"rounds": event.round})
        elif isinstance(event, RunFinished):
            self._beside.finish()
            self._write_model()
            self._manifest.close(self._ended(event))

    def _describe(self, engine: str | None, not_stacked: str | None) -> None:
        """Write what is known of data, model and engines; a network's clients may have several."""
        self._engines |= {(engine, not_stacked)} if engine is not None else set()
        reasons = {reason for _, reason in self._engines if reason is not None}
        self._description["engine"] = ", ".join(sorted({e for e, _ in self._engines})) or None
        self._description["not-stacked"] = "; ".join(sorted(reasons)) or None
        self._manifest.describe(self._description)

    def _give_up(self, event: RunFinished) -> None:
        """Write as much as possible, the manifest first: the disk may be full."""
        with contextlib.suppress(OSError):
            self._beside.finish()
        with contextlib.suppress(OSError):
            self._manifest.close(self._ended(event))
        with contextlib.suppress(OSError):
            self._write_model()

    def _ended(self, event: RunFinished) -> dict[str, Any]:
        arrays = self._checkpoint.arrays if self._checkpoint is not None else None
        return {
            "state": event.state,
            "error": event.error,
            "rounds": event.rounds,
            "seconds": event.seconds,
            "choosing-seconds": event.choosing,
            "peak-memory-bytes": peak_memory_bytes(),
            "weights-sha256": weights_sha256(arrays) if arrays is not None else None,
        }

    def _write_model(self) -> None:
        """Write the model as safetensors, and as a checkpoint for Lightning."""
        if (checkpoint := self._checkpoint) is None:
            return
        import torch

        write_atomic(self.path / MODEL, safetensors_of(checkpoint.arrays))
        file = io.BytesIO()
        torch.save(
            {
                "state_dict": checkpoint.arrays.to_torch_state_dict(),
                "hyper_parameters": dict(self._description["model"]["arguments"]),
                "pytorch-lightning_version": metadata.version("pytorch-lightning"),
                "epoch": checkpoint.round * self._experiment.train.epochs,
                "global_step": 0,
            },
            file,
        )
        write_atomic(self.path / LIGHTNING_MODEL, file.getvalue())


def _fields(experiment: Experiment, done: int, resumes: int) -> dict[str, Any]:
    """The manifest of a run that has not begun."""
    return {
        "name": experiment.name,
        "state": "running",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": None,
        "choosing-seconds": None,
        "seed": experiment.seed,
        "rounds": done,
        "resumed-after": done or None,
        "resumes": resumes,
        "error": None,
        "versions": {
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in _PACKAGES},
        },
        "host": {
            "system": platform.platform(),
            "processor-count": os.cpu_count(),
            "memory-bytes": machine_memory_bytes(),
        },
        "peak-memory-bytes": None,
        "weights-sha256": None,
    }


def _description(event: RunStarted) -> dict[str, Any]:
    """The manifest's fields that are known once data and model are loaded."""
    spec = event.experiment
    return {
        "data": {
            "dataset": spec.data.dataset,
            "digest": event.data_digest,
            "classes": list(event.classes),
            "train-examples": event.train_examples,
            "test-examples": event.test_examples,
            "clients": spec.data.clients,
            "histogram": event.histogram,
            "task": event.task,
            "notes": list(event.notes),
            "train-sites": {name: own.given for name, own in spec.train.sites.items()},
        },
        "model": {
            "class": spec.model.class_,
            "arguments": dict(event.model_arguments),
            "parameters": event.parameters,
        },
        "secure-aggregation": spec.privacy.secure_aggregation,
        "engine": None,
        "not-stacked": None,
        "step-seconds": dict(event.step_seconds) or None,
        "gpu": event.gpu,
    }


def _client_line(event: ClientReplied) -> dict[str, Any]:
    line: dict[str, Any] = {
        "round": event.round,
        "phase": event.phase,
        "partition": event.partition,
        **event.metrics,
    }
    if event.reason is not None:
        line |= {"reason": event.reason, "error": event.error}
    return line
