"""The waits inside Flower that are shortened: that they are there, and what replaces them."""

from __future__ import annotations

import inspect
import re
import time
from typing import Any

import pytest
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.superexec import run_superexec
from flwr.supernode import start_client_internal

from flsimulation.node import waits


def test_flowers_supernode_sleeps_where_we_think_it_does() -> None:
    source = inspect.getsource(start_client_internal)
    assert re.findall(r"\btime\.(\w+\([\d.]*\))", source) == [
        "sleep(3)",
        "sleep(0.5)",
        "sleep(0.5)",
    ]
    assert vars(start_client_internal)["time"].sleep is time.sleep


def test_flowers_superexec_sleeps_once_and_uses_no_other_clock() -> None:
    source = inspect.getsource(run_superexec)
    assert re.findall(r"\btime\.\w+\(.*?\)", source) == ["time.sleep(task_poll_interval)"]
    assert vars(run_superexec)["time"].sleep is time.sleep


def test_flowers_pulls_take_their_waits_as_defaults() -> None:
    for function in (
        inflatable_utils.pull_objects,
        inflatable_utils.pull_and_inflate_object_from_tree,
    ):
        defaults = function.__kwdefaults__ or {}
        assert (defaults["initial_backoff"], defaults["backoff_cap"]) == (1, 10)


def test_the_shorter_waits_are_set_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_client_internal, "time", time)
    monkeypatch.setattr(run_superexec, "time", time)
    pull, tree = inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree
    before = {f.__name__: dict(f.__kwdefaults__ or {}) for f in (pull, tree)}
    try:
        waits.shorten_looks()
        waits.shorten_pulls()
        assert isinstance(vars(start_client_internal)["time"], waits.NodeClock)
        assert isinstance(vars(run_superexec)["time"], waits.ExecClock)
        for function in (pull, tree):
            now = function.__kwdefaults__ or {}
            assert (now["initial_backoff"], now["backoff_cap"]) == (0.05, 1.0)
            assert {k: v for k, v in now.items() if "backoff" not in k} == {
                k: v for k, v in before[function.__name__].items() if "backoff" not in k
            }
    finally:
        for function in (pull, tree):
            function.__kwdefaults__ = before[function.__name__]


class FakeTime:
    def __init__(self) -> None:
        self.now, self.slept = 100.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(waits, "time", fake)
    return fake


def test_an_idle_node_looks_less_and_less_often_but_never_less_than_flower(clock: FakeTime) -> None:
    node = waits.NodeClock(waits.Bell())
    for _ in range(60):
        node.sleep(3)
    assert clock.slept[:4] == [0.4] * 4
    assert all(0.4 <= slept <= 3 for slept in clock.slept)
    assert clock.slept == sorted(clock.slept)
    assert clock.slept[-1] == 3
    idle = sum(clock.slept[:8])
    assert clock.slept[8] == pytest.approx(0.3 * idle)  # the most that it adds to a wait


def test_a_message_rings_the_bell_once_and_makes_the_node_busy(clock: FakeTime) -> None:
    bell = waits.Bell()
    node = waits.NodeClock(bell)
    clock.now += 60
    node.sleep(0.5)
    node.sleep(0.5)
    assert clock.slept == [0.05, 0.05]
    assert bell.wait(0)
    assert not bell.wait(0)
    node.sleep(3)
    assert clock.slept[-1] == 0.4  # it was busy a moment ago
    node.sleep(0.5)
    assert bell.wait(0)  # another message


class Heard(waits.Bell):
    """How long it was listened to, and whether it rang."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = list[tuple[float, bool]]()

    def wait(self, seconds: float) -> bool:
        self.waits.append((seconds, super().wait(seconds)))
        return self.waits[-1][1]


def test_the_superexec_sleeps_until_the_bell_and_a_full_bell_does_not_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bell = Heard()
    for _ in range(100_000):
        bell.ring()
    waits.ExecClock(bell).sleep(60)
    assert bell.waits == [(5.0, True)]
    while bell.wait(0):
        pass
    monkeypatch.setattr(waits, "_WORK_SECONDS", 0.01)
    waits.ExecClock(bell).sleep(60)
    assert bell.waits[-1] == (0.01, False)


def test_a_sleep_takes_any(clock: FakeTime) -> Any:
    """Flower may sleep less than we would: then it is Flower's wait that counts."""
    node = waits.NodeClock(waits.Bell())
    node.sleep(0.01)
    assert clock.slept == [0.01]
