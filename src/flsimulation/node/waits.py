"""Shorter waits inside Flower, where it has no option for them.

Flower 1.42 is made for rounds of minutes. A SuperNode sleeps 3 s between two requests for a message,
0.5 s between two checks for its own ClientApp's reply, and 1 s or more if a part of a message is not
available yet; its SuperExec requests work at a fixed rate, whether there is any or not. Only these
waits are changed, not what is done between them; docs/decisions/0010 has the reasons and the
figures, and a test fails if Flower changes them.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

from flsimulation.internals.flower_processes import (
    set_pull_waits,
    set_superexec_clock,
    set_supernode_clock,
)

_REPLY_SECONDS = 0.05  # between two checks for the reply, in this process's own memory
_LEAST_SECONDS = 0.4  # between two requests to the SuperLink right after a reply
_IDLE_SHARE = 0.3  # of the time without a message: an idle client requests less and less often
_WORK_SECONDS = 5.0  # between two requests for work that no bell announced
_PULL_SECONDS = {  # before a missing part is requested again
    "initial_backoff": 0.05,
    "backoff_cap": 1.0,
}


class Bell:
    """Wakes one process of this machine from another; created before they are forked."""

    def __init__(self) -> None:
        self._listen, self._ring = os.pipe()
        os.set_blocking(self._listen, False)
        os.set_blocking(self._ring, False)

    def ring(self) -> None:
        """Wake a waiting process; has no effect if the bell is already rung and not yet heard."""
        try:
            os.write(self._ring, b"\n")
        except BlockingIOError:
            return

    def wait(self, seconds: float) -> bool:
        """Wait for the bell; False if it was not rung in time."""
        if not select.select([self._listen], [], [], seconds)[0]:
            return False
        try:
            os.read(self._listen, 65536)
        except BlockingIOError:  # another process of this machine heard it first
            return False
        return True


class NodeClock:
    """The ``time`` module as the SuperNode's loop uses it: only to sleep.

    Parameters
    ----------
    bell : Bell
        Rung when a message has come.
    look : callable
        Called while the reply is awaited.
    """

    def __init__(self, bell: Bell, look: Callable[[], None] = lambda: None) -> None:
        self._bell = bell
        self._look = look
        self._working = False
        self._busy = time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Sleep for less than Flower's ``seconds``, never for more."""
        now = time.monotonic()
        if seconds < 1:  # a message has come, and the SuperNode waits for the ClientApp's reply
            if not self._working:
                self._bell.ring()
            self._working, self._busy = True, now
            self._look()
            time.sleep(min(seconds, _REPLY_SECONDS))
        else:
            self._working = False
            idle = now - self._busy
            time.sleep(min(seconds, max(_LEAST_SECONDS, _IDLE_SHARE * idle)))


class ExecClock:
    """The ``time`` module as the SuperExec's loop uses it: only to sleep.

    Parameters
    ----------
    bell : Bell
        Rung when there is work.
    """

    def __init__(self, bell: Bell) -> None:
        self._bell = bell

    def sleep(self, seconds: float) -> None:  # noqa: ARG002 - the bell decides
        """Sleep until the bell rings, for some seconds at most."""
        self._bell.wait(_WORK_SECONDS)


def shorten_looks(look: Callable[[], None] = lambda: None) -> None:
    """Make the SuperNode that is forked from this process check more often, its SuperExec less.

    Parameters
    ----------
    look : callable
        Called by the SuperNode while it waits for its ClientApp's reply.
    """
    bell = Bell()
    set_supernode_clock(NodeClock(bell, look))
    set_superexec_clock(ExecClock(bell))


def shorten_pulls() -> None:
    """Make this process request parts of a message that are not available yet again sooner."""
    set_pull_waits(_PULL_SECONDS)
