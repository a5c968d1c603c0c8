"""A run on the console: a line per round, a progress bar on a terminal, a summary."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from flsimulation.cli import presence
from flsimulation.cli.columns import Columns, in_words, spread_in_words
from flsimulation.cli.title import client_of, engine_line, title
from flsimulation.cli.waiting import Waiting
from flsimulation.errors import kind_of, printable
from flsimulation.events import (
    ActorsAwaited,
    ClientMoved,
    ClientReplied,
    ClientsAwaited,
    ClientsConnected,
    EngineChoosing,
    EngineReported,
    Event,
    Noticed,
    PhaseStarted,
    RoundFinished,
    RunFinished,
    RunStarted,
    Scores,
    scores_of,
)
from flsimulation.experiment import Experiment
from flsimulation.host.usage import peak_memory_bytes

_SHOWN_FAILURES = 5  # most failed clients shown per round; the run directory has them all
_LONG = 2.0  # seconds after which a line says what takes so long
_SHOWN_SECONDS = 0.05  # the least that is not shown as 0.0


class PlainView:
    """A sink that prints lines: for logs, pipes and continuous integration.

    Parameters
    ----------
    console : Console
        Where to print.
    experiment : Experiment
        The experiment of the run.
    columns : sequence of str
        Metrics to show; empty for loss and accuracy, or what the model logs instead.
    """

    def __init__(
        self, console: Console, experiment: Experiment, columns: Sequence[str] = ()
    ) -> None:
        self.console = console
        self.rounds, self._sites = experiment.strategy.rounds, experiment.data.sites
        self._target = experiment.evaluate.target_accuracy
        self._columns = Columns(
            self.rounds,
            columns,
            has_test=experiment.data.has_test,
            is_private=experiment.privacy.mode != "none",
        )
        self._waiting = Waiting(functools.partial(self._say, style="dim"), experiment.runtime.kind)
        self._header = ""  # as last printed
        self._final: dict[str, list[float]] = {}  # the clients' values, by metric
        self._failed = 0
        self._told: set[str] = set()  # kinds of failures that were shown
        self._again: list[str] = []  # clients of a phase whose failures are of these kinds
        self._place = ""
        self._replies: Counter[int] = Counter()  # per client, to training and evaluation
        self._failures: Counter[int] = Counter()
        self._missing = False
        self._said_choosing = False
        self._scores: Scores = {}  # of the last global model that was evaluated

    def __enter__(self) -> PlainView:
        """Show from now on that the run is being prepared."""
        self._waiting.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Print nothing any more."""
        self._waiting.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        self._waiting.stop()
        if isinstance(event, RunStarted):
            self._say(title(event), style="bold")
            for note in event.notes:
                self._say(f"  {note}", style="dim")
            if event.engine is not None:  # a network's clients report it later
                self._engine(event.engine, event.not_stacked, event.step_seconds)
        elif isinstance(event, EngineReported):
            self._engine(event.engine, event.not_stacked)
        elif isinstance(event, EngineChoosing):
            self._choosing(event)
        elif isinstance(event, Noticed):
            self._say(f"  {event.text}", style="yellow")
        elif isinstance(event, ActorsAwaited):
            self._starting(event)
        elif isinstance(event, ClientsConnected):
            self._connected(event)
        elif isinstance(event, ClientsAwaited):
            self._say(f"  {presence.awaited(event, self.rounds)}", style="yellow")
        elif isinstance(event, ClientMoved):
            self._say(f"  {presence.moved(event)}", style="yellow")
        elif isinstance(event, PhaseStarted):
            self._tell_again()
            self._failed = 0
        elif isinstance(event, ClientReplied):
            self._client(event)
        elif isinstance(event, RoundFinished):
            self._tell_again()
            self._round(event)
        elif isinstance(event, RunFinished):
            self._tell_again()
            self._say(self._summary(event), style="bold" if event.state == "completed" else "red")

    def _choosing(self, event: EngineChoosing) -> None:
        """Say once that the choice of an engine takes long."""
        if event.seconds >= _LONG and not self._said_choosing:
            self._said_choosing = True
            text = f"choosing how to train: {event.doing}, {event.seconds:.0f} s so far"
            self._say(f"  {text}", style="yellow")

    def _round(self, event: RoundFinished) -> None:
        """Show a round's line, below the names of the columns where these are new."""
        self._scores = scores_of(vars(event)) or self._scores
        complaint = self._columns.learn({**(event.central or {}), **(event.federated or {})})
        if self._columns.header != self._header:
            self._header = self._columns.header
            self._say(self._header, style="dim")
        self._say(self._columns.row(event))
        if complaint is not None:
            self._say(f"  {complaint}", style="yellow")

    def _engine(
        self, engine: str, why_not: str | None, step_seconds: Mapping[str, float] | None = None
    ) -> None:
        """Say which engine trains the clients, and why not a faster one."""
        style = "dim" if why_not is None or step_seconds else "yellow"
        self._say(f"  {engine_line(engine, why_not, step_seconds)}", style=style)

    def _starting(self, event: ActorsAwaited) -> None:
        """Show how many of Ray's actors have started."""
        up_to = f", for up to {event.patience:g} s" if event.patience is not None else ""
        self._say(
            f"  Ray: {event.started} of {event.expected} actors started, waiting for the others"
            f"{up_to}, {event.seconds:.0f} s so far",
            style="yellow",
        )

    def _connected(self, event: ClientsConnected) -> None:
        """Show which clients are missing, and when all are connected again."""
        missing = len(event.partitions) < event.expected
        if missing or self._missing:
            self._say(f"  {presence.connected(event)}", style="yellow")
        self._missing = missing

    def _client(self, event: ClientReplied) -> None:
        self._replies[event.partition] += 1
        if event.reason is not None:
            self._failures[event.partition] += 1
        if event.phase == "final" and event.reason is None:
            if (complaint := self._columns.learn(event.metrics)) is not None:
                self._say(f"  {complaint}", style="yellow")
            for name in self._columns.spread:
                if name in event.metrics:
                    self._final.setdefault(name, []).append(event.metrics[name])
        if event.reason is None or event.phase == "final":
            return
        place = f"round {event.round}/{self.rounds}, {presence.WORDS[event.phase]}"
        if event.reason in ("error", "diverged"):
            if (kind := kind_of(f"{event.phase} {event.error}")) in self._told:
                self._again.append(client_of(event.partition, self._sites))
                self._place = place
                return
            self._told.add(kind)
        self._failed += 1
        if self._failed <= _SHOWN_FAILURES:
            who = client_of(event.partition, self._sites)
            text = f"  {place}: {who} failed ({event.reason}): {event.error}"
            self._say(text, style="yellow")
        elif self._failed == _SHOWN_FAILURES + 1:
            self._say("  more clients failed; clients.jsonl lists all of them", style="yellow")

    def _tell_again(self) -> None:
        """Show which clients of a phase failed as others whose error was shown."""
        if self._again:
            text = f"  {self._place}: {presence.some(self._again)} failed as shown above"
            self._say(text, style="yellow")
        self._again = []

    def _summary(self, event: RunFinished) -> str:
        parts = [f"{event.state}: {event.rounds} of {self.rounds} rounds in {event.seconds:.1f} s"]
        if event.choosing >= _SHOWN_SECONDS:
            parts[0] += f" (of which {event.choosing:.1f} s choosing how to train)"
        if event.state == "completed" and event.rounds < self.rounds:
            reached = 0 < self._target <= self._scores.get("accuracy", 0.0)
            parts.append("target accuracy reached" if reached else "privacy budget spent")
        parts += in_words(self._scores, self._columns.names)
        parts += [spread_in_words(name, own) for name, own in self._final.items() if len(own) > 1]
        peak = event.peak_memory_bytes or peak_memory_bytes()
        parts.append(f"peak memory {peak / 2**20:.0f} MiB")
        lines = ["\n" + ", ".join(parts)]
        if self._failures:
            lines.append(self._describe_failures())
        if event.state == "degraded" and event.error:
            lines.append(event.error)
        return "\n".join(lines)

    def _describe_failures(self) -> str:
        """How many replies failed or were lost, and of which clients."""
        names = [
            f"client {p}, {'all' if count == self._replies[p] else count}"
            for p, count in self._failures.most_common()
        ]
        total = self._failures.total()
        return f"{total:,} repl{'ies' if total > 1 else 'y'} failed or lost: {presence.some(names, '; ')}"

    def _say(self, text: str, style: str = "") -> None:
        self.console.print(Text(printable(text), style=style), soft_wrap=True)


class LiveView(PlainView):
    """The same lines, with a progress bar below them, for a terminal."""

    def __init__(
        self, console: Console, experiment: Experiment, columns: Sequence[str] = ()
    ) -> None:
        super().__init__(console, experiment, columns)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("clients"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("loading data and model", total=None)
        self._phase = ""

    def __enter__(self) -> LiveView:
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the bar; the prompt or an error follows the last line."""
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Show an event, and the progress of the phase."""
        super().__call__(event)
        if isinstance(event, EngineChoosing):
            doing = f"choosing how to train: {event.doing}"
            self._progress.update(self._task, description=doing)
        elif isinstance(event, PhaseStarted):
            self._phase = event.phase
            place = f"round {event.round}/{self.rounds}  {presence.WORDS[event.phase]}"
            self._progress.reset(self._task, total=len(event.cohort), description=place)
        elif isinstance(event, ClientReplied) and event.phase == self._phase:
            self._progress.advance(self._task)
        elif isinstance(event, RunFinished):
            self._progress.stop()
