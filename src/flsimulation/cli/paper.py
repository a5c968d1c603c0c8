"""``flsim paper``: a paper's figures beside those measured here."""

from __future__ import annotations

import json as jsonlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.status import Status
from rich.table import Table

from flsimulation.cli.tables import plain
from flsimulation.errors import InputError
from flsimulation.events import Event, RoundFinished, RunFinished
from flsimulation.host.files import write_atomic
from flsimulation.internals.deferred import uncollected

_SAID_SECONDS = 60.0  # between two lines of progress where there is no terminal


def list_papers() -> None:
    """Print the papers of the repository."""
    from flsimulation.studies.papers.spec import load_paper, names

    width = max(map(len, names()))
    for name in names():
        typer.echo(f"{name:{width}}  {load_paper(name).title}")


def paper_command(
    name: str, wanted: str, minutes: float, seeds: int, out: Path | None, json: Path | None
) -> None:
    """Run the experiments that fit into the time; print published and measured figures."""
    from flsimulation.studies.papers.spec import load_paper

    paper = load_paper(name)
    rows = [row for row in paper.row if wanted.lower() in row.name.lower()]
    if not rows:
        known = "; ".join(row.name for row in paper.row)
        raise InputError(f"--rows {wanted}: no row's name contains it; the rows are: {known}")
    if json is not None and not json.parent.is_dir():
        raise InputError(
            f"--json {json}: {json.parent} is not a folder; choose a path in an existing one"
        )
    with uncollected():
        from flsimulation.studies.papers.reproduce import Reproduction, Trial

    console = Console()
    folder = out or Path("runs") / "papers" / Path(name).stem
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder}: cannot be created ({error.strerror})") from None
    console.print(f"{paper.title}\n{paper.cite}", highlight=False, markup=False, soft_wrap=True)
    with console.status("loading") as status:
        view = _View(console, status)

        def watch(trial: Trial) -> Callable[[Event], None]:
            value = "" if trial.value is None else f", {trial.value:g}"
            return view.follow(f"{trial.row}{value}, seed {trial.seed}", trial.rounds)

        reproduction = Reproduction(paper, folder, rows, seeds, 60 * minutes, watch)
        whole = reproduction.run()
    found = [row.record() for row in reproduction.found]
    console.print(_table(found))
    for line in _failures(found, folder):
        console.print(line, style="yellow", highlight=False, soft_wrap=True, markup=False)
    if paper.note:
        console.print(paper.note, highlight=False, markup=False)
    if not whole:
        console.print(
            f"{minutes:g} minutes are over; the same command continues from here", highlight=False
        )
    if json is not None:
        result = {
            "paper": Path(name).stem,
            "command": f"flsim paper {name} --seeds {seeds}",
            **paper.model_dump(include={"title", "cite", "url", "note"}),
            "rows": found,
        }
        write_atomic(json, jsonlib.dumps(result, indent=2) + "\n")
    console.print(f"Runs  {folder}", highlight=False, soft_wrap=True)


class _View:
    """Progress: a status line on a terminal, else at most one line per minute; and one per ended run."""

    def __init__(self, console: Console, status: Status) -> None:
        self._console, self._status = console, status

    def follow(self, what: str, rounds: int) -> Callable[[Event], None]:
        """A sink for the events of one run."""
        best, last = 0.0, time.monotonic()
        self._status.update(f"{what}: loading")

        def sink(event: Event) -> None:
            nonlocal best, last
            if isinstance(event, RoundFinished):
                best = max(best, (event.central or {}).get("accuracy", 0.0))
                line = f"{what}: round {event.round}/{rounds}, accuracy {best:.4f}"
                self._status.update(line)
                if not self._console.is_terminal and time.monotonic() - last > _SAID_SECONDS:
                    self._say(line)
                    last = time.monotonic()
            elif isinstance(event, RunFinished):
                self._say(
                    f"{what}: {event.state} after {event.rounds} rounds and "
                    f"{event.seconds:.0f} s, accuracy {best:.4f}"
                )

        return sink

    def _say(self, line: str) -> None:
        self._console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    from flsimulation.studies.papers.table import HEADS, cells

    table = Table(*HEADS, box=None, header_style="bold")
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        for line in cells(row):
            table.add_row(*map(plain, line))
    return table


def _failures(rows: Sequence[dict[str, Any]], folder: Path) -> list[str]:
    """Runs that failed, why, and how to repeat them."""
    return [
        f"{folder / run['run_dir']} failed: {run['error']}; remove it to run it again"
        for row in rows
        for run in row["runs"]
        if run["error"] is not None
    ]
