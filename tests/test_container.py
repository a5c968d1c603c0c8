"""Use and limits of a container, from the files of both versions of control groups."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from flsimulation.host import usage
from flsimulation.host.usage import machine_memory_bytes
from flsimulation.metrics.container import ContainerCollector, container_usage, is_own, own_usage
from flsimulation.metrics.table import CONTAINER_METRICS

CORES = float(os.cpu_count() or 1)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


VERSION_2 = {
    "cgroup.controllers": "cpu memory\n",
    "cpu.stat": "usage_usec 2500000\nuser_usec 2000000\n",
    "cpu.max": "50000 100000\n",
    "memory.current": "300000000\n",
    "memory.stat": "anon 1\ninactive_file 100000000\n",
    "memory.max": "1073741824\n",
}
VERSION_1 = {
    "cpuacct/cpuacct.usage": "2500000000\n",
    "cpu/cpu.cfs_quota_us": "50000\n",
    "cpu/cpu.cfs_period_us": "100000\n",
    "memory/memory.usage_in_bytes": "300000000\n",
    "memory/memory.stat": "inactive_file 5\ntotal_inactive_file 100000000\n",
    "memory/memory.limit_in_bytes": "1073741824\n",
}


def test_both_versions_tell_the_same(tmp_path: Path) -> None:
    for name, files in (("two", VERSION_2), ("one", VERSION_1)):
        found = container_usage(write(tmp_path / name, files))
        assert found.cpu_seconds == 2.5
        assert found.cpu_limit_cores == 0.5
        assert found.memory_bytes == 200_000_000  # without the cache that can be dropped
        assert found.memory_limit_bytes == 2**30


def test_without_a_limit_it_is_the_machines(tmp_path: Path) -> None:
    free2 = VERSION_2 | {"cpu.max": "max 100000\n", "memory.max": "max\n"}
    free1 = VERSION_1 | {
        "cpu/cpu.cfs_quota_us": "-1\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    for name, files in (("two", free2), ("one", free1)):
        found = container_usage(write(tmp_path / name, files))
        assert found.cpu_limit_cores == CORES
        assert found.memory_limit_bytes == machine_memory_bytes()


def test_limits_above_the_machine_are_none(tmp_path: Path) -> None:
    wide = VERSION_2 | {"cpu.max": "100000000 100000\n", "memory.max": str(2**50)}
    found = container_usage(write(tmp_path, wide))
    assert found.cpu_limit_cores == CORES
    assert found.memory_limit_bytes == machine_memory_bytes()


def test_where_there_are_no_control_groups_it_is_this_process(tmp_path: Path) -> None:
    found = container_usage(tmp_path)
    assert found.cpu_seconds > 0
    assert 10e6 < found.memory_bytes < machine_memory_bytes()


def test_every_scrape_reads_anew_what_the_table_names(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    registry.register(ContainerCollector(write(tmp_path, VERSION_2)))
    for metric in CONTAINER_METRICS:
        assert registry.get_sample_value(metric.name) is not None, metric.name
    assert registry.get_sample_value("fl_container_cpu_seconds_total") == 2.5
    write(tmp_path, {"cpu.stat": "usage_usec 3500000\n"})
    assert registry.get_sample_value("fl_container_cpu_seconds_total") == 3.5


@pytest.fixture
def orphan() -> Iterator[int]:
    """A process of the session that this one has not started."""
    shell = ["sh", "-c", "sleep 600 >&- 2>&- & echo $!"]
    process = int(subprocess.run(shell, capture_output=True, text=True, check=True).stdout)
    yield process
    os.kill(process, signal.SIGKILL)


def test_a_session_that_others_share_is_not_counted_as_the_client(
    tmp_path: Path, orphan: int
) -> None:
    ended = 4_194_305  # above the highest id of a process
    ours = VERSION_2 | {"cgroup.procs": f"{os.getppid()}\n{os.getpid()}\n{ended}\n0\n"}
    shared = VERSION_2 | {"cgroup.procs": f"{os.getpid()}\n{orphan}\n"}
    older = VERSION_1 | {"memory/cgroup.procs": f"{os.getpid()}\n{orphan}\n"}
    memory = {}
    for name, files in (("ours", ours), ("shared", shared), ("older", older)):
        registry = CollectorRegistry()
        registry.register(ContainerCollector(write(tmp_path / name, files)))
        memory[name] = registry.get_sample_value("fl_container_memory_bytes")
    assert [is_own(tmp_path / name) for name in memory] == [True, False, False]
    assert memory["ours"] == 200_000_000
    assert memory["shared"] != 200_000_000
    assert memory["older"] != 200_000_000


def test_a_check_of_the_containers_health_does_not_hide_its_limits(
    tmp_path: Path, orphan: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container such a process has no parent: whoever started it is outside."""
    found = usage._stat
    fields = found(orphan)
    fields[usage._PARENT] = "0"
    monkeypatch.setattr(
        usage, "_stat", lambda process: fields if process == orphan else found(process)
    )
    assert is_own(write(tmp_path, VERSION_2 | {"cgroup.procs": f"{os.getpid()}\n{orphan}\n"}))


def test_where_a_session_entered_a_container_the_rest_of_it_is_not_the_clients_either(
    tmp_path: Path, orphan: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So are tests under a tool that enters a container and takes in what its children leave."""
    entered = [process for process in (os.getpid(), *usage.ancestors(os.getpid())) if process != 1]
    found = usage._stat
    parents = {entered[-1]: "0", orphan: str(entered[-1])}

    def stat(process: int) -> list[str]:
        fields = found(process)
        if fields and process in parents:
            fields[usage._PARENT] = parents[process]
        return fields

    monkeypatch.setattr(usage, "_stat", stat)
    shared = VERSION_2 | {"cgroup.procs": f"{os.getpid()}\n{orphan}\n"}
    assert not is_own(write(tmp_path, shared))


def test_own_use_is_that_of_the_process_and_of_all_that_it_started() -> None:
    before = own_usage()
    code = "held = bytearray(b'x' * (100 * 2**20)); print('ready', flush=True); input()"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", nested], text=True, **pipes) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        held = own_usage().memory_bytes - before.memory_bytes
        child.communicate("\n")
    assert 100 * 2**20 < held < 250 * 2**20
    assert own_usage().cpu_seconds > before.cpu_seconds  # the child's time is not lost
