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
    each, whole = milliseconds(rated.step_seconds), rated.whole(found.rounds)
    return [rated.name, each, f"{rated.round_seconds:.2f} s", start, f"{whole:.1f} s", mark]


def _advice(found: Examination) -> list[str]:
    """Lines on the engines that promise more than the one that trains."""
    lines = list[str]()
    advised = [(rated, _remedy(rated, found)) for rated in found.faster]
    for (reason, remedy), group in itertools.groupby(
        advised, lambda pair: (pair[0].reason, pair[1])
    ):
        names = ", ".join(f"not {rated.name}" for rated, _ in group)
        lines.append(f"{names}: {reason}")
        if remedy is not None:
            lines.append(f"  remedy: {remedy}")
    own = [rated.name for rated in found.engines].index(found.engine)
    for rated in found.engines[own + 1 :]:
        if found.pays(rated):  # so few rounds that preparing takes longer than it saves
            lines.append(f"for {_count(found.rounds, 'round')}: {_remedy(rated, found)}")
            break
    if found.gpu and found.engine != "stacked" and found.cohort > 1:
        lines.append(
            "the GPU has one client at a time, and waits for Python most of it: eight processes share "
            "it with runtime.kind = 'ray' and runtime.actor-gpus = 0.125 (pip install "
            "'flsimulation[ray]')"
        )
    if not lines:
        lines = ["nothing to change: no engine promises more"]
    if all(rated.step_seconds is None for rated in found.engines):
        lines.append("steps were not measured: on a GPU, or because clients of practice fail")
    return lines


def _remedy(rated: Rated, found: Examination) -> str | None:
    """What to change, also where it was counted not to pay and does by what was measured here."""
    if not found.pays(rated):
        return rated.remedy
    return (
        f"set train.engine = {rated.name!r}: by these figures it takes {rated.whole(found.rounds):.1f} s "
        f"with its start, less than {found.engine}"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
