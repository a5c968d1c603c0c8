"""The code that a client runs besides the installed package's: only what its allow-list names."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict

from flsimulation.errors import InputError
from flsimulation.experiment import flatten, importing, load_experiment, unflatten
from flsimulation.experiment.sources import SOURCES, check_sources, sources_of
from flsimulation.messages.batch import Batch, Reply, Task
from flsimulation.messages.codec import message_of
from flsimulation.messages.received import read_reply
from flsimulation.node.allowed import AllowList, import_only_allowed, read_allowed
from flsimulation.runtimes.simulated import flower_identity

CODE = "class Net: pass\nclass Other: pass\n"
SHA = hashlib.sha256(CODE.encode()).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "models" / "own.py"
    path.parent.mkdir()
    path.write_text(CODE)
    return path


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "_gates", [])


def allowed(list: AllowList, reference: str) -> bool:
    try:
        list.find(reference)
    except InputError:
        return False
    return True


def test_without_a_list_only_the_installed_package_is_allowed(file: Path) -> None:
    nothing = AllowList()
    assert allowed(nothing, "flsimulation.models:MLP")
    assert allowed(nothing, "flsimulation.models.mlp:MLP")
    for reference in (
        *(f"{file}:Net", "os:system", "flsimulation2:x", "flsimulation.py:Net"),
        "flsimulation.node.node:subprocess.run",  # what the package imports
        "flsimulation.models.mlp:torch.hub.load",
        "flsimulation.host.files:write_atomic",  # what it does itself
        "flsimulation.models:build_model",
        "flsimulation.models2:MLP",
    ):
        assert not allowed(nothing, reference), reference


def test_a_file_is_pinned_to_what_it_was_and_to_its_names(file: Path) -> None:
    pinned = read_allowed([f"{file}:Net", "torch.nn:Linear"], [])
    assert [str(entry) for entry in pinned.entries] == [
        f"{file}:Net sha256 {SHA}",
        "torch.nn:Linear installed, unpinned",
    ]
    assert allowed(pinned, f"{file}:Net")
    assert allowed(pinned, f"{file.parent}/../models/own.py:Net")
    assert not allowed(pinned, f"{file}:Other")
    assert allowed(pinned, "torch.nn:Linear")
    assert not allowed(pinned, "torch.nn:Conv2d")
    file.write_text(CODE + "# changed\n")
    with pytest.raises(InputError, match=rf"not the one that this client allows \(sha256 {SHA}\)"):
        pinned.find(f"{file}:Net")


def test_a_file_of_the_servers_machine_is_the_clients_own_of_the_same_name(
    file: Path, tmp_path: Path
) -> None:
    own = read_allowed([f"{file}:Net"], [])
    assert own.find("/of/the/server/own.py:Net") == f"{file}:Net"
    assert not allowed(own, "/of/the/server/own.py:Other")
    assert not allowed(own, "/of/the/server/another.py:Net")
    here = tmp_path / "own.py"
    here.write_text(CODE + "# another\n")  # which this machine has, and does not allow
    assert not allowed(own, f"{here}:Net")
    here.write_text(CODE)
    assert own.find(f"{here}:Net") == f"{file}:Net"
    two = read_allowed([f"{file}:Net", f"{here}:Net"], [])
    with pytest.raises(InputError, match=f"several files of this name: {file}, {here}"):
        two.find("/of/the/server/own.py:Net")


def test_a_folder_allows_what_is_in_it_and_not_what_it_links_to(file: Path, tmp_path: Path) -> None:
    folder = read_allowed([], [file.parent])
    assert allowed(folder, f"{file}:Other")
    assert not allowed(folder, f"{file}:os.system")
    outside = tmp_path / "outside.py"
    outside.write_text(CODE)
    (file.parent / "link.py").symlink_to(outside)
    assert not allowed(folder, f"{file.parent / 'link.py'}:Net")
    assert not allowed(folder, f"{file.parent}/../outside.py:Net")


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("own.py", "write it as file.py:Name or module:Name"),
        ("nowhere.py:Net", "there is no file"),
        ("{file}:Net@" + "0" * 64, f"the sha256 of .* is {SHA}; check the file"),
    ],
)
def test_an_entry_that_cannot_be_meant_is_refused(file: Path, spec: str, error: str) -> None:
    with pytest.raises(InputError, match=f"--allow-model .*: {error}"):
        read_allowed([spec.format(file=file)], [])
    assert read_allowed([f"{file}:Net@{SHA}"], []).entries[0].sha256 == SHA


def test_what_is_not_allowed_is_not_even_executed(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restored: None
) -> None:
    other = tmp_path / "other.py"
    other.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Net: pass\n")
    read_allowed([f"{file}:Net"], []).write(tmp_path / "allowed.json")
    monkeypatch.setenv("FLSIM_ALLOWED", str(tmp_path / "allowed.json"))
    import_only_allowed()
    assert importing.import_object(f"{file}:Net", "model.class").__name__ == "Net"
    with pytest.raises(InputError, match=r"model\.class '.*other\.py:Net': this client does not"):
        importing.import_object(f"{other}:Net", "model.class")
    assert not (tmp_path / "ran").exists()


def test_the_files_of_a_run_are_the_same_on_all_machines(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restored: None
) -> None:
    server = tmp_path / "server" / "own.py"
    server.parent.mkdir()
    server.write_text(CODE)
    experiment = load_experiment(None, [f"model.class={server}:Net"])
    config = flatten(experiment) | sources_of(experiment)
    assert unflatten(config) == experiment
    assert SHA in str(config["driver.sources"])
    server.unlink()  # this machine is another one, with a copy of its own
    read_allowed([f"{file}:Net"], []).write(tmp_path / "allowed.json")
    monkeypatch.setenv("FLSIM_ALLOWED", str(tmp_path / "allowed.json"))
    import_only_allowed()
    check_sources(config)  # equal
    check_sources(flatten(experiment))  # of a submitter that sent no digests
    file.write_text(CODE + "# changed\n")
    importing._gates.clear()
    read_allowed([f"{file}:Net"], []).write(tmp_path / "allowed.json")
    import_only_allowed()
    own = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(InputError) as raised:
        check_sources(config)
    assert str(raised.value) == (
        f"model.class '{server}:Net': {file} has sha256 {own[:16]} on this machine, and {SHA[:16]} on "
        f"the one that submitted the run; copy it from there, or submit the run again"
    )


def test_a_client_trains_no_other_model_than_the_runs(file: Path) -> None:
    from flsimulation.node.client_app import app

    experiment = load_experiment(None, [f"model.class={file}:Net"])
    config = flatten(experiment) | {SOURCES: json.dumps({"model.class": "0" * 64})}
    batch = Batch(ArrayRecord(), [Task(0, "train", 1, ConfigRecord())])
    with flower_identity():
        message = message_of(batch, 7)
        context = Context(1, 7, {"partition-id": 0}, RecordDict(), config)
        reply = read_reply(app(message, context))
    (outcome,) = reply.outcomes if isinstance(reply, Reply) else ()
    said = f"{file} has sha256 {SHA[:16]} on this machine, and 0000000000000000 on the one"
    assert said in str(outcome.error)


def test_a_sites_own_reader_and_what_is_no_file_have_no_digest(file: Path, tmp_path: Path) -> None:
    assert sources_of(load_experiment(None)) == {}
    sites = tmp_path / "sites.toml"
    table = {"dataset": "sites:/nowhere", "sites": ["a", "b"], "reader": f"{file}:Other"}
    sites.write_text(tomli_w.dumps({"data": table}))
    assert sources_of(load_experiment(sites)) == {}
    assert sources_of(load_experiment(None, ["model.class=/nowhere/own.py:Net"])) == {}


@pytest.mark.seconds
def test_show_prints_what_a_client_would_accept(file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flsimulation", "client", "--show", "--site=berlin"]
    options = [f"--data={file}", f"--allow-model={file}:Net", f"--allow-models-in={file.parent}"]
    done = subprocess.run(
        [*command, *options],
        env=os.environ | {"FLSIM_INSECURE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [
        "name        berlin",
        "SuperLink   127.0.0.1:8081",
        "TLS         off (FLSIM_INSECURE)",
        f"site        berlin, {file.resolve()}",
        "runs        the installed package's models and data sets",
        f"            {file}:Net sha256 {SHA}",
        f"            {file.parent}: every file in it, unpinned",
    ]
