"""What a container says of its own programs: whether they fail, and why a process ended."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from flsimulation.metrics.container import Usage, oom_kills
from flsimulation.node import health
from flsimulation.runtimes.network.names import TROUBLE

MIB = 2**20
MACHINE = 8 * 2**30


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def container(clock: Clock) -> tuple[health.Health, Any]:
    registry = CollectorRegistry()
    made = health.Health(registry, clock)
    return made, lambda: registry.get_sample_value("fl_container_failing")


def test_a_container_that_starts_does_not_fail(container: Any) -> None:
    _, value = container
    assert value() == 0


def test_it_fails_from_its_programs_end_until_that_is_up_again(container: Any) -> None:
    state, value = container
    state.is_down()
    assert value() == 1
    state.is_up()
    assert value() == 0


def test_it_fails_when_messages_are_killed_one_after_the_other(
    container: Any, clock: Clock
) -> None:
    state, value = container
    state.message_was_killed()
    assert value() == 0  # one may be chance
    state.message_was_killed()
    assert value() == 1
    clock.now += 61  # the next experiment may need less: nobody waits for this container for ever
    assert value() == 0


def test_an_answer_ends_the_row_of_killed_messages(container: Any) -> None:
    state, value = container
    state.message_was_killed()
    state.message_was_answered()
    state.message_was_killed()
    assert value() == 0


def limited(monkeypatch: pytest.MonkeyPatch, limit: int, kills: list[int | None]) -> None:
    monkeypatch.setattr(health, "container_usage", lambda: Usage(0.0, 1.0, 0, limit))
    monkeypatch.setattr(health, "machine_memory_bytes", lambda: MACHINE)
    monkeypatch.setattr(health, "_kills_seen", kills[0])
    monkeypatch.setattr(health, "oom_kills", lambda: kills[-1])


@pytest.mark.parametrize(
    ("limit", "kills", "said"),
    [
        (300 * MIB, [0, 1], "ended by SIGKILL, out of memory; CLIENT_MEMORY is 300m, about "),
        (1024 * MIB, [3, 4], "out of memory; CLIENT_MEMORY is 1024m, it needs more"),
        (300 * MIB, [None, None], "SIGKILL, most likely out of memory; CLIENT_MEMORY is 300m"),
        (300 * MIB, [2, 2], "ended by SIGKILL, not out of memory as far as the kernel reports"),
        (MACHINE, [0, 1], "ended by SIGKILL, out of memory; raise its memory limit"),
    ],
)
def test_sigkill_is_explained_as_far_as_the_kernel_tells(
    monkeypatch: pytest.MonkeyPatch, limit: int, kills: list[int | None], said: str
) -> None:
    limited(monkeypatch, limit, kills)
    assert said in health.describe_end(-signal.SIGKILL)


def test_a_kill_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 300 * MIB, [0, 1])
    assert "out of memory;" in health.describe_end(-signal.SIGKILL)
    assert "not out of memory" in health.describe_end(-signal.SIGKILL)


def test_other_ends_say_how(monkeypatch: pytest.MonkeyPatch) -> None:
    assert health.describe_end(3) == "ended with status 3"
    assert health.describe_end(-signal.SIGSEGV) == "ended by SIGSEGV"


def test_the_superlinks_limit_has_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 300 * MIB, [0, 1])
    assert "SUPERLINK_MEMORY is 300m" in health.describe_end(-9, "SUPERLINK_MEMORY")


def test_trouble_is_kept_until_it_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert health.take_trouble() == ""
    monkeypatch.setenv(TROUBLE, str(tmp_path / "trouble"))
    assert health.take_trouble() == ""
    health.keep_trouble("it was so")
    assert health.take_trouble() == "it was so"
    assert health.take_trouble() == ""


def test_kills_are_read_from_both_versions_of_control_groups(tmp_path: Path) -> None:
    assert oom_kills(tmp_path) is None
    (tmp_path / "memory").mkdir()
    one = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"
    (tmp_path / "memory" / "memory.oom_control").write_text(one)
    assert oom_kills(tmp_path) == 3
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 2\noom_kill 2\n")
    assert oom_kills(tmp_path) == 2
