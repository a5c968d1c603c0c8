"""Seconds of a round's phases."""

from __future__ import annotations

from dataclasses import dataclass, field

from flsimulation.clock import Clock


@dataclass
class Laps:
    """Seconds of a round's phases."""

    clock: Clock
    began: float = field(init=False)
    laps: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.began = self.clock.monotonic()

    def lap(self, phase: str) -> None:
        """Assign the time since the last lap to ``phase``."""
        self.laps[phase] = self.clock.monotonic() - self.began - sum(self.laps.values())

    def seconds(self) -> dict[str, float]:
        """All laps, and the total."""
        return {"total": sum(self.laps.values()), **self.laps}
