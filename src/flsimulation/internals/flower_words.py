"""Commands, options and states of Flower's programs, without the slow import of Flower."""

from __future__ import annotations

CLIENT_APP = "flwr-clientapp"
"""Started by a SuperNode's SuperExec for each message."""
SERVER_APP = "flwr-serverapp"
"""Started by a SuperLink's SuperExec for each run."""
SUPEREXEC = "flower-superexec"
"""Started once by a SuperNode or a SuperLink; starts the other two."""
SUPERNODE, SUPERLINK = "flower-supernode", "flower-superlink"

ADDRESS, TOKEN, INSECURE = "--runtime-api-address", "--token", "--insecure"
"""Options of `SERVER_APP`: where it reports, with which token, and whether without TLS."""
PARENT = "--parent-pid"
"""Option of `SERVER_APP`: id of a process that ends together with its SuperLink."""

COMMANDS = {
    "client": ("flwr.supercore.cli", "flwr.supernode.cli"),
    "superlink": ("flwr.supercore.cli", "flwr.superlink.cli"),
}
"""By role: modules of the commands above, which a warm server imports before it forks."""

COMMAND_LINE = "flwr.cli.app"
"""Module of the command ``flwr``; its ``app`` is the command itself."""
LOGS = """\
import sys
from flwr.cli.app import app
mark, connection, *runs = sys.argv[1:]
for run in runs:
    print(f"\\n{mark}{run}", flush=True)
    try:
        app(["log", run, connection, "--show"], standalone_mode=False)
    except Exception as error:
        print(error, file=sys.stderr)
"""
"""Program that prints the logs of several runs; ``flwr log`` would import Flower for each."""

PENDING, STARTING, RUNNING, FINISHED = "pending", "starting", "running", "finished"
"""A run's status; after `FINISHED` and a colon follows how it ended, as in the next ones."""
COMPLETED, FAILED, STOPPED = "finished:completed", "finished:failed", "finished:stopped"
