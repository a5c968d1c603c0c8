"""Who a node's client is: what it reports about itself, under the name that belongs to its key."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

from flsimulation.node.assignment import Identity

Names: TypeAlias = Callable[[], Mapping[int, str]]
"""Returns the name of each admitted node, by node."""


def identified(reported: Identity, node: int, names: Names | None) -> Identity | None:
    """The identity of a node; None if the node is not admitted any more.

    Parameters
    ----------
    reported : Identity
        What the node replied to a query.
    node : int
        The node that the query was sent to.
    names : callable, optional
        Whose names count instead of the reported ones.
    """
    if names is None:
        return reported
    name = names().get(node)
    if name is None:
        return None
    if name != reported.name:
        text = f"flsim: client {name} reports the name {reported.name}; its key's name counts"
        print(text, file=sys.stderr, flush=True)
    return replace(reported, name=name)
