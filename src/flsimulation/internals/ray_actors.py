"""Flower's actors and Ray's messages. Importing this module requires Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray.util.client
from flwr.simulation.ray_transport.ray_actor import ClientAppActor, pool_size_from_resources
from ray._private import state, worker

__all__ = ["client_app_actor", "ends_of", "is_ray_client", "room_for", "without_notices"]


def client_app_actor() -> Any:
    """Flower's actor class that runs a ClientApp, with Ray's decorator, which has no types."""
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
    except ValueError:  # raised if none fits
        return 0


def is_ray_client() -> bool:
    """Whether this process uses Ray Client, which has no access to Ray's table of actors."""
    return bool(ray.util.client.ray.is_connected())  # type: ignore[no-untyped-call]


def ends_of(actors: Sequence[Any]) -> list[int]:
    """How often each actor's process has ended; not available with Ray Client."""
    known = state.actors()
    return [int(known.get(actor._actor_id.hex(), {}).get("NumRestarts", 0)) for actor in actors]


@contextlib.contextmanager
def without_notices() -> Iterator[None]:
    """Suppress Ray's own messages inside the block.

    It prints that an actor was lost even if its option ``log_to_driver`` is off.
    """
    before = vars(worker)["print_to_stdstream"]
    vars(worker)["print_to_stdstream"] = lambda *_, **__: None
    try:
        yield
    finally:
        vars(worker)["print_to_stdstream"] = before
