"""What clients sent, checked before it is used.

A client may be faulty or hostile: it may send other arrays than those of the model, numbers that are
not finite, texts that change a terminal. Each function here returns only what is safe to use, or
raises `ClientError` with the reason ``rejected``.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, Message

from flsimulation.errors import FAILURE_REASONS, ClientError, describe_error, one_line
from flsimulation.events import BOOKKEEPING, RESERVED
from flsimulation.host.warned import Warned
from flsimulation.internals.flower_messages import NUMPY
from flsimulation.messages.arrays import HeldArray, joined
from flsimulation.messages.batch import Outcome, Reply
from flsimulation.messages.codec import reply_of
from flsimulation.messages.weights import first_diverged

MOST_METRICS = 1000
"""Per client and phase."""
_LONGEST_NAME = 200  # characters of a metric's name
_HEADER_BYTES = 10_000  # of an array, at most: NumPy reads no longer ones
_TAKEN = RESERVED - BOOKKEEPING  # names in a line of clients.jsonl that are no metrics
NUMBERS = "biufc"
"""Kinds of NumPy's types that are numbers."""


def rejected(what: str) -> ClientError:
    """The failure of a client whose reply was not used; ``what`` says what is wrong with it."""
    return ClientError("rejected", what)


def read_reply(message: Message) -> Reply | ClientError:
    """The reply in a message, its texts safe to print; an error if it cannot be read.

    Parameters
    ----------
    message : Message
        From a client, made by `messages.codec.reply_to` or by anything else.
    """
    try:
        reply = reply_of(message)
        if isinstance(reply, ClientError):
            return _told(reply)
        return replace(
            reply,
            outcomes=[_readable(outcome) for outcome in reply.outcomes],
            engine=None if reply.engine is None else one_line(reply.engine, _LONGEST_NAME),
            why_not=None if reply.why_not is None else one_line(reply.why_not),
            warned=[Warned(_client(c), one_line(text)) for c, text in reply.warned],
        )
    except Exception as error:  # whatever a decoder raises for what is no reply
        return rejected(f"its reply cannot be read: {one_line(describe_error(error))}")


def _readable(outcome: Outcome) -> Outcome:
    _client(outcome.partition)
    if outcome.error is None and not outcome.left_out:
        return outcome
    error = None if outcome.error is None else _told(outcome.error)
    left_out = {name_of(name): one_line(why) for name, why in outcome.left_out.items()}
    return outcome._replace(error=error, left_out=left_out)


def _told(error: ClientError) -> ClientError:
    """A failure that a client reports: its reason becomes a label, its text is printed."""
    if error.reason not in FAILURE_REASONS:
        return rejected(f"its failure has an unknown reason: {one_line(repr(error.reason), 60)}")
    text = str(error)
    safe = one_line(text)
    return error if safe == text else ClientError(error.reason, safe)


def _client(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"a client's number is {type(value).__name__}")
    return value


def name_of(name: object) -> str:
    """A metric's name. Raises `ClientError` for one that must not be stored or printed."""
    if not isinstance(name, str) or not name or len(name) > _LONGEST_NAME:
        raise rejected(f"a metric's name is {one_line(repr(name), 60)}")
    if not name.isprintable():
        raise rejected(f"a metric's name has control characters: {one_line(repr(name), 60)}")
    if name in _TAKEN:
        raise rejected(f"a metric has the reserved name {name!r}")
    return name


def checked_metrics(metrics: Mapping[str, object], held: int | None) -> dict[str, float]:
    """A client's metrics: named numbers, finite, of no more examples than it holds.

    Parameters
    ----------
    metrics : mapping
        As received.
    held : int, optional
        Examples that the client holds for its task; None if that is not known here.

    Raises
    ------
    ClientError
        If they are anything else.
    """
    if len(metrics) > MOST_METRICS:
        raise rejected(f"it sent {len(metrics):,} metrics, {MOST_METRICS:,} are the most")
    found = {name_of(name): _finite(name, value) for name, value in metrics.items()}
    for name in BOOKKEEPING & found.keys():
        if found[name] < 0:
            raise rejected(f"{name} is negative: {found[name]:g}")
    _check_examples(found.get("num-examples"), held)
    return found


def check_trained(metrics: Mapping[str, float]) -> None:
    """Refuse a training on nothing: strategies divide by the number of examples."""
    if metrics["num-examples"] <= 0:
        raise rejected("it trained on no example (num-examples is 0)")


def _finite(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise rejected(f"{name} is no number, but {type(value).__name__}")
    try:
        if math.isfinite(value):
            return cast(float, value)
    except (OverflowError, TypeError):  # a whole number beyond float's range, a complex one
        raise rejected(f"{name} is beyond the range of numbers") from None
    raise rejected(f"{name} is not finite: {value}")


def _check_examples(examples: float | None, held: int | None) -> None:
    if examples is None:
        raise rejected("it did not say how many examples it has (num-examples)")
    if examples != int(examples):
        raise rejected(f"num-examples is no whole number: {examples}")
    if held is not None and examples > held:
        raise rejected(f"it claims {int(examples):,} examples, but holds {held:,}")


def model_like(model: ArrayRecord, sent: ArrayRecord) -> ArrayRecord:
    """A client's model, decoded: the arrays of the model that was sent to it, in its order.

    Parameters
    ----------
    model : ArrayRecord
        As received.
    sent : ArrayRecord
        The model from which the client began. Where it has numbers that are not finite, as in a
        causal mask, so may the client's.

    Raises
    ------
    ClientError
        If names, types or shapes differ, or numbers are not finite.
    """
    _check_names(model, sent)
    found = joined({name: _decoded(name, model[name], sent[name]) for name in sent})
    suspects = [name for name in found if not _sums_up(found[name].numpy())]
    if suspects and (name := first_diverged(_only(found, suspects), sent)) is not None:
        raise rejected(f"its weights {one_line(name, 100)} are not finite")
    return found


def _check_names(model: ArrayRecord, sent: ArrayRecord) -> None:
    if missing := [name for name in sent if name not in model]:
        raise rejected(f"its model lacks {len(missing)} arrays, first {one_line(missing[0], 100)}")
    if len(model) > len(sent):
        more = next(name for name in model if name not in sent)
        raise rejected(f"its model has an unknown array, {one_line(repr(more), 100)}")


def _decoded(name: str, array: Array, like: Array) -> Array:
    shape, expected = tuple(array.shape), tuple(like.shape)
    if (array.dtype, shape) != (like.dtype, expected):
        what = one_line(f"{name} is {array.dtype} {list(shape)}", 200)
        raise rejected(f"its weights {what}, not {like.dtype} {list(expected)}")
    if isinstance(array, HeldArray):
        return array
    return HeldArray(values_in(name, array))


def values_in(name: str, array: Array) -> np.ndarray:
    """The numbers in the bytes of an array, which must be what the array says."""
    try:
        kind = np.dtype(array.dtype)
        expected = math.prod(array.shape) * kind.itemsize
        header = _header(array.data) if array.stype == NUMPY else None
        if header != (tuple(array.shape), kind) or kind.kind not in NUMBERS:
            raise ValueError("other numbers than announced")
        if not expected <= len(array.data) <= expected + _HEADER_BYTES:
            raise ValueError(f"{len(array.data):,} bytes for {expected:,}")
        return array.numpy()
    except Exception as error:
        why = one_line(error, 200)
        raise rejected(f"its array {one_line(name, 100)} cannot be read: {why}") from None


def _header(data: bytes) -> tuple[tuple[int, ...], np.dtype[np.generic]] | None:
    """Shape and type that NumPy's bytes begin with; reads nothing else."""
    file = io.BytesIO(data[:_HEADER_BYTES])
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(np.lib.format.read_magic(file))
    if read is None:
        return None
    shape, _, kind = read(file)
    return shape, kind


def _sums_up(value: np.ndarray) -> bool:
    """Whether all numbers are certainly finite: a sum is not where one of them is not."""
    if value.dtype.kind not in "fc":
        return True
    with np.errstate(all="ignore"):
        return bool(np.isfinite(value.sum()))


def _only(record: ArrayRecord, names: list[str]) -> ArrayRecord:
    return joined({name: record[name] for name in names})
