"""A paper's published figures and the experiments to reproduce them: one TOML file per paper."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from flsimulation.errors import ExperimentError, InputError
from flsimulation.experiment import Experiment, experiment_of, explain, resolve_paths
from flsimulation.experiment.section import Count, Section
from flsimulation.studies.papers.measures import measure_of

PAPERS = Path("experiments", "papers")
"""Folder of the papers that are found by name: in the repository, below the working directory."""
_ELSEWHERE = (
    f"papers are in {PAPERS} of FLSimulation's repository, not in the package; run the command in "
    f"the repository, or specify a paper's .toml file"
)


class Search(Section):
    """How a key that the paper tuned is tuned here: hill climbing on an unbounded grid."""

    key: Annotated[str, Field(pattern=r"^[a-z_-]+(\.[a-z_-]+)+$")] = "model.args.learning_rate"
    """The dotted key of the experiment."""
    start: Annotated[float, Field(gt=0)]
    """The first value tried."""
    per_decade: Count = 3
    """Grid points per factor of ten."""

    def value(self, step: int) -> float:
        """The value at a grid point, counted from the start, rounded to four digits."""
        return float(f"{self.start * 10 ** (step / self.per_decade):.4g}")


class Row(Section):
    """One line of the paper's table."""

    name: Annotated[str, Field(min_length=1)]
    """The label of the row."""
    published: Annotated[dict[str, float], Field(min_length=1)]
    """The paper's figures, by measure."""
    set_: dict[str, Any] = {}
    """Keys of the experiment that this row changes, as nested tables."""
    search: Search | None = None
    """Search of this row; by default the paper's."""

    @field_validator("published")
    @classmethod
    def _known(cls, published: dict[str, float]) -> dict[str, float]:
        for name in published:
            measure_of(name)
        return published


class Paper(Section):
    """Figures of one paper."""

    title: str
    cite: str
    """Authors, venue, year, and the table."""
    url: str
    note: str = ""
    """Differences from the paper's settings, and settings that the paper does not specify."""
    last: Count = 1
    """Number of last rounds over which scores are averaged."""
    experiment: dict[str, Any] = {}
    """The experiment that the rows' changes are applied to."""
    search: Search | None = None
    """The search of each row; none by default."""
    row: Annotated[list[Row], Field(min_length=1)]

    def searched(self, row: Row) -> Search | None:
        """The search of a row; None if nothing is tuned."""
        return row.search or self.search

    def table_of(self, row: Row, seed: int, step: int, most: int | None = None) -> dict[str, Any]:
        """The keys of a row's experiment that differ from the defaults, as nested tables.

        Parameters
        ----------
        row : Row
            A row of this paper.
        seed : int
            Added to the experiment's own seed.
        step : int
            Grid points above the search's start.
        most : int, optional
            Most rounds to run, in place of the experiment's number.
        """
        table = _merged(self.experiment, row.set_)
        if (search := self.searched(row)) is not None:
            table = _merged(table, _nested(search.key, search.value(step)))
        if most is not None:
            table = _merged(table, _nested("strategy.rounds", most))
        return table | {"seed": table.get("seed", 0) + seed}

    def experiment_of(self, row: Row, table: dict[str, Any]) -> Experiment:
        """The experiment of a row's table. Raises `ExperimentError` if it is not valid."""
        return experiment_of(table, f"{self.title}: {row.name}")


def names(folder: Path = PAPERS) -> list[str]:
    """The papers in a folder.

    Raises
    ------
    InputError
        If the folder does not exist.
    """
    if not folder.is_dir():
        raise InputError(_ELSEWHERE)
    return sorted(path.stem for path in folder.glob("*.toml"))


def load_paper(name: str) -> Paper:
    """Read a paper, by its name in `PAPERS` or by its file (``*.toml``).

    Paths in the file are relative to its folder.

    Raises
    ------
    InputError
        If there is no such paper, or a key or value of it is wrong.
    """
    source = Path(name) if name.endswith(".toml") else PAPERS / f"{name}.toml"
    try:
        text = source.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{name}: no such paper; {_choice()}") from None
    try:
        paper = Paper.model_validate(_resolved(tomllib.loads(text), source.parent))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name}: not valid TOML: {error}") from None
    except ValidationError as error:
        lines = [explain(item, name, Paper) for item in error.errors()]
        raise ExperimentError("\n".join(lines)) from None
    for row in paper.row:
        spec = paper.experiment_of(
            row, paper.table_of(row, 0, 0)
        )  # an error is raised now, not after hours
        if "rounds" in row.published and not spec.evaluate.target_accuracy:
            raise ExperimentError(
                f"{name}: row {row.name!r}: 'rounds' requires evaluate.target-accuracy, which is 0; "
                f"set it in the experiment"
            )
    return paper


def _resolved(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The file's tables with absolute paths; a value of a wrong type is left to the validation."""
    rows = table.get("row")
    sets = (
        [row.get("set") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    )
    for experiment in (table.get("experiment"), *sets):
        if isinstance(experiment, dict):
            resolve_paths(experiment, folder)
    return table


def _choice() -> str:
    if not PAPERS.is_dir():
        return _ELSEWHERE
    return f"choose from {', '.join(names())}, or specify a .toml file"


def _merged(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The table with the changes in its nested tables."""
    merged = dict(table)
    for key, value in changes.items():
        before = merged.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(before, value) if both else value  # type: ignore[arg-type]
    return merged


def _nested(key: str, value: object) -> dict[str, Any]:
    """``a.b`` as ``{"a": {"b": value}}``."""
    first, dot, rest = key.partition(".")
    return {first: _nested(rest, value) if dot else value}
