"""Running a paper's rows in the time that there is; run directories are all that is remembered."""

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

_OVER = ("completed", "degraded", "failed")  # the states of runs that are not run again
_FURTHEST = 3  # grid points from the start that are tried where none has given a figure yet


class _TimeIsUp(KeyboardInterrupt):
    """Ends a run as Ctrl-C does: it can be resumed."""


@dataclass(frozen=True)
class Trial:
    """One run of a row, before it runs."""

    row: str
    seed: int
    value: float | None
    """Of the key that is searched."""
    rounds: int
    """To run at most."""
    run_dir: str
    """Under the folder of all runs."""


@dataclass(frozen=True)
class Tried:
    """One run of a row, after it."""

    trial: Trial
    figure: float | None
    """The measure that chooses among a row's runs."""
    error: str | None
    """One line if the run failed."""
    gpu: str | None
    """Name of the GPU that it trained on."""


@dataclass
class Found:
    """What a row's runs gave."""

    row: Row
    step: int | None = None
    """On the grid of the searched key."""
    value: float | None = None
    """The best of the searched key; None where nothing is searched or found."""
    searched: bool = False
    """Whether its neighbours on the grid are known to be worse."""
    tried: list[Tried] = field(default_factory=list)
    """In the order of running."""
    figures: dict[str, list[float | None]] = field(default_factory=dict)
    """By measure: one for each seed; None where the run did not give it."""

    def median(self, measure: str) -> float | None:
        """Over the seeds; a run that did not give the figure counts as worst."""
        found = self.figures.get(measure)
        if not found:
            return None
        worst = math.inf if measure_of(measure).least else -math.inf
        middle = statistics.median(worst if figure is None else figure for figure in found)
        return middle if math.isfinite(middle) else None

    @property
    def chosen(self) -> str:
        """The searched key's value in words."""
        if self.value is None:
            return ""
        return f"{self.value:g}" + ("" if self.searched else ", search unfinished")

    def record(self) -> dict[str, Any]:
        """Ready for JSON."""
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

    Each run is an ordinary run directory, named after its experiment; what is done already is
    read and not run again, and what was stopped goes on.

    Parameters
    ----------
    paper : Paper
        What to run.
    out : Path
        Where the run directories lie.
    rows : sequence of Row
        Of the paper's.
    seeds : int
        Runs of each row: the first one searches, the others take what it found.
    seconds : float
        A run that is still going then is stopped; none begins after.
    told : callable
        Is told each trial before it runs; gives a sink for its events.
    """

    def __init__(
        self,
        paper: Paper,
        out: Path,
        rows: Sequence[Row],
        seeds: int,
        seconds: float,
        told: Callable[[Trial], Callable[[Event], None]],
    ) -> None:
        self.paper, self.out, self.seeds, self._told = paper, out, seeds, told
        self.found = [Found(row) for row in rows]
        self._expires = time.monotonic() + seconds

    def run(self) -> bool:
        """Fill `found`, all rows with the first seed before any with the next; False if cut short."""
        with alone(self.out / ".lock") as here:
            if not here:
                raise InputError(
                    f"--out {self.out}: another flsim paper runs there; wait for its end, or name "
                    f"another folder"
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
        """Do it, as far as there is time; what is done already is read whether or not there is."""
        try:
            work(*arguments)
        except _TimeIsUp:
            return False
        return True

    def _repeat(self, found: Found, seed: int) -> None:
        assert found.step is not None  # noqa: S101 - or there is nothing to repeat
        self._note(found, self._try(found, seed, found.step, None)[0])

    def _search(self, found: Found) -> None:
        """Try the start and its neighbours, and theirs while that is better."""
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
        """Run one experiment, unless it was; give its directory and its first measure."""
        row = found.row
        table = self.paper.table_of(row, seed, step, most)
        spec, value = self.paper.experiment_of(row, table), self._value(row, step)
        path = self.out / _slug(row.name) / _run_name(table, seed, value)
        trial = Trial(row.name, seed, value, spec.strategy.rounds, str(path.relative_to(self.out)))
        if read_manifest(path).get("state") not in _OVER:
            if time.monotonic() > self._expires:
                raise _TimeIsUp
            self._run(spec, path, self._told(trial))
        run = RunRecord(path)
        figure = measure_of(next(iter(row.published))).read(run, self.paper.last)
        ended = run.manifest
        found.tried.append(Tried(trial, figure, ended.get("error"), ended.get("gpu")))
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
            return  # the run directory says why, and the search sees no figure
        if not is_run_directory(path):
            raise InputError(
                f"{path}: the run is not written here, where its figures are read; start the "
                f"SuperLink in this folder, or let it see this one"
            )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _run_name(table: dict[str, Any], seed: int, value: float | None) -> str:
    """Another table, another name: what is found there is of this very experiment."""
    digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:8]
    return "-".join([*([] if value is None else [f"{value:g}"]), f"seed-{seed}", digest])
