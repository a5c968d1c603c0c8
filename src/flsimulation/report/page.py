"""report.html: one file that needs nothing else, neither network nor script."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flsimulation import __version__
from flsimulation.host.files import write_atomic
from flsimulation.report.captions import captions
from flsimulation.report.details import details
from flsimulation.report.figures.canvas import png, svg
from flsimulation.report.figures.plots import figures
from flsimulation.report.headline import headline
from flsimulation.report.tables import (
    audit_table,
    errors_table,
    phases_table,
    reasons_table,
    rounds_table,
    spread_table,
    worst_table,
)
from flsimulation.report.tiles import tiles
from flsimulation.rundir import RunRecord
from flsimulation.rundir.layout import REPORT
from flsimulation.rundir.manifest import settle

if TYPE_CHECKING:
    from jinja2 import Template


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into a run directory, from its files alone.

    A manifest that still says ``running`` after its run was killed is corrected.

    Raises
    ------
    InputError
        If ``run_dir`` is not a run directory, or a file in it is damaged.
    OSError
        If the folder cannot be written.
    """
    settle(Path(run_dir))
    run = RunRecord(run_dir)
    return write_atomic(run.path / REPORT, _template().render(_context(run)))


def write_pngs(run_dir: str | Path, folder: str | Path) -> list[Path]:
    """Write each figure of the report into ``folder``, which is created if it does not exist.

    Raises
    ------
    InputError
        If ``run_dir`` is not a run directory, or a file in it is damaged.
    OSError
        If the folder cannot be created or written.
    """
    run, folder = RunRecord(run_dir), Path(folder)
    drawn = figures(run)
    folder.mkdir(parents=True, exist_ok=True)
    return [write_atomic(folder / f"{name}.png", png(figure)) for name, figure in drawn.items()]


def _template() -> Template:
    import jinja2

    text = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_clean,
    )
    return environment.from_string(text)


def _clean(value: Any) -> Any:
    """Leave out what no HTML may hold, such as a terminal's colour codes in an error."""
    from markupsafe import Markup

    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in value
    )


def _context(run: RunRecord) -> dict[str, Any]:
    from markupsafe import Markup

    return {
        "head": headline(run),
        "tiles": tiles(run),
        "figures": {name: Markup(svg(figure, name)) for name, figure in figures(run).items()},  # noqa: S704
        "captions": captions(run),
        "rounds": rounds_table(run) if run.rounds else None,
        "phases": phases_table(run) if run.rounds else None,
        "spread": spread_table(run),
        "worst": worst_table(run),
        "errors": errors_table(run),
        "reasons": reasons_table(run),
        "audit": audit_table(run),
        "toml": run.toml,
        "details": details(run),
        "version": __version__,
        "folder": run.path.resolve().name,
    }
