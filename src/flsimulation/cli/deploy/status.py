"""``flsim status``: containers, progress of the run, and addresses."""

from __future__ import annotations

import http.client
import json
import math
import time
import urllib.parse
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from flsimulation.cli.deploy.compose import RUNS, Project, find_files, open_project
from flsimulation.cli.deploy.docker import ask
from flsimulation.cli.tables import plain, print_table
from flsimulation.errors import RunError
from flsimulation.events import SOURCES
from flsimulation.security.register import FILE_NAME, Register

Samples = dict[str, dict[str, float]]
"""Name of a metric -> value of its only label ("" without one) -> value."""

_METRICS = (
    "fl_run_state", "fl_run_rounds", "fl_run_round", "fl_global_accuracy", "fl_clients_connected",
    "fl_clients_expected", "fl_client_connected", "fl_client_awaited",
    "fl_phase_started_timestamp_seconds",
)  # fmt: skip
_LABELS = ("state", "source", "partition")  # labels that distinguish a metric's series
_READ = (
    "import urllib.request as u;"
    "print(u.urlopen('http://127.0.0.1:8000/metrics', timeout=5).read().decode())"
)
_SECONDS = 2.0  # timeout for Prometheus, which is on this machine
_AT_ONCE = 8  # containers queried at the same time
_NAMED = 5  # most clients named in one line
_ADMITTED = 20  # most admitted clients shown


def status_command(file: Path | None, runs: Path | None = None) -> None:
    """Print the table of containers, the run's state, the addresses, and who is admitted.

    With a folder of runs, only who is admitted there: a SuperLink without containers has no more.
    """
    if runs is not None:
        typer.echo("\n".join(admission_lines(runs) or ["no client was admitted yet"]))
        return
    project = open_project(find_files(file))
    rows = project.containers()
    running = [row for row in rows if row["State"] == "running"]
    if rows:
        print_table(_table(rows, _partitions(project, running)))
    if not running:
        typer.echo("no container is running; flsim up starts the network")
        return
    typer.echo()
    lines = run_lines(_samples(project, running), time.time())
    admitted = admission_lines(mount) if (mount := project.mount(RUNS)) is not None else []
    for line in (*lines, *address_lines(project, running), *admitted):
        typer.echo(line)


def run_lines(samples: Samples, now: float) -> list[str]:
    """One line each: the run's state, connected clients, and the clients that the round waits for.

    Parameters
    ----------
    samples : mapping
        The SuperLink's metrics.
    now : float
        Unix time in seconds.
    """
    states = [state for state, value in samples.get("fl_run_state", {}).items() if value == 1]
    parts = [states[0] if states else "no run has begun"]
    done, rounds = _only(samples, "fl_run_round"), _only(samples, "fl_run_rounds")
    if states and done is not None and rounds:
        parts.append(f"{done:.0f} of {rounds:.0f} rounds")
    accuracy = samples.get("fl_global_accuracy", {}) if states else {}
    for source in SOURCES:
        if math.isfinite(accuracy.get(source, math.nan)):
            parts.append(f"accuracy {accuracy[source]:.4f} ({source})")
            break
    lines = [_line("run", ", ".join(parts))]
    connected, expected = (_only(samples, f"fl_clients_{n}") for n in ("connected", "expected"))
    if connected is not None:
        of = f" of {expected:.0f}" if expected else ""
        away = _partitions_at(samples, "fl_client_connected", 0)
        which = f", not {_listed(away)}" if away else ""
        lines.append(_line("clients", f"{connected:.0f}{of} connected{which}"))
    if states == ["running"]:
        lines += _waiting(samples, now)
    return lines


def _waiting(samples: Samples, now: float) -> list[str]:
    """The clients that the round waits for, disconnected ones first, and for how long."""
    awaited = _partitions_at(samples, "fl_client_awaited", 1)
    away = set(_partitions_at(samples, "fl_client_connected", 0))
    groups = [
        ([p for p in awaited if p in away], " (not connected)"),
        ([p for p in awaited if p not in away], ""),
    ]
    parts = [_listed(group) + text for group, text in groups if group]
    if not parts:
        return []
    started = _only(samples, "fl_phase_started_timestamp_seconds")
    since = f", for {_duration(now - started)}" if started else ""
    return [_line("waiting", f"{' and '.join(parts)}{since}")]


def _partitions_at(samples: Samples, name: str, value: float) -> list[int]:
    """Partitions for which a gauge has this value, ascending."""
    series = samples.get(name, {}).items()
    return sorted(int(partition) for partition, found in series if found == value)


def _listed(partitions: list[int]) -> str:
    """``client 3``, ``clients 1, 2, 3``, or the first few and how many more."""
    named = ", ".join(map(str, partitions[:_NAMED]))
    more = f" and {len(partitions) - _NAMED} more" if len(partitions) > _NAMED else ""
    return f"client{'s' * (len(partitions) > 1)} {named}{more}"


def _duration(seconds: float) -> str:
    """``12 s``, or ``3 min 5 s``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def address_lines(project: Project, running: Iterable[dict[str, Any]]) -> list[str]:
    """Addresses to open in a browser, of the running services."""
    there = {row["Service"] for row in running}
    titles = {"grafana": "Grafana", "prometheus": "Prometheus"}
    ports = {service: project.port(service) for service in titles if service in there}
    return [_line(titles[s], f"http://localhost:{at[1]}") for s, at in ports.items() if at]


def admission_lines(runs: Path) -> list[str]:
    """One line for each client that was admitted, with its key, and for each that was refused."""
    register = Register(runs / FILE_NAME)
    clients = sorted(register.clients(), key=lambda one: one.name)
    lines = [f"{one.name} {one.fingerprint}{' (revoked)' * one.revoked}" for one in clients]
    if len(lines) > _ADMITTED:
        more = f"and {len(lines) - _ADMITTED} more, in {runs / FILE_NAME}"
        lines = [*lines[:_ADMITTED], more]
    found = [_line("admitted" if not i else "", text) for i, text in enumerate(lines)]
    for who, times in register.refused().items():
        found.append(_line("refused", f"{who}, {times} time{'s' * (times > 1)}: not its name"))
    return found


def parse_metrics(text: str) -> Samples:
    """Parse Prometheus's text format, as a container serves it; empty if it is not that."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        families = list(text_string_to_metric_families(text))
    except ValueError:
        return {}
    samples = (sample for family in families for sample in family.samples)
    return _by_name(({**one.labels, "__name__": one.name}, one.value) for one in samples)


def _by_name(series: Iterable[tuple[dict[str, str], str | float]]) -> Samples:
    samples: Samples = {}
    for labels, value in series:
        distinct = next((labels[label] for label in _LABELS if label in labels), "")
        samples.setdefault(labels["__name__"], {})[distinct] = float(value)
    return samples


def _samples(project: Project, running: list[dict[str, Any]]) -> Samples:
    """The run's metrics: from the SuperLink's container, else from Prometheus, which is older."""
    for name in (row["Name"] for row in running if row["Service"] == "superlink"):
        if found := _from_container(name):
            return found
    return _from_prometheus(project)


def _from_prometheus(project: Project) -> Samples:
    address = project.port("prometheus")
    if address is None:
        return {}
    query = urllib.parse.quote(f'{{__name__=~"{"|".join(_METRICS)}"}}')
    connection = http.client.HTTPConnection(*address, timeout=_SECONDS)
    try:
        connection.request("GET", f"/api/v1/query?query={query}")
        result = json.loads(connection.getresponse().read())["data"]["result"]
        return _by_name((one["metric"], one["value"][1]) for one in result)
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return {}  # it is not running, or another program uses the port
    finally:
        connection.close()


def _from_container(name: str) -> Samples:
    try:
        return parse_metrics(ask("exec", name, "python", "-c", _READ))
    except RunError:
        return {}  # it is just starting, or ending


def _partitions(project: Project, running: list[dict[str, Any]]) -> dict[str, str]:
    """Name of a client's container -> the partition that it trains on."""
    names = [row["Name"] for row in running if row["Service"] in project.client_services]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = pool.map(_from_container, names)
    infos = {
        name: samples.get("fl_client_info", {}) for name, samples in zip(names, found, strict=True)
    }
    return {name: next(iter(partitions)) for name, partitions in infos.items() if partitions}


def _table(rows: list[dict[str, Any]], partitions: dict[str, str]) -> Table:
    table = Table("service", "container", "state", "health", "partition", box=None, header_style="bold")  # fmt: skip
    table.columns[-1].justify = "right"
    for row in rows:
        ended = row["State"] == "exited"
        state = f"exited ({row['ExitCode']})" if ended else row["State"]
        partition = partitions.get(row["Name"]) or "-"
        cells = (row["Service"], row["Name"], state, row.get("Health") or "-", partition)
        table.add_row(*map(plain, cells))
    return table


def _only(samples: Samples, name: str) -> float | None:
    return next(iter(samples.get(name, {}).values()), None)


def _line(title: str, text: str) -> str:
    return f"{title:<12}{text}"
