"""A run on the console: a line per round, a progress bar on a terminal, a summary."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from flsimulation.cli.columns import Columns, in_words, number
from flsimulation.events import (
    ActorsAwaited,
    ClientReplied,
    ClientsAwaited,
    ClientsConnected,
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

_NAMED = 3  # most clients named in one line
_SHOWN_FAILURES = 5  # most failed clients shown per round; the run directory has them all
_WORDS = {"train": "training", "evaluate": "evaluating", "final": "final evaluation"}


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
        self.rounds = experiment.strategy.rounds
        self._columns = Columns(self.rounds, columns)
        self._header = ""  # as last printed
        self._final: dict[str, list[float]] = {}  # the clients' values, by metric
        self._failed = 0
        self._replies: Counter[int] = Counter()  # per client, to training and evaluation
        self._failures: Counter[int] = Counter()
        self._missing = False
        self._scores: Scores = {}  # of the last global model that was evaluated

    def __enter__(self) -> PlainView:
        """Nothing to prepare."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to clean up."""

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, RunStarted):
            self._say(_title(event), style="bold")
            for note in event.notes:
                self._say(f"  {note}", style="dim")
            self._engine(event.not_stacked)
        elif isinstance(event, EngineReported):
            self._engine(event.not_stacked)
        elif isinstance(event, Noticed):
            self._say(f"  {event.text}", style="yellow")
        elif isinstance(event, ActorsAwaited):
            self._starting(event)
        elif isinstance(event, ClientsConnected):
            self._connected(event)
        elif isinstance(event, ClientsAwaited):
            self._awaited(event)
        elif isinstance(event, PhaseStarted):
            self._failed = 0
        elif isinstance(event, ClientReplied):
            self._client(event)
        elif isinstance(event, RoundFinished):
            self._round(event)
        elif isinstance(event, RunFinished):
            self._say(self._summary(event), style="bold" if event.state == "completed" else "red")

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

    def _engine(self, not_stacked: str | None) -> None:
        """Say why clients are not trained stacked."""
        if not_stacked is not None:
            self._say(f"  clients train one by one: {not_stacked}", style="yellow")

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
        count, missing = len(event.partitions), len(event.partitions) < event.expected
        if missing or self._missing:
            text = f"  clients: {count} of {event.expected} connected"
            if event.gone:
                names = [f"client {p} ({name})" for p, name in event.gone.items()]
                text += f"; {_some(names)} disconnected"
            if missing:
                up_to = f" for up to {event.patience:g} s" if event.patience is not None else ""
                text += f", waiting for {'it' if len(event.gone) == 1 else 'the others'}{up_to}"
            self._say(text, style="yellow")
        self._missing = missing

    def _awaited(self, event: ClientsAwaited) -> None:
        """Show which clients a phase waits for."""
        place = f"round {event.round}/{self.rounds}, {_WORDS[event.phase]}"
        clients = "clients" if len(event.partitions) > 1 else "client"
        names = _some([str(partition) for partition in event.partitions])
        self._say(
            f"  {place}: waiting for {clients} {names}, {event.seconds:.0f} s so far; "
            f"the others took at most {event.others:.0f} s",
            style="yellow",
        )

    def _client(self, event: ClientReplied) -> None:
        self._replies[event.partition] += 1
        if event.reason is not None:
            self._failures[event.partition] += 1
        if event.phase == "final" and event.reason is None:
            self._columns.learn(event.metrics)
            for name in self._columns.spread:
                if name in event.metrics:
                    self._final.setdefault(name, []).append(event.metrics[name])
        if event.reason is None or event.phase == "final":
            return
        self._failed += 1
        if self._failed <= _SHOWN_FAILURES:
            place = f"round {event.round}/{self.rounds}, {_WORDS[event.phase]}"
            text = f"  {place}: client {event.partition} failed ({event.reason}): {event.error}"
            self._say(text, style="yellow")
        elif self._failed == _SHOWN_FAILURES + 1:
            self._say("  more clients failed; clients.jsonl lists all of them", style="yellow")

    def _summary(self, event: RunFinished) -> str:
        parts = [f"{event.state}: {event.rounds} of {self.rounds} rounds in {event.seconds:.1f} s"]
        if event.state == "completed" and event.rounds < self.rounds:
            parts.append("target accuracy reached")
        parts += in_words(self._scores, self._columns.names)
        parts += [_spread(name, own) for name, own in self._final.items() if len(own) > 1]
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
        return f"{total:,} repl{'ies' if total > 1 else 'y'} failed or lost: {_some(names, '; ')}"

    def _say(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style=style), soft_wrap=True)


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
        if isinstance(event, PhaseStarted):
            self._phase = event.phase
            place = f"round {event.round}/{self.rounds}  {_WORDS[event.phase]}"
            self._progress.reset(self._task, total=len(event.cohort), description=place)
        elif isinstance(event, ClientReplied) and event.phase == self._phase:
            self._progress.advance(self._task)
        elif isinstance(event, RunFinished):
            self._progress.stop()


def _some(names: list[str], between: str = ", ") -> str:
    """The first names, and the number of the others."""
    more = f"{between}{len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return between.join(names[:_NAMED]) + more


def _title(event: RunStarted) -> str:
    spec = event.experiment
    clients = f"{spec.data.clients:,} client{'s' * (spec.data.clients > 1)}"
    return (
        f"{spec.name}: {spec.strategy.name}, {clients}, "
        f"{event.train_examples:,} examples of {_short(spec.data.dataset)} "
        f"({spec.data.partition}), {_short(spec.model.class_)} with {event.parameters:,} "
        f"parameters, seed {spec.seed}" + (f", on {event.gpu}" if event.gpu else "")
    )


def _short(reference: str) -> str:
    """A class reference without the folders of its path: ``/a/b/net.py:Net`` -> ``net.py:Net``."""
    return reference.removeprefix("file:").rpartition("/")[2] if "/" in reference else reference


def _spread(name: str, values: Sequence[float]) -> str:
    """How a metric differs between clients; of an accuracy, the lowest is the worst."""
    mean = sum(values) / len(values)  # unlike `statistics`, also of infinite values
    deviation = math.sqrt(sum((value - mean) * (value - mean) for value in values) / len(values))
    low, high = number(min(values)), number(max(values))
    ends = f"lowest {low}" if name == "accuracy" else f"{low} to {high}"
    return f"clients' {name} {number(mean)} ± {number(deviation)}, {ends}"
