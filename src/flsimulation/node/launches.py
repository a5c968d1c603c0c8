"""Processes that a warm server launched, and those that a signal ended before they could report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Launched(NamedTuple):
    """A process that was launched."""

    command: str
    arguments: tuple[str, ...]
    program: int | None
    """The long-running program of its time."""


@dataclass(frozen=True)
class Killed:
    """A launched process that was killed before it could tell anything."""

    command: str
    arguments: tuple[str, ...]
    end: str
    """How it ended, and why as far as that is known; the end of a sentence."""
    peak_memory_bytes: int
