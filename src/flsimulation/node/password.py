"""``python -m flsimulation.node.password FILE``: Grafana's password, created at the first start.

It is never printed: logs are kept and read by others. With ``-`` as a second argument it is read from
standard input instead.
"""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

from flsimulation.host.files import write_atomic


def main() -> None:
    """Write the password: the one on standard input, or a new one if the file does not exist."""
    path, *given = sys.argv[1:]
    if given == ["-"]:
        write_atomic(path, sys.stdin.readline().strip())
    elif not Path(path).is_file():
        write_atomic(path, secrets.token_urlsafe(18))


if __name__ == "__main__":
    main()
