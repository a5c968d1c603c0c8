"""``flsim doctor FILE``: which engine trains an experiment, and what to change for a faster one."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import warnings
from pathlib import Path

import typer
from rich.table import Table
from rich.text import Text

from flsimulation.cli.tables import print_table
from flsimulation.cli.title import milliseconds
from flsimulation.experiment import load_experiment
from flsimulation.studies.engines import Examination, Rated, examine


def engines_command(file: Path, overrides: list[str], *, as_json: bool) -> None:
    """Print how fast each engine is, the reasons against the faster ones, and the remedies."""
    experiment = load_experiment(file, overrides)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
        found = examine(experiment)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found)))
        return
    typer.echo(
        f"{experiment.name}: {_count(found.cohort, 'client')} a round with "
        f"{_count(round(found.steps), 'step')} each, in one process on {_count(found.cores, 'core')}"
    )
    typer.echo()
    print_table(_table(found))
    typer.echo()
    for line in _advice(found):
        typer.echo(line)


def _table(found: Examination) -> Table:
    titles = ("engine", "a client's step", "a round", "start", _count(found.rounds, "round"), "")
    table = Table(*titles, box=None, header_style="bold")
    for column in table.columns[1:5]:
        column.justify = "right"
    for rated in found.engines:
        table.add_row(*(Text(cell) for cell in _cells(rated, found)))
    return table


def _cells(rated: Rated, found: Examination) -> list[str]:
    mark = "trains this experiment" if rated.name == found.engine else ""
    if not rated.possible:
        return [rated.name, *["·"] * 4, "not possible"]
    start = f"{rated.start_seconds:.1f} s"
    if rated.step_seconds is None or rated.round_seconds is None:
        return [rated.name, "·", "·", start, "·", mark]
    whole = rated.start_seconds + found.rounds * rated.round_seconds
    each = milliseconds(rated.step_seconds)
    return [rated.name, each, f"{rated.round_seconds:.2f} s", start, f"{whole:.1f} s", mark]


def _advice(found: Examination) -> list[str]:
    """Lines on the engines that promise more than the one that trains."""
    lines = list[str]()
    for (reason, remedy), group in itertools.groupby(found.faster, lambda r: (r.reason, r.remedy)):
        names = ", ".join(f"not {rated.name}" for rated in group)
        lines.append(f"{names}: {reason}")
        if remedy is not None:
            lines.append(f"  remedy: {remedy}")
    if not lines:
        lines = ["nothing to change: no engine promises more"]
    if all(rated.step_seconds is None for rated in found.engines):
        lines.append("steps were not measured: on a GPU, or because clients of practice fail")
    return lines


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
