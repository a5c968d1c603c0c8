"""Write the rules, dashboards and alerts from the one table of metrics.

``python monitoring/generate.py`` writes them; with ``--check`` it only says whether they are
current. prometheus.yml, the datasource and the dashboards' folder are written by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

MONITORING = Path(__file__).parent
sys.path.insert(0, str(MONITORING.parent))  # run as a script, the folder above is not searched

from grafana_foundation_sdk.cog.encoder import JSONEncoder  # noqa: E402

from monitoring.provisioning import grafana_rules, prometheus_rules  # noqa: E402
from monitoring.queries import DASHBOARDS  # noqa: E402


def files() -> dict[str, str]:
    """Path below ``monitoring`` and text of every generated file."""
    texts = {
        "prometheus/alerts.yml": prometheus_rules(),
        "grafana/provisioning/alerting/rules.yml": grafana_rules(),
    }
    for name, make in DASHBOARDS.items():
        text = json.dumps(make(), cls=JSONEncoder, indent=2, ensure_ascii=False) + "\n"
        texts[f"grafana/dashboards/{name}.json"] = text
    return texts


def main(arguments: Sequence[str] | None = None, folder: Path = MONITORING) -> int:
    """Write the files into ``folder``, or check them; give the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if not current")
    check = parser.parse_args(arguments).check
    texts = {folder / name: text for name, text in files().items()}
    if not check:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return 0
    stale = [
        str(path.relative_to(folder)) for path, text in texts.items() if not _holds(path, text)
    ]
    if stale:
        print(
            f"monitoring: not current: {', '.join(stale)}; run python monitoring/generate.py",
            file=sys.stderr,
        )
    return 1 if stale else 0


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
