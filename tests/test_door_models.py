"""LightningModules as people write them: of either package, with what they use of the Trainer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional

from flsimulation import InputError, load_model, run
from flsimulation.data.federated import FederatedData
from flsimulation.experiment import Experiment, dump_toml
from flsimulation.models import build_model
from flsimulation.rundir import RunRecord

NET = """
import pytorch_lightning as pl, torch
from torch.nn import functional


class Net(pl.LightningModule):
    def __init__(self, lr=0.5):
        super().__init__()
        self.lr = lr
        self.layer = torch.nn.Linear(6, 3)

    def loss(self, batch):
        x, y = batch
        return functional.cross_entropy(self.layer(x), y)

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)
"""
LR = 0.5


def with_methods(*methods: str) -> str:
    """The module with other methods: each is one definition."""
    lines = "\n\n".join(methods).splitlines()
    return f"{NET}\n" + "\n".join(f"    {line}" for line in lines) + "\n"


Make = Callable[..., Experiment]
Write = Callable[..., Path]


@pytest.fixture
def trained(
    make_experiment: Make, own_modules: Write, tmp_path: Path
) -> Callable[..., tuple[Experiment, Path]]:
    """Run a federation of a module's text; the experiment and the run directory."""

    def train(text: str, rounds: int = 3, **train: Any) -> tuple[Experiment, Path]:
        experiment = make_experiment(
            model={"class": f"{own_modules(text)}:Net", "args": {}},
            train={"batch-size": 1000, **train},
            strategy={"rounds": rounds},
        )
        engine = train.get("engine", "auto")
        out = tmp_path / f"{engine}-{len(list(tmp_path.iterdir()))}"
        run(experiment, out)
        return experiment, out

    return train


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return {n: v.double() for n, v in load_model(run_dir).state_dict().items()}


def assert_close(one: Path, other: Path) -> None:
    theirs = weights(other)
    for name, value in weights(one).items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-6, atol=1e-6)


def engine(run_dir: Path) -> tuple[str, str | None]:
    manifest = RunRecord(run_dir).manifest
    return manifest["engine"], manifest["not-stacked"]


def by_hand(
    experiment: Experiment, start: dict[str, torch.Tensor], rates: list[float]
) -> dict[str, torch.Tensor]:
    """FedAvg with one step of all of a client's examples a round, in double precision."""
    data = FederatedData.load(experiment)
    w, b = start["layer.weight"].double(), start["layer.bias"].double()
    for rate in rates:
        models, sizes = [], []
        for client in range(experiment.data.clients):
            rows = torch.from_numpy(data.train_indices(client))
            x, y = data.dataset.x_train[rows].double(), data.dataset.y_train[rows]
            own = [w.clone().requires_grad_(), b.clone().requires_grad_()]
            loss = functional.cross_entropy(x @ own[0].T + own[1], y)
            gradients = torch.autograd.grad(loss, own)
            models.append([(p - rate * g).detach() for p, g in zip(own, gradients)])
            sizes.append(len(rows))
        share = [size / sum(sizes) for size in sizes]
        w, b = (sum(s * m[i] for s, m in zip(share, models)) for i in (0, 1))
    return {"layer.weight": w, "layer.bias": b}


ROUND_RATE = """
def configure_optimizers(self):
    return torch.optim.SGD(self.parameters(), lr=self.lr / self.federated_round)
"""


@pytest.mark.seconds
@pytest.mark.parametrize("kind", ["stacked", "lightning"])
@pytest.mark.parametrize("by", ["key", "round"])
def test_learning_rates_fall_from_round_to_round(trained: Any, kind: str, by: str) -> None:
    if by == "key":
        text, rates = NET, [LR, LR * 0.7, LR * 0.7**2]
        experiment, out = trained(text, engine=kind, **{"learning-rate-decay": 0.7})
    else:
        text, rates = with_methods(ROUND_RATE), [LR, LR / 2, LR / 3]
        experiment, out = trained(text, engine=kind)
    assert engine(out)[0] == kind
    expected = by_hand(experiment, initial(experiment), rates)
    for name, value in weights(out).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6)


def initial(experiment: Experiment) -> dict[str, torch.Tensor]:
    module = build_model(experiment.model, FederatedData.load(experiment).dataset, experiment.seed)
    return module.state_dict()


CYCLE = """
def configure_optimizers(self):
    assert self.trainer.max_epochs == 2 and self.trainer.datamodule is None
    assert self.trainer.global_step == self.trainer.current_epoch == 0
    assert self.trainer.estimated_stepping_batches == 2 * self.trainer.num_training_batches
    self.trainer.logger.log_hyperparams({"lr": self.lr})
    optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=self.lr, total_steps=self.trainer.estimated_stepping_batches
    )
    return [optimizer], [{"scheduler": scheduler, "interval": "step"}]
"""


@pytest.mark.seconds
def test_one_cycle_over_each_clients_own_number_of_steps(
    make_experiment: Make, own_modules: Write, tmp_path: Path
) -> None:
    file = own_modules(with_methods(CYCLE))
    runs = {}
    for kind in ("stacked", "lightning"):
        experiment = make_experiment(
            data={"clients": 6, "partition": "linear"},
            model={"class": f"{file}:Net", "args": {}},
            train={"batch-size": 8, "epochs": 2, "engine": kind, "learning-rate-decay": 0.5},
        )
        run(experiment, runs.setdefault(kind, tmp_path / kind))
    sizes = {len(FederatedData.load(experiment).train_indices(client)) for client in range(6)}
    assert len({-(-size // 8) for size in sizes}) > 2
    steps = {c["partition"]: c["steps"] for c in clients(runs["stacked"]) if c["phase"] == "train"}
    assert len({*steps.values()}) > 2
    assert_close(runs["stacked"], runs["lightning"])


def clients(run_dir: Path) -> list[dict[str, Any]]:
    return list(RunRecord(run_dir).clients())


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("stacked", "def validation_step(self, batch, i):"),
        ("lightning", "def validation_step(self, batch, i):"),
        ("lightning", "def on_validation_epoch_end(self):"),
    ],
)
def test_a_module_knows_the_round(trained: Any, kind: str, method: str) -> None:
    log = f'{method}\n    self.log("round_loss", float(self.federated_round))'
    plain = "def validation_step(self, batch, i): pass"
    _, out = trained(with_methods(plain, log), rounds=2, engine=kind)
    losses = [(r["central"]["loss"], r["federated"]["loss"]) for r in RunRecord(out).rounds]
    assert losses == [(1.0, 1.0), (2.0, 2.0)]


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("logged", "kind"),
    [("float(self.federated_round)", "lightning"), ("self.federated_round", "stacked")],
)
def test_a_step_that_reads_the_round_is_trained_in_each_round(
    trained: Any, logged: str, kind: str
) -> None:
    step = f"""
def training_step(self, batch, batch_idx):
    self.log("now", {logged})
    return self.loss(batch) * self.federated_round
"""
    experiment, out = trained(with_methods(step), rounds=2, engine=kind)
    assert engine(out)[0] == kind
    assert {(c["round"], c["now"]) for c in clients(out) if c["phase"] == "train"} == {
        (1, 1.0),
        (2, 2.0),
    }
    expected = by_hand(experiment, initial(experiment), [LR, 2 * LR])
    for name, value in weights(out).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.seconds
@pytest.mark.parametrize("kind", ["stacked", "lightning"])
def test_accumulated_batches_are_one_larger_batch(trained: Any, kind: str) -> None:
    # 54 examples of each client: two batches of 27, or six of 9
    _, whole = trained(NET, engine="lightning", epochs=2, **{"batch-size": 27})
    _, parts = trained(NET, engine=kind, epochs=2, **{"batch-size": 9, "accumulate": 3})
    assert engine(parts)[0] == kind
    assert_close(whole, parts)
    fits = [[c for c in clients(out) if c["phase"] == "train"] for out in (whole, parts)]
    for one, other in zip(*fits, strict=True):
        assert (one["num-examples"], one["steps"], other["steps"]) == (54, 4, 4)
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)


@pytest.mark.seconds
@pytest.mark.parametrize("kind", ["stacked", "lightning"])
def test_the_last_batches_of_an_epoch_are_a_step_too(trained: Any, kind: str) -> None:
    own = {"batch-size": 54, "accumulate": 4}
    experiment, out = trained(NET, engine=kind, rounds=1, **own)
    # Lightning divides by what was to be added up: one batch of four moves a quarter as far
    expected = by_hand(experiment, initial(experiment), [LR / 4])
    for name, value in weights(out).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6)
    assert {c["steps"] for c in clients(out) if c["phase"] == "train"} == {1}


@pytest.mark.seconds
@pytest.mark.parametrize("kind", ["stacked", "lightning"])
@pytest.mark.parametrize(
    ("precision", "most", "least"),
    [("64-true", 1e-6, 0), ("bf16-true", 0.02, 1e-6), ("bf16-mixed", 0.02, 1e-6)],
)
def test_a_model_is_exchanged_in_its_own_type_whatever_it_is_trained_in(
    trained: Any, precision: str, most: float, least: float, kind: str
) -> None:
    step = """
def training_step(self, batch, batch_idx):
    loss = self.loss(batch)
    self.log("bits", float(self.layer.weight.dtype.itemsize * 8))
    return loss
"""
    experiment, out = trained(with_methods(step), precision=precision, engine=kind)
    assert engine(out)[0] == kind
    bits = {"64-true": 64, "bf16-true": 16, "bf16-mixed": 32}[precision]
    assert {c["bits"] for c in clients(out) if c["phase"] == "train"} == {bits}
    expected, found = by_hand(experiment, initial(experiment), [LR] * 3), weights(out)
    assert {value.dtype for value in RunRecord(out).weights().values()} == {torch.float32}
    apart = max(float((found[name] - expected[name]).abs().max()) for name in found)
    assert least <= apart <= most


OWN_STEPS = """
def __init__(self):
    super().__init__()
    self.layer = torch.nn.Linear(6, 3)
    self.automatic_optimization = False
"""


@pytest.mark.parametrize(
    ("key", "value", "unset"), [("accumulate", 4, 1), ("gradient-clip", 0.5, 0)]
)
def test_keys_that_manual_optimization_would_not_follow(
    trained: Any, key: str, value: float, unset: int
) -> None:
    text = with_methods(OWN_STEPS)
    with pytest.raises(InputError) as caught:
        trained(text, **{key: value})
    assert str(caught.value) == (
        f"train.{key} is {value}, but Net optimizes by itself (automatic_optimization = False); do "
        f"so in its training_step, or set the key to {unset}"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has float16")
@pytest.mark.parametrize("kind", ["stacked", "direct", "lightning"])
@pytest.mark.filterwarnings("ignore:train.precision")
def test_on_a_cpu_float16_is_bfloat16_as_with_the_trainer(trained: Any, kind: str) -> None:
    narrow, other = (
        weights(trained(NET, precision=precision, engine=kind, rounds=1)[1])
        for precision in ("16-mixed", "bf16-mixed")
    )
    assert all(torch.equal(value, other[name]) for name, value in narrow.items())


WORDY = """
def training_step(self, batch, batch_idx):
    loss = self.loss(batch)
    self.print("a step")
    self.logger.experiment.add_scalar("loss", loss)
    self.logger.log_metrics({"loss": loss})
    self.logger.log_hyperparams(self.hparams)
    self.logger.experiment["train/loss"].append(loss)
    with self.logger.experiment.train():
        self.logger.watch(self, log="all")
    self.loggers[0].experiment.config.update({"lr": 1})
    self.log_dict({"one": loss, "two": 2 * loss}, logger=True, prog_bar=True, rank_zero_only=True)
    return loss

def validation_step(self, batch, batch_idx):
    self.print("an evaluation")
    self.logger.experiment.log({"loss": 1.0})
    assert self.logger.name is None and self.logger.save_dir is None
    self.log("val_loss", self.loss(batch))

def configure_optimizers(self):
    self.print("an optimizer")
    self.logger.experiment.add_text("what", "SGD")
    return torch.optim.SGD(self.parameters(), lr=self.lr)
"""


@pytest.mark.seconds
def test_loggers_and_prints_do_nothing_in_both_engines(
    trained: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = [trained(with_methods(WORDY), engine=kind)[1] for kind in ("stacked", "lightning")]
    plain = trained(NET)[1]
    for out in runs:
        assert_close(out, plain)
        for client in clients(out):
            if client["phase"] == "train":
                assert (client["one"], client["two"]) == (
                    pytest.approx(client["loss"], rel=1e-6),
                    pytest.approx(2 * client["loss"], rel=1e-6),
                )
    said = capfd.readouterr()
    assert "a step" not in said.out + said.err
    assert "an " not in said.out


TRAINER_FACTS = """
def __init__(self, lr=0.5):
    super().__init__()
    self.save_hyperparameters()
    self.layer = torch.nn.Linear(6, 3)
    self.example_input_array = torch.zeros(2, 6)
    self.seen = []

def training_step(self, batch, batch_idx):
    assert self.trainer.num_training_batches == 2 and self.trainer.max_epochs == 2
    assert self.trainer.global_step == self.global_step == 2 * self.current_epoch + batch_idx
    assert self.trainer.current_epoch == self.current_epoch and self.trainer.datamodule is None
    assert self.all_gather(torch.ones(3)).shape == (3,)
    self.seen.append(len(batch[1]))
    return self.loss(batch)

def on_train_epoch_end(self):
    self.log("seen", float(sum(self.seen)))
    self.seen.clear()

def validation_step(self, batch, batch_idx):
    self.seen.append(self.loss(batch))

def on_validation_epoch_end(self):
    self.log("val_loss", torch.stack(self.seen).mean())
    self.seen.clear()

def configure_optimizers(self):
    optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "seen"}}
"""


@pytest.mark.seconds
def test_steps_find_what_they_use_of_the_trainer(trained: Any) -> None:
    _, out = trained(with_methods(TRAINER_FACTS), epochs=2, **{"batch-size": 30})
    fits = [c for c in clients(out) if c["phase"] == "train"]
    assert [(c["seen"], c["steps"]) for c in fits] == [(54.0, 4)] * 12
    assert len(RunRecord(out).rounds) == 3
    assert load_model(out).hparams.lr == LR
    plain = trained(NET, epochs=2, engine="lightning", **{"batch-size": 30})[1]
    assert_close(out, plain)


def refused(text: str, write: Write, make: Make, name: str = "Net", **args: Any) -> str:
    """What the experiment's model is refused with; text without the file's folder."""
    file = write(text)
    experiment = make(model={"class": f"{file}:{name}", "args": args})
    with pytest.raises(InputError) as caught:
        build_model(experiment.model, FederatedData.load(experiment).dataset, 0)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{file.parent}/", "")


@pytest.mark.parametrize(
    "line",
    ["import lightning as L", "import lightning.pytorch as pl", "from lightning import Trainer"],
)
def test_a_module_of_the_other_package_that_is_not_installed(
    own_modules: Write, make_experiment: Make, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setitem(sys.modules, "lightning", None)  # as if it was not there
    monkeypatch.delitem(sys.modules, "lightning.pytorch", raising=False)
    assert refused(line, own_modules, make_experiment) == (
        "model.class 'own.py:Net': it imports lightning, which is not installed; install it (pip "
        "install lightning), or import pytorch_lightning, which is: the same classes under another "
        "name"
    )


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        (
            "import torch\nclass Net(torch.nn.Module): pass",
            "Net",
            "is a torch.nn.Module without training_step and configure_optimizers; derive it from "
            "pytorch_lightning.LightningModule and add them, or wrap it in a class that does",
        ),
        (
            "class Net: pass",
            "Net",
            "is a class that is not derived from pytorch_lightning.LightningModule; name one that is",
        ),
        (
            f"{NET}\nmodel = Net()",
            "model",
            "is a model that is built already; name its class, Net",
        ),
        (
            f"{NET}\ndef make(): return Net()",
            "make",
            "is no class but a function; name a class that is derived from "
            "pytorch_lightning.LightningModule",
        ),
    ],
)
def test_what_is_no_module(
    own_modules: Write, make_experiment: Make, text: str, name: str, said: str
) -> None:
    assert (
        refused(text, own_modules, make_experiment, name) == f"model.class 'own.py:{name}' {said}"
    )


def test_an_unknown_class_lists_those_of_the_file_alone(
    own_modules: Write, make_experiment: Make
) -> None:
    text = f"{NET}\nclass Wide(Net): pass"
    said = refused(text, own_modules, make_experiment, "Zebra")
    assert said == "model.class 'own.py:Zebra': own.py has no attribute 'Zebra'; known: Net, Wide"
    assert refused(text, own_modules, make_experiment, "Wdie").endswith("did you mean 'Wide'?")


def test_an_import_that_is_missing_is_named(own_modules: Write, make_experiment: Make) -> None:
    assert refused("import no_such_thing.inside", own_modules, make_experiment) == (
        "model.class 'own.py:Net': importing it raised ModuleNotFoundError: No module named "
        "'no_such_thing' (own.py:1); install what has 'no_such_thing', or name a file in whose "
        "folder it is"
    )


TABLE = """
def __init__(self, hparams):
    super().__init__()
    self.layer = torch.nn.Linear(6, 3)
    self.lr = {}
"""


def test_a_table_of_arguments_is_a_dictionary(own_modules: Write, make_experiment: Make) -> None:
    text = with_methods(TABLE.format('hparams["lr"]'))
    file = own_modules(text)
    experiment = make_experiment(model={"class": f"{file}:Net", "args": {"hparams": {"lr": 0.25}}})
    module: Any = build_model(experiment.model, FederatedData.load(experiment).dataset, 0)
    assert module.lr == 0.25
    said = refused(
        with_methods(TABLE.format("hparams.lr")), own_modules, make_experiment, hparams={"lr": 1}
    )
    assert said.endswith(
        "it takes: hparams; a table of model.args is a dict there, so that its keys are read as [...]"
    )


@pytest.fixture(scope="session")
def other_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``lightning.pytorch``: how that package is made of the one that is installed."""
    folder, installed = tmp_path_factory.mktemp("other"), Path(pl.__file__).parent.parent
    lightning = folder / "lightning"
    names = {"pytorch_lightning": "pytorch", "lightning_fabric": "fabric"}
    for name, other in names.items():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(installed / name, lightning / other, ignore=ignored)
    for file in lightning.rglob("*.py"):
        text = file.read_text()
        for name, other in names.items():
            text = text.replace(name, f"lightning.{other}")
        file.write_text(text)
    (lightning / "__init__.py").write_text("from lightning.pytorch import LightningModule\n")
    return folder


@pytest.mark.seconds
@pytest.mark.parametrize("kind", ["stacked", "lightning"])
def test_modules_of_lightning_pytorch_train_the_same(
    other_package: Path, trained: Any, make_experiment: Make, tmp_path: Path, kind: str
) -> None:
    text = NET.replace("import pytorch_lightning as pl", "import lightning as pl")
    (tmp_path / "theirs.py").write_text(text)
    experiment, plain = trained(NET, engine=kind, **{"learning-rate-decay": 0.5})
    file = tmp_path / "experiment.toml"
    file.write_text(dump_toml(experiment).replace("own.py:Net", "theirs.py:Net"))
    command = [sys.executable, "-W", "error::UserWarning", "-m", "flsimulation", "run", str(file)]
    command += ["--quiet", "--out", str(tmp_path / "theirs")]
    paths = [str(other_package), str(Path(sys.modules["flsimulation"].__file__ or "").parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    theirs, ours = (RunRecord(out).weights() for out in (tmp_path / "theirs", plain))
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    scores = [
        [(r["central"], r["federated"]) for r in RunRecord(out).rounds]
        for out in (tmp_path / "theirs", plain)
    ]
    assert scores[0] == scores[1]
    assert RunRecord(tmp_path / "theirs").manifest["engine"] == kind
