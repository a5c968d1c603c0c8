"""``flsim client`` and ``flsim superlink``: one program of a network, in or without a container."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

import typer

from flsimulation.errors import InputError

verbs = typer.Typer()
"""The two commands."""

MetricsPort = Annotated[
    int,
    typer.Option(min=1, max=65535, help="Serve Prometheus metrics on this port, on loopback."),
]
MetricsFor = Annotated[
    str | None,
    typer.Option(
        metavar="HOST",
        help="Serve the metrics on all addresses, but to this host only, e.g. to Prometheus's.",
    ),
]


@verbs.command()
def client(
    superlink: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            envvar="SUPERLINK_CLIENTS",
            help="Where the SuperLink serves its clients.",
        ),
    ] = "127.0.0.1:8081",
    name: Annotated[
        str | None,
        typer.Option(
            help="The client's name, which belongs to its key. [default: that of --site, else the host's]"
        ),
    ] = None,
    partition: Annotated[
        int | None,
        typer.Option(
            min=0,
            envvar="PARTITION",
            help="The partition to hold. [default: the server assigns one]",
        ),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            envvar="SITE",
            help="The site whose data this client has, of an experiment with sites.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(envvar="DATA", help="File or folder with the site's data."),
    ] = None,
    allow_model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE.py:NAME",
            help="Allow this code, pinned to its SHA-256 at the start, or to FILE.py:NAME@SHA256; "
            "or an installed module:NAME. Repeat it for more.",
        ),
    ] = None,
    allow_models_in: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER", help="Allow the code in all files of this folder, unpinned."
        ),
    ] = None,
    make_key: Annotated[
        bool, typer.Option("--make-key", help="Make the key, leave NAME.pub here, and end.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Print who this client is and what it accepts, and end.")
    ] = False,
    metrics_port: MetricsPort = 8000,
    metrics_for: MetricsFor = None,
) -> None:
    """Run one client of a network until it is stopped."""
    if make_key and show:
        raise InputError("--make-key and --show exclude each other; give one")
    from flsimulation.node import joining
    from flsimulation.node.allowed import read_allowed
    from flsimulation.node.own_site import become_site

    name = name or site or socket.gethostname()
    if make_key:
        typer.echo("\n".join(joining.make_key(name)))
        return
    become_site(site, data)
    allowed = read_allowed(allow_model or [], allow_models_in or [])
    joined = joining.Joining(superlink, name, partition, allowed)
    if show:
        typer.echo("\n".join(joined.describe()))
        return
    joined.run(metrics_port, metrics_for)


@verbs.command()
def superlink(
    host: Annotated[
        str, typer.Option(help="Address for submitting and stopping runs: not for clients.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of --host.")] = 8080,
    clients_host: Annotated[
        str, typer.Option(help="Address for clients, where nothing else is served.")
    ] = "127.0.0.1",
    clients_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of --clients-host.")
    ] = 8081,
    memory: Annotated[
        Path | None,
        typer.Option(
            help="File that keeps which client holds which partition; the admitted clients are "
            "beside it. [default: runs/.partitions.json]"
        ),
    ] = None,
    metrics_port: MetricsPort = 8000,
    metrics_for: MetricsFor = None,
    as_owner_of: Annotated[
        Path | None,
        typer.Option(help="If started as root: continue as the owner of this folder."),
    ] = None,
    admit_names: Annotated[
        str,
        typer.Option(
            metavar="REGEX",
            help="The names that clients of this machine may take without flsim admit.",
        ),
    ] = ".*",
) -> None:
    """Run a network's SuperLink and its runs until it is stopped.

    The run directories are written to ./runs.
    """
    from flsimulation.node.serving import become_owner_of, run_superlink

    if as_owner_of is not None:
        become_owner_of(as_owner_of)
    path = memory or Path("runs") / ".partitions.json"
    clients = (clients_host, clients_port)
    run_superlink(host, port, clients, path, metrics_port, metrics_for, admit_names)
