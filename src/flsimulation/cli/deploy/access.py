"""``flsim certs``, ``admit`` and ``revoke``: who is trusted, and who may join."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from flsimulation.cli.deploy.compose import RUNS, Project, find_files, open_project
from flsimulation.errors import FLSimulationError, InputError

verbs = typer.Typer()
"""The three commands."""

SERVICE = "certs"
"""The service of the Compose project that makes its certificates."""

ComposeFile = Annotated[
    Path | None,
    typer.Option(
        "--file", help="The Compose file. [default: compose.yaml here or in a folder above]"
    ),
]
Runs = Annotated[
    Path | None,
    typer.Option(
        help="The SuperLink's folder of runs. [default: the Compose project's, else ./runs]"
    ),
]


@verbs.command()
def certs(
    names: Annotated[
        list[str] | None,
        typer.Option("--name", help="A DNS name or IP address by which clients reach the server."),
    ] = None,
    renew: Annotated[
        bool, typer.Option("--renew", help="Make a new certificate of the server now.")
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the CA's certificate for clients, - to print it."),
    ] = None,
    ca_cert: Annotated[Path | None, typer.Option(help="Use this CA: its certificate.")] = None,
    ca_key: Annotated[Path | None, typer.Option(help="The key of --ca-cert, to sign with.")] = None,
    cert: Annotated[
        Path | None,
        typer.Option(help="Use this certificate of the server, which --ca-cert signed."),
    ] = None,
    key: Annotated[Path | None, typer.Option(help="The key of --cert.")] = None,
    as_owner_of: Annotated[
        Path | None,
        typer.Option(help="As root in a container: give the server's key to this folder's owner."),
    ] = None,
    file: ComposeFile = None,
    local: Annotated[
        bool, typer.Option("--local", help="Those in FLSIM_HOME, not those of a Compose project.")
    ] = False,
) -> None:
    """Make, renew or show a network's certificates.

    They are the Compose project's here or in a folder above; without one, or with --local, those in
    FLSIM_HOME [~/.flsim] for a SuperLink without containers. Without options: make what is missing,
    renew what is due, show both.
    """
    brought = ca_cert, ca_key, cert, key
    if as_owner_of is None and not local and (project := _project(file)) is not None:
        if any(brought):
            raise InputError(
                "--ca-cert, --cert: give them to the service certs, or --local; see docs/security.md"
            )
        _certs_of(project, names or [], renew=renew, export=export)
        return
    from flsimulation.security import issuing
    from flsimulation.security.home import home

    _bring(*brought)
    if export is not None:
        issuing.ensure(home())
        _write(export, home().ca.read_text(encoding="utf-8"))
        return
    done = issuing.ensure(home(), names or [], renew=renew, container=as_owner_of is not None)
    if as_owner_of is not None:
        from flsimulation.node.serving import let_write, owner_of

        user, group = owner_of(as_owner_of)
        issuing.hand_over(home(), user, group)
        let_write(as_owner_of, group)
    typer.echo("\n".join([*([f"{done}:"] if done else []), *issuing.describe(home())]))


def _bring(ca_cert: Path | None, ca_key: Path | None, cert: Path | None, key: Path | None) -> None:
    from flsimulation.security import issuing
    from flsimulation.security.home import home

    if not any((ca_cert, ca_key, cert, key)):
        return
    if ca_cert and ca_key and not (cert or key):
        issuing.bring_ca(home(), ca_cert, ca_key)
    elif ca_cert and cert and key and not ca_key:
        issuing.bring_server(home(), ca_cert, cert, key)
    else:
        raise InputError("give --ca-cert with --ca-key, or --ca-cert with --cert and --key")


def _certs_of(project: Project, names: list[str], *, renew: bool, export: Path | None) -> None:
    run = ("run", "--rm", "--no-TTY", SERVICE)
    if export is not None:
        _write(export, project.ask(*run, "--export", "-", seconds=None))
        return
    more = [*(word for name in names for word in ("--name", name)), *["--renew"] * renew]
    typer.echo(project.ask(*run, *more, seconds=None), nl=False)


def _write(export: Path, pem: str) -> None:
    if str(export) == "-":
        typer.echo(pem, nl=False)
        return
    export.write_text(pem, encoding="utf-8")
    typer.echo(f"{export}: the CA's certificate, for clients; they name it in FLSIM_CA")


@verbs.command()
def admit(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    key: Annotated[Path, typer.Argument(metavar="FILE", show_default=False)],
    runs: Runs = None,
    file: ComposeFile = None,
) -> None:
    """Admit a client to the network, by the public key that it made with `flsim client --make-key`.

    NAME is the client's name, FILE its public key (- reads it). The SuperLink follows within seconds.
    """
    from flsimulation.security.keys import public_of
    from flsimulation.security.register import Register

    try:
        text = sys.stdin.read() if str(key) == "-" else key.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"FILE {key}: cannot be read ({error})") from None
    admitted = Register(_register(runs, file)).admit(name, public_of(text, f"FILE {key}"))
    typer.echo(f"{admitted.name} is admitted with the key {admitted.fingerprint}")


@verbs.command()
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    runs: Runs = None,
    file: ComposeFile = None,
) -> None:
    """End a client's admission: its requests are rejected within seconds, its key for ever."""
    from flsimulation.security.register import Register

    revoked = Register(_register(runs, file)).revoke(name)
    typer.echo(f"{revoked.name} is revoked, its key {revoked.fingerprint} stays out")


def _register(runs: Path | None, file: Path | None) -> Path:
    """The file of the register, in the folder of runs."""
    from flsimulation.node.serving import become_owner_of
    from flsimulation.security.register import FILE_NAME

    if runs is None and (project := _project(file)) is not None:
        runs = project.mount(RUNS)
    folder = runs or Path("runs")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the SuperLink's with --runs")
    if not os.access(folder, os.W_OK):  # root of a container, who may only become the owner
        become_owner_of(folder)
    return folder / FILE_NAME


def _project(file: Path | None) -> Project | None:
    """The Compose project that is named or here; None without one, or without Docker."""
    if file is not None:
        return open_project(find_files(file))
    with contextlib.suppress(FLSimulationError):
        project = open_project(find_files(None))
        return project if SERVICE in project.services else None
    return None
