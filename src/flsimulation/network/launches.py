"""Processes that are launched for Flower, and those that a signal ended."""

from __future__ import annotations

import signal
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
    number: int
    """The signal."""
    peak_memory_bytes: int

    @property
    def cause(self) -> str:
        """The signal's name and what it most likely means, as the end of a sentence."""
        name = signal.Signals(self.number).name
        return name + (", most likely for want of memory" if name == "SIGKILL" else "")
