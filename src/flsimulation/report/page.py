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
from flsimulation.report.log import RunLog, read_run
from flsimulation.report.tables import (
    errors_table,
    phases_table,
    reasons_table,
    rounds_table,
    spread_table,
    worst_table,
)
from flsimulation.report.tiles import tiles
from flsimulation.rundir.manifest import settle

if TYPE_CHECKING:
    from jinja2 import Template


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into a run directory, from its files alone.

    A manifest that says ``running`` after its run was killed is set right.

    Raises
    ------
    InputError
        Where ``run_dir`` is no run directory, or a file in it is damaged.
    OSError
        Where the folder cannot be written.
    """
    settle(Path(run_dir))
    log = read_run(run_dir)
    return write_atomic(log.path / "report.html", _template().render(_context(log)))


def write_pngs(run_dir: str | Path, folder: str | Path) -> list[Path]:
    """Write each figure of the report into ``folder``, which is made if need be.

    Raises
    ------
    InputError
        Where ``run_dir`` is no run directory, or a file in it is damaged.
    OSError
        Where the folder cannot be made or written.
    """
    log, folder = read_run(run_dir), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = figures(log).items()
    return [write_atomic(folder / f"{name}.png", png(figure)) for name, figure in drawn]


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


def _context(log: RunLog) -> dict[str, Any]:
    from markupsafe import Markup

    return {
        "head": headline(log),
        "tiles": tiles(log),
        "figures": {name: Markup(svg(figure, name)) for name, figure in figures(log).items()},  # noqa: S704
        "captions": captions(log),
        "rounds": rounds_table(log) if log.rounds else None,
        "phases": phases_table(log) if log.rounds else None,
        "spread": spread_table(log),
        "worst": worst_table(log),
        "errors": errors_table(log),
        "reasons": reasons_table(log),
        "toml": log.toml,
        "details": details(log),
        "version": __version__,
        "folder": log.path.resolve().name,
    }
