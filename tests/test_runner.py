"""Whole federations on a small data set, from the experiment to the run directory."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tests.conftest import PATIENCE, wait_for

from flsimulation import load_experiment, load_model, resume, run
from flsimulation.errors import ExperimentError, InputError, RoundError, RunError
from flsimulation.events import ClientReplied, RoundFinished, RunFinished, RunStarted
from flsimulation.experiment import Experiment
from flsimulation.experiment.strategy import STRATEGIES
from flsimulation.rundir.writer import RunDirectory
from flsimulation.runtimes.inprocess import run_in_process
from flsimulation.server.strategies import MOVING_THE_MODEL

pytestmark = pytest.mark.seconds

Make = Callable[..., Experiment]

OWN = """
import torch, pytorch_lightning as pl
from torch import nn
from torch.nn import functional

class Net(pl.LightningModule):
    def __init__(self, batch_norm=False, dropout=0.0, fail="", inputs=6):
        super().__init__()
        self.fail = fail
        self.body = nn.Linear(inputs, 8)
        self.norm = nn.BatchNorm1d(8) if batch_norm else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.drop(torch.relu(self.norm(self.body(x)))))

    def training_step(self, batch, batch_idx):
        x, y = batch
        if self.fail.startswith("at ") and bool((x[:, 0] == float(self.fail[3:])).any()):
            raise ValueError("a strange example")
        if self.fail == "all":
            raise ValueError("never works")
        loss = functional.cross_entropy(self(x), y)
        return loss * float("nan") if self.fail == "nan" else loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("val_loss", functional.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean())
        self.log("confidence", logits.softmax(1).amax(1).mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)
"""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_everything_that_it_promises(
    make_experiment: Make, tmp_path: Path, recorder: Any
) -> None:
    result = run(make_experiment(), tmp_path / "run", [recorder])
    folder = tmp_path / "run"
    assert sorted(p.name for p in folder.iterdir()) == [
        ".lock", "checkpoint", "clients.jsonl", "experiment.toml", "manifest.json", "model.ckpt",
        "model.safetensors", "report.html", "rounds.jsonl",
    ]  # fmt: skip
    rounds = lines(folder / "rounds.jsonl")
    assert [line["round"] for line in rounds] == [1, 2]
    assert set(rounds[0]) == {
        "round", "central", "federated", "train", "cohort", "failures", "seconds", "bytes", "weights_sha256",
    }  # fmt: skip
    assert rounds[1]["cohort"] == [0, 1, 2, 3]
    assert (result.state, result.rounds, result.run_dir) == ("completed", 2, str(folder))
    assert result.weights_sha256 == rounds[-1]["weights_sha256"]
    assert result.accuracy == rounds[-1]["central"]["accuracy"] > 0.5
    assert load_experiment(folder / "experiment.toml") == make_experiment()
    finished = recorder.of(RunFinished)
    assert [(e.state, e.rounds, e.error) for e in finished] == [("completed", 2, None)]


def test_the_manifest_says_with_what_the_result_was_made(
    make_experiment: Make, tmp_path: Path
) -> None:
    result = run(make_experiment(seed=3), tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["name"], manifest["state"], manifest["seed"]) == ("test", "completed", 3)
    assert manifest["rounds"] == 2
    assert manifest["weights-sha256"] == result.weights_sha256
    assert manifest["versions"]["torch"] == torch.__version__
    data = manifest["data"]
    assert (data["clients"], data["train-examples"], data["test-examples"]) == (4, 240, 60)
    assert np.sum(list(data["histogram"].values()), axis=0).tolist() == [80, 80, 80]
    # 6 x 8 + 8, 8 x 8 + 8, 8 x 3 + 3
    assert manifest["model"] == {
        "class": "mlp",
        "arguments": {"classes": 3, "inputs": 6, "hidden": [8, 8], "learning_rate": 0.01},
        "parameters": 155,
    }
    assert re.fullmatch("[0-9a-f]{64}", data["digest"])
    assert manifest["peak-memory-bytes"] > 100_000_000


def test_clients_jsonl_has_a_line_for_every_answer(make_experiment: Make, tmp_path: Path) -> None:
    run(make_experiment(strategy={"rounds": 1}), tmp_path / "run")
    found = lines(tmp_path / "run" / "clients.jsonl")
    assert [(line["phase"], line["partition"]) for line in found] == [
        (phase, p) for phase in ("train", "evaluate", "final") for p in range(4)
    ]
    # 60 examples a client, a tenth held out
    assert [line["num-examples"] for line in found[:5]] == [54, 54, 54, 54, 6]
    assert (found[0]["epochs"], found[0]["steps"]) == (1, 2)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(
    make_experiment: Make, tmp_path: Path
) -> None:
    digests = [
        run(make_experiment(seed=seed), tmp_path / str(i)).weights_sha256
        for i, seed in enumerate((1, 1, 2))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_the_saved_model_is_the_global_model(
    make_experiment: Make, tmp_path: Path, dataset: Any
) -> None:
    from flsimulation.models import MLP

    result = run(make_experiment(), tmp_path / "run")
    ours = load_model(result.run_dir)
    lightnings = MLP.load_from_checkpoint(Path(result.run_dir) / "model.ckpt")
    for name, value in load_file(Path(result.run_dir) / "model.safetensors").items():
        assert np.array_equal(ours.state_dict()[name], value)
        assert np.array_equal(lightnings.state_dict()[name], value)
    right = (ours(dataset.x_test).argmax(1) == dataset.y_test).float().mean().item()
    assert right == pytest.approx(result.accuracy)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_runs_and_learns(make_experiment: Make, tmp_path: Path, name: str) -> None:
    own: dict[str, Any] = {
        "fedprox": {"proximal-mu": 0.1},
        "qfedavg": {"client-learning-rate": 0.5},
        "fedavgm": {"server-momentum": 0.3},
        "fedadam": {"eta": 0.03},
        "fedyogi": {"eta": 0.03},
        "multikrum": {"num-malicious-nodes": 1, "num-nodes-to-select": 3},
    }
    experiment = make_experiment(
        data={"clients": 6},
        train={"epochs": 2, "batch-size": 8},
        strategy={"name": name, "rounds": 4, **own.get(name, {})},
    )
    assert run(experiment, tmp_path / "run").accuracy > 0.6


def test_fedprox_holds_clients_nearer_to_the_global_model(
    make_experiment: Make, tmp_path: Path
) -> None:
    def moved(mu: float) -> float:
        experiment = make_experiment(
            train={"epochs": 3},
            strategy={"name": "fedprox", "proximal-mu": mu, "rounds": 1},
        )
        result = run(experiment, tmp_path / f"mu-{mu}")
        final = load_model(result.run_dir).state_dict()
        from flsimulation.client.workspace import Workspace

        start = Workspace.load(experiment).initial_state()
        return sum(float(((final[k] - start[k]) ** 2).sum()) for k in start)

    free, held = moved(0.0), moved(10.0)
    assert held < 0.9 * free


def test_a_model_that_cannot_be_loaded_is_one_line(make_experiment: Any, tmp_path: Path) -> None:
    run(make_experiment(strategy={"rounds": 1}), out := tmp_path / "run")
    manifest, model = out / "manifest.json", out / "model.safetensors"
    kept = manifest.read_bytes()
    manifest.unlink()
    with pytest.raises(InputError, match="its manifest does not say which model it trained"):
        load_model(out)
    manifest.write_bytes(kept)
    model.write_bytes(model.read_bytes()[:100])
    with pytest.raises(InputError, match="model.safetensors: damaged: "):
        load_model(out)


def test_a_model_with_batch_norm_and_dropout_of_ones_own(
    make_experiment: Make, tmp_path: Path, own_modules: Any
) -> None:
    path = own_modules(OWN)
    experiment = make_experiment(
        model={"class": f"{path}:Net", "args": {"batch_norm": True, "dropout": 0.1}},
        train={"epochs": 4},
    )
    experiment = Experiment.model_validate(
        experiment.model_dump(by_alias=True)
        | {"model": {"class": f"{path}:Net", "args": {"batch_norm": True, "dropout": 0.1}}}
    )
    first, second = (run(experiment, tmp_path / name) for name in ("a", "b"))
    assert first.weights_sha256 == second.weights_sha256
    assert first.accuracy > 0.8
    model = load_model(first.run_dir)
    # every client took 4 epochs x 2 batches a round, counted on from the global model: 8 + 8
    assert int(model.norm.num_batches_tracked) == 16
    assert float(model.norm.running_var.min()) > 0
    last = lines(tmp_path / "a" / "rounds.jsonl")[-1]
    assert set(last["central"]) == {"loss", "accuracy", "confidence"}
    assert set(last["federated"]) == {"loss", "accuracy", "confidence"}


def own_net(make_experiment: Make, path: Path, **args: Any) -> Experiment:
    experiment = make_experiment(model={"class": f"{path}:Net"}).model_dump(by_alias=True)
    experiment["model"]["args"] = args
    return Experiment.model_validate(experiment)


def test_a_client_that_raises_is_named_and_the_run_goes_on(
    make_experiment: Make, tmp_path: Path, own_modules: Any, recorder: Any
) -> None:
    from flsimulation.data.federated import FederatedData

    path = own_modules(OWN)
    data = FederatedData.load(own_net(make_experiment, path))
    strange = float(data.dataset.x_train[data.train_indices(2)[0], 0])
    experiment = own_net(make_experiment, path, fail=f"at {strange!r}")
    result = run(experiment, tmp_path / "run", [recorder])
    assert (result.state, result.rounds) == ("degraded", 2)  # it fails in each round
    (end,) = recorder.of(RunFinished)
    assert end.error == "client 2 never succeeded: the model is made without its data"
    failed = [e for e in recorder.of(ClientReplied) if e.reason and e.round == 1]
    assert [(e.partition, e.reason) for e in failed] == [(2, "error")]
    assert failed[0].error.startswith("ValueError: a strange example (own.py:")
    assert lines(tmp_path / "run" / "rounds.jsonl")[0]["failures"] == {"error": 1}


@pytest.mark.parametrize(
    ("fail", "part"),
    [
        (
            "nan",
            "round 1: 0 of 4 clients succeeded, 1 needed; all 4 clients: its training loss is nan",
        ),
        (
            "all",
            "round 1: 0 of 4 clients succeeded, 1 needed; all 4 clients: ValueError: never works",
        ),
    ],
)
def test_when_all_clients_fail_the_run_directory_says_why(
    make_experiment: Make, tmp_path: Path, own_modules: Any, fail: str, part: str
) -> None:
    experiment = own_net(make_experiment, own_modules(OWN), fail=fail)
    with pytest.raises(RoundError) as caught:
        run(experiment, tmp_path / "run")
    assert str(caught.value).startswith(part)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["state"], manifest["rounds"]) == ("failed", 0)
    assert manifest["error"].startswith(part)
    assert len(lines(tmp_path / "run" / "clients.jsonl")) == 4
    assert "failed" in (tmp_path / "run" / "report.html").read_text()


def test_a_broken_validation_step_is_named(
    make_experiment: Make, tmp_path: Path, own_modules: Any
) -> None:
    path = own_modules(OWN.replace("logits = self(x)", 'raise KeyError("gone")'))
    with pytest.raises(
        RunError, match="evaluation on the test set failed: KeyError: 'gone' .own.py:"
    ):
        run(own_net(make_experiment, path), tmp_path / "run")


def test_a_model_without_validation_step_trains_and_is_not_evaluated(
    make_experiment: Make, tmp_path: Path, own_modules: Any
) -> None:
    path = own_modules(OWN.replace("def validation_step", "def unused"))
    result = run(own_net(make_experiment, path), tmp_path / "run")
    assert (result.state, result.accuracy) == ("completed", None)
    last = lines(tmp_path / "run" / "rounds.jsonl")[-1]
    assert (last["central"], last["federated"]) == ({}, None)
    assert last["train"]["loss"] > 0


def test_without_held_out_parts_only_the_server_evaluates(
    make_experiment: Make, tmp_path: Path
) -> None:
    run(make_experiment(data={"validation-fraction": 0.0}), tmp_path / "run")
    last = lines(tmp_path / "run" / "rounds.jsonl")[-1]
    assert last["federated"] is None
    assert last["central"]["accuracy"] > 0.5


def test_a_data_set_with_one_class(make_experiment: Make, tmp_path: Path) -> None:
    x = np.ones((20, 6), np.float32)
    np.savez(
        tmp_path / "one.npz",
        x_train=x,
        y_train=np.zeros(20, int),
        x_test=x,
        y_test=np.zeros(20, int),
    )
    result = run(make_experiment(data={"dataset": f"file:{tmp_path}/one.npz"}), tmp_path / "run")
    assert (result.accuracy, result.loss) == (1.0, 0.0)


def test_final_scores_cover_every_client_though_few_take_part(
    make_experiment: Make, tmp_path: Path, recorder: Any
) -> None:
    experiment = make_experiment(
        data={"clients": 8},
        strategy={"rounds": 1, "fraction-train": 0.25, "fraction-evaluate": 0.25},
        evaluate={"clients": 6},
    )
    run(experiment, tmp_path / "run", [recorder])
    (finished,) = recorder.of(RoundFinished)
    assert len(finished.cohort) == 2
    final = [e.partition for e in recorder.of(ClientReplied) if e.phase == "final"]
    assert final == [0, 1, 2, 3, 4, 5]


def test_the_announcement_describes_the_federation(
    make_experiment: Make, tmp_path: Path, recorder: Any
) -> None:
    run(make_experiment(), tmp_path / "run", [recorder])
    (started,) = recorder.of(RunStarted)
    assert (started.classes, started.train_examples, started.test_examples) == (
        ("0", "1", "2"),
        240,
        60,
    )


class Interrupt:
    """A sink that presses Ctrl-C when a client of the given round answers."""

    def __init__(self, round: int) -> None:
        self.round = round

    def __call__(self, event: Any) -> None:
        if isinstance(event, ClientReplied) and event.round == self.round:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "strategy",
    [
        {},
        {"name": "fedadam", "eta": 0.03},
        {"name": "fedavgm", "server-momentum": 0.5},
        {"name": "qfedavg", "client-learning-rate": 0.01, "q": 1.0},  # goes by the arrays' order
    ],
)
@pytest.mark.parametrize("stopped_in", [2, 4])
def test_an_interrupted_run_goes_on_to_the_same_result(
    make_experiment: Make, tmp_path: Path, strategy: dict[str, Any], stopped_in: int
) -> None:
    experiment = make_experiment(
        data={"clients": 8}, strategy={"rounds": 4, "fraction-train": 0.5, **strategy}
    )
    whole = run(experiment, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(experiment, tmp_path / "cut", [Interrupt(stopped_in)])
    manifest = json.loads((tmp_path / "cut" / "manifest.json").read_text())
    assert (manifest["state"], manifest["rounds"]) == ("interrupted", stopped_in - 1)
    assert (tmp_path / "cut" / "report.html").exists()
    result = resume(tmp_path / "cut")
    assert result.weights_sha256 == whole.weights_sha256
    assert result.rounds == 4
    for name in ("rounds.jsonl", "clients.jsonl"):
        kept, expected = (
            [[line[k] for k in ("round",)] + [line.get("phase"), line.get("partition"), line.get("weights_sha256")] for line in lines(tmp_path / run_name / name)]
            for run_name in ("cut", "whole")
        )  # fmt: skip
        assert kept == expected
    saved = sorted(p.name for p in (tmp_path / "cut" / "checkpoint").iterdir())
    assert saved == [
        f"round-00000{r}.{end}" for r in (3, 4) for end in ("safetensors", "strategy.safetensors")
    ]


def test_a_cut_line_is_dropped_on_resume(make_experiment: Make, tmp_path: Path) -> None:
    experiment = make_experiment(strategy={"rounds": 3})
    whole = run(experiment, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(experiment, tmp_path / "cut", [Interrupt(3)])
    path = tmp_path / "cut" / "rounds.jsonl"
    path.write_text(path.read_text()[:-20])  # killed while it wrote the line of round 2
    assert resume(tmp_path / "cut").weights_sha256 == whole.weights_sha256
    assert [line["round"] for line in lines(path)] == [1, 2, 3]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    make_experiment: Make, tmp_path: Path
) -> None:
    whole = run(make_experiment(strategy={"rounds": 3}), tmp_path / "run")
    newest = tmp_path / "run" / "checkpoint" / "round-000003"
    newest.with_suffix(".safetensors").write_text("x")
    assert resume(tmp_path / "run").weights_sha256 == whole.weights_sha256
    newest.with_suffix(".strategy.safetensors").write_text("x")
    assert resume(tmp_path / "run").weights_sha256 == whole.weights_sha256


@pytest.mark.parametrize("suffix", [".safetensors", ".strategy.safetensors"])
def test_a_pipe_in_place_of_a_checkpoint_is_not_waited_for(
    make_experiment: Make, tmp_path: Path, suffix: str
) -> None:
    whole = run(make_experiment(strategy={"rounds": 3}), tmp_path / "run")
    newest = (tmp_path / "run" / "checkpoint" / "round-000003").with_suffix(suffix)
    newest.unlink()
    os.mkfifo(newest)
    assert resume(tmp_path / "run").weights_sha256 == whole.weights_sha256


def test_a_pipe_in_place_of_the_experiment_is_refused(
    make_experiment: Make, tmp_path: Path
) -> None:
    run(make_experiment(strategy={"rounds": 1}), tmp_path / "run")
    path = tmp_path / "run" / "experiment.toml"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ExperimentError, match=r"experiment\.toml: no such file; restore it"):
        resume(tmp_path / "run")


def test_a_damaged_line_is_named_on_resume(make_experiment: Make, tmp_path: Path) -> None:
    run(make_experiment(), tmp_path / "run")
    path = tmp_path / "run" / "rounds.jsonl"
    path.write_text("{garbage\n" + path.read_text())
    with pytest.raises(InputError, match=r"rounds.jsonl:1: damaged: .*; delete the line"):
        resume(tmp_path / "run")


def test_names_that_mean_something_else_must_not_be_logged(
    make_experiment: Make, tmp_path: Path, own_modules: Any
) -> None:
    path = own_modules(OWN.replace('"confidence"', '"num-examples"'))
    with pytest.raises(
        RoundError, match="the module logs 'num-examples', which is a reserved name"
    ):
        run(own_net(make_experiment, path), tmp_path / "run")


def test_draws_from_the_global_streams_are_seeded_and_the_callers_stay(
    make_experiment: Make, tmp_path: Path, own_modules: Any
) -> None:
    import random

    text = OWN.replace(
        "self.head = nn.Linear(8, 3)",
        "self.head = nn.Linear(8, 3)\n        import numpy, random\n        self.head.bias.data += float(numpy.random.rand() + random.random())",
    )
    text = text.replace("logits = self(x)", "logits = self(x + torch.randn_like(x))")
    experiment = own_net(make_experiment, own_modules(text))

    def drawn(seed: int, name: str) -> tuple[Any, ...]:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        expected = (random.random(), np.random.rand(), float(torch.rand(1)))
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        result = run(experiment, tmp_path / name)
        assert (random.random(), np.random.rand(), float(torch.rand(1))) == expected
        return result.weights_sha256, result.loss

    assert drawn(1, "a") == drawn(2, "b")


def test_a_module_that_exits_is_a_failure_not_an_interrupt(
    make_experiment: Make, tmp_path: Path, own_modules: Any
) -> None:
    path = own_modules(OWN.replace("x, y = batch", "raise SystemExit(3)", 1))
    with pytest.raises(RoundError, match="all 4 clients: SystemExit: 3"):
        run(own_net(make_experiment, path), tmp_path / "run")


@pytest.mark.parametrize("name", sorted(MOVING_THE_MODEL))
def test_batch_norm_works_under_every_strategy_that_moves_the_model(
    make_experiment: Make, tmp_path: Path, own_modules: Any, name: str
) -> None:
    own: dict[str, Any] = {
        "fedavgm": {"server-momentum": 0.5},
        "qfedavg": {"client-learning-rate": 0.02},
    }
    table = own_net(make_experiment, own_modules(OWN), batch_norm=True).model_dump(by_alias=True)
    table["strategy"] |= {"name": name, "rounds": 4, **own.get(name, {})}
    result = run(Experiment.model_validate(table), tmp_path / "run")
    norm = load_model(result.run_dir).norm
    # one epoch of two batches a round, counted on from the average of the clients
    assert int(norm.num_batches_tracked) == 8
    assert float(norm.running_var.min()) > 0
    assert result.loss is not None
    assert np.isfinite(result.loss)


def test_types_of_the_saved_model_are_the_modules(
    make_experiment: Make, tmp_path: Path, own_modules: Any
) -> None:
    experiment = own_net(make_experiment, own_modules(OWN), batch_norm=True)
    table = experiment.model_dump(by_alias=True)
    table["strategy"] |= {"name": "fedadam", "eta": 0.01}
    run(Experiment.model_validate(table), tmp_path / "run")
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert {str(v.dtype) for k, v in saved.items() if "tracked" not in k} == {"float32"}
    assert saved["norm.num_batches_tracked"].dtype == np.int64


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(("threads", "process"), [(1, "os.getpid()"), (2, "os.getppid()")])
def test_a_signal_between_clients_ends_the_run_cleanly(
    experiment_file: Any, tmp_path: Path, own_modules: Any, name: str, threads: int, process: str
) -> None:
    """Sent by the first client that trains: to its own process, or to the one that forked it."""
    once = tmp_path / "sent"
    text = OWN + (
        f"\n    def load_state_dict(self, *args, **how):\n        import os, signal, time\n"
        f"        if not os.path.exists({str(once)!r}):\n"
        f"            open({str(once)!r}, 'x').close()\n"
        f"            os.kill({process}, signal.{name})\n"
        f"        time.sleep({PATIENCE} * {threads > 1})\n"
        f"        return super().load_state_dict(*args, **how)\n"
    )
    file = experiment_file(
        f'[model]\nclass = "{own_modules(text)}:Net"\n[train]\nengine = "lightning"\n'
    )
    command = [
        sys.executable,
        "-m",
        "flsimulation",
        "run",
        str(file),
        "--out",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        preexec_fn=listen_to_ctrl_c,
    )
    assert (done.returncode, done.stderr) == (130, "")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["state"] == "interrupted"
    assert (tmp_path / "run" / "report.html").exists()


def test_a_second_ctrl_c_does_not_keep_the_end_from_being_written(
    make_experiment: Make, tmp_path: Path
) -> None:
    def impatient(event: Any) -> None:
        if isinstance(event, RoundFinished | RunFinished):
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            # before the run directory, which then has its end still to write
            run_in_process(
                make_experiment(), [impatient, RunDirectory(tmp_path, make_experiment())]
            )
    finally:
        signal.signal(signal.SIGINT, before)
    assert json.loads((tmp_path / "manifest.json").read_text())["state"] == "interrupted"


def test_a_reader_that_goes_away_does_not_end_the_run(experiment_file: Any, tmp_path: Path) -> None:
    command = (
        f"{sys.executable} -m flsimulation run {experiment_file()} --out {tmp_path}/run | head -1"
    )
    subprocess.run(
        command, shell=True, capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    manifest = tmp_path / "run" / "manifest.json"
    wait_for("the end", lambda: json.loads(manifest.read_text())["state"] != "running")
    assert json.loads(manifest.read_text())["state"] == "completed"


def test_a_run_that_reached_its_target_is_over(make_experiment: Make, tmp_path: Path) -> None:
    experiment = make_experiment(
        strategy={"rounds": 9}, evaluate={"target-accuracy": 0.5}, train={"epochs": 3}
    )
    found = run(experiment, tmp_path / "run")
    rounds = lines(tmp_path / "run" / "rounds.jsonl")
    accuracies = [line["central"]["accuracy"] for line in rounds]
    assert [a >= 0.5 for a in accuracies] == [False] * (len(rounds) - 1) + [True]
    assert (found.state, found.rounds) == ("completed", len(rounds))
    assert 1 <= len(rounds) < 9
    again = resume(tmp_path / "run")
    assert (again.rounds, again.weights_sha256) == (len(rounds), found.weights_sha256)
    final = [line for line in lines(tmp_path / "run" / "clients.jsonl") if line["phase"] == "final"]
    assert [line["round"] for line in final] == [len(rounds)] * 4


def test_what_cannot_be_resumed_is_refused(make_experiment: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run directory"):
        resume(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(make_experiment(), tmp_path / "run", [Interrupt(1)])
    with pytest.raises(InputError, match="has no checkpoint to resume from"):
        resume(tmp_path / "run")
    with pytest.raises(InputError, match="contains no model"):
        load_model(tmp_path / "run")


def test_a_used_folder_is_not_written_over(make_experiment: Make, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="is not an empty folder"):
        run(make_experiment(), tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_bad_data_leaves_no_run_directory(
    make_experiment: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="70000"):
        run(make_experiment(data={"clients": 70_000}))
    assert not (tmp_path / "runs").exists()


def test_two_runs_in_the_same_second_get_their_own_directories(
    make_experiment: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flsimulation.rundir import writer as rundir

    class Stopped(rundir.datetime):
        @classmethod
        def now(cls, zone: Any = None) -> Any:
            return cls(2026, 1, 2, 3, 4, 5, tzinfo=zone)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rundir, "datetime", Stopped)
    names = [rundir.create_run_directory("x").name for _ in range(3)]
    assert names == [f"20260102T030405Z-x{end}" for end in ("", "-2", "-3")]


def test_two_runs_at_once_do_not_disturb_each_other(experiment_file: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flsimulation", "run", str(experiment_file()), "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=tmp_path, **pipes) for _ in range(2)]
    outputs = [process.communicate(timeout=PATIENCE) for process in both]
    assert [errors for _, errors in outputs] == ["", ""]
    first, second = (json.loads(output) for output, _ in outputs)
    assert first["run_dir"] != second["run_dir"]
    assert first["weights_sha256"] == second["weights_sha256"]
    for result in (first, second):
        assert len(lines(tmp_path / result["run_dir"] / "rounds.jsonl")) == 3


def listen_to_ctrl_c() -> None:
    """In a child: undo the deafness that a shell gives to what it starts in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_in_round_two_leaves_a_readable_directory(
    experiment_file: Any, tmp_path: Path, own_modules: Any
) -> None:
    slow = OWN.replace("x, y = batch", "import time; time.sleep(0.05); x, y = batch", 1)
    path = own_modules(slow)
    file = experiment_file(f'[model]\nclass = "{path}:Net"\n[strategy]\nrounds = 20000\n')
    command = [
        sys.executable,
        "-m",
        "flsimulation",
        "run",
        str(file),
        "--out",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen_to_ctrl_c,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().startswith("2/20000"):
            process.send_signal(signal.SIGINT)
            break
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "interrupted: " in output
    assert output.endswith(
        f"Report  {tmp_path}/run/report.html\nResume  flsim run --resume {tmp_path}/run\n"
    )
    assert errors == ""
    folder = tmp_path / "run"
    rounds = [line["round"] for line in lines(folder / "rounds.jsonl")]
    assert len(rounds) >= 2
    assert rounds == list(range(1, len(rounds) + 1))
    assert json.loads((folder / "manifest.json").read_text())["state"] == "interrupted"
    assert load_file(folder / "model.safetensors").keys() == {
        "body.weight",
        "body.bias",
        "head.weight",
        "head.bias",
    }
    assert "interrupted" in (folder / "report.html").read_text()


def test_waiting_threads_sleep() -> None:
    code = "import flsimulation, os; print(os.environ['OMP_WAIT_POLICY'])"
    clean = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    shown = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=clean,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() == "PASSIVE"


ONE_FILE = """
import numpy as np
import pytorch_lightning as pl
import torch
from flsimulation import load_experiment, load_model, run


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, 2)

    def training_step(self, batch, _):
        return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def data():
    x = np.random.default_rng(0).normal(size=(100, 6)).astype("f4")
    y = (x[:, 0] > 0).astype(int)
    return dict(x_train=x[:80], y_train=y[:80], x_test=x[80:], y_test=y[80:])


file = __file__
settings = ["data.clients=4", "data.examples-per-client=0", "strategy.rounds=1"]
names = [f"data.dataset={file}:data", f"model.class={file}:Net"]
result = run(load_experiment(None, [*settings, *names]), "only")
print(type(load_model(result.run_dir)) is Net)
"""


def test_a_script_with_model_data_and_run_runs_once(tmp_path: Path, own_modules: Any) -> None:
    script = own_modules(ONE_FILE, "script.py")
    command = [sys.executable, script.name]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert (ended.returncode, ended.stdout) == (0, "True\n"), ended.stderr
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["only"]
    model = load_model(
        tmp_path / "only"
    )  # in another process, which executes the script up to run()
    assert type(model).__name__ == "Net"
    assert model.layer.weight.shape == (2, 6)


def test_a_checkpoint_of_another_model_is_refused_in_a_sentence(
    make_experiment: Make, tmp_path: Path
) -> None:
    run(make_experiment(strategy={"rounds": 1}), tmp_path / "run")
    file = tmp_path / "run" / "experiment.toml"
    file.write_text(re.sub(r"(hidden = \[\s*8,\s*)8", r"\g<1>9", file.read_text()))
    with pytest.raises(
        InputError, match="of round 1 is not of the experiment's model: its weights"
    ):
        resume(tmp_path / "run")
