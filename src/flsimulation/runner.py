"""One call from an experiment to a finished run directory."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord

from flsimulation.client.workspace import Workspace
from flsimulation.errors import InputError
from flsimulation.events import Checkpoint, Event, RoundFinished, RunFinished, Scores, Sink
from flsimulation.experiment import Experiment, load_run_experiment
from flsimulation.host.processes import undisturbed
from flsimulation.host.usage import peak_memory_bytes
from flsimulation.messages.weights import weights_sha256
from flsimulation.report import load_plots, write_report
from flsimulation.rundir.checkpoint import read_checkpoint
from flsimulation.rundir.jsonlines import read_lines
from flsimulation.rundir.manifest import settle
from flsimulation.rundir.storage import claimed, storing
from flsimulation.rundir.writer import RunDirectory, create_run_directory
from flsimulation.runtimes import Federate
from flsimulation.runtimes.inprocess import run_in_process
from flsimulation.runtimes.ray.grid import ray_federation
from flsimulation.server.app import Start
from flsimulation.server.rounds import is_reached


@dataclass(frozen=True)
class RunResult:
    """What a run came to."""

    name: str
    state: str
    """``completed``, ``degraded``, ``failed`` or ``interrupted``."""
    rounds: int
    """Rounds completed."""
    accuracy: float | None
    """Of the last global model that was judged: on the test set, else by the clients."""
    loss: float | None
    seconds: float
    peak_memory_bytes: int
    run_dir: str
    weights_sha256: str | None
    """Digest of the final global model."""

    def json(self) -> str:
        """The result as one JSON object."""
        return json.dumps(asdict(self))


class _Outcome:
    """A sink that remembers what the result needs."""

    def __init__(self, experiment: Experiment, path: Path) -> None:
        self._name, self._path = experiment.name, path
        self._scores: dict[str, float] = {}
        self._arrays: ArrayRecord | None = None
        self._end = RunFinished("failed", 0, 0.0)
        for line in read_lines(path / "rounds.jsonl"):  # of the run that goes on
            self._judge(line.get("central"), line.get("federated"))

    def __call__(self, event: Event) -> None:
        if isinstance(event, RoundFinished):
            self._judge(event.central, event.federated)
        elif isinstance(event, Checkpoint):
            self._arrays = event.arrays
        elif isinstance(event, RunFinished):
            self._end = event

    def _judge(self, central: Scores | None, federated: Scores | None) -> None:
        self._scores = central or federated or self._scores

    def result(self) -> RunResult:
        return RunResult(
            name=self._name,
            state=self._end.state,
            rounds=self._end.rounds,
            accuracy=self._scores.get("accuracy"),
            loss=self._scores.get("loss"),
            seconds=self._end.seconds,
            peak_memory_bytes=peak_memory_bytes(),
            run_dir=str(self._path),
            weights_sha256=weights_sha256(self._arrays) if self._arrays is not None else None,
        )


def run(
    experiment: Experiment,
    out: str | Path | None = None,
    sinks: Iterable[Sink] = (),
    opened: Callable[[Path], None] | None = None,
    federate: Federate | None = None,
) -> RunResult:
    """Run an experiment and leave a run directory with a report.

    Parameters
    ----------
    experiment : Experiment
        From `load_experiment`, or built in Python.
    out : path, optional
        The run directory; by default ``runs/<utc-time>-<name>``.
    sinks : iterable of callables
        Each takes every event of the run.
    opened : callable, optional
        Is told the run directory as soon as it exists.
    federate : callable, optional
        Runs the federation; by default on Ray if the experiment's ``runtime.kind`` says so, else
        all of it in this process.

    Raises
    ------
    InputError
        If the experiment's data, model or runtime cannot be had; no run directory is left then.
    RunError
        If the federation could not go on; the run directory says how far it came.
    """
    space = _workspace(experiment, federate)  # before anything is written
    _meanwhile(lambda: space.data.dataset.digest)
    if space.engine.name == "stacked":
        _meanwhile(load_plots)  # not beside processes that are forked
    with _carried(experiment, federate) as carry:
        path = create_run_directory(experiment.name, out)
        with claimed(path):
            if opened is not None:
                opened(path)
            outcome, directory = _Outcome(experiment, path), RunDirectory(path, experiment)
            with _reported(path):
                carry(experiment, [directory, outcome, *sinks], space, None)
    return outcome.result()


def _workspace(experiment: Experiment, federate: Federate | None) -> Workspace:
    """What the run works with here; clients that another one carries train elsewhere."""
    return Workspace.load(experiment, clients=None if federate is None else 0)


def _meanwhile(work: Callable[[], object]) -> None:
    """Do in another thread what will be needed later; whoever needs it sees what goes wrong."""

    def quietly() -> None:
        with contextlib.suppress(Exception):
            work()

    threading.Thread(target=quietly, daemon=True).start()


@contextlib.contextmanager
def _carried(experiment: Experiment, federate: Federate | None) -> Iterator[Federate]:
    """What runs the federation: as given, or as the experiment says."""
    if federate is None and experiment.runtime.kind == "ray":
        with ray_federation(experiment) as on_ray:
            yield on_ray
    else:
        yield federate or run_in_process


def resume(
    run_dir: str | Path,
    sinks: Iterable[Sink] = (),
    federate: Federate | None = None,
    experiment: Experiment | None = None,
) -> RunResult:
    """Go on with an unfinished run to the same model as if it had never stopped.

    Parameters
    ----------
    run_dir : path
        The run directory.
    sinks, federate
        As of `run`.
    experiment : Experiment, optional
        The run's, with another ``runtime``; by default as it was.

    Raises
    ------
    InputError
        If the directory is no run directory, has no checkpoint, or another process writes it.
    """
    path, experiment = Path(run_dir), experiment or load_run_experiment(run_dir)
    settle(path)
    with claimed(path):
        return _resume(path, experiment, sinks, federate)


def _resume(
    path: Path, experiment: Experiment, sinks: Iterable[Sink], federate: Federate | None
) -> RunResult:
    rounds = read_lines(path / "rounds.jsonl")
    saved = read_checkpoint(path / "checkpoint", len(rounds))
    trained = [
        (int(line["partition"]), line.get("reason"))
        for line in read_lines(path / "clients.jsonl")
        if line["round"] <= saved.round and line.get("phase") == "train"
    ]
    space = _workspace(experiment, federate)
    with _carried(experiment, federate) as carry:
        directory = RunDirectory(path, experiment, done=saved.round)
        outcome = _Outcome(experiment, path)
        last = rounds[saved.round - 1].get("central")
        reached = is_reached(experiment.evaluate.target_accuracy, last)
        start = Start(saved.round, saved.arrays, saved.strategy, reached, trained)
        with _reported(path):
            carry(experiment, [directory, outcome, *sinks], space, start)
    return outcome.result()


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Write the report whichever way the run ends; the run's own error comes first."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(InputError, OSError), undisturbed():
            write_report(path)
        raise
    with undisturbed(), storing(path):
        write_report(path)


def load_model(run_dir: str | Path) -> Any:
    """The final global model of a run, as the LightningModule it was trained as.

    Raises
    ------
    InputError
        If the run left no model, or its class cannot be imported any more.
    """
    import torch
    from safetensors.torch import load_file

    from flsimulation.models import instantiate

    path = Path(run_dir)
    if not (path / "model.safetensors").is_file():
        raise InputError(f"{run_dir}: holds no model.safetensors; it finished no round")
    described = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["model"]
    with torch.random.fork_rng(devices=[]):
        module = instantiate(described["class"], described["arguments"])
    module.load_state_dict(load_file(path / "model.safetensors"))
    return module.eval()
