"""The command line: what it prints, and the status it exits with."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from flsimulation.cli.main import main
from flsimulation.cli.view import LiveView
from flsimulation.data import load_dataset
from flsimulation.events import (
    ActorsAwaited,
    ClientReplied,
    PhaseStarted,
    RoundFinished,
    RunFinished,
    RunStarted,
)
from flsimulation.experiment import Experiment, load_experiment
from flsimulation.training.lightning import LocalTrainer

pytestmark = pytest.mark.seconds

ROOT = Path(__file__).parent.parent
SMALL = "[model]\nargs = { hidden = [8, 8], learning_rate = 0.01 }\n[strategy]\nrounds = 2\n"


@pytest.fixture
def flsim(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in an empty folder; give its exit status, output and errors."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


@pytest.mark.parametrize("gpu", ["A Fast One", None])
def test_a_run_says_on_which_gpu_it_trained(
    flsim: Any, experiment_file: Any, monkeypatch: pytest.MonkeyPatch, gpu: str | None
) -> None:
    monkeypatch.setattr(LocalTrainer, "gpu", gpu)
    status, output, _ = flsim("run", experiment_file(SMALL), "--out", "here")
    assert status == 0
    assert output.splitlines()[0].endswith(", seed 0" + (f", on {gpu}" if gpu else ""))
    assert json.loads(Path("here/manifest.json").read_text())["gpu"] == gpu


def test_run_prints_a_line_a_round_and_where_the_report_lies(
    flsim: Any, experiment_file: Any
) -> None:
    status, output, errors = flsim("run", experiment_file(SMALL))
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0].startswith("test: fedavg, 4 clients, 240 examples of blobs.npz (iid), ")
    assert lines[0].endswith("(iid), mlp with 155 parameters, seed 0")
    assert lines.pop(1) == "  labels: 3 classes 0, 1, 2 (data.task auto: 3 distinct whole numbers)"
    assert lines.pop(1).startswith(
        "  engine: direct (not stacked: 16 training steps in all are too few"
    )
    assert lines[1].split() == ["round", "test", "loss", "accuracy", "clients'", "loss", "accuracy", "seconds", "failed"]  # fmt: skip
    assert [line.split()[0] for line in lines[2:4]] == ["1/2", "2/2"]
    assert lines[5].startswith("completed: 2 of 2 rounds in ")
    assert "clients' accuracy" in lines[5]
    report = Path(lines[-1].removeprefix("Report").strip())
    assert report.parts[0] == "runs"
    assert re.fullmatch(r"\d{8}T\d{6}Z-test", report.parts[1])
    assert report.read_text().startswith("<!DOCTYPE html>")


def test_json_prints_one_object_and_quiet_prints_nothing(
    flsim: Any, experiment_file: Any, tmp_path: Path
) -> None:
    status, output, errors = flsim("run", experiment_file(SMALL), "--json", "--out", tmp_path / "a")
    found = json.loads(output)
    assert (status, errors, output.count("\n")) == (0, "", 1)
    assert list(found) == [
        "name", "state", "rounds", "accuracy", "loss", "seconds", "peak_memory_bytes", "run_dir", "weights_sha256",
    ]  # fmt: skip
    assert (found["name"], found["state"], found["rounds"]) == ("test", "completed", 2)
    assert found["run_dir"] == str(tmp_path / "a")
    assert flsim("run", experiment_file(SMALL), "--quiet", "--out", tmp_path / "b") == (0, "", "")
    digests = [
        json.loads((tmp_path / d / "manifest.json").read_text())["weights-sha256"] for d in "ab"
    ]
    assert digests[0] == digests[1] == found["weights_sha256"]


def test_set_changes_the_experiment_that_is_run_and_written(
    flsim: Any, experiment_file: Any, tmp_path: Path
) -> None:
    file = experiment_file(SMALL)
    status, output, _ = flsim("run", file, "--set", "strategy.rounds=1", "--set", "name=mine", "--json", "--out", tmp_path / "r")  # fmt: skip
    assert status == 0
    assert (json.loads(output)["name"], json.loads(output)["rounds"]) == ("mine", 1)
    assert "rounds = 1" in (tmp_path / "r" / "experiment.toml").read_text()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["run", "missing.toml"], "missing.toml: no such file"),
        (["run", "--set", "train.epoch=2"], "did you mean 'epochs'?"),
        (["run", "--set", "train.epochs"], "write it as key=value"),
        (["run", "--set", "data.clients=70000", "--set", "data.examples-per-client=0"], "70000"),
        (["run", "--set", "data.dataset=minst"], "mnist"),
        (["run", "--set", "data.dataset=file:/nowhere"], "/nowhere"),
        (["run", "--set", "model.class=mlpp"], "got 'mlpp'; did you mean 'mlp'?"),
        (["run", "--set", "model.class=gone.py:Net"], "gone.py"),
        (["run", "--set", "model.class=os:path"], "is no class but a module"),
        (["run", "--set", "model.args.lr=0.1"], "it takes: inputs, classes, hidden, learning_rate"),
        (["run", "--set", "train.device=cuda"], "train.device is 'cuda'"),
        (["run", "--metrics-port", "99999"], "--metrics-port"),
        (["run", "--runtim", "x"], "No such option"),
        (["run", "--resume", "nowhere"], "nowhere"),
        (["run", "x.toml", "--resume", "y"], "drop FILE, --set and --out"),
        (["report", "nowhere"], "nowhere"),
        (["partition", "--set", "data.alpha=0"], "data.alpha must be greater than 0, got 0"),
        (["partition", "--set", "data.partition=pathological", "--set", "data.classes-per-client=11"], "data.classes-per-client"),
        (["partition", "--png", "no/where.png"], "--png no/where.png: no is not a folder"),
        (["run", "--set", ".=1"], "--set .=1: write it as key=value"),
        (["run", "--set", "strategy.name=qfedavg", "--set", "strategy.client-learning-rate=0.0"], "client-learning-rate must be greater than 0"),
        (["nonsense"], "nonsense"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_status_2(flsim: Any, arguments: list[str], part: str) -> None:
    status, output, errors = flsim(*arguments)
    assert (status, output) == (2, "")
    assert part in errors
    assert errors.startswith("flsim: ")
    assert errors.count("\n") == 1
    assert not Path("runs").exists()


def test_a_dirichlet_that_starves_a_client_is_refused_with_the_numbers(
    flsim: Any, experiment_file: Any
) -> None:
    data = 'partition = "dirichlet"\nalpha = 0.01\nmin-examples = 50'
    status, _, errors = flsim("partition", experiment_file("", data))
    assert status == 2
    for part in ("data.min-examples", "50", "data.alpha", "0.01"):
        assert part in errors


def test_a_run_that_fails_says_so_in_one_line_and_status_1(
    flsim: Any, experiment_file: Any, own_modules: Any
) -> None:
    own = own_modules(
        "from flsimulation.models import MLP\n"
        "class Net(MLP):\n    def training_step(self, batch, batch_idx):\n        raise ValueError('boom')\n"
    )
    file = experiment_file(f'[model]\nclass = "{own}:Net"\nargs = {{ inputs = 6, classes = 3 }}\n')
    status, output, errors = flsim("run", file)
    assert status == 1
    assert errors.count("\n") == 1
    assert errors.startswith(
        "flsim: round 1: 0 of 4 clients succeeded, 1 needed; all 4 clients: ValueError: boom (own.py:4)"
    )
    assert output.count("ValueError: boom") == 2  # why they train one by one, and the failure
    assert "round 1/3, training: client 0 failed (error): ValueError: boom" in output
    more = "client 1, client 2, client 3 failed as shown above"
    assert f"round 1/3, training: {more}" in output
    assert "failed: 0 of 3 rounds" in output


def test_a_taken_port_is_named_before_anything_runs(flsim: Any, experiment_file: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, output, errors = flsim("run", experiment_file(SMALL), "--metrics-port", str(port))
    assert (status, output) == (2, "")
    assert errors.startswith(f"flsim: --metrics-port {port}: cannot listen on 127.0.0.1:{port}")
    assert "choose another port" in errors
    assert not Path("runs").exists()


def test_resume_goes_on_with_a_finished_run_without_training(
    flsim: Any, experiment_file: Any, tmp_path: Path
) -> None:
    _, first, _ = flsim("run", experiment_file(SMALL), "--json", "--out", tmp_path / "r")
    status, second, _ = flsim("run", "--resume", tmp_path / "r", "--json")
    assert status == 0
    assert json.loads(second)["rounds"] == 2
    assert len((tmp_path / "r" / "rounds.jsonl").read_text().splitlines()) == 2
    for key in ("weights_sha256", "accuracy", "loss"):
        assert json.loads(second)[key] == json.loads(first)[key]


def test_partition_prints_the_table_and_draws_it(flsim: Any, experiment_file: Any) -> None:
    data = 'partition = "pathological"\nclasses-per-client = 1\nvalidation-fraction = 0.0'
    status, output, errors = flsim("partition", experiment_file("", data), "--png", "p.png")
    assert (status, errors) == (0, "")
    note, *lines = output.splitlines()
    assert note == "labels: 3 classes 0, 1, 2 (data.task auto: 3 distinct whole numbers)"
    assert lines[0].split() == ["client", "examples", "0", "1", "2"]
    rows = [line.split() for line in lines[1:5]]
    assert [row[0] for row in rows] == ["0", "1", "2", "3"]
    assert all(sorted(row[2:])[:2] == ["·", "·"] or row[2:].count("·") == 2 for row in rows)
    assert sum(int(row[1]) for row in rows) == 240
    assert lines[5].startswith("4 clients, 240 of 240 training examples")
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")


def test_long_class_names_are_not_cut(flsim: Any, tmp_path: Path) -> None:
    names = [f"a rather long class name {i}" for i in range(6)]
    rows = [f"{i}.0,{names[i % 6]}" for i in range(120)]
    (tmp_path / "long.csv").write_text("x,label\n" + "\n".join(rows) + "\n")
    _, output, _ = flsim("partition", "--set", f"data.dataset=file:{tmp_path}/long.csv", "--set", "data.examples-per-client=0")  # fmt: skip
    lines = output.splitlines()
    lines = lines[next(n for n, line in enumerate(lines) if line.startswith(" client")) :]
    assert all(name in lines[0] for name in names)
    assert len({len(line) for line in lines[:3]}) == 1


def test_partition_shows_the_names_of_natural_clients(flsim: Any, tmp_path: Path) -> None:
    sites = ["St. Anne [east]", "City", "Lake"]
    rows = [f"{i}.5,{'ab'[i // 3 % 2]},{sites[i % 3]}" for i in range(60)]
    (tmp_path / "t.csv").write_text("x,label,site\n" + "\n".join(rows) + "\n")
    sets = [f"data.dataset=file:{tmp_path}/t.csv", "data.partition=natural", "data.partition-column=site", "data.clients=3", "data.examples-per-client=0"]  # fmt: skip
    _, output, _ = flsim("partition", *(word for one in sets for word in ("--set", one)))
    header, *table = output.splitlines()[3:7]
    assert header.split() == ["client", "name", "examples", "a", "b"]
    for number, (name, line) in enumerate(zip(sorted(sites), table, strict=True)):
        assert line.split()[0] == str(number)
        assert line.split(maxsplit=1)[1].startswith(name)


def test_partition_of_a_regression_shows_the_clients_targets(flsim: Any, tmp_path: Path) -> None:
    rows = [f"{i}.5,{1000 * i}.25,{i % 2}" for i in range(40)]
    (tmp_path / "t.csv").write_text("x,label,client\n" + "\n".join(rows) + "\n")
    sets = [f"data.dataset=file:{tmp_path}/t.csv", "data.partition=natural", "data.clients=2", "data.examples-per-client=0"]  # fmt: skip
    _, output, _ = flsim("partition", *(word for one in sets for word in ("--set", one)))
    note, labels, clients, header, *table = output.splitlines()
    assert note.startswith("t.csv: separator ',', decimal '.', utf-8; 40 rows; inputs x (number)")
    assert labels.startswith("labels: regression, 0.25 to 39,000.2, mean 19,500.2 (data.task auto:")
    assert clients == "clients: 2 in this order: 0, 1"
    assert header.split() == ["client", "examples", "mean", "min", "max"]
    dataset = load_dataset(load_experiment(None, sets).data, 0)
    assert dataset.owners is not None
    for client in (0, 1):
        held = dataset.y_train[torch.from_numpy(dataset.owners == client)]
        shown = [float(word.replace(",", "")) for word in table[client].split()]
        wanted = [client, len(held), *(v.item() for v in (held.mean(), held.min(), held.max()))]
        assert shown == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("sets", "part"),
    [
        (["data.partition=natural", "data.partition-column=sit"], "data.partition-column 'sit' is no column of t.csv: x, site, label; did you mean 'site'?"),
        (["data.partition=natural"], "data.partition-column 'client' is no column of t.csv"),
    ],
)  # fmt: skip
def test_a_natural_partition_by_a_column_that_is_not_there_names_the_key(
    flsim: Any, tmp_path: Path, sets: list[str], part: str
) -> None:
    (tmp_path / "t.csv").write_text("x,site,label\n" + "1,north,0\n2,south,1\n" * 20)
    options = [
        word for one in [f"data.dataset=file:{tmp_path}/t.csv", *sets] for word in ("--set", one)
    ]
    status, _, errors = flsim("partition", *options)
    assert status == 2
    assert part in errors


def test_report_is_made_again_with_plots(flsim: Any, experiment_file: Any, tmp_path: Path) -> None:
    flsim("run", experiment_file(SMALL), "--quiet", "--out", tmp_path / "r")
    report = tmp_path / "r" / "report.html"
    report.unlink()
    status, output, _ = flsim("report", tmp_path / "r", "--png")
    written = [Path(line) for line in output.splitlines()]
    assert status == 0
    assert written[0] == report
    assert {path.name for path in written[1:]} >= {"accuracy.png", "loss.png", "times.png", "partition.png", "clients.png"}  # fmt: skip
    assert all(path.is_file() for path in written)


def test_imports_and_the_end_are_not_slowed_by_the_garbage_collector() -> None:
    imports = (
        "import gc, flsimulation\nfull = lambda: gc.get_stats()[2]['collections']\n"
        "before = full()\nflsimulation.run\nprint(full() - before, gc.isenabled())"
    )
    end = (
        "import atexit, gc, sys\nfrom flsimulation.cli.main import program\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 10_000))\n"
        "sys.argv[1:] = ['--version']\nprogram()"
    )
    found = [
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        for code in (imports, end)
    ]
    assert found[0].stdout == "0 True\n"
    assert found[1].stdout.splitlines()[1:] == ["True"]


def test_help_and_version_are_quick_and_import_nothing_heavy() -> None:
    code = (
        "import sys\nfrom flsimulation.cli.main import main\n"
        "try: main(['run', '--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'flwr', 'pydantic', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for option in ("--set", "--out", "--resume", "--json", "--quiet", "--metrics-port"):
        assert option in done.stdout


def events(experiment: Experiment) -> list[Any]:
    metrics = {"num-examples": 5.0, "loss": 0.5, "accuracy": 0.75, "epochs": 1.0, "seconds": 0.1}
    scores = {"loss": 0.25, "accuracy": 0.875}
    seconds = {"total": 1.25, "train": 1.0, "aggregate": 0.05, "evaluate": 0.2}
    return [
        RunStarted(experiment, {}, 155, "d" * 64, {"0": [5], "1": [5]}, ("a",), 10, 4),
        PhaseStarted(1, "train", (0, 1)),
        ClientReplied(1, "train", 0, metrics),
        ClientReplied(1, "train", 1, reason="error", error="ValueError: boom"),
        RoundFinished(1, scores, None, {"loss": 0.5}, (0, 1), {"error": 1}, seconds, {"down": 9, "up": 4}, "e" * 64),
        ClientReplied(1, "final", 0, metrics),
        ClientReplied(1, "final", 1, {**metrics, "accuracy": 0.25}),
        RunFinished("completed", 1, 2.0),
    ]  # fmt: skip


def test_the_live_view_shows_the_same_lines_and_a_bar(make_experiment: Any) -> None:
    experiment = make_experiment(data={"clients": 2}, strategy={"rounds": 1})
    console = Console(force_terminal=True, width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with console.file, LiveView(console, experiment) as view:
        for event in events(experiment):
            view(event)
        text = console.export_text()
    assert "1/1     0.2500    0.8750              -         -     1.25       1\n" in text
    assert "round 1/1  training" in text
    assert "2/2 clients" in text
    assert "round 1/1, training: client 1 failed (error): ValueError: boom" in text
    assert "completed: 1 of 1 rounds in 2.0 s, accuracy 0.8750, loss 0.2500" in text
    assert "clients' accuracy 0.5000 ± 0.2500, lowest 0.2500" in text


@pytest.mark.parametrize(
    ("patience", "limit"), [(None, ""), (120.0, ", for up to 120 s")], ids=["room", "no room"]
)
def test_rays_actors_that_start_late_are_counted(
    make_experiment: Any, capsys: pytest.CaptureFixture[str], patience: float | None, limit: str
) -> None:
    from flsimulation.cli.view import PlainView

    PlainView(Console(), make_experiment())(ActorsAwaited(1, 4, 40.4, patience))
    assert capsys.readouterr().out == (
        f"  Ray: 1 of 4 actors started, waiting for the others{limit}, 40 s so far\n"
    )


def test_many_failures_in_a_round_are_not_all_printed(
    make_experiment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from flsimulation.cli.view import PlainView

    view = PlainView(Console(), make_experiment())
    view(PhaseStarted(1, "train", tuple(range(20))))
    for partition in range(20):
        view(ClientReplied(1, "train", partition, reason="lost", error="gone"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert lines[-1].strip() == "more clients failed; clients.jsonl lists all of them"


def test_the_reason_that_clients_report_is_said_as_the_one_that_was_known(
    make_experiment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from flsimulation.cli.view import PlainView
    from flsimulation.events import EngineReported

    view = PlainView(Console(), make_experiment())
    view(EngineReported("stacked"))
    view(EngineReported("lightning", "BatchNorm1d keeps running statistics"))
    assert capsys.readouterr().out == (
        "  engine: stacked\n  engine: lightning (BatchNorm1d keeps running statistics)\n"
    )


STEPPED = """
import torch, pytorch_lightning as pl

class Net(pl.LightningModule):
    def __init__(self, manual=False):
        super().__init__()
        self.layer = torch.nn.Linear(784, 10)
        self.automatic_optimization = not manual

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = torch.nn.functional.cross_entropy(self.layer(x.flatten(1)), y)
        return loss * (2 if self.global_step else 1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)
"""


@pytest.mark.parametrize(("manual", "status"), [("false", 0), ("true", 2)])
def test_engines_that_a_model_does_not_allow_are_named(
    flsim: Any, own_modules: Any, manual: str, status: int
) -> None:
    sets = ["data.clients=2", "data.examples-per-client=50", "strategy.rounds=1"]
    sets += [f"model.class={own_modules(STEPPED)}:Net", f"model.args.manual={manual}"]
    code, out, err = flsim("verify", "--engines", *[f"--set={one}" for one in sets])
    refused = [line for line in out.splitlines() if line.startswith("not compared: ")]
    assert code == status, err
    if status == 0:
        assert out.splitlines()[-1] == "agree: 1 rounds, bit for bit"
        (line,) = refused
        assert "train.engine is 'stacked', but training_step uses self.global_step" in line
    else:
        assert [line.split("'")[1] for line in refused] == ["stacked", "direct"]
        assert "the module optimizes by itself" in err
