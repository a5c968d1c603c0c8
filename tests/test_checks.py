"""Replies that are not what was requested: rejected, counted, and left out of whatever follows."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from torch import nn

from flsimulation.errors import ClientError, one_line
from flsimulation.events import ClientReplied, RoundFinished
from flsimulation.experiment import load_experiment
from flsimulation.experiment.strategy import STRATEGIES
from flsimulation.messages.arrays import HeldArray, joined
from flsimulation.messages.batch import Batch, Mean, Outcome, Reply, Task
from flsimulation.messages.codec import batch_of, reply_to
from flsimulation.runtimes.inprocess import InProcessGrid
from flsimulation.runtimes.simulated import flower_identity
from flsimulation.server.checks import Checks
from flsimulation.server.exchange import Exchange
from flsimulation.server.rounds import Rounds
from flsimulation.server.strategies import build_strategy
from flsimulation.training.measured import Measured, MetricState, arrays_of
from flsimulation.training.states import forms_of, record_of_states

CONFIG = ConfigRecord({"server-round": 1})
HELD = 10
"""Examples that every client holds."""


def arrays(*values: float, kind: Any = np.float32, name: str = "w") -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(values, kind))})


def raw(data: bytes, stype: str = "numpy.ndarray") -> ArrayRecord:
    return ArrayRecord({"w": Array("float32", (2,), stype, data)})


MODEL = arrays(1.0, float("nan"))
"""The second number was not finite before: a mask."""
GOOD = {"num-examples": 10, "loss": 0.5}


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    with flower_identity():
        yield


class Network(InProcessGrid):
    """A grid whose clients answer as they like, in one message each."""

    def __init__(self, answer: Any, clients: int = 2) -> None:
        super().__init__(lambda _: iter(()), clients)
        self._reply = answer

    @property
    def replies_in_parts(self) -> bool:
        return False

    def divided(self, batch: Batch) -> Iterator[tuple[int | None, Batch]]:
        for task in batch.tasks:
            yield (
                self.node_of(task.partition),
                Batch(batch.model, [task], batch.average),
            )

    def pull_messages(
        self, message_ids: Iterable[str] | None = None, **_: Any
    ) -> Iterable[Message]:
        pulled = {i: self._waiting.pop(i) for i in message_ids or () if i in self._waiting}
        return [self._reply(message) for message in pulled.values()]


def outcomes(
    recorder: Any, answer: Any, *, average: bool = False, phase: Any = "train", forms: Any = None
) -> dict[int, str]:
    """By partition: why its reply was rejected, "" if it was used; of two clients, 0 is honest."""

    def reply(message: Message) -> Message:
        batch = batch_of(message)
        task = batch.tasks[0]
        model = batch.model if task.phase == "train" else None
        good = Outcome(task.partition, task.phase, dict(GOOD), None, model)
        if task.partition == 0:
            return reply_to(message, Reply([good]))
        found = answer(message, good)
        return reply_to(message, found) if isinstance(found, Reply) else found

    held = {0: HELD, 1: HELD}  # of others nothing is known, and asking for it is an error
    checks = Checks(lambda partition, _: held[partition], forms or {})
    exchange = Exchange(Network(reply), 0.0, recorder, checks=checks)
    tasks = [Task(partition, phase, 1, CONFIG) for partition in (0, 1)]
    replies = exchange.post(1, phase, [Batch(MODEL, tasks, average)])
    list(exchange.outcomes())
    assert replies.is_complete
    assert [type(event) for event in recorder.of(ClientReplied)] == [ClientReplied] * 2
    assert all(error.reason == "rejected" for error in replies.failures.values())
    assert replies.models.keys() <= replies.metrics.keys()
    return {p: str(replies.failures.get(p, "")) for p in (0, 1)}


MODELS: dict[str, tuple[ArrayRecord | None, str]] = {
    "none": (None, "it sent no model"),
    "another name": (
        arrays(1, 2, name="v"),
        "its model lacks 1 arrays, first w",
    ),
    "one more": (
        ArrayRecord({**MODEL, "\x1b[31mred": Array(np.zeros(1))}),
        "its model has an unknown array, '\\x1b[31mred'",
    ),
    "another type": (
        arrays(1, 2, kind=np.float64),
        "its weights w is float64 [2], not float32 [2]",
    ),
    "another shape": (
        arrays(1, 2, 3),
        "its weights w is float32 [3], not float32 [2]",
    ),
    "NaN": (arrays(float("nan"), 1), "its weights w are not finite"),
    "infinity": (
        joined({"w": HeldArray(np.float32([np.inf, 1]))}),
        "its weights w are not finite",
    ),
    "no bytes": (raw(b""), "its array w cannot be read: "),
    "a pickle": (raw(b"\x80\x04K\x01."), "its array w cannot be read: "),
    "another form": (
        raw(Array(np.zeros(2, np.float32)).data, "pickle"),
        "its array w cannot be read: other numbers than announced",
    ),
    "other bytes than announced": (
        raw(Array(np.zeros(10**6)).data),
        "its array w cannot be read: other numbers than announced",
    ),
    "too many bytes": (
        raw(Array(np.zeros(2, np.float32)).data + bytes(20_000)),
        "its array w cannot be read: 20,136 bytes for 8",
    ),
    "too few bytes": (
        raw(Array(np.zeros(2, np.float32)).data[:-1]),
        "its array w cannot be read: ",
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_that_is_not_like_the_one_sent_is_rejected(recorder: Any, kind: str) -> None:
    model, why = MODELS[kind]
    found = outcomes(recorder, lambda _, good: Reply([good._replace(model=model)]))
    assert found[0] == ""
    assert found[1].startswith(why)


METRICS: dict[str, tuple[dict[str, Any], str]] = {
    "no examples": (
        {"loss": 1.0},
        "it did not say how many examples it has (num-examples)",
    ),
    "more examples than it holds": (
        {"num-examples": 11},
        "it claims 11 examples, but holds 10",
    ),
    "half an example": (
        {"num-examples": 0.5},
        "num-examples is no whole number: 0.5",
    ),
    "negative examples": (
        {"num-examples": -1},
        "num-examples is negative: -1",
    ),
    "negative seconds": (
        {**GOOD, "seconds": -2.0},
        "seconds is negative: -2",
    ),
    "NaN": ({**GOOD, "loss": float("nan")}, "loss is not finite: nan"),
    "infinite examples": (
        {"num-examples": float("inf")},
        "num-examples is not finite: inf",
    ),
    "its partition": (
        {**GOOD, "partition": 0},
        "a metric has the reserved name 'partition'",
    ),
    "an escape sequence": (
        {**GOOD, "\x1b[2J": 1.0},
        "a metric's name has control characters: '\\x1b[2J'",
    ),
    "a long name": (
        {**GOOD, "n" * 201: 1.0},
        "a metric's name is 'nnn",
    ),
    "too many": (
        {**GOOD, **{f"m{i}": 1.0 for i in range(999)}},
        "it sent 1,001 metrics, 1,000 are the most",
    ),
}


@pytest.mark.parametrize("phase", ["train", "evaluate"])
@pytest.mark.parametrize("kind", METRICS)
def test_metrics_that_are_no_named_finite_numbers_are_rejected(
    recorder: Any, kind: str, phase: str
) -> None:
    metrics, why = METRICS[kind]
    answer = lambda _, good: Reply([good._replace(metrics=metrics)])  # noqa: E731
    found = outcomes(recorder, answer, phase=phase)
    assert found[0] == ""
    assert found[1].startswith(why)


def test_a_client_that_trained_on_nothing_is_rejected(recorder: Any) -> None:
    answer = lambda _, good: Reply([good._replace(metrics={**GOOD, "num-examples": 0})])  # noqa: E731
    assert outcomes(recorder, answer)[1] == "it trained on no example (num-examples is 0)"


def test_a_reply_of_very_many_outcomes_takes_no_memory_before_it_is_refused(recorder: Any) -> None:
    def many(message: Message, _: Outcome) -> Message:
        header = ConfigRecord(
            {"sizes": [10**8], "phases": ["train"], "partitions": [1], "examples": 0}
        )
        content = RecordDict({"outcomes": header, "metrics-0": ConfigRecord({})})
        return Message(content, reply_to=message)

    tracemalloc.start()
    try:
        found = outcomes(recorder, many)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found[1].startswith("its reply cannot be read: ")
    assert peak < 20 * 2**20


def test_a_reply_that_is_none_is_rejected_with_its_cause(recorder: Any) -> None:
    def strange(message: Message, _: Outcome) -> Message:
        return Message(RecordDict({"x": MetricRecord({"y": 1})}), reply_to=message)

    assert outcomes(recorder, strange) == {
        0: "",
        1: "its reply cannot be read: KeyError: 'outcomes'",
    }


@pytest.mark.parametrize(
    ("partition", "why"),
    [
        (0, "its reply has no outcome of this task"),
        (7, "its reply has no outcome of this task"),
        (-1, "its reply has no outcome of this task"),
        (1.0, "its reply cannot be read: ValueError: a client's number is float"),
        (True, "its reply cannot be read: ValueError: a client's number is bool"),
    ],
)
def test_a_reply_about_another_client_is_not_used(recorder: Any, partition: Any, why: str) -> None:
    """The honest client's own outcome counts; the one that spoke for it, or for nobody, has none."""

    def answer(_: Message, good: Outcome) -> Reply:
        return Reply([good._replace(partition=partition, metrics={"num-examples": 1})])

    found = outcomes(recorder, answer)
    assert found[0] == ""
    assert found[1].startswith(why)
    assert recorder.of(ClientReplied)[0].metrics == GOOD


@pytest.mark.parametrize(
    ("average", "examples", "value", "why"),
    [
        (True, 10, 1.0, ""),
        (
            False,
            10,
            1.0,
            "it sent a mean model, which was not requested",
        ),
        (
            True,
            1000,
            1.0,
            "its mean model is of 1000 examples, not 10",
        ),
        (
            True,
            10,
            float("inf"),
            "its weights w are not finite",
        ),
    ],
)
def test_a_mean_model_is_checked_as_others_are(
    recorder: Any, average: bool, examples: int, value: float, why: str
) -> None:
    def answer(_: Message, good: Outcome) -> Reply:
        return Reply([good._replace(model=None)], Mean(arrays(value, 0.0), examples))

    assert outcomes(recorder, answer, average=average)[1] == why


def test_nobody_of_a_mean_with_a_rejected_client_is_used() -> None:
    good, bad = (
        Outcome(p, "train", {"num-examples": n, "loss": 1.0}) for p, n in ((0, 10), (1, 99))
    )
    alone = Outcome(2, "train", dict(GOOD), None, MODEL)
    batch = Batch(MODEL, [Task(p, "train", 1, CONFIG) for p in range(3)], average=True)
    reply = Checks(lambda *_: HELD).checked(
        Reply([good, bad, alone], Mean(MODEL, 109)), batch, {(p, "train") for p in range(3)}
    )
    assert reply.mean is None
    assert [str(outcome.error or "") for outcome in reply.outcomes] == [
        "its model is in a mean with that of a rejected client",
        "it claims 99 examples, but holds 10",
        "",
    ]


def test_a_failure_is_shown_in_one_line_and_has_a_known_reason(recorder: Any) -> None:
    red = ClientError("error", "\x1b[31mboom\n\u202eevil")

    def answer(_: Message, good: Outcome) -> Reply:
        return Reply([good._replace(error=red, metrics={}, model=None)])

    exchange = Exchange(Network(lambda m: reply_to(m, answer(m, _one(m))), 1), 0.0, recorder)
    exchange.post(1, "train", [Batch(MODEL, [Task(0, "train", 1, CONFIG)])])
    list(exchange.outcomes())
    assert recorder.of(ClientReplied)[0].error == "\N{REPLACEMENT CHARACTER}[31mboom \ufffdevil"
    recorder.events.clear()
    red.reason = "fun"
    assert outcomes(recorder, answer)[1] == "its failure has an unknown reason: 'fun'"


def _one(message: Message) -> Outcome:
    return Outcome(batch_of(message).tasks[0].partition, "train", {})


@pytest.mark.parametrize(
    ("states", "why"),
    [
        (ArrayRecord({"acc\nmetric\ntotal": Array(np.zeros(2))}), ""),
        (
            ArrayRecord({"total": Array(np.zeros(2))}),
            "a state of its metrics is named 'total'",
        ),
        (
            ArrayRecord({"a\nb\nc": Array("float32", (2,), "numpy.ndarray", b"no")}),
            "its array a b c cannot be read: ",
        ),
        (
            ArrayRecord({"a\nb\nc": Array(np.array(["text"]))}),
            "its array a b c cannot be read: other numbers than announced",
        ),
        (
            ArrayRecord({"acc\nmetric\ntotal": Array(np.array([1.0, np.nan]))}),
            "a state of its metrics is not a number: acc metric total",
        ),
        (ArrayRecord({"least\nmetric\nvalue": Array(np.array(np.inf))}), ""),
    ],
)
def test_states_of_metrics_are_arrays_of_numbers(
    recorder: Any, states: ArrayRecord, why: str
) -> None:
    answer = lambda _, good: Reply([good._replace(states=states)])  # noqa: E731
    assert outcomes(recorder, answer, phase="evaluate")[1].startswith(why)


class Scored(nn.Module):
    """Has metric objects of every kind of state: numbers, counts, lists, and parts of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.acc = torchmetrics.Accuracy("multiclass", num_classes=3, average="macro")
        self.auroc = torchmetrics.AUROC("binary")
        self.curve = torchmetrics.AUROC("binary", thresholds=5)
        self.matrix = torchmetrics.ConfusionMatrix("multiclass", num_classes=3)
        self.mse = torchmetrics.MeanSquaredError()
        self.variance = torchmetrics.ExplainedVariance()
        self.mean = torchmetrics.MeanMetric()
        self.least = torchmetrics.MinMetric()
        self.all = torchmetrics.CatMetric()
        self.pearson = torchmetrics.PearsonCorrCoef()

    def update(self, rows: int, outputs: int = 1) -> None:
        x, y = torch.rand(rows, 3), torch.arange(rows) % 3
        for counted in (self.acc, self.matrix):
            counted.update(x, y)
        for curve in (self.auroc, self.curve):
            curve.update(x[:, 0], (y == 0).int())
        for single in (self.mse, self.pearson):
            single.update(x[:, 0], x[:, 1])
        self.variance.update(*(x[:, :outputs].squeeze(1), x[:, 1 : 1 + outputs].squeeze(1)))
        for value in (self.mean, self.least, self.all):
            value.update(x[:, 0])

    def states(self) -> dict[str, np.ndarray]:
        metrics = {p: m for p, m in self.named_modules() if isinstance(m, torchmetrics.Metric)}
        scores = Measured({}, {f"val_{p}": MetricState(p, arrays_of(m) or {}) for p, m in metrics.items()})  # fmt: skip
        return {name: array.numpy() for name, array in (record_of_states(scores) or {}).items()}


def sent(states: dict[str, np.ndarray]) -> Any:
    record = ArrayRecord({name: Array(array) for name, array in states.items()})
    return lambda _, good: Reply([good._replace(states=record)])


@pytest.mark.parametrize(("batches", "outputs"), [((7, 4), 1), ((5,), 2), ((), 1)])
def test_states_of_honest_metrics_are_used(
    recorder: Any, batches: tuple[int, ...], outputs: int
) -> None:
    client = Scored()
    for rows in batches:
        client.update(rows, outputs)
    states = client.states()
    assert len(states) >= 20
    assert outcomes(recorder, sent(states), phase="evaluate", forms=forms_of(Scored()))[1] == ""


def test_states_have_the_form_of_the_servers(recorder: Any) -> None:
    client, forms = Scored(), forms_of(Scored())
    client.update(7)
    good = client.states()
    tp, counts, preds = (
        "val_acc\nacc\ntp",
        "val_matrix\nmatrix\nconfmat",
        "val_auroc\nauroc\npreds[{}]",
    )
    assert {tp, counts, preds.format(0)} <= good.keys()
    bad: dict[str, dict[str, Any]] = {
        f"its states of the metric 'val_acc' have {good[tp].dtype} [4] as 'tp', not int [3]": {
            tp: np.zeros(4, good[tp].dtype)
        },
        "its states of the metric 'val_acc' have float32 [3] as 'tp', not int [3]": {
            tp: np.zeros(3, np.float32)
        },
        "its states of the metric 'val_matrix' have int64 [1, 9] as 'confmat', not int [3, 3]": {
            counts: good[counts].reshape(1, 9)
        },
        "its states of the metric 'val_acc' lack 'tp'": {tp: None},
        "its states of the metric 'val_acc' have an unknown one, 'more'": {
            "val_acc\nacc\nmore": np.zeros(3)
        },
        "its states of the metric 'val_auroc' have an unknown one, 'preds[2]'": {
            preds.format(2): np.zeros(3)
        },
        f"its states of the metric 'val_auroc' have {HELD + 1} arrays in 'preds', for ": {
            preds.format(i): np.zeros(1, np.float32) for i in range(HELD + 1)
        },
        "a metric has the reserved name 'round'": {"round\nacc\ntp": np.zeros(3)},
    }
    for why, change in bad.items():
        states = {name: v for name, v in {**good, **change}.items() if v is not None}
        recorder.events.clear()
        found = outcomes(recorder, sent(states), phase="evaluate", forms=forms)
        assert (found[0], found[1][: len(why)]) == ("", why)


def test_states_of_a_metric_that_the_server_lacks_are_merged_by_nobody(recorder: Any) -> None:
    client = Scored()
    client.update(7)
    assert outcomes(recorder, sent(client.states()), phase="evaluate", forms={})[1] == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        (" two\n lines\t", "two lines"),
        ("\x1b]8;;http://x\x07", "\ufffd]8;;http://x\ufffd"),
        ("\ud800", "\ufffd"),
        ("x" * 50, "x" * 9 + "\N{HORIZONTAL ELLIPSIS}"),
    ],
)
def test_text_of_others_is_one_printable_line(text: str, shown: str) -> None:
    assert one_line(text, 10 if len(text) == 50 else 100) == shown
    assert one_line(text).encode()


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"bulyan"}))
def test_a_rejected_client_is_left_out_whatever_the_strategy(recorder: Any, name: str) -> None:
    """Of four clients, the last one sends NaN; bulyan would need seven."""

    def answer(message: Message) -> Message:
        batch = batch_of(message)
        task, value = batch.tasks[0], 1.0 + batch.tasks[0].partition
        model = arrays(value, float("nan") if task.partition == 3 else value)
        trains = task.phase == "train"
        outcome = Outcome(task.partition, task.phase, dict(GOOD), None, model if trains else None)
        return reply_to(message, Reply([outcome]))

    own = {"qfedavg": ["strategy.client-learning-rate=0.1"]}.get(name, [])
    experiment = load_experiment(
        overrides=["data.clients=4", "strategy.rounds=2", f"strategy.name={name}", *own]
    )
    exchange = Exchange(Network(answer, 4), 0.0, recorder)
    strategy = build_strategy(experiment)
    rounds = Rounds(experiment, strategy, exchange, lambda *_: {"loss": 0.0}, recorder)
    final, *_ = rounds.run(arrays(0.0, 0.0))
    assert np.isfinite(final["w"].numpy()).all()
    assert (
        final["w"].dtype == "float32"
    )  # the type that was sent, whatever the strategy computes in
    assert [done.failures for done in recorder.of(RoundFinished)] == [{"rejected": 1}] * 2
    failed = [event for event in recorder.of(ClientReplied) if event.reason is not None]
    assert {(e.partition, e.error) for e in failed} == {(3, "its weights w are not finite")}
