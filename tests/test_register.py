"""Who is admitted to a network: a name belongs to the key that first held it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flsimulation.errors import InputError
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
    with pytest.raises(NameTaken, match=f"berlin: this name belongs to the key {fingerprint(one)}"):
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
