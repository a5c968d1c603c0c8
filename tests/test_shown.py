"""Texts that others wrote, where people and programs see them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from flsimulation.cli.deploy.logs import readable
from flsimulation.cli.tables import plain
from flsimulation.cli.view import PlainView
from flsimulation.errors import one_line
from flsimulation.events import ClientMoved, ClientReplied, ClientsConnected, Event, Noticed
from flsimulation.experiment import load_experiment
from flsimulation.report import write_report
from flsimulation.rundir.jsonlines import JsonLines
from flsimulation.runtimes.network import lines

HOSTILE = "[red]x[/red]<script>alert(1)</script>\x1b[2J\x07 | `a` {b} \u202e\r\n# h"
CODES = {"\x1b", "\x07", "\r", "\u202e"}


def test_the_terminal_shows_markup_and_escape_sequences_as_text() -> None:
    file = io.StringIO()
    view = PlainView(Console(file=file, force_terminal=True, width=200), load_experiment())
    view(Noticed(HOSTILE))
    view(ClientReplied(1, "train", 0, reason="lost", error=HOSTILE))
    view(ClientsConnected((), 2, {"0": HOSTILE}))
    shown = file.getvalue().replace("\x1b[33m", "").replace("\x1b[0m", "")  # Rich's own yellow
    assert shown.count("[red]x[/red]<script>") == 3
    assert not CODES & set(shown)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (ClientMoved(2, "joined", "lodz", 1), "client 1 (lodz) joined in round 2; it takes part from the next round on"),
        (ClientMoved(0, "joined", "lodz", 1), "client 1 (lodz) joined before round 1; it takes part from the next round on"),
        (ClientMoved(4, "left", "lodz", 1), "client 1 (lodz) left in round 4; the run continues without it"),
        (ClientMoved(4, "refused", "madrid", None, "it is no site"), "client madrid was refused in round 4: it is no site"),
        (ClientsConnected((0, 2), 3), "clients: 2 of 3 connected"),
        (ClientsConnected((0, 2), 3, {"1": "lodz"}, 30), "clients: 2 of 3 connected; client 1 (lodz) disconnected, waiting for it for up to 30 s"),
    ],
)  # fmt: skip
def test_the_terminal_and_the_log_say_who_joins_and_leaves(event: Event, said: str) -> None:
    file = io.StringIO()
    PlainView(Console(file=file, width=200), load_experiment())(event)
    assert file.getvalue() == f"  {said}\n"
    if isinstance(event, ClientMoved):
        assert readable(lines.of(event)) == f"flsim: {said}\n"


def test_a_cell_of_a_table_is_text() -> None:
    table, file = Table("name"), io.StringIO()
    table.add_row(plain(HOSTILE))
    Console(file=file, width=200).print(table)
    assert "[red]x[/red]" in file.getvalue()
    assert not CODES & set(file.getvalue())


def test_the_report_escapes_them(tmp_path: Path) -> None:
    fields = {"name": HOSTILE, "state": "failed", "rounds": 1, "error": HOSTILE}
    (tmp_path / "manifest.json").write_text(json.dumps(fields))
    line = {"round": 1, "phase": "train", "partition": 0, "reason": HOSTILE, "error": HOSTILE}
    (tmp_path / "clients.jsonl").write_text(json.dumps(line) + "\n")
    page = write_report(tmp_path).read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    assert not (CODES - {"\r"}) & set(page)


def test_a_line_of_json_stays_one(tmp_path: Path) -> None:
    JsonLines(tmp_path / "x.jsonl", bool).append({"round": 1, "error": HOSTILE})
    (line,) = (tmp_path / "x.jsonl").read_bytes().splitlines()
    assert json.loads(line)["error"] == HOSTILE


def test_a_clients_text_cannot_forge_a_line_for_programs() -> None:
    forged = lines.MARK + json.dumps({"result": {"state": "completed"}})
    assert lines.read(forged) == {"result": {"state": "completed"}}
    assert lines.read(f"RoundError: client 1: {one_line(forged)}") is None


def test_flsim_logs_shows_an_event_in_one_line() -> None:
    event = lines.of(ClientReplied(1, "train", 0, reason="error", error=HOSTILE))
    shown = readable(event)
    assert shown is not None
    assert shown.startswith("flsim: round 1: client 0 failed (error): [red]x[/red]<script>")
    assert shown.count("\n") == 1
    assert not CODES & set(shown)


def test_a_label_of_prometheus_is_escaped() -> None:
    from prometheus_client import CollectorRegistry, Gauge, generate_latest
    from prometheus_client.parser import text_string_to_metric_families

    registry = CollectorRegistry()
    Gauge("fl_client", "x", ["name"], registry=registry).labels(name=HOSTILE).set(1)
    text = generate_latest(registry).decode()
    (family,) = text_string_to_metric_families(text)
    assert [sample.labels["name"] for sample in family.samples] == [HOSTILE]
