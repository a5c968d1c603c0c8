"""Reading a run directory: for the report, for resuming a run, and for studies."""

from __future__ import annotations

import contextlib
import json
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flsimulation.errors import ExperimentError, InputError
from flsimulation.events import RunStarted, scores_of
from flsimulation.experiment import Experiment, load_experiment
from flsimulation.rundir.jsonlines import JsonObject, last_round, look, read_file, read_lines
from flsimulation.rundir.layout import (
    CHECKPOINT,
    CLIENTS,
    EXPERIMENT,
    MANIFEST,
    MODEL,
    REPORT,
    ROUNDS,
)
from flsimulation.rundir.manifest import read_manifest, settled
from flsimulation.rundir.shapes import CLIENT, ROUND

if TYPE_CHECKING:
    from torch import Tensor

    from flsimulation.rundir.checkpoint import SavedRound


@dataclass(frozen=True)
class RunResult:
    """The result of a run."""

    name: str
    state: str
    """``completed``, ``degraded``, ``failed`` or ``interrupted``."""
    rounds: int
    """Rounds completed."""
    accuracy: float | None
    """Of the last global model that was evaluated: on the test set, else by the clients."""
    loss: float | None
    seconds: float
    peak_memory_bytes: int
    run_dir: str
    weights_sha256: str | None
    """Digest of the final global model."""

    def json(self) -> str:
        """The result as one JSON object."""
        return json.dumps(asdict(self))


class _Clients(NamedTuple):
    """The lines of clients.jsonl that are kept in memory."""

    evaluated: tuple[JsonObject, ...]
    failures: tuple[JsonObject, ...]


class RunRecord:
    """The content of a run directory, also of a run that did not finish.

    A file is read when it is first needed. Files may be missing, and the last line of a ``.jsonl``
    file may be truncated.

    Parameters
    ----------
    path : path
        The run directory.

    Raises
    ------
    InputError
        If ``path`` is not a run directory; later, if a file that is needed is damaged: the message
        contains file and line.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not is_run_directory(self.path):
            raise InputError(
                f"{path}: is not a run directory; it contains neither {EXPERIMENT} nor {MANIFEST}"
            )

    @cached_property
    def manifest(self) -> JsonObject:
        """manifest.json, with the correct state also of a killed run; empty if it does not exist."""
        return settled(read_manifest(self.path), self.path)

    @cached_property
    def toml(self) -> str:
        """experiment.toml as text; empty if it is missing."""
        return (read_file(self.path / EXPERIMENT) or b"").decode(errors="replace")

    @cached_property
    def settings(self) -> JsonObject:
        """experiment.toml as tables; empty if it is missing or not valid TOML."""
        try:
            return tomllib.loads(self.toml)
        except (tomllib.TOMLDecodeError, RecursionError):
            return {}

    def experiment(self, overrides: Iterable[str] = ()) -> Experiment:
        """The experiment, with changes as of `load_experiment`. Raises `ExperimentError`."""
        if not (self.path / EXPERIMENT).is_file():  # to read a pipe would be to wait for ever
            raise ExperimentError(f"{self.path / EXPERIMENT}: no such file; restore it")
        return load_experiment(self.path / EXPERIMENT, overrides)

    @cached_property
    def rounds(self) -> tuple[JsonObject, ...]:
        """Lines of rounds.jsonl by round; the last line of a round that was repeated."""
        rounds = {
            line["round"]: line for line in read_lines(self.path / ROUNDS, "round", shapes=ROUND)
        }
        return tuple(rounds[key] for key in sorted(rounds))

    @property
    def last_evaluated(self) -> JsonObject:
        """The last line of rounds.jsonl with scores of the global model; empty if there is none."""
        return next((line for line in reversed(self.rounds) if scores_of(line)), {})

    @property
    def evaluated(self) -> tuple[JsonObject, ...]:
        """The clients' last evaluation, by partition.

        Lines of phase ``final``, else of ``evaluate`` in the last finished round that has any.
        """
        return self._clients.evaluated

    @property
    def failures(self) -> tuple[JsonObject, ...]:
        """The lines of clients.jsonl that have a ``reason``, in order of arrival."""
        return self._clients.failures

    @cached_property
    def _clients(self) -> _Clients:
        last = self.rounds[-1]["round"] if self.rounds else 0
        return _sorted_out(self.clients(), last)

    def clients(self) -> Iterator[JsonObject]:
        """The lines of clients.jsonl in file order, decoded one by one: there may be a million."""
        return read_lines(self.path / CLIENTS, "round", "partition", shapes=CLIENT)

    def trained(self, until: int) -> list[tuple[int, str | None]]:
        """Partition, and reason of the failure or None, of each training up to a round."""
        return [
            (line["partition"], line.get("reason"))
            for line in self.clients()
            if line["round"] <= until and line.get("phase") == "train"
        ]

    def checkpoint(self) -> SavedRound:
        """The newest checkpoint of a completed round. Raises `InputError` if there is none."""
        from flsimulation.rundir.checkpoint import read_checkpoint

        last = self.rounds[-1]["round"] if self.rounds else 0
        return read_checkpoint(self.path / CHECKPOINT, last)

    def weights(self) -> dict[str, Tensor]:
        """The final global model as a state_dict.

        Raises
        ------
        InputError
            If no round was completed, or the file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not (self.path / MODEL).is_file():
            raise InputError(f"{self.path}: contains no {MODEL}: no round was completed")
        try:
            return load_file(self.path / MODEL)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self.path / MODEL}: damaged: {error}") from None

    @property
    def site_names(self) -> tuple[str, ...]:
        """Names of the clients 0, 1, ..., where each is a site; else none."""
        return tuple(map(str, look(self.settings, "data", "sites") or ()))

    @property
    def has_test(self) -> bool:
        """Whether the run has a test set."""
        return not self.site_names or bool(look(self.settings, "data", "test"))

    def client_name(self, partition: int) -> str:
        """The site's name with the client's number, or the number alone."""
        names = self.site_names
        return (
            f"{partition} ({names[partition]})" if 0 <= partition < len(names) else str(partition)
        )

    def started(self) -> RunStarted:
        """The event with which the run began. Raises `InputError` if the run did not get that far."""
        with self._complete():
            return self._started()

    def _started(self) -> RunStarted:
        data, model = self.manifest["data"] or {}, self.manifest["model"] or {}
        return RunStarted(
            experiment=self.experiment(),
            model_arguments=model["arguments"],
            parameters=model["parameters"],
            data_digest=data["digest"],
            histogram=data["histogram"],
            classes=tuple(data["classes"]),
            train_examples=data["train-examples"],
            test_examples=data["test-examples"],
            task=data.get("task", "classification"),  # runs of before have neither
            notes=tuple(data.get("notes", ())),
        )

    def result(self) -> RunResult:
        """The result of the run. Raises `InputError` if it has no complete manifest."""
        with self._complete():
            return self._result()

    @contextlib.contextmanager
    def _complete(self) -> Iterator[None]:
        """Name the key that the manifest lacks."""
        try:
            yield
        except KeyError as error:
            raise InputError(
                f"{self.path / MANIFEST}: has no key {error}; restore the file, or repeat the run"
            ) from None

    def _result(self) -> RunResult:
        found, scores = self.manifest, scores_of(self.last_evaluated)
        return RunResult(
            name=found["name"],
            state=found["state"],
            rounds=found["rounds"],
            accuracy=scores.get("accuracy"),
            loss=scores.get("loss"),
            seconds=found["seconds"],
            peak_memory_bytes=found["peak-memory-bytes"],
            run_dir=str(self.path),
            weights_sha256=found["weights-sha256"],
        )


def is_run_directory(path: Path) -> bool:
    """Whether a folder is a run directory."""
    return any((path / name).is_file() for name in (EXPERIMENT, MANIFEST))


def run_directories(folder: Path) -> list[Path]:
    """The run directories in a folder, by descending name."""
    return sorted((path.parent for path in folder.glob(f"*/{MANIFEST}")), reverse=True)


def can_resume(path: Path) -> bool:
    """Whether the run in a directory can be resumed: it has completed a round."""
    return last_round(path / ROUNDS) > 0


def report_of(path: Path) -> Path | None:
    """The report of a run directory; None if there is none."""
    return report if (report := path / REPORT).is_file() else None


def is_reported(path: Path) -> bool:
    """Whether a run directory has a report that is newer than its manifest."""
    report, manifest = report_of(path), path / MANIFEST
    if report is None or not manifest.is_file():
        return False
    return manifest.stat().st_mtime_ns <= report.stat().st_mtime_ns


def _sorted_out(lines: Iterator[JsonObject], last: int) -> _Clients:
    """The clients' last evaluation in rounds up to ``last``, and all failures.

    A later round was interrupted: it may have the evaluations of some clients only.
    """
    newest = (0, False)
    evaluated: dict[int, JsonObject] = {}
    failures: dict[tuple[int, str, int], JsonObject] = {}
    for line in lines:
        phase, turn = line.get("phase"), line["round"]
        key = (turn, str(phase), line["partition"])
        failures.pop(key, None)  # a round that is repeated after a resume may succeed
        if line.get("reason"):
            failures[key] = line
        elif phase in ("evaluate", "final") and turn <= last:
            rank = (turn, phase == "final")
            if rank > newest:
                newest, evaluated = rank, {}
            if rank == newest:
                evaluated[line["partition"]] = line
    return _Clients(tuple(evaluated[key] for key in sorted(evaluated)), tuple(failures.values()))
