"""``flsim status``: who runs, how far the run is, and what to open."""

from __future__ import annotations

import http.client
import json
import math
import re
import urllib.parse
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from flsimulation.cli.compose import Project, ask, find_files, open_project
from flsimulation.errors import RunError

Samples = dict[str, dict[str, float]]
"""Name of a metric -> value of its only label ("" without one) -> value."""

_METRICS = ("fl_run_state", "fl_run_rounds", "fl_run_round", "fl_global_accuracy", "fl_clients_connected", "fl_clients_expected")  # fmt: skip
_LABELS = ("state", "source", "partition")  # those that tell a metric's series apart
_READ = (
    "import urllib.request as u;"
    "print(u.urlopen('http://127.0.0.1:8000/metrics', timeout=5).read().decode())"
)
_LINE = re.compile(r"^(?P<name>[a-z_]+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)$", re.MULTILINE)
_SECONDS = 2.0  # that Prometheus, on this machine, has for its answer
_AT_ONCE = 8  # containers asked at the same time


def status_command(file: Path | None) -> None:
    """Print the table of containers, the run's state, and the addresses."""
    project = open_project(find_files(file))
    rows = project.containers()
    running = [row for row in rows if row["State"] == "running"]
    if rows:
        _print(_table(rows, _partitions(running)))
    if not running:
        typer.echo("nothing is running; start it with flsim up")
        return
    typer.echo()
    for line in (*run_lines(_samples(project, running)), *address_lines(project, running)):
        typer.echo(line)


def run_lines(samples: Samples) -> list[str]:
    """The run's state, and who is connected, in a line each."""
    states = [state for state, value in samples.get("fl_run_state", {}).items() if value == 1]
    parts = [states[0] if states else "none has begun"]
    done, rounds = _only(samples, "fl_run_round"), _only(samples, "fl_run_rounds")
    if states and done is not None and rounds:
        parts.append(f"{done:.0f} of {rounds:.0f} rounds")
    accuracy = samples.get("fl_global_accuracy", {}) if states else {}
    for source in ("central", "federated"):
        if math.isfinite(accuracy.get(source, math.nan)):
            parts.append(f"accuracy {accuracy[source]:.4f} ({source})")
            break
    lines = [_line("run", ", ".join(parts))]
    connected, expected = (_only(samples, f"fl_clients_{n}") for n in ("connected", "expected"))
    if connected is not None:
        of = f" of {expected:.0f}" if expected else ""
        lines.append(_line("clients", f"{connected:.0f}{of} connected"))
    return lines


def address_lines(project: Project, running: Iterable[dict[str, Any]]) -> list[str]:
    """What to open in a browser, of the services that run."""
    there = {row["Service"] for row in running}
    titles = {"grafana": "Grafana", "prometheus": "Prometheus"}
    ports = {service: project.port(service) for service in titles if service in there}
    return [_line(titles[s], f"http://localhost:{at[1]}") for s, at in ports.items() if at]


def parse_metrics(text: str) -> Samples:
    """Prometheus's text format, as far as this command needs it."""
    found = []
    for match in _LINE.finditer(text):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', match["labels"] or ""))
        found.append(({**labels, "__name__": match["name"]}, match["value"]))
    return _by_name(found)


def _by_name(series: Iterable[tuple[dict[str, str], str]]) -> Samples:
    samples: Samples = {}
    for labels, value in series:
        told_by = next((labels[label] for label in _LABELS if label in labels), "")
        samples.setdefault(labels["__name__"], {})[told_by] = float(value)
    return samples


def _samples(project: Project, running: list[dict[str, Any]]) -> Samples:
    """The run's metrics: from Prometheus, else from the SuperLink's container itself."""
    found = _from_prometheus(project)
    if not found:
        for name in (row["Name"] for row in running if row["Service"] == "superlink"):
            found = _from_container(name)
    return found


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
        return {}  # it does not run, or something else has the port
    finally:
        connection.close()


def _from_container(name: str) -> Samples:
    try:
        return parse_metrics(ask("exec", name, "python", "-c", _READ))
    except RunError:
        return {}  # it is just starting, or ending


def _partitions(running: list[dict[str, Any]]) -> dict[str, str]:
    """Name of a client's container -> the partition that it trains on."""
    names = [row["Name"] for row in running if row["Service"] == "client"]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = pool.map(_from_container, names)
    told = {
        name: samples.get("fl_client_info", {}) for name, samples in zip(names, found, strict=True)
    }
    return {name: next(iter(partitions)) for name, partitions in told.items() if partitions}


def _table(rows: list[dict[str, Any]], partitions: dict[str, str]) -> Table:
    table = Table("service", "container", "state", "health", "partition", box=None, header_style="bold")  # fmt: skip
    table.columns[-1].justify = "right"
    for row in rows:
        ended = row["State"] == "exited"
        state = f"exited ({row['ExitCode']})" if ended else row["State"]
        partition = partitions.get(row["Name"]) or "-"
        table.add_row(row["Service"], row["Name"], state, row.get("Health") or "-", partition)
    return table


def _print(table: Table) -> None:
    console = Console()
    needed = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    console.width = max(console.width, needed)  # names are not cut; a terminal wraps or scrolls
    console.print(table)


def _only(samples: Samples, name: str) -> float | None:
    return next(iter(samples.get(name, {}).values()), None)


def _line(title: str, text: str) -> str:
    return f"{title:<12}{text}"
