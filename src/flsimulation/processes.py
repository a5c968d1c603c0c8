"""What forked processes owe the one that forked them."""

from __future__ import annotations

import contextlib
import ctypes
import signal

_PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Let this process be ended when the one that started it is gone, however that ended.

    Parameters
    ----------
    number : Signals
        By which it is ended.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)  # of Linux
