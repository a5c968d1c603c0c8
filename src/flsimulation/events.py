"""What happens in a run, as data: the round loop emits these, everything that watches takes them.

The terminal view, the Prometheus metrics and the run directory are all functions of one event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from flwr.app import ArrayRecord
    from flwr.serverapp.strategy import Strategy

    from flsimulation.experiment import Experiment

Phase: TypeAlias = Literal["train", "evaluate", "final", "facts"]
"""``final`` is the evaluation of every client after the last round; ``facts`` is what sites report
before the first, which no event contains."""
RunState: TypeAlias = Literal["completed", "degraded", "failed", "interrupted"]
"""``degraded``: all rounds are done, but a client never succeeded."""
Move: TypeAlias = Literal["joined", "returned", "left", "refused"]
"""``joined``: for the first time; ``returned``: after it had left."""
Scores: TypeAlias = dict[str, float]
"""``loss``, ``accuracy`` and all else that the module logs, by name."""

NOT_DIRECT = "; not direct: "
"""Stands between why clients are not trained stacked and why they are not trained direct."""
BOOKKEEPING = frozenset(("num-examples", "epochs", "steps", "seconds", "unclipped"))
"""Numbers of a client's answer that are no scores: an average of them means nothing."""
RESERVED = BOOKKEEPING | {"round", "phase", "partition", "reason", "error"}
"""Names in an answer, or in its line of clients.jsonl, that a module must not log under."""
SOURCES = ("central", "federated")
"""What may score a global model, the one that counts first: the test set, then the clients."""


def source_of(round: Mapping[str, Any]) -> str | None:
    """The one of `SOURCES` whose scores count for a round's global model; None without any.

    Parameters
    ----------
    round : mapping
        A line of rounds.jsonl, or the fields of a `RoundFinished`.
    """
    return next((source for source in SOURCES if round.get(source)), None)


def scores_of(round: Mapping[str, Any]) -> Scores:
    """The scores that count for a round's global model; empty if it was not evaluated."""
    source = source_of(round)
    return dict(round[source]) if source is not None else {}


def main_metrics(scores: Mapping[str, float]) -> tuple[str, ...]:
    """The two metrics that describe a model best: loss and accuracy, else the first of its own."""
    usual = ("loss", "accuracy")
    own = [name for name in scores if name not in BOOKKEEPING and name not in usual]
    return tuple([*(name for name in usual if name in scores), *own][:2])


@dataclass(frozen=True)
class RunStarted:
    """The federation is about to run."""

    experiment: Experiment
    model_arguments: Mapping[str, Any]
    """Keyword arguments that the model was built with."""
    parameters: int
    """Trainable parameters of the model."""
    data_digest: str
    """SHA-256 of the data set."""
    histogram: Mapping[str, list[int]] | None
    """Examples of each class by partition: ``{"0": [12, 30, ...]}``; sizes only, as a list of
    one, where the targets are no classes; None where there are too many clients to list."""
    classes: tuple[str, ...]
    train_examples: int
    """Training examples that the clients hold together, held-out parts included."""
    test_examples: int
    engine: str | None = None
    """``stacked`` where many clients train as one program, ``direct`` or ``lightning``; None
    where the clients choose, and report it with their first reply."""
    not_stacked: str | None = None
    """Why the clients are not trained stacked, where that was tried."""
    step_seconds: Mapping[str, float] = field(default_factory=dict)
    """Processor seconds of a client's step by engine, where they decided which trains."""
    gpu: str | None = None
    """Name of the GPU that this process trains on."""
    done: int = 0
    """Rounds that were completed before, of a run that is resumed."""
    task: str = "classification"
    """What the labels are, as in ``data.task``."""
    notes: tuple[str, ...] = ()
    """Lines for people: how the data was understood."""


@dataclass(frozen=True)
class EngineReported:
    """Clients reported what they compute with, and it is not what was known before."""

    engine: str
    """As in `RunStarted`."""
    not_stacked: str | None = None
    """Why they are not trained stacked, where that was tried."""


@dataclass(frozen=True)
class EngineChoosing:
    """The engine is being chosen, before the run begins. No run directory exists yet."""

    doing: str
    """What is done now, in a few words."""
    seconds: float
    """Since the choice began."""


@dataclass(frozen=True)
class Noticed:
    """Something that people should know about the run; emitted once for each text."""

    text: str
    """One line."""


@dataclass(frozen=True)
class ActorsAwaited:
    """Ray's actors take long to start. No run directory exists yet."""

    started: int
    expected: int
    seconds: float
    """Since their start was requested."""
    patience: float | None = None
    """Seconds that they may take, at most; None, for no limit, if Ray has room for them."""


@dataclass(frozen=True)
class ClientsConnected:
    """A client connected or disconnected."""

    partitions: tuple[int, ...]
    """Partitions whose clients the server can reach, ascending."""
    expected: int
    """Number of clients of the experiment."""
    gone: Mapping[str, str] = field(default_factory=dict)
    """Names of the clients that disconnected in this run, by partition."""
    patience: float | None = None
    """Seconds that the server waits for those that are missing, at most; None if it does not."""


@dataclass(frozen=True)
class ClientMoved:
    """A client joined or left a run in progress where ``round.late`` is ``join``; or was refused."""

    round: int
    """The round in progress, which is the last one that began; 0 before the first."""
    move: Move
    name: str
    partition: int | None
    """None for a client that has none, because it was refused."""
    why: str = ""
    """One line for people if it was refused."""


@dataclass(frozen=True)
class ClientsAwaited:
    """A phase takes long: the server still waits for the replies of some clients."""

    round: int
    phase: Phase
    partitions: tuple[int, ...]
    """Whose answers are awaited, ascending."""
    seconds: float
    """That the phase has taken so far."""
    others: float
    """Seconds after which the last of the others had answered."""


@dataclass(frozen=True)
class PhaseStarted:
    """Messages of one phase went out."""

    round: int
    phase: Phase
    cohort: tuple[int, ...]
    """Partition ids, ascending."""


@dataclass(frozen=True)
class ClientReplied:
    """A client replied, or was found not to."""

    round: int
    phase: Phase
    partition: int
    metrics: Scores = field(default_factory=dict)
    """``num-examples``, ``seconds``, ``epochs``, ``steps``, ``loss``, ``accuracy``, ..."""
    reason: str | None = None
    """One of ``errors.FAILURE_REASONS`` if the client failed."""
    error: str | None = None
    """One line for people if the client failed."""


@dataclass(frozen=True)
class Judged:
    """The new global model was evaluated on the test set; the round may not be over yet."""

    round: int
    central: Scores


@dataclass(frozen=True)
class Checkpoint:
    """All that the next round starts from: the global model and the strategy's own state."""

    round: int
    arrays: ArrayRecord
    strategy: Strategy | None
    """None if the checkpoint was sent over a network."""


@dataclass(frozen=True)
class RoundFinished:
    """One line of rounds.jsonl."""

    round: int
    central: Scores | None
    federated: Scores | None
    train: Scores | None
    """The clients' training metrics, aggregated by the strategy."""
    cohort: tuple[int, ...]
    failures: dict[str, int]
    seconds: dict[str, float]
    """total, train, aggregate, evaluate."""
    bytes: dict[str, int]
    """down, up: payload of the messages."""
    weights_sha256: str
    privacy: Mapping[str, float] | None = None
    """``epsilon`` after the round at ``delta``, the ``clip`` norm of updates, ``noise``, the standard
    deviation on each number of the update that the noise is for; None where nobody is hidden."""

    def record(self) -> dict[str, object]:
        """The line, ready for JSON; without ``privacy`` where that is None."""
        line = {**self.__dict__, "cohort": list(self.cohort)}
        if self.privacy is None:
            del line["privacy"]
        return line


@dataclass(frozen=True)
class RunFinished:
    """The run is over, in whichever way."""

    state: RunState
    rounds: int
    """Rounds completed."""
    seconds: float
    error: str | None = None
    """One line for people if it failed."""
    peak_memory_bytes: int | None = None
    """Of the process that ran it; None where that is the one that takes the event."""
    choosing: float = 0.0
    """Of its seconds those in which the engine was chosen."""


Event: TypeAlias = (
    RunStarted
    | EngineReported
    | EngineChoosing
    | Noticed
    | ActorsAwaited
    | ClientsConnected
    | ClientMoved
    | ClientsAwaited
    | PhaseStarted
    | ClientReplied
    | Judged
    | Checkpoint
    | RoundFinished
    | RunFinished
)
Sink: TypeAlias = Callable[[Event], None]


def silent(_: Event) -> None:
    """A sink that takes an event and does nothing."""
