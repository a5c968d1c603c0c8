"""Commands, options and states of Flower's programs, without the slow import of Flower."""

from __future__ import annotations

CLIENT_APP = "flwr-clientapp"
"""Started by a SuperNode's SuperExec for each message."""
SERVER_APP = "flwr-serverapp"
"""Started by a SuperLink's SuperExec for each run."""
SUPEREXEC = "flower-superexec"
"""Started once by a SuperNode or a SuperLink; starts the other two."""
SUPERNODE, SUPERLINK = "flower-supernode", "flower-superlink"

OTHER_APPS = (SERVER_APP, "flwr-agentapp", "flwr-model", "flwr-connector", "flwr-simulation")
"""What a SuperExec starts for other tasks; a client needs none of them."""

ADDRESS, TOKEN, INSECURE = "--runtime-api-address", "--token", "--insecure"
"""Options of `SERVER_APP`: where it reports, with which token, and whether without TLS."""
ROOTS = "--root-certificates"
"""Option of `SERVER_APP` and `SUPERNODE`: the CA by which a SuperLink is recognized."""
LINK, KEY = "--superlink", "--auth-supernode-private-key"
"""Options of `SUPERNODE`: where the SuperLink is, and the key's file."""
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

HEALTH = "/health"
"""Path of a SuperLink's health check."""
AHEAD_SECONDS, BEHIND_SECONDS = 5.0, 305.0
"""By which a client's clock may differ from the SuperLink's: requests carry a signed time."""
CLIENT_PATHS = frozenset(
    f"/v1/fleet/{verb}"
    for verb in (
        *("register-node", "activate-node", "deactivate-node", "unregister-node"),
        *("send-node-heartbeat", "pull-messages", "push-messages", "get-run", "get-fab"),
        *("push-object", "pull-object", "confirm-message-received"),
    )
)
"""Paths of a SuperLink that a client needs: the whole Fleet API, where every request is signed."""
