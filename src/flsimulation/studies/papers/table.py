"""Published and measured figures side by side, as cells of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flsimulation.studies.papers.measures import measure_of

HEADS = ("row", "measure", "paper", "ours", "seeds", "chosen")


def cells(row: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Lines of the table under `HEADS`, one for each measure.

    Parameters
    ----------
    row : mapping
        A `Found.record`, or one that was read from JSON.
    """
    for place, (name, published) in enumerate(row["published"].items()):
        measure, ours = measure_of(name), row["ours"][name]
        seeds = row["seeds"].get(name, [])
        yield (
            row["row"] if place == 0 else "",
            measure.title,
            measure.shown(published),
            "not run" if not row["runs"] else "-" if ours is None else measure.shown(ours),
            ", ".join("-" if seed is None else measure.shown(seed) for seed in seeds)
            if len(seeds) > 1
            else "",
            row["chosen"] if place == 0 else "",
        )
