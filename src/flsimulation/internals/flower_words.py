"""Commands, options and words of Flower's programs; no import of Flower, which takes long."""

from __future__ import annotations

CLIENT_APP = "flwr-clientapp"
"""What a SuperNode's SuperExec starts for each message."""
SERVER_APP = "flwr-serverapp"
"""What a SuperLink's SuperExec starts for each run."""
SUPEREXEC = "flower-superexec"
"""What a SuperNode or a SuperLink starts once, to start the others."""
SUPERNODE, SUPERLINK = "flower-supernode", "flower-superlink"

ADDRESS, TOKEN, INSECURE = "--runtime-api-address", "--token", "--insecure"
"""Options of `SERVER_APP`: where it reports, as whom, and whether without TLS."""
PARENT = "--parent-pid"
"""Option of `SERVER_APP`: the process that ends when its SuperLink ends."""

COMMANDS = {
    "client": ("flwr.supercore.cli", "flwr.supernode.cli"),
    "superlink": ("flwr.supercore.cli", "flwr.superlink.cli"),
}
"""By role: modules of the commands above, which a warm process imports before it forks."""

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
"""Program that prints the logs of many runs: most of the time of ``flwr log`` is its imports."""

PENDING, STARTING, RUNNING, FINISHED = "pending", "starting", "running", "finished"
"""A run's status; after `FINISHED` stands how, as in these."""
COMPLETED, FAILED, STOPPED = "finished:completed", "finished:failed", "finished:stopped"
