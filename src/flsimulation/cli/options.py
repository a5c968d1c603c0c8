"""Options of several verbs of ``flsim``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

File = Annotated[Path | None, typer.Argument(metavar="[FILE]")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key, e.g. --set train.epochs=2."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
Columns = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Metrics to show, e.g. loss,val_f1. [default: loss and accuracy, or what the model logs]",
    ),
]


def listed(names: str | None) -> list[str]:
    """``loss, val_f1`` as a list, each name once; empty without any."""
    found = (name.strip() for name in (names or "").split(","))
    return list(dict.fromkeys(name for name in found if name))
