"""Says once for each score why it is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping

from flsimulation.events import Noticed, Scores, Sink
from flsimulation.server.replies import Replies
from flsimulation.training.measured import Measured, Value


class Notices:
    """The lines about scores that a run has emitted.

    Parameters
    ----------
    emit : callable
        Called with each `Noticed`.
    """

    def __init__(self, emit: Sink) -> None:
        self._emit = emit
        self._said: set[tuple[str, str]] = set()

    def left_out(self, replies: Replies, merged: Mapping[str, Value] | None = None) -> None:
        """Name the scores that some clients or all of them lack.

        Parameters
        ----------
        replies : Replies
            All outcomes of a phase.
        merged : mapping, optional
            Values over all clients' examples.
        """
        _, others = replies.names()
        nowhere = [name for own in replies.left_out.values() for name in own]
        for name in dict.fromkeys([*others, *nowhere]):
            if self._is_new("client", name):
                self._emit(Noticed(_lacking(name, replies)))
        for name, value in (merged or {}).items():
            if math.isnan(value.number) and self._is_new("all", name):
                why = f"({value.why_not})"
                self._emit(Noticed(f"{name} is not defined over all clients' examples {why}"))

    def central(self, scores: Scores) -> Scores:
        """The scores on the test set, without those that are not defined, which are named."""
        if not any(map(math.isnan, scores.values())):
            return scores
        why = scores.why_not if isinstance(scores, Measured) else {}
        for name, value in scores.items():
            if math.isnan(value) and self._is_new("test", name):
                reason = why.get(name, "NaN")
                self._emit(Noticed(f"{name} is not defined on the test set ({reason}); left out"))
        return {name: value for name, value in scores.items() if not math.isnan(value)}

    def loss(self, scores: Scores | None) -> None:
        """Say that there is no loss, if there are other scores."""
        if not scores or "loss" in scores or not self._is_new("loss", ""):
            return
        self._emit(
            Noticed(
                f"the module logs {_listed(list(scores))}, not a loss, and validation_step returns "
                f"none: the column of the loss stays empty; all scores are in rounds.jsonl"
            )
        )

    def _is_new(self, kind: str, name: str) -> bool:
        new = (kind, name) not in self._said
        self._said.add((kind, name))
        return new


def _lacking(name: str, replies: Replies) -> str:
    """The line on a score that clients lack."""
    lacking = [p for p, own in sorted(replies.metrics.items()) if name not in own]
    first, more = lacking[0], len(lacking) - 1
    why = replies.left_out.get(first, {}).get(name, "")
    if not why:
        no_examples = not replies.metrics[first].get("num-examples")
        why = "it has no examples" if no_examples else "the module did not log it there"
    others = f" and {more} more client{'s'[: more > 1]}" if more else ""
    return f"{name} is not defined for client {first} ({why}){others}; left out there"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
