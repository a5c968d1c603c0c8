"""A process that a signal ended before it could tell anything."""

from __future__ import annotations

import signal
from dataclasses import dataclass


@dataclass(frozen=True)
class Killed:
    """A launched process that was killed."""

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
