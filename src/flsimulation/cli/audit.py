"""``flsim audit``: attacks on a run's model and updates, as a table."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from flsimulation.cli.tables import print_table
from flsimulation.errors import printable
from flsimulation.report import write_report
from flsimulation.report.audited import HEADINGS, guarantee, inversion_sentence, rows
from flsimulation.rundir.audit import Audit, write_audit


def audit_command(run_dir: Path, shadows: int, examples: int, seed: int, *, json: bool) -> None:
    """Audit a run; leave audit.json in its directory, and the result in its report."""
    from flsimulation.studies.audit import audit

    console = Console(quiet=json)  # --json prints one object only
    with console.status("auditing") as status:

        def tell(doing: str) -> None:
            status.update(f"auditing: {doing}")
            if not console.is_terminal:
                console.print(f"  {printable(doing)}", style="dim", markup=False, highlight=False)

        found = audit(run_dir, shadows=shadows, examples=examples, seed=seed, tell=tell)
    path = write_audit(run_dir, found)
    report = write_report(run_dir)
    if json:
        typer.echo(found.json())
        return
    _show(found)
    typer.echo(f"{path}\n{report}")


def _show(found: Audit) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == HEADINGS[0] else "right")
    for row in rows(found):
        table.add_row(*row)
    print_table(table)
    lines = (guarantee(found), inversion_sentence(found), *(f"left out: {n}" for n in found.notes))
    for line in lines:
        if line:
            typer.echo(printable(line))
