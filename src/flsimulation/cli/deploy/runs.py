"""``flsim runs``, ``attach`` and ``stop``: list, follow and stop the runs of a SuperLink."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from json import dumps as dump_json
from pathlib import Path, PurePosixPath

import typer
from rich.console import Console
from rich.table import Table

from flsimulation.cli.deploy.compose import RUNS, Project, find_files, open_project
from flsimulation.cli.run import DEGRADED, RunConsole, view_of
from flsimulation.cli.tables import plain, print_table
from flsimulation.cli.view import PlainView
from flsimulation.errors import FLSimulationError, RunError
from flsimulation.events import Event, RunStarted, Sink
from flsimulation.rundir.reader import is_run_directory, report_of
from flsimulation.runtimes.network.drive import attach_to_run
from flsimulation.runtimes.network.flower import Flower, flower
from flsimulation.runtimes.network.runs import KnownRun, find_run, known_runs, stop_in_order
from flsimulation.runtimes.resuming import resume_command

_DEFAULT = "127.0.0.1:8080"
_COMPOSE_RUN = "docker compose run --rm run"


@dataclass(frozen=True)
class Place:
    """A SuperLink, and its Compose project if it was found through one."""

    superlink: str
    given: bool
    """Whether the command line or the environment specified it."""
    project: Project | None = None

    def flower(self) -> contextlib.AbstractContextManager[Flower]:
        """Flower's command line for it, which trusts the CA of its Compose project."""
        ca = self.project.ca if self.project is not None else None
        return flower(self.superlink, ca)

    @property
    def option(self) -> str:
        """The option that another command needs to find the same SuperLink; empty if none."""
        known = not self.given or self.superlink == os.environ.get("SUPERLINK")
        return "" if known else f" --superlink {self.superlink}"

    def seen(self, run: KnownRun) -> Path | None:
        """A run's directory on this machine; None if it is not accessible here."""
        if run.run_dir is None:
            return None
        inside, places = PurePosixPath(run.run_dir), [Path(run.run_dir)]
        mount = self.project.mount(RUNS) if self.project is not None else None
        if mount is not None and not inside.is_absolute() and inside.parts[0] == "runs":
            places.insert(0, mount.joinpath(*inside.parts[1:]))
        return next(filter(is_run_directory, places), None)

    def resume(self, run: KnownRun) -> str | None:
        """The complete command that resumes a run; None if there is nothing to resume.

        If only the containers can access the run directory by its path, it is a Compose command.
        That sets ``CLIENTS``: Compose would start its default number of clients otherwise.
        """
        if run.run_dir is None or run.experiment is None or not run.rounds:
            return None
        is_here = is_run_directory(Path(run.run_dir))
        compose = _COMPOSE_RUN if self.project is not None and not is_here else None
        named = self.superlink == run.experiment.runtime.superlink
        superlink = None if named else self.superlink
        return resume_command(run.run_dir, superlink, run.experiment.data.clients, compose)


def find_superlink(given: str | None) -> Place:
    """The given SuperLink, else the one that the Compose project publishes, else the default."""
    if given is not None:
        return Place(given, given=True)
    with contextlib.suppress(FLSimulationError):  # no project here, or no Docker
        project = open_project(find_files(None))
        if (superlink := project.superlink) is not None:
            return Place(superlink, given=False, project=project)
    return Place(_DEFAULT, given=False)


def runs_command(superlink: str | None, limit: int, *, json: bool) -> None:
    """List the newest runs of a SuperLink."""
    place = find_superlink(superlink)
    with place.flower() as command:
        command.check()
        listed = command.runs()
        found = known_runs(command, listed[:limit])
    resumed = set()  # directories of newer runs: their manifest is not an older run's
    for run in found:
        is_newest = run.run_dir not in resumed
        resumed.add(run.run_dir)
        if is_newest and run.end is None and run.flower.is_over and (here := place.seen(run)):
            run.read_end(here)
    if json:
        typer.echo(dump_json([run.record() for run in found]))
        return
    if not found:
        typer.echo("no run since the SuperLink started; flsim run starts one")
        return
    print_table(_table(found))
    if len(listed) > limit:
        typer.echo(f"{len(listed) - limit} older runs; --limit {len(listed)} shows them")


def attach_command(
    superlink: str | None, wanted: str | None, columns: list[str], *, json: bool, quiet: bool
) -> None:
    """Follow a run from its beginning, as ``flsim run`` shows it."""
    place, console = find_superlink(superlink), RunConsole(quiet=json or quiet)
    with place.flower() as command:
        command.check()
        run = find_run(command, wanted)

        def opened(path: Path) -> None:
            run.run_dir = str(path)

        with contextlib.ExitStack() as stack:
            stack.callback(_say_end, console, place, run)
            view = stack.enter_context(_shown(console, columns))
            result = attach_to_run(command, run.id, [view], opened)
    if json:
        typer.echo(result.json())
    if result.state == "degraded":
        raise typer.Exit(DEGRADED)


def stop_command(superlink: str | None, wanted: str | None) -> None:
    """Stop a run, wait until it has written its end, and print how to resume it."""
    place, console = find_superlink(superlink), RunConsole()
    with place.flower() as command:
        command.check()
        run = find_run(command, wanted)
        if run.flower.is_over:
            raise RunError(f"run {run.id} is over: {run.state}, {run.progress}")
        here = place.seen(run)
        ended = stop_in_order(command, run, here)
    output = [f"{ended.state}: {ended.progress}"]
    if here is not None:
        report = report_of(here)
        output += ["", f"Report  {report}"] if report is not None else [""]
    elif ended.run_dir is not None:  # not accessible here
        output += ["", f"Results {ended.run_dir}, on the SuperLink's machine"]
    if ended.state in ("failed", "interrupted") and (resume := place.resume(ended)) is not None:
        output.append(f"Resume  {resume}")
    _say(console, output)


def _say_end(console: Console, place: Place, run: KnownRun) -> None:
    """Print where the report is, or after Ctrl-C how to follow or stop the run."""
    if isinstance(sys.exc_info()[1], KeyboardInterrupt):
        verbs = [f"flsim {verb}{place.option}" for verb in ("attach", "stop")]
        text = f"detached, the run is in progress; {verbs[0]} shows it again, {verbs[1]} ends it"
        _say(console, ["", text])
    elif (here := place.seen(run)) is not None and (report := report_of(here)) is not None:
        _say(console, ["", f"Report  {report}"])


def _say(console: Console, lines: list[str]) -> None:
    console.print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)


@contextlib.contextmanager
def _shown(console: Console, columns: list[str]) -> Iterator[Sink]:
    """A sink that shows a run from the event that says what it is."""
    view: PlainView | None = None
    with contextlib.ExitStack() as stack:

        def show(event: Event) -> None:
            nonlocal view
            if console.quiet:
                return
            if isinstance(event, RunStarted):
                view = stack.enter_context(view_of(console, event.experiment, columns))
            if view is not None:
                view(event)

        yield show


def _table(runs: list[KnownRun]) -> Table:
    table = Table("run", "name", "state", "rounds", "started", "directory", box=None, header_style="bold")  # fmt: skip
    for run in runs:
        rounds = f"{run.rounds}/{run.of_rounds}" if run.of_rounds is not None else "-"
        cells = (
            run.id,
            run.name or "-",
            run.state,
            rounds,
            run.flower.submitted,
            run.run_dir or "-",
        )
        table.add_row(*map(plain, cells))
    return table


def going_run(project: Project) -> KnownRun | None:
    """The run in progress at a project's SuperLink; None if there is none, or it does not answer yet."""
    if project.superlink is None:
        return None
    with Place(project.superlink, given=False, project=project).flower() as command:
        try:
            command.check()
            return find_run(command, None)
        except FLSimulationError:
            return None
