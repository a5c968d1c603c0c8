"""Hold the files that Grafana starts with to what Grafana itself demands of them.

``python monitoring/check.py [FOLDER]``, FOLDER being the repository's, prints a line for each
violation and ends with status 1, or prints what it has checked and ends with status 0. Grafana
refuses to start over most of them and says nothing of the others. No Grafana is needed: the rules
were written from its source.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # run as a script, the folder above is not searched

from monitoring.checks import alerting, compose, dashboards, datasources, notifications  # noqa: E402
from monitoring.checks.files import Shipped, read  # noqa: E402
from monitoring.checks.shapes import Violation, items  # noqa: E402


def check(folder: Path) -> tuple[list[Violation], str]:
    """What is wrong with the files below ``folder``, and a line about what was checked."""
    shipped, wrong = read(folder)
    if not wrong:  # what cannot be read would be reported again by whoever misses it
        wrong = list(_violations(shipped))
    return wrong, _summary(shipped)


def _violations(shipped: Shipped) -> Iterator[Violation]:
    for kind in (datasources, dashboards, alerting, notifications, compose):
        yield from kind.check(shipped)


def _summary(shipped: Shipped) -> str:
    panels = sum(len(list(dashboards.panels(board))) for board in shipped.dashboards.values())
    rules = sum(len(items(group, "rules")) for *_, group in shipped.listed("alerting", "groups"))
    counts = (
        (len(list(shipped.listed("datasources", "datasources"))), "datasource"),
        (len(shipped.dashboards), "dashboard"),
        (panels, "panel"),
        (rules, "alert rule"),
        (len(shipped.environment), "setting"),
    )
    told = ", ".join(f"{count} {what}{'s' * (count != 1)}" for count, what in counts)
    return f"monitoring: {told}: as Grafana {compose.GRAFANA_MAJOR} demands"


def main(arguments: Sequence[str] | None = None) -> int:
    """Check and print; give the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT, metavar="FOLDER")
    wrong, summary = check(parser.parse_args(arguments).folder)
    for violation in wrong:
        print(violation)
    if not wrong:
        print(summary)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
