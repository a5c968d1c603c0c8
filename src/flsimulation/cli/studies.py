"""The verbs that compare or examine runs. Heavy imports stay inside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flsimulation.cli.options import File, Json, Overrides

verbs = typer.Typer()


@verbs.command()
def audit(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", show_default=False)],
    shadows: Annotated[
        int, typer.Option(help="Shadow models of the likelihood ratio, an even number; 0 for none.")
    ] = 16,
    examples: Annotated[
        int, typer.Option(help="The most examples that were trained on, and the most others.")
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    json: Json = False,
) -> None:
    """Attack a finished run: was an example trained on, what does a client's update show?

    RUN is a run directory. The result is also in its audit.json and its report.
    """
    from flsimulation.cli.audit import audit_command

    audit_command(run_dir, shadows, examples, seed, json=json)


@verbs.command()
def verify(
    file: File = None,
    overrides: Overrides = None,
    superlink: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The SuperLink of the network."),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="What to compare with: ray or network. [default: network, unless the "
            "experiment's runtime.kind is ray]",
        ),
    ] = None,
    engines: Annotated[
        bool,
        typer.Option(
            "--engines", help="Compare clients trained stacked with clients trained one by one."
        ),
    ] = False,
) -> None:
    """Run an experiment in one process and on a network or Ray; compare them round by round.

    FILE is an experiment file; without it, the default experiment is used. The exit status is 1 if
    partitions, cohorts, scores or weights do not agree.
    """
    from flsimulation.cli.verify import verify_command

    where = [f"runtime.superlink={superlink}"] if superlink is not None else []
    verify_command(file, [*(overrides or []), *where], runtime, engines=engines)


@verbs.command()
def paper(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[PAPER]", help="The name of a paper, or a .toml file."),
    ] = None,
    rows: Annotated[str, typer.Option(help="Run only rows whose names contain this.")] = "",
    minutes: Annotated[
        float, typer.Option(min=0, help="Stop after this time; the same command continues.")
    ] = 30.0,
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs per row, with the best value of its search.")
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run directories. [default: runs/papers/PAPER]"),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Also write the figures to this JSON file.")
    ] = None,
) -> None:
    """Run a paper's experiments; print its figures beside those measured here.

    Without PAPER, the available papers are listed.
    """
    from flsimulation.cli.paper import list_papers, paper_command

    if name is None:
        list_papers()
    else:
        paper_command(name, rows, minutes, seeds, out, json)
