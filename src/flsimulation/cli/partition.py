"""``flsim partition``: the clients' partitions, without training."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import typer
from rich.markup import escape
from rich.table import Table

from flsimulation.cli.tables import print_table
from flsimulation.data.federated import FederatedData
from flsimulation.data.partitions import DrawnPartitions
from flsimulation.errors import InputError, printable
from flsimulation.experiment import load_experiment
from flsimulation.host.files import write_atomic
from flsimulation.report import partition_figure
from flsimulation.report import png as as_png
from flsimulation.report.formats import short

_SHOWN_CLIENTS = 100

Targets: TypeAlias = dict[str, tuple[float, float, float]]
"""By partition: mean, least and greatest target."""


def partition_command(file: Path | None, overrides: list[str], png: Path | None) -> None:
    """Print the table of clients and draw their label histograms."""
    experiment = load_experiment(file, overrides)
    path = png or Path(f"partition-{experiment.name}.png")
    if not path.parent.is_dir():
        raise InputError(
            f"--png {path}: {path.parent} is not a folder; choose a path in an existing one"
        )
    data = FederatedData.load(experiment)
    drawn = isinstance(data.partitions, DrawnPartitions)  # any number of clients, all of one size
    shown = _SHOWN_CLIENTS if drawn else None
    histogram = data.histogram(shown)
    classes = () if data.dataset.labels is None else data.dataset.classes
    if any(len(counts) != len(classes) for counts in histogram.values()):
        classes = ()  # sites that share only how many examples they have
    for note in data.dataset.notes:
        typer.echo(note)
    names = data.names if experiment.data.partition == "natural" else ()
    print_table(_table(histogram, classes, data.targets(shown), names))
    clients = len(data.partitions)
    if clients > _SHOWN_CLIENTS:
        typer.echo(f"... and {clients - _SHOWN_CLIENTS} more clients")
    sizes = [sum(counts) for counts in histogram.values()]
    typer.echo(
        f"{clients} clients, {data.train_examples} of {len(data.dataset.y_train)} training examples, "
        f"{min(sizes)} to {max(sizes)} per client"
    )
    write_atomic(path, as_png(partition_figure(histogram, classes, names)))
    typer.echo(path)


def _table(
    histogram: dict[str, list[int]], classes: tuple[str, ...], targets: Targets | None,
    names: tuple[str, ...],
) -> Table:  # fmt: skip
    """A row per client: its examples of each class, or mean and range of its targets."""
    headers = classes if targets is None else ("mean", "min", "max")
    first = ("client", "name") if names else ("client",)
    table = Table(
        *first,
        "examples",
        *(escape(printable(name)) for name in headers),
        box=None,
        header_style="bold",
    )
    for column in table.columns:
        column.justify = "left" if column.header == "name" and names else "right"
    for client, counts in list(histogram.items())[:_SHOWN_CLIENTS]:
        by_class = [str(n) if n else "·" for n in counts] if classes else []
        of_targets = [f"{value:,.6g}" for value in targets[client]] if targets else []
        named = [escape(short(names[int(client)], 24))] if names else []
        table.add_row(client, *named, str(sum(counts)), *by_class, *of_targets)
    return table
