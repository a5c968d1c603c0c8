"""The start of Flower's actors on Ray. Importing this module requires Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError

from flsimulation.errors import InputError, RunError
from flsimulation.events import ActorsAwaited, Sink
from flsimulation.experiment.spec import Runtime
from flsimulation.internals.ray_actors import client_app_actor, ends_of, is_ray_client, room_for

_LOOK_SECONDS = 2.0  # between two checks of starting actors
_SAID_SECONDS = 20.0  # of their start, before the first event
_ENDS = 3  # of an actor's processes before it has started, after which it is given up


def started(spec: Runtime, most: int, prepare: Callable[[], None], emit: Sink) -> list[Any]:
    """The actors' handles, once all have started; see `actors.actors`."""
    size = {"num_cpus": spec.actor_cpus, "num_gpus": spec.actor_gpus}
    room = room_for(size)
    count = spec.actors or min(room, most)
    if not 0 < count <= room:
        there = ray.cluster_resources()  # type: ignore[no-untyped-call]
        raise InputError(
            f"runtime.actors: {spec.actors or 'not even 1'} of {spec.actor_cpus:g} CPUs and "
            f"{spec.actor_gpus:g} GPUs do not fit, Ray has {there.get('CPU', 0):g} CPUs and "
            f"{there.get('GPU', 0):g} GPUs, room for {room}; lower runtime.actors, "
            f"runtime.actor-cpus or runtime.actor-gpus"
        )
    patience = _patience(spec, count)
    actor = client_app_actor()
    handles = [
        actor.options(**size, max_restarts=-1).remote(on_actor_init_fn=prepare)
        for _ in range(count)
    ]
    _await_start(handles, patience, emit)
    return handles


def _patience(spec: Runtime, count: int) -> float | None:
    """Seconds that the actors may take to start; None, for no limit, if Ray has room for them now.

    A busy machine may start them late. If other programs use Ray's resources, or Ray Client hides
    whether actors fail, the experiment's limit applies.
    """
    free = ray.available_resources()  # type: ignore[no-untyped-call]
    needed = {"CPU": count * spec.actor_cpus, "GPU": count * spec.actor_gpus}
    room = all(free.get(name, 0.0) >= amount - 1e-6 for name, amount in needed.items())
    return None if room and not is_ray_client() else spec.client_wait


def _await_start(handles: list[Any], patience: float | None, emit: Sink) -> None:
    """Wait until all actors have started; emits events if that takes long."""
    ready = [handle.__ray_ready__.remote() for handle in handles]
    limit = float("inf") if patience is None else patience
    began, said, done = time.monotonic(), _SAID_SECONDS, list[Any]()
    while len(done) < len(ready):
        took = time.monotonic() - began
        if took >= limit:
            raise _no_room(len(done), len(ready), limit)
        if took >= said:
            emit(ActorsAwaited(len(done), len(ready), took, patience))
            said = 2 * took
        _look_at(handles)
        wait = min(_LOOK_SECONDS, limit - took)
        done, _ = ray.wait(ready, num_returns=len(ready), timeout=wait)
    try:
        ray.get(ready)
    except RayError as error:
        raise RunError(f"a Ray actor did not start: {line_of(error)}") from None


def _no_room(started: int, count: int, seconds: float) -> InputError:
    return InputError(
        f"runtime.actors: {started} of {count} started within {seconds:g} s, other programs use this Ray's "
        f"CPUs or GPUs; lower runtime.actors, or raise runtime.client-wait"
    )


def _look_at(handles: list[Any]) -> None:
    """Raise `RunError` if an actor's processes end when they start; Ray would restart it forever."""
    if is_ray_client():
        return
    if max(ends_of(handles)) >= _ENDS:
        raise RunError(
            "a Ray actor did not start: its process ended each time, most likely out of "
            "memory; lower runtime.actors, or use less data"
        )


def line_of(error: BaseException) -> str:
    """Ray's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__
