"""Who is admitted to a network: a name belongs to the key that first held it."""

from __future__ import annotations

import io
import os
import re
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry
from tests.conftest import wait_for

from flsimulation.cli.deploy.status import admission_lines
from flsimulation.cli.main import main
from flsimulation.errors import InputError
from flsimulation.metrics.exporter import may_read, served
from flsimulation.node import joining, password, serving
from flsimulation.node.allowed import AllowList
from flsimulation.node.assignment import Identity
from flsimulation.node.identified import identified
from flsimulation.node.node import Node
from flsimulation.security.certificates import make_ca
from flsimulation.security.home import Home
from flsimulation.security.issuing import utc_now
from flsimulation.security.keys import ensure_key, fingerprint
from flsimulation.security.register import NameTaken, Register, wait_for_admission, waiting


@pytest.fixture
def register(tmp_path: Path) -> Register:
    return Register(tmp_path / "runs" / ".clients.json")


@pytest.fixture
def public(tmp_path: Path) -> tuple[str, str]:
    return ensure_key(tmp_path / "a.key"), ensure_key(tmp_path / "b.key")


def test_a_name_belongs_to_the_key_that_first_held_it(
    register: Register, public: tuple[str, str]
) -> None:
    one, other = public
    register.admit("berlin", one)
    assert register.admit("berlin", one).name == "berlin"  # again: without effect
    with pytest.raises(
        NameTaken,
        match=f"berlin: this name belongs to the key {re.escape(fingerprint(one))}.*, if that key is "
        "lost, flsim revoke berlin and admit it again",
    ):
        register.admit("berlin", other)
    with pytest.raises(NameTaken, match=r"paris: the key SHA256:\S+ belongs to berlin"):
        register.admit("paris", one)
    assert [(c.name, c.key, c.revoked) for c in register.clients()] == [("berlin", one, False)]


def test_a_revoked_key_stays_out_and_its_name_is_free(
    register: Register, public: tuple[str, str]
) -> None:
    one, other = public
    register.admit("berlin", one)
    register.set_nodes({one: 7})
    assert register.names() == {7: "berlin"}
    register.revoke("berlin")
    assert register.names() == {}
    with pytest.raises(NameTaken, match=r"berlin: the key SHA256:\S+ is revoked"):
        register.admit("berlin", one)
    register.admit("berlin", other)
    with pytest.raises(InputError, match="NAME paris: not admitted; admitted: berlin"):
        register.revoke("paris")


def test_refusals_are_counted_by_name_and_key(register: Register, public: tuple[str, str]) -> None:
    for key in (public[1], public[1], public[0]):
        register.note_refusal("berlin", key)
    assert register.refused() == {
        f"berlin {fingerprint(public[1])}": 2,
        f"berlin {fingerprint(public[0])}": 1,
    }


def test_a_damaged_register_lets_nobody_take_a_name(
    register: Register, public: tuple[str, str], tmp_path: Path
) -> None:
    register.admit("berlin", public[0])
    (tmp_path / "runs" / ".clients.json").write_text("{")
    with pytest.raises(InputError, match=r"\.clients\.json: is damaged"):
        register.admit("berlin", public[1])


def test_what_waits_is_read_with_care(tmp_path: Path, public: tuple[str, str]) -> None:
    folder = tmp_path / "waiting"
    folder.mkdir()
    file = wait_for_admission(folder, "berlin", public[0])
    (folder / "link.pub").symlink_to(file)
    (folder / "text.pub").write_text("no key")
    (folder / "-x.pub").write_text(public[1])
    (folder / "bytes.pub").write_bytes(b"\xff" * 10**6)
    os.mkfifo(folder / "pipe.pub")
    (folder / "folder.pub").mkdir()
    assert list(waiting(folder)) == [(file, "berlin", public[0])]


def test_the_name_is_that_of_the_key_whatever_a_client_reports(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reported = Identity("berlin", 3, "it was late")

    def who(names: dict[int, str] | None) -> object:
        found = identified(reported, 7, None if names is None else lambda: names)
        return found and (found.name, found.partition, found.trouble)

    assert who(None) == ("berlin", 3, "it was late")
    assert who({7: "berlin"}) == ("berlin", 3, "it was late")
    assert capsys.readouterr().err == ""
    assert who({7: "paris"}) == ("paris", 3, "it was late")
    said = "flsim: client paris reports the name berlin; its key's name counts\n"
    assert capsys.readouterr().err == said
    assert who({8: "berlin"}) is None  # it was revoked meanwhile


@pytest.mark.parametrize(
    ("address", "reader", "allowed"),
    [
        ("127.0.0.1", "nowhere.invalid", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.4", "10.1.2.3", False),
        ("10.1.2.3", "nowhere.invalid", False),
    ],
)
def test_metrics_are_for_loopback_and_the_host_that_is_named(
    address: str, reader: str, allowed: bool
) -> None:
    assert may_read(address, reader) == allowed


def test_a_host_that_is_not_named_gets_no_answer(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://127.0.0.1:{free_port}/metrics"
    with served(CollectorRegistry(), free_port, reader="10.1.2.3"):
        assert urllib.request.urlopen(url).status == 200
        monkeypatch.setattr("flsimulation.metrics.exporter.may_read", lambda *_: False)
        with pytest.raises(OSError, match="closed connection|reset"):
            urllib.request.urlopen(url)


def test_a_superlink_that_is_started_as_root_is_the_folders_owner_and_never_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder; create it first"):
        serving.owner_of(tmp_path / "nowhere")
    for uid, expected in ((1234, (1234, 5)), (0, (1000, 1001))):
        place = SimpleNamespace(
            is_dir=lambda: True, stat=lambda uid=uid: SimpleNamespace(st_uid=uid, st_gid=5)
        )
        user = SimpleNamespace(pw_uid=1000, pw_gid=1001)
        monkeypatch.setattr("pwd.getpwnam", lambda _, user=user: user)
        assert serving.owner_of(place) == expected  # type: ignore[arg-type]

    def nobody(_: str) -> None:
        raise KeyError

    monkeypatch.setattr("pwd.getpwnam", nobody)
    with pytest.raises(InputError, match="belongs to root, and a SuperLink does not run as root"):
        serving.owner_of(place)  # type: ignore[arg-type]


def test_grafanas_password_is_made_once_or_given_and_never_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "password"
    monkeypatch.setattr("sys.argv", ["password", str(path)])
    password.main()
    made = path.read_text()
    assert len(made) >= 24
    password.main()
    assert path.read_text() == made
    monkeypatch.setattr("sys.argv", ["password", str(path), "-"])
    monkeypatch.setattr("sys.stdin", io.StringIO("of my own\n"))
    password.main()
    assert path.read_text() == "of my own"
    assert capsys.readouterr().out == ""


def test_status_names_who_is_admitted_revoked_and_refused(
    tmp_path: Path, public: tuple[str, str]
) -> None:
    assert admission_lines(tmp_path) == []
    register = Register(tmp_path / ".clients.json")
    register.admit("paris", public[1])
    register.admit("berlin", public[0])
    register.revoke("paris")
    register.note_refusal("berlin", public[1])
    one, other = map(fingerprint, public)
    assert admission_lines(tmp_path) == [
        f"admitted    berlin {one}",
        f"            paris {other} (revoked)",
        f"refused     berlin {other}, 1 time: not its name",
    ]


def run_main(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    output = capsys.readouterr()
    return end.value.code, output.out, output.err


def test_names_that_are_no_expression_are_refused_before_the_superlink_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, said = run_main(capsys, "superlink", "--admit-names", "[0-9")
    assert code == 2
    assert said.startswith("flsim: --admit-names [0-9: not a regular expression (unterminated ")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_commands_admit_show_and_revoke(
    tmp_path: Path,
    public: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(public[0]))
    assert run_main(capsys, "admit", "berlin", "-")[2] == (
        "flsim: runs: no such folder; give the SuperLink's with --runs\n"
    )
    Path("runs").mkdir()
    Path("berlin.pub").write_text(public[0])
    key = fingerprint(public[0])
    admitted = run_main(capsys, "admit", "berlin", "berlin.pub")
    assert admitted == (0, f"berlin is admitted with the key {key}\n", "")
    shown = run_main(capsys, "status", "--runs", "runs")
    assert shown == (0, f"admitted    berlin {key}\n", "")
    revoked = run_main(capsys, "revoke", "berlin")
    assert revoked == (0, f"berlin is revoked, its key {key} stays out\n", "")
    Path("other.pub").write_text("none")
    assert run_main(capsys, "admit", "x", "other.pub")[2] == (
        "flsim: FILE other.pub: is not a public key; make one with flsim client --make-key\n"
    )


@pytest.mark.parametrize(
    "options",
    [["--ca-cert=a"], ["--cert=a", "--key=b"], ["--ca-cert=a", "--ca-key=b", "--cert=c"]],
)
def test_certificates_of_ones_own_come_in_pairs(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(capsys, "certs", "--local", *options) == (
        2,
        "",
        "flsim: give --ca-cert with --ca-key, or --ca-cert with --cert and --key\n",
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_what_root_writes_belongs_to_the_folders_owner(
    register: Register, public: tuple[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    os.chown(folder, 1234, 1235)
    register.admit("berlin", public[0])
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in folder.iterdir()}
    assert owners == {(1234, 1235)}
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("is_there", [True, False])
def test_a_client_leaves_its_key_as_soon_as_it_can(
    is_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SuperLink makes the folder, and then lets clients of other users write there."""
    monkeypatch.setenv("FLSIM_HOME", str(tmp_path))
    make_ca(utc_now()).write(Home(tmp_path).ca, Home(tmp_path).ca_key)
    folder = Home(tmp_path).waiting_at(8081)
    if is_there:
        folder.mkdir(parents=True)
    tries: list[Path] = []

    def leave(folder: Path, name: str, key: str) -> Path:
        tries.append(folder)
        if len(tries) == 1:
            raise PermissionError(13, "Permission denied")
        return wait_for_admission(folder, name, key)

    monkeypatch.setattr(joining, "wait_for_admission", leave)
    monkeypatch.setattr(joining, "_LATER_SECONDS", 0.01)
    monkeypatch.setattr(joining, "check_accepts", lambda *_: "")
    monkeypatch.setattr(Node, "run", lambda *_: folder.mkdir(parents=True, exist_ok=True))
    joining.Joining("127.0.0.1:8081", "berlin", None, AllowList()).run(0, None)
    wait_for("its key", lambda: (folder / "berlin.pub").exists())
    ((_, name, _),) = waiting(folder)
    assert (name, len(tries)) == ("berlin", 2)
