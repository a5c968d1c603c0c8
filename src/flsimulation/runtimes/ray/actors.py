"""Ray, and Flower's actors on it. Importing this module requires Ray."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc
import ray
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from flsimulation.clock import SYSTEM, Clock
from flsimulation.errors import ClientError, InputError, RunError, describe_error
from flsimulation.events import Sink
from flsimulation.experiment.spec import Runtime
from flsimulation.experiment.strategy import quiet_flower
from flsimulation.internals.ray_actors import without_notices
from flsimulation.runtimes.ray.starting import line_of, started

_CONNECT_SECONDS = 5.0
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}


class Actors:
    """Flower's actors: which are idle, and the tasks of the others.

    Ray restarts an actor whose process or machine is lost, if it has room.

    Parameters
    ----------
    handles : list
        The actors.
    patience : float
        Seconds to wait for any of them when all are lost.
    clock : Clock
        What time it is.
    """

    def __init__(self, handles: list[Any], patience: float, clock: Clock = SYSTEM) -> None:
        self._idle = deque(handles)
        self._running: dict[Any, tuple[Any, Any]] = {}
        self._returning: dict[Any, Any] = {}
        self._patience, self._clock = patience, clock
        self._lost = 0.0

    @property
    def count(self) -> int:
        """Number of available actors."""
        return len(self._idle) + len(self._running)

    @property
    def are_gone(self) -> bool:
        """Whether all are lost and none was restarted in time."""
        waited = self._clock.monotonic() - self._lost
        return not self.count and (not self._returning or waited > self._patience)

    def put(self, record: ArrayRecord) -> Any:
        """Store a model in Ray for several actors; each machine receives it once."""
        return ray.put(record)

    def begin(
        self,
        app: Callable[[], ClientApp],
        models: Mapping[str, Any],
        message: Message,
        context: Context,
        task: Any,
    ) -> bool:
        """Send a message to an idle actor; False if there is none.

        Parameters
        ----------
        app : callable
            Returns the ClientApp; a function of a module that the actor can import.
        models : mapping
            Results of `put` for the message's models, by the name of the record.
        message, context
            Arguments of the ClientApp; the message without the models.
        task : object
            Returned together with the reply.
        """
        if not self._idle:
            return False
        actor = self._idle.popleft()
        answering = functools.partial(_with_models, app, dict(models))
        self._running[actor.run.remote(answering, message, "", context)] = actor, task
        return True

    def finished(self, seconds: float) -> list[tuple[Any, Message | ClientError]]:
        """Tasks with their replies; waits up to ``seconds`` for the first."""
        waiting = [*self._running, *self._returning]
        if not waiting:
            return []
        if not ray.wait(waiting, timeout=seconds)[0]:
            return []
        done, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        found = []
        for reference in done:
            if reference in self._returning:
                self._welcome(reference)
                continue
            actor, task = self._running.pop(reference)
            found.append((task, self._answer(reference, actor)))
        return found

    def _answer(self, reference: Any, actor: Any) -> Message | ClientError:
        try:
            _, answer, _ = ray.get(reference)
        except RayTaskError as error:
            self._idle.append(actor)
            return ClientError("error", describe_error(error.cause))
        except RayError:
            self._await(actor)
            self._lost = self._clock.monotonic()
            return ClientError("lost", "its Ray actor, or the actor's machine, was lost")
        self._idle.append(actor)
        assert isinstance(answer, Message)  # noqa: S101 - the ClientApp returned it
        return answer

    def _await(self, actor: Any) -> None:
        self._returning[actor.__ray_ready__.remote()] = actor

    def _welcome(self, reference: Any) -> None:
        """Add a restarted actor to the idle ones, unless it was lost permanently."""
        actor = self._returning.pop(reference)
        try:
            ray.get(reference)
        except ActorUnavailableError:  # not yet
            self._await(actor)
        except RayError:
            pass
        else:
            self._idle.append(actor)


def _with_models(
    app: Callable[[], ClientApp], models: Mapping[str, Any]
) -> Callable[[Message, Context], Message]:
    """A ClientApp for messages whose models are stored in Ray; called by the actor."""

    def answer(message: Message, context: Context) -> Message:
        found = {name: ray.get(model) for name, model in models.items()}
        message.content = RecordDict({**message.content, **found})
        return app()(message, context)

    return answer


@contextlib.contextmanager
def actors(
    spec: Runtime, most: int, prepare: Callable[[], None], emit: Sink = lambda _: None
) -> Iterator[Actors]:
    """Flower's actors on Ray; if Ray was started for them, it ends with the block.

    Parameters
    ----------
    spec : Runtime
        Address of Ray, and number and size of actors.
    most : int
        Most actors that are useful.
    prepare : callable
        Called by every actor when it starts.
    emit : callable, optional
        Notified if the start takes long.

    Raises
    ------
    InputError
        If no Ray answers, or it has no room.
    RunError
        If an actor does not start.
    """
    with connected(spec.ray_address), quiet_flower():
        yield Actors(started(spec, most, prepare, emit), spec.return_wait)


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect this process to the Ray at the address, unless it is connected already."""
    if ray.is_initialized():
        yield
        return
    if ":" in address:
        _require_listener(address)
    try:
        with _quiet():
            _connect(address)
        with without_notices():  # the loss of an actor is reported as an event
            yield
    finally:
        with _quiet():
            ray.shutdown()


def _connect(address: str) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if not address:
        options["include_dashboard"] = False
    try:
        ray.init(address=address or "local", **options)
    except SystemExit:  # on SIGTERM, which Ray handles during its start
        raise KeyboardInterrupt from None
    except Exception as error:
        if not address:
            raise RunError(f"Ray did not start here: {line_of(error)}") from None
        raise InputError(
            f"runtime.ray-address {address!r}: {line_of(error)}; set it to a running Ray, or leave it "
            f"empty for one on this machine"
        ) from None


def _require_listener(address: str) -> None:
    """Raise `InputError` if nothing listens there; Ray itself would try for minutes."""
    target = address.removeprefix("ray://")
    with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            raise InputError(
                f"runtime.ray-address {address!r}: no Ray answers there; start one with "
                f"`ray start --head`, or leave it empty for one on this machine"
            ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress Ray's output, and keep this process's handler of SIGTERM."""
    before = {name: os.environ.get(name) for name in _QUIET}
    handler = signal.getsignal(signal.SIGTERM)
    os.environ.update(_QUIET)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
