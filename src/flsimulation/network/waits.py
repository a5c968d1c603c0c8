"""Shorter waits inside Flower, where it has no option for them.

Flower 1.42 is made for rounds of minutes. It sleeps 3 s between two looks of a SuperNode for a
message, 0.5 s between two looks for its own ClientApp's answer, and 1 s and more where a part of a
message is not there yet. Only these waits are changed, nothing of what is done between them;
docs/decisions/0010 has the reasons and the figures, and a test fails if Flower changes them.
"""

from __future__ import annotations

import time

_ANSWER_SECONDS = 0.05  # between two looks for the answer, in this process's own memory
_LEAST_SECONDS = 0.25  # between two looks at the SuperLink right after an answer
_IDLE_SHARE = 0.2  # of the time without a message; an idle client asks less and less often
_PULL_SECONDS = {
    "initial_backoff": 0.05,
    "backoff_cap": 1.0,
}  # before a missing part is asked for again


class Clock:
    """The ``time`` module as the SuperNode's loop uses it: only to sleep."""

    def __init__(self) -> None:
        self._busy = time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Sleep for less than Flower's ``seconds``, never for more."""
        now = time.monotonic()
        if seconds < 1:  # it waits for the ClientApp's answer
            self._busy = now
            time.sleep(min(seconds, _ANSWER_SECONDS))
        else:
            idle = now - self._busy
            time.sleep(min(seconds, max(_LEAST_SECONDS, _IDLE_SHARE * idle)))


def shorten_looks() -> None:
    """Let this process's SuperNode look for messages and answers more often."""
    from flwr.supernode import start_client_internal

    vars(start_client_internal)["time"] = Clock()


def shorten_pulls() -> None:
    """Let this process ask again sooner for the parts of a message that are not there yet."""
    from flwr.supercore.inflatable import inflatable_utils

    for function in (
        inflatable_utils.pull_objects,
        inflatable_utils.pull_and_inflate_object_from_tree,
    ):
        defaults = function.__kwdefaults__ or {}
        function.__kwdefaults__ = {**defaults, **_PULL_SECONDS}
