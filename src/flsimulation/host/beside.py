"""Work in a thread beside its caller."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait


class Beside:
    """Does one piece of work at a time in a thread of its own, in the order in which they start."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "beside")
        self._running: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Start ``work`` when the work before it is done. Raises what that raised."""
        self.finish()
        self._running = self._thread.submit(work)

    def finish(self) -> None:
        """Wait for the work in progress, if there is any. Raises what it raised, once."""
        if (running := self._running) is not None:
            wait([running])  # a Ctrl-C meanwhile leaves it for the next call
            self._running = None
            running.result()
