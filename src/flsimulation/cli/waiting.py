"""Lines on the console while a run is being prepared and nothing else happens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

_FIRST_SECONDS = 20.0
_DOING = {
    "inprocess": "loading data and model",
    "ray": "starting Ray's actors, loading data and model",
    "network": "waiting for the run to start",
}


class Waiting:
    """Prints after 20, 40, 80, ... seconds what takes so long, until it is stopped.

    Parameters
    ----------
    say : callable
        Prints a line; called from another thread.
    runtime : str
        ``runtime.kind`` of the experiment.
    over : Event, optional
        Set by `stop`; its ``wait`` is the clock.
    """

    def __init__(
        self, say: Callable[[str], None], runtime: str, over: threading.Event | None = None
    ) -> None:
        self._say, self._doing = say, _DOING[runtime]
        self._over = over or threading.Event()

    def start(self) -> None:
        """Begin to wait."""
        threading.Thread(target=self._wait, daemon=True).start()

    def stop(self) -> None:
        """Print nothing any more."""
        self._over.set()

    def _wait(self) -> None:
        for so_far, pause in _pauses():
            if self._over.wait(pause):
                return
            self._say(f"  {self._doing}, {so_far:.0f} s so far")


def _pauses() -> Iterator[tuple[float, float]]:
    """Seconds after each pause, and the pause's own."""
    so_far = pause = _FIRST_SECONDS
    while True:
        yield so_far, pause
        so_far, pause = 2 * so_far, so_far
