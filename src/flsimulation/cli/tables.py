"""Tables on the terminal, without truncation."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flsimulation.errors import printable


def plain(text: str) -> Text:
    """A cell with a text that others wrote: neither Rich's markup nor a terminal's sequences."""
    return Text(printable(text))


def print_table(table: Table) -> None:
    """Print a table at its full width: a terminal wraps or scrolls, a pipe has no width."""
    console = Console()
    needed = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    console.width = max(console.width, needed)
    console.print(table)
