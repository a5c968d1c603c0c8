"""Flower's actors and Ray's printing. Whoever imports this module has Ray installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray.util.client
from flwr.simulation.ray_transport.ray_actor import ClientAppActor, pool_size_from_resources
from ray._private import state, worker

__all__ = ["client_app_actor", "ends_of", "is_ray_client", "room_for", "without_notices"]


def client_app_actor() -> Any:
    """Flower's actor that runs a ClientApp, as Ray's decorator made it: a type checker sees none."""
    return ClientAppActor


def room_for(size: Mapping[str, float]) -> int:
    """How many actors of a size fit into the connected Ray.

    Parameters
    ----------
    size : mapping
        ``num_cpus`` and ``num_gpus`` of each.
    """
    try:
        return pool_size_from_resources(dict(size))
    except ValueError:  # for none
        return 0


def is_ray_client() -> bool:
    """Whether Ray Client stands between this process and Ray's table of actors."""
    return bool(ray.util.client.ray.is_connected())  # type: ignore[no-untyped-call]


def ends_of(actors: Sequence[Any]) -> list[int]:
    """How often each actor's process has ended; not with Ray Client."""
    known = state.actors()
    return [int(known.get(actor._actor_id.hex(), {}).get("NumRestarts", 0)) for actor in actors]


@contextlib.contextmanager
def without_notices() -> Iterator[None]:
    """Let Ray print nothing of its own inside the block.

    It prints that an actor was lost, whatever its option ``log_to_driver`` says.
    """
    before = vars(worker)["print_to_stdstream"]
    vars(worker)["print_to_stdstream"] = lambda *_, **__: None
    try:
        yield
    finally:
        vars(worker)["print_to_stdstream"] = before
