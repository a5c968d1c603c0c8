"""``python -m flsimulation.node.password FILE``: Grafana's password, created at the first start."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from flsimulation.host.files import write_atomic


def main() -> None:
    """Write the password in ``GRAFANA_ADMIN_PASSWORD``, else a new one if the file does not exist."""
    path = Path(sys.argv[1])
    given = os.environ.get("GRAFANA_ADMIN_PASSWORD", "")
    if given:
        write_atomic(path, given)
    elif not path.is_file():
        password = secrets.token_urlsafe(12)
        write_atomic(path, password)
        print(f"Grafana: user admin, password {password} (it is not shown again)")


if __name__ == "__main__":
    main()
