"""The table of a run on the console: which metrics have columns, and how numbers are written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from flsimulation.events import BOOKKEEPING, RoundFinished, Scores, main_metrics

_USUAL = ("loss", "accuracy")
_DIGITS = 4  # after the point
_SMALLEST = 1e-3  # below it, four decimals would lose most digits
_LARGE, _LARGEST = 1e4, 1e7  # prices, whose fractions say nothing
_NARROW = 10  # characters of a column of numbers, at least, with the space before it


def number(value: float, width: int = 12) -> str:
    """A metric with four decimals, one from 10,000 on, or in scientific form.

    Parameters
    ----------
    value : float
        Any number: ``18033.25`` is ``18033.2``, ``91034512345.6`` is ``9.1035e10``, ``0.0000001``
        is ``1.0000e-7``.
    width : int
        The text has fewer characters, so that there is a space before it.
    """
    text = f"{value:.{1 if _LARGE <= abs(value) < _LARGEST else _DIGITS}f}"
    if (value == 0 or not abs(value) < _SMALLEST) and len(text) < width:  # NaN too
        return text
    forms = (_scientific(value, digits) for digits in range(_DIGITS, -1, -1))
    return next((form for form in forms if len(form) < width), _scientific(value, 0))


def _scientific(value: float, digits: int) -> str:
    mantissa, _, exponent = f"{value:.{digits}e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def seconds(value: float, width: int) -> str:
    """Seconds with as many decimals, two at most, as have room."""
    forms = [f"{value:.{digits}f}" for digits in (2, 1, 0)]
    return next((form for form in forms if len(form) < width), number(value, width))


def in_words(scores: Mapping[str, float], names: Iterable[str]) -> list[str]:
    """``accuracy 0.8750`` for each of the names that have a value; the accuracy first."""
    ordered = sorted(names, key=lambda name: name != "accuracy")
    return [f"{name} {number(scores[name])}" for name in ordered if name in scores]


def spread_in_words(name: str, values: Sequence[float]) -> str:
    """How a metric differs between clients; of an accuracy, the lowest is the worst."""
    mean = sum(values) / len(values)  # unlike `statistics`, also of infinite values
    deviation = math.sqrt(sum((value - mean) * (value - mean) for value in values) / len(values))
    low, high = number(min(values)), number(max(values))
    ends = f"lowest {low}" if name == "accuracy" else f"{low} to {high}"
    return f"clients' {name} {number(mean)} ± {number(deviation)}, {ends}"


class Columns:
    """The columns of a run's table.

    Parameters
    ----------
    rounds : int
        Rounds of the run.
    chosen : sequence of str
        Metrics to show, as the user named them; empty for loss and accuracy, or what the model
        logs instead.
    has_test : bool
        Whether there is a test set; without one it has no columns.
    is_private : bool
        Whether rounds have an epsilon.
    """

    def __init__(
        self,
        rounds: int,
        chosen: Sequence[str] = (),
        *,
        has_test: bool = True,
        is_private: bool = False,
    ) -> None:
        self._rounds, self._chosen, self._has_test = rounds, tuple(chosen), has_test
        self._is_private = is_private
        self.names: tuple[str, ...] = self._chosen or _USUAL
        self._known: tuple[str, ...] | None = None  # metrics of the first model that was evaluated

    def learn(self, scores: Mapping[str, float]) -> str | None:
        """Decide on the columns by the first scores; a line for people if a chosen one is missing.

        Parameters
        ----------
        scores : mapping
            Of the test set and of the clients; empty if the model was not evaluated.
        """
        if self._known is not None or not scores:
            return None
        self._known = tuple(name for name in scores if name not in BOOKKEEPING)
        if not self._chosen:
            self.names = main_metrics(scores)
            return None
        self.names = tuple(dict.fromkeys(_as_logged(n, self._known) for n in self._chosen))
        missing = [name for name in self.names if name not in self._known]
        if not missing:
            return None
        known = ", ".join(self._known)
        return f"--columns {', '.join(missing)}: the model logs no such metric; it logs {known}"

    @property
    def spread(self) -> tuple[str, ...]:
        """The metrics whose spread over clients is summarized."""
        return self.names if self._chosen else self.names[-1:]

    @property
    def header(self) -> str:
        """The names of the columns."""
        return self._row(self._titles)

    def row(self, event: RoundFinished) -> str:
        """A round's line, aligned with `header`."""
        failed = sum(event.failures.values())
        widths = self._widths
        sources = [event.central, event.federated] if self._has_test else [event.federated]
        cells, count = list[str](), len(self.names)
        for place, scores in enumerate(sources):
            cells += self._scores(scores, widths[1 + place * count :])
        if self._is_private:
            cells.append(number((event.privacy or {}).get("epsilon", math.inf), _NARROW))
        turn, time = f"{event.round}/{self._rounds}", seconds(event.seconds["total"], widths[-2])
        return self._row([turn, *cells, time, str(failed) if failed else "-"])

    @property
    def _titles(self) -> list[str]:
        first, *others = self.names
        tested = [f"test {first}", *others] if self._has_test else []
        metrics = [*tested, f"clients' {first}", *others]
        return ["round", *metrics, *["epsilon"][: self._is_private], "seconds", "failed"]

    @property
    def _widths(self) -> list[int]:
        place = max(9, len(f"{self._rounds}/{self._rounds}"))
        metrics = (max(_NARROW, len(title) + 2) for title in self._titles[1:-2])
        return [place, *metrics, 9, 8]

    def _scores(self, scores: Scores | None, widths: Sequence[int]) -> list[str]:
        found = scores or {}
        return [
            number(found[name], width) if name in found else "-"
            for name, width in zip(self.names, widths, strict=False)
        ]

    def _row(self, cells: Sequence[str]) -> str:
        return "".join(cell.rjust(n) for cell, n in zip(cells, self._widths, strict=True))


def _as_logged(name: str, known: Sequence[str]) -> str:
    """The name under which runs have a metric: ``val_acc`` is their ``accuracy``."""
    if name in known:
        return name
    from flsimulation.training.scores import scores

    (standard,) = scores({name: 0.0})
    return standard if standard in known else name
