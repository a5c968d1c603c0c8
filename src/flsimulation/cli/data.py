"""``flsim data``: how a data set was understood, as tables and as a picture."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from flsimulation.cli.tables import plain, print_table
from flsimulation.data import load_dataset
from flsimulation.data.summary import Summary, summarize
from flsimulation.errors import InputError
from flsimulation.experiment import Experiment, load_experiment
from flsimulation.host.files import write_atomic
from flsimulation.report import png as as_png
from flsimulation.report.figures.examples import data_figure

_ROWS = 50  # of a table of columns or classes


def data_command(
    source: str | None, overrides: list[str], png: Path | None, *, as_json: bool
) -> None:
    """Print what the data set holds and draw it."""
    experiment, name = _experiment(source, overrides)
    path = png or Path(f"data-{name}.png")
    if not path.parent.is_dir():
        raise InputError(
            f"--png {path}: {path.parent} is not a folder; choose a path in an existing one"
        )
    dataset = load_dataset(experiment.data, experiment.seed)
    summary = summarize(dataset)
    write_atomic(path, as_png(data_figure(dataset)))
    if as_json:
        typer.echo(json.dumps({**summary, "png": str(path)}))
        return
    _print(summary)
    typer.echo(path)


def _experiment(source: str | None, overrides: list[str]) -> tuple[Experiment, str]:
    """The experiment whose data is shown, and the name of the picture."""
    if source is None or source.endswith(".toml"):
        experiment = load_experiment(None if source is None else Path(source), overrides)
        return experiment, experiment.name
    path = Path(source).expanduser()
    is_path = path.exists() or (":" not in source and ("." in source or "/" in source))
    named = f"file:{path}" if is_path else source
    experiment = load_experiment(None, [f"data.dataset={json.dumps(named)}", *overrides])
    return experiment, _file_name(path)


def _file_name(path: Path) -> str:
    """Name of a file without its ending; of ``file.py:function`` and ``OWNER/NAME`` the last part."""
    name = path.resolve().name if path.exists() else path.name
    stem = Path(name).stem if path.is_file() else name
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in stem)


def _print(summary: Summary) -> None:
    print_table(_overview(summary))
    for inputs in summary["inputs"]:
        _table(inputs.get("columns"), "column", "type", "missing", "distinct", "min", "mean", "max")
    _table(summary.get("classes"), "class", "train", "test")
    _table(summary.get("masks"), "class", "share of pixels")
    typer.echo()


def _overview(summary: Summary) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    lines = [
        ("data set", summary["name"]),
        ("examples", f"{summary['train']:,} for training, {summary['test']:,} for the test"),
        *(line for inputs in summary["inputs"] for line in _about_inputs(inputs)),
        ("task", summary["task"]),
        *_about_target(summary),
        *_about_clients(summary),
        *(("note", note) for note in summary["notes"]),
    ]
    for key, value in lines:
        table.add_row(Text(key, style="bold"), plain(value))
    return table


def _about_inputs(inputs: Summary) -> list[tuple[str, str]]:
    shape = " x ".join(map(str, inputs["shape"])) or "1"
    name = f"{inputs['name']}: " if inputs["name"] else ""
    lines = [("inputs", f"{name}{inputs['kind']}, {shape} per example")]
    if values := inputs.get("values"):
        lines.append(("values", _spread(values)))
    if tokens := inputs.get("tokens"):
        lines.append(("tokens", f"{_tokens(tokens)}, length {tokens['length']}"))
    if constant := inputs.get("constant"):
        size = math.prod(inputs["shape"])
        lines.append(("constant", f"{constant:,} of {size:,} are the same in all examples"))
    return lines


def _about_target(summary: Summary) -> list[tuple[str, str]]:
    target = summary.get("target")
    if target is None:
        return []
    text = _spread(target) if "sd" in target else _tokens(target)
    shape = f", {' x '.join(map(str, target['shape']))} per example" if target["shape"] else ""
    return [("target", text + shape)]


def _about_clients(summary: Summary) -> list[tuple[str, str]]:
    if (clients := summary.get("clients")) is None:
        return []
    sizes = f"{clients['smallest']:,} to {clients['largest']:,} examples each"
    return [("clients", f"{clients['number']:,} natural ones, {sizes}")]


def _spread(values: dict[str, float]) -> str:
    low, mean, high, sd = (f"{values[key]:,.6g}" for key in ("min", "mean", "max", "sd"))
    return f"{low} to {high}, mean {mean}, standard deviation {sd}"


def _tokens(tokens: dict[str, float]) -> str:
    return (
        f"{tokens['min']} to {tokens['max']}, {tokens['distinct']:,} distinct, most frequent "
        f"{tokens['most_frequent']} ({tokens['share']:.1%})"
    )


def _table(rows: list[Summary] | None, *columns: str) -> None:
    """Print the first rows, of which each has the columns' values in their order."""
    if not rows:
        return
    table = Table(*columns, box=None, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows[:_ROWS]:
        table.add_row(*(plain(_cell(key, value)) for key, value in row.items()))
    typer.echo()
    print_table(table)
    if len(rows) > _ROWS:
        typer.echo(f"... and {len(rows) - _ROWS} more")


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "·"
    if key == "share":
        return f"{value:.2%}"
    return f"{value:,.6g}" if isinstance(value, float) else str(value)
