"""Warnings of libraries during a run: each text once, with the client whose training raised it.

Python prints a warning where it is raised: in the middle of a table, in each of several processes,
and from a logger thousands of times. Inside `collected` they are kept for the end of the run.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

_MOST = 20  # texts that are kept
_LONGEST = 400  # characters of a text
_MESSENGERS = {"warnings", "lightning_utilities", "contextlib", __name__}
"""Modules that only pass a library's warning on."""
_LIBRARIES = (
    *("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"),
    *("torch", "torchmetrics", "flwr"),
)

_client: ContextVar[int | None] = ContextVar("client", default=None)


class Warned(NamedTuple):
    """One warning."""

    client: int | None
    """The client whose code raised it first, -1 for the test set; None if not known."""
    text: str
    """``UserWarning from torchmetrics: ...``, one line."""

    @property
    def line(self) -> str:
        """One line for people."""
        if self.client is None:
            return self.text
        return f"{f'client {self.client}' if self.client >= 0 else 'test set'}: {self.text}"


class Warnings:
    """Warnings of a run so far."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._found: list[Warned] = []
        self.left_out = 0
        """Different texts that were not kept."""

    @property
    def lines(self) -> list[str]:
        """One line for each text."""
        more = [f"and {self.left_out:,} more"] * (self.left_out > 0)
        return [*(warned.line for warned in self._found), *more]

    def add(self, warned: Warned) -> bool:
        """Keep a warning if its text is new; texts that differ in numbers only are one."""
        key = re.sub(r"[\d.]+", "0", warned.text)
        if key in self._known:
            return False
        self._known.add(key)
        if len(self._known) > _MOST:
            self.left_out += 1
            return False
        self._found.append(warned)
        return True

    def take(self) -> list[Warned]:
        """The warnings since the last call, for another process; they stay known."""
        found, self._found = self._found, []
        return found


class _Handler(logging.Handler):
    """Keeps what a logger would print."""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        if _active is not None:
            level, text = record.levelname.capitalize(), record.getMessage()
            _active.add(_warned(f"{level} from the logger {record.name}: {text}"))


_active: Warnings | None = None
_printed = Warnings()  # of other processes, where none are collected
_is_sent = False  # whether another process receives this one's warnings
_swapped: list[tuple[logging.Logger, list[logging.Handler]]] = []


@contextlib.contextmanager
def collected() -> Iterator[Warnings]:
    """Keep the warnings that are raised or logged in the block, also by processes that it forks.

    Loggers with a handler of the user's own, and warnings that Python's filters ignore or raise,
    are left as they are.
    """
    global _active
    found = Warnings()
    before = _active, warnings.showwarning, logging.lastResort
    _collect(found)
    try:
        yield found
    finally:
        _active, warnings.showwarning, logging.lastResort = before
        while _swapped:
            logger, handlers = _swapped.pop()
            logger.handlers[:] = handlers


@contextlib.contextmanager
def of_client(partition: int) -> Iterator[None]:
    """Name the client in the warnings of the block.

    Parameters
    ----------
    partition : int
        The client's partition; -1 for the test set.
    """
    token = _client.set(partition)
    try:
        yield
    finally:
        _client.reset(token)


def redirect_loggers() -> None:
    """Keep also what the libraries' own handlers would print, if warnings are collected."""
    if _active is None or _swapped:
        return
    for logger in map(logging.getLogger, _LIBRARIES):
        _swapped.append((logger, logger.handlers[:]))
        if any(type(handler) is logging.StreamHandler for handler in logger.handlers):
            logger.handlers[:] = [_Handler(logging.WARNING)]


def begin_sending() -> None:
    """Collect the warnings of this process for another one, which receives them with results."""
    global _is_sent
    _is_sent = True
    _collect(Warnings())


def taken() -> list[Warned]:
    """The warnings since the last call, in a process that sends them; none in any other."""
    return _active.take() if _is_sent and _active is not None else []


def pass_on(found: Iterable[Warned]) -> None:
    """Keep another process's warnings, or print those that were not printed before."""
    for warned in found:
        if _active is not None:
            _active.add(warned)
        elif _printed.add(warned):
            warnings.warn_explicit(warned.line, UserWarning, "flsimulation", 0, registry=_registry)


_registry: dict[Any, Any] = {}


def _collect(found: Warnings) -> None:
    global _active
    _active, warnings.showwarning = found, _show
    logging.lastResort = _Handler(logging.WARNING)


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: str | None = None,
) -> None:
    """Take the place of Python's own function, which prints."""
    del file, line
    if _active is not None:
        place = _place(sys._getframe(1), filename, lineno)
        _active.add(_warned(f"{category.__name__} {place}: {message}"))


def _place(frame: FrameType | None, filename: str, lineno: int) -> str:
    """The library that raised a warning, which is often not the place that it names."""
    while frame is not None and _package(frame) in _MESSENGERS:
        frame = frame.f_back
    if frame is not None:
        filename, lineno = frame.f_code.co_filename, frame.f_lineno
        if "site-packages" in filename:
            return f"from {_package(frame)}"
    return f"in {Path(filename).name}:{lineno}"


def _package(frame: FrameType) -> str:
    name = str(frame.f_globals.get("__name__", ""))
    return name if name in _MESSENGERS else name.partition(".")[0]


def _warned(text: str) -> Warned:
    text = " ".join(text.split())
    return Warned(
        _client.get(), text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1].rstrip()}…"
    )
