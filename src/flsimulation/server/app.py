"""The Flower ServerApp: one federation from the initial model to the last evaluation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from flsimulation.client.workspace import Workspace
from flsimulation.clock import SYSTEM, Clock
from flsimulation.data.dataset import Dataset
from flsimulation.errors import (
    ClientError,
    FLSimulationError,
    InputError,
    Interrupted,
    RunError,
    describe_error,
)
from flsimulation.events import (
    Checkpoint,
    ClientsConnected,
    Event,
    Noticed,
    RoundFinished,
    RunFinished,
    RunStarted,
    RunState,
    Scores,
    Sink,
)
from flsimulation.experiment import Experiment, unflatten
from flsimulation.experiment.own_train import own_notes
from flsimulation.host.processes import undisturbed
from flsimulation.messages.received import model_like
from flsimulation.messages.state_dicts import held_state, record_of
from flsimulation.messages.weights import not_finite
from flsimulation.models import model_arguments
from flsimulation.privacy.examples import example_notes, sizes_of
from flsimulation.privacy.notes import privacy_advice, privacy_notes
from flsimulation.privacy.transforms import updated
from flsimulation.server.attempts import Attempts
from flsimulation.server.checks import Checks, held_by
from flsimulation.server.exchange import Exchange
from flsimulation.server.final import evaluate_everyone
from flsimulation.server.grid import PartitionedGrid
from flsimulation.server.private import spending_of
from flsimulation.server.replies import Replies
from flsimulation.server.rounds import Ended, Rounds
from flsimulation.server.secure import SecureExchange
from flsimulation.server.strategies import AVERAGING, MOVING_THE_MODEL, build_strategy
from flsimulation.training.states import forms_of, merged_scores

Connect: TypeAlias = Callable[[Grid, Experiment, Sink, Clock], PartitionedGrid]
"""Returns a grid with partitions over Flower's, after waiting for the experiment's clients."""

_LISTED_CLIENTS = 1000  # a histogram of more clients than this is not written


@dataclass(frozen=True)
class Start:
    """The state from which a run is resumed."""

    round: int
    """Number of completed rounds."""
    arrays: ArrayRecord
    """The global model after them."""
    strategy: Mapping[str, Any]
    """Attributes of the strategy object after them."""
    reached: bool = False
    """Whether the target accuracy was reached, so that no round follows."""
    trained: Sequence[tuple[int, str | None]] = ()
    """Partition, and reason of the failure or None, of each training in these rounds."""
    resumes: int = 0
    """How often the run was resumed, this time included."""


def make_server_app(
    sinks: Iterable[Sink] = (),
    workspace: Workspace | None = None,
    start: Start | None = None,
    connect: Connect | None = None,
    *,
    trains: bool = False,
) -> ServerApp:
    """A ServerApp for any of Flower's runtimes.

    Parameters
    ----------
    sinks : iterable of callables
        Each is called with every event of the run.
    workspace : Workspace, optional
        Data, model and engine, if this process has loaded them already.
    start : Start, optional
        Continue after this round, instead of starting from the first.
    connect : callable, optional
        Returns a grid with partitions for a grid without, after waiting for its clients.
    trains : bool
        Whether the clients train in this process, and hence on its GPU.
    """
    listeners = tuple(sinks)
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        clock = workspace.clock if workspace is not None else SYSTEM
        began, rounds = clock.monotonic(), start.round if start else 0
        attempts = Attempts(start.trained if start else ())

        def emit(event: Event) -> None:
            nonlocal rounds
            attempts(event)
            for sink in listeners:
                sink(event)
                if isinstance(event, RoundFinished):  # it counts once the first sink has stored it
                    rounds = event.round

        def finish(state: RunState, error: str | None = None) -> None:
            choosing = workspace.choosing if workspace is not None else 0.0
            seconds = choosing + clock.monotonic() - began
            emit(RunFinished(state, rounds, seconds, error, choosing=choosing))

        try:
            space = workspace or Workspace.load(unflatten(context.run_config), clients=0)
            started = _announcement(space, start.round if start is not None else 0, trains)
            if not isinstance(grid, PartitionedGrid):  # a network's clients choose their engine
                started = replace(started, engine=None, not_stacked=None, step_seconds={})
            emit(started)
            sizes = sizes_of(space.experiment, space.data)
            advice = privacy_advice(space.experiment, space.module, sizes)
            for text in (*space.notices, *advice):
                emit(Noticed(text))
            _federate(lambda: _exchange(grid, started, emit, connect, space), space, emit, start)
            if absent := attempts.never_connected():
                emit(Noticed(absent))
            never = attempts.never_succeeded()
            finish("degraded" if never else "completed", never or None)
        except Exception as error:
            ours = isinstance(error, FLSimulationError)
            with undisturbed():
                finish("failed", str(error) if ours else describe_error(error))
            raise
        except BaseException as end:  # Ctrl-C, or a sink that ends the process
            with undisturbed():
                finish("interrupted", str(end) if isinstance(end, Interrupted) else None)
            raise

    return app


def _federate(
    ready: Callable[[], Exchange], space: Workspace, emit: Sink, start: Start | None
) -> None:
    """The run itself, from the strategy to the last evaluation."""
    experiment = space.experiment
    strategy = build_strategy(experiment, evaluate=space.can_evaluate_clients)
    done, resumes = (start.trained, start.resumes) if start is not None else ((), 0)
    sizes = sizes_of(experiment, space.data)
    private = spending_of(experiment, updated(space.module), strategy, done, sizes, resumes)
    if private is not None and (note := private.note):
        emit(Noticed(note))
    arrays = record_of(space.initial_state())
    if start is not None:
        _restore(strategy, start.strategy)
        arrays = _fitting(start, arrays)
        emit(Checkpoint(start.round, arrays, strategy))
    exchange, secure = ready(), experiment.privacy.secure_aggregation

    def judge(number: int, model: ArrayRecord) -> Scores:
        return _judge(number, model, space)

    rounds = Rounds(
        experiment,
        strategy,
        SecureExchange(exchange, experiment, emit) if secure else exchange,
        judge=judge if space.data.dataset.has_test else None,
        emit=emit,
        buffers=_averaged_buffers(space),
        constants=_buffers(space),
        clock=space.clock,
        merge=functools.partial(merged_scores, space.module),
        private=private,
    )
    if start is not None and start.reached:
        ended = Ended(arrays, Replies(start.round, "evaluate"), start.round)
    else:
        ended = rounds.run(arrays, first=start.round + 1 if start else 1)
    if space.can_evaluate_clients:
        evaluate_everyone(exchange, ended, space, emit, rounds.notices)


def _restore(strategy: Strategy, state: Mapping[str, Any]) -> None:
    """Set a strategy's attributes; a checkpoint cannot add any, nor replace functions."""
    own = vars(strategy)
    own.update({name: state[name] for name in own.keys() & state.keys() if not callable(own[name])})


def _fitting(start: Start, arrays: ArrayRecord) -> ArrayRecord:
    """The checkpoint's model in the model's order, on which strategies may rely.

    Raises
    ------
    InputError
        If it is another model's.
    """
    try:
        return model_like(start.arrays, arrays)
    except ClientError as error:
        raise InputError(
            f"the checkpoint of round {start.round} is not of the experiment's model: {error}; "
            f"restore experiment.toml, or start a new run"
        ) from None


def _exchange(
    grid: Grid, started: RunStarted, emit: Sink, connect: Connect | None, space: Workspace
) -> Exchange:
    """The exchange, over a grid with a partition for each node."""
    experiment, engine = started.experiment, (started.engine, started.not_stacked)
    if isinstance(grid, PartitionedGrid):
        emit(ClientsConnected(tuple(grid.partitions.values()), experiment.data.clients))
    elif connect is None:
        raise RunError("the grid does not report which node holds which partition")
    else:
        grid = connect(grid, experiment, emit, space.clock)
    central, held = experiment.privacy.mode == "central", held_by(space.data, grid.examples_of)
    checks = Checks(held, forms_of(space.module), weighs_clients=central)
    agreement = _agreement(space.data.dataset)
    return Exchange(grid, experiment.round.deadline, emit, *engine, space.clock, checks, agreement)


def _agreement(dataset: Dataset) -> str:
    """What sites agreed on, if their data is not here: clients encode it by this."""
    agreed = dataset.agreed if dataset.is_placeholder else None
    return agreed.for_clients() if agreed is not None else ""


def _announcement(space: Workspace, done: int, trains: bool) -> RunStarted:
    data, module = space.data, space.module
    listed = len(data.partitions) <= _LISTED_CLIENTS
    return RunStarted(
        experiment=space.experiment,
        model_arguments=model_arguments(space.experiment.model, data.dataset),
        parameters=sum(p.numel() for p in module.parameters() if p.requires_grad),
        data_digest=data.dataset.digest,
        histogram=data.histogram() if listed else None,
        classes=data.dataset.classes,
        train_examples=data.train_examples,
        test_examples=len(data.dataset.y_test),
        engine=space.engine.name,
        not_stacked=space.engine.why_not,
        step_seconds=dict(space.engine.step_seconds),
        gpu=space.engine.gpu if trains else None,
        done=done,
        task=data.dataset.task,
        notes=(
            *data.dataset.notes,
            *own_notes(space.experiment.train.sites),
            *privacy_notes(space.experiment, module),
            *example_notes(space.experiment, sizes_of(space.experiment, space.data)),
        ),
    )


def _averaged_buffers(space: Workspace) -> frozenset[str]:
    """Arrays of the model that the strategy must not move: buffers, and what is not finite."""
    name, arrays = space.experiment.strategy.name, space.initial_state()
    if name in AVERAGING:
        return frozenset()
    masks = frozenset(not_finite(record_of(arrays)))  # inf - inf is NaN, as a distance too
    return masks | _buffers(space) if name in MOVING_THE_MODEL else masks


def _buffers(space: Workspace) -> frozenset[str]:
    module = space.module
    return frozenset(name for name, _ in module.named_buffers()) & module.state_dict().keys()


def _judge(round: int, arrays: ArrayRecord, space: Workspace) -> Scores:
    """Scores of the global model on the test set."""
    if not space.engine.can_evaluate:
        return {}
    try:
        return space.test_scores(held_state(arrays), round)
    except FLSimulationError as error:
        raise RunError(f"evaluation on the test set failed: {error}") from error
