"""Runs a paper's rows within a time limit; all state is in the run directories."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flsimulation import runner
from flsimulation.errors import InputError, RunError
from flsimulation.events import Event, RoundFinished
from flsimulation.experiment import Experiment
from flsimulation.host.processes import alone
from flsimulation.rundir import RunRecord
from flsimulation.rundir.manifest import read_manifest
from flsimulation.rundir.reader import can_resume, is_run_directory
from flsimulation.studies.papers.measures import measure_of
from flsimulation.studies.papers.spec import Paper, Row

_OVER = ("completed", "degraded", "failed")  # states of runs that are not repeated
_FURTHEST = 3  # largest distance on the grid that is tried while no run has a figure


class _TimeIsUp(KeyboardInterrupt):
    """Interrupts a run as Ctrl-C does, so that it can be resumed."""


@dataclass(frozen=True)
class Trial:
    """One run of a row, before it runs."""

    row: str
    seed: int
    value: float | None
    """Of the searched key."""
    rounds: int
    """Most rounds to run."""
    run_dir: str
    """Relative to the folder of all runs."""


@dataclass(frozen=True)
class Tried:
    """One run of a row, after it ended."""

    trial: Trial
    figure: float | None
    """The measure by which a row's best value is chosen; None if the run has none."""
    error: str | None
    """Why the run failed, in one line; None if it did not."""
    gpu: str | None
    """Name of the GPU that it trained on; None without one."""


@dataclass
class Found:
    """Results of a row's runs."""

    row: Row
    step: int | None = None
    """Grid point of the best value of the searched key."""
    value: float | None = None
    """The best value of the searched key; None if nothing is searched or found."""
    searched: bool = False
    """Whether its neighbours on the grid are known to be worse."""
    tried: list[Tried] = field(default_factory=list)
    """In the order in which they ran."""
    figures: dict[str, list[float | None]] = field(default_factory=dict)
    """By measure: one per seed; None if the run does not have it."""

    def median(self, measure: str) -> float | None:
        """Median over the seeds; a run without the figure counts as worst."""
        found = self.figures.get(measure)
        if not found:
            return None
        worst = math.inf if measure_of(measure).least else -math.inf
        middle = statistics.median(worst if figure is None else figure for figure in found)
        return middle if math.isfinite(middle) else None

    @property
    def chosen(self) -> str:
        """The searched key's value as text."""
        if self.value is None:
            return ""
        return f"{self.value:g}" + ("" if self.searched else ", search unfinished")

    def record(self) -> dict[str, Any]:
        """The results as a JSON object."""
        return {
            "row": self.row.name,
            "published": self.row.published,
            "ours": {name: self.median(name) for name in self.row.published},
            "seeds": self.figures,
            "value": self.value,
            "searched": self.searched,
            "chosen": self.chosen,
            "runs": [
                {
                    **asdict(tried.trial),
                    "figure": tried.figure,
                    "error": tried.error,
                    "gpu": tried.gpu,
                }
                for tried in self.tried
            ],
        }


class Reproduction:
    """A paper's rows, run one after the other.

    Each run has an ordinary run directory, named after its experiment. A run that is over is read
    and not repeated; one that was stopped is resumed.

    Parameters
    ----------
    paper : Paper
        The paper.
    out : Path
        Folder of the run directories.
    rows : sequence of Row
        Rows of the paper to run.
    seeds : int
        Runs per row: the first seed searches, the others use the value that it found.
    seconds : float
        Time limit: a run in progress is then interrupted, and no other is started.
    watch : callable
        Called with each trial before it runs; returns a sink for its events.
    """

    def __init__(
        self,
        paper: Paper,
        out: Path,
        rows: Sequence[Row],
        seeds: int,
        seconds: float,
        watch: Callable[[Trial], Callable[[Event], None]],
    ) -> None:
        self.paper, self.out, self.seeds, self._watch = paper, out, seeds, watch
        self.found = [Found(row) for row in rows]
        self._expires = time.monotonic() + seconds

    def run(self) -> bool:
        """Fill `found`: all rows with the first seed, then all with the next. False if time ran out."""
        with alone(self.out / ".lock") as here:
            if not here:
                raise InputError(
                    f"--out {self.out}: another flsim paper is using this folder; wait for its end, or "
                    f"choose another folder"
                )
            return self._run_all()

    def _run_all(self) -> bool:
        in_time = [self._in_time(self._search, found) for found in self.found]
        for seed in range(1, self.seeds):
            in_time += [
                self._in_time(self._repeat, found, seed)
                for found in self.found
                if found.searched and found.step is not None
            ]
        return all(in_time)

    def _in_time(self, work: Callable[..., None], *arguments: Any) -> bool:
        """Do it if there is time; False if time ran out. Runs that are over are read in any case."""
        try:
            work(*arguments)
        except _TimeIsUp:
            return False
        return True

    def _repeat(self, found: Found, seed: int) -> None:
        assert found.step is not None  # noqa: S101 - the search has found it
        self._note(found, self._try(found, seed, found.step, None)[0])

    def _search(self, found: Found) -> None:
        """Try the start value and its neighbours on the grid, and continue from a better one."""
        measure = measure_of(next(iter(found.row.published)))
        scores: dict[int, float] = {}
        for step in self._steps(found, scores):
            best = None if found.step is None else scores[found.step]
            most = math.ceil(best) if measure.least and best is not None else None
            path, figure = self._try(found, 0, step, most)
            score = math.inf if figure is None else figure if measure.least else -figure
            scores[step] = score
            if score < math.inf and (best is None or score < best):
                found.step = step
                found.value = self._value(found.row, step)
                found.figures.clear()
                self._note(found, path)
        found.searched = True

    def _steps(self, found: Found, scores: dict[int, float]) -> Iterator[int]:
        yield 0
        if self.paper.searched(found.row) is None:
            return
        while True:
            best = min(scores, key=lambda step: scores[step])
            near = [best + 1, best - 1]
            if scores[best] == math.inf:
                near = [sign * far for far in range(1, _FURTHEST + 1) for sign in (1, -1)]
            if not (new := [step for step in near if step not in scores]):
                return
            yield new[0]

    def _note(self, found: Found, path: Path) -> None:
        run = RunRecord(path)
        for name in found.row.published:
            found.figures.setdefault(name, []).append(measure_of(name).read(run, self.paper.last))

    def _try(
        self, found: Found, seed: int, step: int, most: int | None
    ) -> tuple[Path, float | None]:
        """Run one experiment unless it is over; returns its run directory and its first measure."""
        row = found.row
        table = self.paper.table_of(row, seed, step, most)
        spec, value = self.paper.experiment_of(row, table), self._value(row, step)
        path = self.out / _slug(row.name) / _run_name(table, seed, value)
        trial = Trial(row.name, seed, value, spec.strategy.rounds, str(path.relative_to(self.out)))
        if read_manifest(path).get("state") not in _OVER:
            if time.monotonic() > self._expires:
                raise _TimeIsUp
            self._run(spec, path, self._watch(trial))
        run = RunRecord(path)
        figure = measure_of(next(iter(row.published))).read(run, self.paper.last)
        ended = run.manifest
        error = ended.get("error") if ended.get("state") == "failed" else None
        found.tried.append(Tried(trial, figure, error, ended.get("gpu")))
        return path, figure

    def _value(self, row: Row, step: int) -> float | None:
        search = self.paper.searched(row)
        return None if search is None else search.value(step)

    def _run(self, spec: Experiment, path: Path, sink: Callable[[Event], None]) -> None:
        def watch(event: Event) -> None:
            sink(event)
            if isinstance(event, RoundFinished) and time.monotonic() > self._expires:
                raise _TimeIsUp

        try:
            if can_resume(path):
                runner.resume(path, [watch])
                return
            if path.exists():  # killed in its first round
                shutil.rmtree(path)
            runner.run(spec, path, [watch])
        except RunError:
            if not is_run_directory(path):
                raise
            return  # the run directory holds the reason; the search continues without a figure
        if not is_run_directory(path):
            raise InputError(
                f"{path}: the run directory is not accessible here, where its figures are read; start "
                f"the SuperLink in this folder, or mount this folder for it"
            )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _run_name(table: dict[str, Any], seed: int, value: float | None) -> str:
    """A name with a digest of the experiment, so that a run directory is never another one's."""
    digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:8]
    return "-".join([*([] if value is None else [f"{value:g}"]), f"seed-{seed}", digest])
