"""``flsim partition``: the clients' partitions, without training."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.table import Table

from flsimulation.cli.tables import print_table
from flsimulation.data.federated import FederatedData
from flsimulation.data.partitions import DrawnPartitions
from flsimulation.errors import InputError
from flsimulation.experiment import load_experiment
from flsimulation.host.files import write_atomic
from flsimulation.report import partition_figure
from flsimulation.report import png as as_png

_SHOWN_CLIENTS = 100


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
    histogram, classes = data.histogram(_SHOWN_CLIENTS if drawn else None), data.dataset.classes
    print_table(_table(histogram, classes))
    clients = len(data.partitions)
    if clients > _SHOWN_CLIENTS:
        typer.echo(f"... and {clients - _SHOWN_CLIENTS} more clients")
    sizes = [sum(counts) for counts in histogram.values()]
    typer.echo(
        f"{clients} clients, {data.train_examples} of {len(data.dataset.y_train)} training examples, "
        f"{min(sizes)} to {max(sizes)} per client"
    )
    write_atomic(path, as_png(partition_figure(histogram, classes)))
    typer.echo(path)


def _table(histogram: dict[str, list[int]], classes: tuple[str, ...]) -> Table:
    table = Table("client", "examples", *classes, box=None, header_style="bold")
    for column in table.columns:
        column.justify = "right"
    for client, counts in list(histogram.items())[:_SHOWN_CLIENTS]:
        by_class = counts if classes else []
        table.add_row(client, str(sum(counts)), *[str(n) if n else "·" for n in by_class])
    return table
