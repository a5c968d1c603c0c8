"""Runtimes with the server in this process, and the clients in this process or on Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flsimulation.errors import RunError
from flsimulation.events import Sink
from flsimulation.experiment import Experiment
from flsimulation.rundir import RunResult
from flsimulation.runtimes import Federate, Opened, resume_hint
from flsimulation.runtimes.inprocess import run_in_process
from flsimulation.runtimes.ray.grid import ray_federation
from flsimulation.runtimes.recorded import record_resumed, record_run


@dataclass(frozen=True)
class LocalRuntime:
    """Runs the server in this process; see `Runtime`."""

    experiment: Experiment
    place: str
    federate: Federate
    measures: bool = False
    """Whether the engine's choice may measure steps, because it is made once."""

    def run(
        self,
        out: str | Path | None = None,
        sinks: Iterable[Sink] = (),
        opened: Opened | None = None,
        *,
        checkpoints: bool = False,  # noqa: ARG002 - all sinks receive them, in this process
    ) -> RunResult:
        """Run the experiment."""
        folders: list[Path] = []

        def note(path: Path) -> None:
            folders.append(path)
            if opened is not None:
                opened(path)

        with self._noted(folders):
            return record_run(
                self.experiment, self.federate, out, sinks, note, measures=self.measures
            )

    def resume(self, run_dir: str | Path, sinks: Iterable[Sink] = ()) -> RunResult:
        """Resume the experiment's run."""
        with self._noted([Path(run_dir)]):
            return record_resumed(
                run_dir, self.experiment, self.federate, sinks, measures=self.measures
            )

    @contextlib.contextmanager
    def _noted(self, folders: list[Path]) -> Iterator[None]:
        """Add a note to a run's error that says how to resume the run."""
        try:
            yield
        except RunError as error:
            for folder in folders:
                if (command := resume_hint(self.experiment, folder)) is not None:
                    error.add_note(f"resume with `{command}`")
            raise


@contextlib.contextmanager
def open_process(experiment: Experiment, _: tuple[Sink, ...] = ()) -> Iterator[LocalRuntime]:
    """Server and clients in this process."""
    yield LocalRuntime(experiment, "one process", run_in_process, measures=True)


@contextlib.contextmanager
def open_ray(experiment: Experiment, sinks: tuple[Sink, ...] = ()) -> Iterator[LocalRuntime]:
    """The clients on Ray, whose actors exist inside the block. Raises `InputError`."""
    address = experiment.runtime.ray_address
    with ray_federation(experiment, sinks) as on_ray:
        yield LocalRuntime(experiment, f"Ray at {address}" if address else "a local Ray", on_ray)
