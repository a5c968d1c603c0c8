"""Commands with the names of Flower's own that forward to a warm server, and running Flower's."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path

_SHIM = """\
#!/bin/sh
'''exec' "{python}" -IS "$0" "$@"
' '''
import os, socket, sys
try:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(60)
        s.connect({socket!r})
        import json
        s.sendall(json.dumps({{"launch": {command!r}, "arguments": sys.argv[1:]}}).encode())
        s.shutdown(socket.SHUT_WR)
        if s.recv(1):
            sys.exit(0)
except OSError:
    pass
real = {real!r}
if real is None:
    sys.exit("flsim: {command} does not run here without the program that restricts it")
os.execv(real, [real, *sys.argv[1:]])  # no server listens: start without it
"""

_REFUSED = """\
#!/bin/sh
echo "flsim: {command} is not for clients" >&2
exit 1
"""


def write_shims(
    folder: Path, path: Path, commands: Mapping[str, str | None], refused: Iterable[str] = ()
) -> None:
    """Write the commands that forward to the server at ``path``.

    Parameters
    ----------
    folder : Path
        Folder of the commands, to be put first on the PATH.
    path : Path
        The server's socket.
    commands : mapping
        Name of a command -> full path of Flower's own, which is run if no server listens; None to
        run nothing then.
    refused : iterable of str
        Names of commands that never run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for command, real in commands.items():
        shim = folder / command
        text = _SHIM.format(python=sys.executable, socket=str(path), command=command, real=real)
        shim.write_text(text, encoding="utf-8")
        shim.chmod(0o755)
    for command in refused:
        shim = folder / command
        shim.write_text(_REFUSED.format(command=command), encoding="utf-8")
        shim.chmod(0o755)


def run_command(command: str, arguments: list[str]) -> None:
    """Run an installed command in this process, as its own script would."""
    (entry,) = entry_points(group="console_scripts", name=command)
    sys.argv = [command, *arguments]
    entry.load()()
