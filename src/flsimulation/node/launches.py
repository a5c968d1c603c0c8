"""Processes that a warm server launched, and those that were killed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Launched(NamedTuple):
    """A process that was launched."""

    command: str
    arguments: tuple[str, ...]
    program: int | None
    """Process id of the long-running program that it was launched for."""


@dataclass(frozen=True)
class Killed:
    """A launched process that was killed before it could report anything."""

    command: str
    arguments: tuple[str, ...]
    end: str
    """How it ended, and why if known; the end of a sentence."""
    peak_memory_bytes: int
