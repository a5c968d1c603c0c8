"""Reports between the processes of one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.conftest import wait_for

from flsimulation.node import sockets


def test_a_report_that_cannot_be_counted_stops_no_later_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counted: list[Any] = []

    def count(report: Any) -> None:
        if report == "first":
            raise RuntimeError("no space left")
        counted.append(report)

    with sockets.received(tmp_path / "reports", count):
        for report in ("first", "second", ["third"]):
            sockets.send(tmp_path / "reports", report)
        wait_for("both reports", lambda: len(counted) == 2)
    assert counted == ["second", ["third"]]
    said = "flsim: a report could not be counted: RuntimeError('no space left')\n"
    assert capsys.readouterr().err == said
