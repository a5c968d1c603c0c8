"""Every error that FLSimulation raises on purpose.

    FLSimulationError
    ├── InputError          the user's input cannot be used       (exit status 2)
    │   ├── ExperimentError     a key or value of the experiment
    │   ├── DataError           a data set that cannot be read or partitioned
    │   └── ModelError          a model that cannot be loaded or built
    └── RunError            the federation could not continue     (exit status 1)
        ├── ClientError         one client's own failure
        └── RoundError          a round without enough results

Each message is one line: what is wrong, the value that was given, and the remedy.
"""

from __future__ import annotations

import re
import traceback
from pathlib import Path


class Interrupted(KeyboardInterrupt):
    """The run is to end now, as on Ctrl-C; the message says what ended it."""


class FLSimulationError(Exception):
    """Base of all errors raised on purpose."""


class InputError(FLSimulationError):
    """The user's input cannot be used."""


class ExperimentError(InputError):
    """A key or a value of the experiment is wrong."""


class DataError(InputError):
    """A data set cannot be read, or not partitioned as requested."""


class ModelError(InputError):
    """A model cannot be loaded, or cannot be built from its arguments."""


class RunError(FLSimulationError):
    """The federation could not continue."""


class ClientError(RunError):
    """One client could not finish its part.

    Parameters
    ----------
    reason : str
        One of ``FAILURE_REASONS``; the label under which the failure is counted.
    message : str
        One line for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[ClientError], tuple[str, str]]:
        return type(self), (self.reason, str(self))


class RoundError(RunError):
    """A round ended with fewer results than the experiment requires."""


FAILURE_REASONS = ("error", "diverged", "deadline", "lost", "rejected")
"""Why a client's part is missing from a round.

``error``: its code raised. ``diverged``: its loss or weights are not finite. ``deadline``: it
was not done in time. ``lost``: no reply arrived, or the runtime could not deliver the message.
``rejected``: its reply is not what was requested, and was not used.
"""
_LONGEST = 2000  # characters of a text that a client sent


def kind_of(text: str) -> str:
    """A failure's text without its numbers: those of several clients with one cause are equal."""
    return re.sub(r"\b(\d[\d.,]*(e[+-]?\d+)?|nan|inf)\b", "#", text)


def printable(text: str) -> str:
    """The text without characters that change a terminal or a log; line feeds stay."""
    if text.isprintable():
        return text
    kept = (c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return "".join(kept)


def one_line(text: object, longest: int = _LONGEST) -> str:
    """A text that others wrote, safe to print: one line, no control characters, not too long."""
    line = printable(" ".join(str(text)[: 2 * longest].split()))
    return line if len(line) <= longest else f"{line[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"


def describe_error(error: BaseException) -> str:
    """An exception of a user's code in one line: ``ValueError: boom (model.py:12)``.

    The place is the deepest line outside installed packages, where there is one.
    """
    text = " ".join(str(error).split())
    described = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return described + place_of(error)


def place_of(error: BaseException) -> str:
    """`` (model.py:12)``: the deepest line of an exception outside installed packages, if any."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and f.filename[:1] != "<"]
    own = [f for f in own if Path(__file__).parent not in Path(f.filename).parents]
    if own and not isinstance(error, FLSimulationError):
        return f" ({Path(own[-1].filename).name}:{own[-1].lineno})"
    return ""
