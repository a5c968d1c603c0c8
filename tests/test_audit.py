"""The audit: attacks with a known result, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torchmetrics.functional.classification import binary_auroc, binary_roc

from flsimulation import Experiment, run
from flsimulation.cli.main import main
from flsimulation.errors import InputError, ModelError, RunError
from flsimulation.models import MLP
from flsimulation.privacy.accountant import Mechanism, epsilon_of
from flsimulation.report import write_report
from flsimulation.rundir import RunRecord
from flsimulation.rundir.audit import Attack, read_audit, write_audit
from flsimulation.studies.audit import audit
from flsimulation.studies.audit.curves import auc, deviation, tpr_at
from flsimulation.studies.audit.inversion import inverted, recovered_labels
from flsimulation.studies.audit.losses import Losses, confidence
from flsimulation.studies.audit.membership import halves_of, likelihood, shadow_epochs
from flsimulation.studies.audit.released import clipped, noise_of, with_noise
from flsimulation.studies.audit.subject import Subject
from flsimulation.training.work import silent

pytestmark = pytest.mark.seconds

Values = np.ndarray


def values(*numbers: float) -> Values:
    return np.array(numbers, float)


def experiment(**tables: Any) -> Experiment:
    """A small federation on MNIST, in few steps."""
    tree: dict[str, Any] = {
        "name": "audited",
        "data": {"clients": 4, "examples-per-client": 60, "min-examples": 2},
        "train": {"epochs": 2},
        "strategy": {"rounds": 1, "fraction-evaluate": 0.0},
        "evaluate": {"clients": 0},
    }
    for name, table in tables.items():
        tree[name] = {**tree.get(name, {}), **table} if isinstance(table, dict) else table
    return Experiment.model_validate(tree)


def noise_file(path: Path) -> Path:
    """Inputs and labels that have nothing to do with each other: what is learnt is learnt by heart."""
    rng = np.random.default_rng(3)
    arrays = {}
    for part, n in (("train", 160), ("test", 160)):
        arrays[f"x_{part}"] = rng.normal(size=(n, 20)).astype(np.float32)
        arrays[f"y_{part}"] = np.arange(n) % 10
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def memorised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model knows its training examples by heart, and nothing else."""
    folder = tmp_path_factory.mktemp("memorised")
    data = {"dataset": f"file:{noise_file(folder / 'noise.npz')}", "clients": 2}
    spec = experiment(
        data={**data, "examples-per-client": 80},
        model={"class": "mlp", "args": {"hidden": [64, 64], "learning_rate": 0.003}},
        train={"epochs": 10, "batch-size": 16},
        strategy={"rounds": 10},
    )
    run(spec, out=folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mnist")
    run(experiment(), out=folder / "run")
    return folder / "run"


# --- what is measured


def test_auc_and_true_positives_are_those_of_a_hand() -> None:
    members, others = values(4, 3, 1), values(3, 2, 0, 0)
    # pairs won: 4 beats 4; 3 beats 3 and ties with one; 1 beats 2: (4 + 3.5 + 2) / 12
    assert auc(members, others) == pytest.approx(9.5 / 12)
    assert auc(others, members) == pytest.approx(2.5 / 12)
    assert tpr_at(members, others, 0.0) == pytest.approx(1 / 3)  # only 4 is above all others
    assert tpr_at(members, others, 0.25) == pytest.approx(2 / 3)  # above 2, with 3 as the false one
    assert tpr_at(members, others, 1.0) == 1.0
    assert auc(values(1, 1), values(1, 1)) == 0.5
    assert tpr_at(values(1, 1), values(1, 1)) == 0.0


def test_auc_and_true_positives_are_those_of_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    members, others = np.round(rng.normal(0.4, 1, 700), 2), np.round(rng.normal(0, 1, 1100), 2)
    scores = torch.from_numpy(np.concatenate([members, others])).sigmoid()
    truth = torch.cat([torch.ones(700, dtype=torch.int64), torch.zeros(1100, dtype=torch.int64)])
    assert auc(members, others) == pytest.approx(float(binary_auroc(scores, truth)), abs=1e-5)
    fpr, tpr, _ = binary_roc(scores, truth)
    for few in (0.001, 0.01, 0.1):
        assert tpr_at(members, others, few) == pytest.approx(float(tpr[fpr <= few].max()), abs=1e-6)


def test_the_error_of_an_auc_is_that_of_many_draws() -> None:
    rng = np.random.default_rng(1)
    areas = [auc(rng.normal(0.5, 1, 200), rng.normal(0, 1, 200)) for _ in range(300)]
    assert deviation(float(np.mean(areas)), 200, 200) == pytest.approx(
        float(np.std(areas)), rel=0.15
    )


def test_confidence_is_the_logit_of_the_true_class() -> None:
    p = values(0.5, 0.9, 0.001)
    assert confidence(-np.log(p)) == pytest.approx(np.log(p / (1 - p)))
    assert confidence(values(0.0))[0] == pytest.approx(
        -math.log(1e-15), rel=1e-6
    )  # and not infinite
    assert confidence(values(800.0))[0] == pytest.approx(-800.0)


@pytest.mark.parametrize("examples", [10, 11])
def test_each_example_is_unseen_by_half_of_the_shadow_models(examples: int) -> None:
    halves = halves_of(examples, 6, seed=0)
    assert [len(half) for half in halves] == [examples // 2, examples - examples // 2] * 3
    seen = np.bincount(np.concatenate(halves), minlength=examples)
    assert seen.tolist() == [3] * examples
    assert halves[0].tolist() != halves[2].tolist() != halves_of(examples, 6, seed=1)[2].tolist()


def test_the_likelihood_is_the_distance_from_the_models_that_did_not_see_the_example() -> None:
    shadows = np.array([[1.0, 9.0], [3.0, 2.0], [8.0, 4.0], [7.0, 8.0]])
    seen = np.array([[False, True], [False, False], [True, False], [True, True]])
    # unseen: (1, 3) and (2, 4): means 2 and 3, squares 2 + 2 with one degree of freedom each
    assert likelihood(values(4, 2), shadows, seen) == pytest.approx(values(2, -1) / math.sqrt(2))


class _Branching(MLP):
    """A step that vmap does not allow: it looks at a value."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return {"loss": loss if loss.item() >= 0 else -loss}


@pytest.mark.parametrize("kind", [MLP, _Branching])
def test_losses_are_those_of_single_examples(kind: type[MLP]) -> None:
    torch.manual_seed(0)
    module, x, y = kind(inputs=6, classes=3, hidden=(8, 8)), torch.randn(7, 6), torch.arange(7) % 3
    found = Losses(module).of(module.state_dict(), [(x[:4], y[:4]), (x[4:], y[4:])])
    wanted = functional.cross_entropy(module.double()(x.double()), y, reduction="none")
    assert found == pytest.approx(wanted.detach().numpy(), abs=1e-12)


def test_a_step_without_a_loss_and_a_loss_that_is_not_finite_are_errors() -> None:
    class Silent(MLP):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None

    module, batch = (
        Silent(inputs=2, classes=2, hidden=(2, 2)),
        (torch.ones(1, 2), torch.tensor([0])),
    )
    with pytest.raises(ModelError, match="needs the loss of training_step, which returns none"):
        Losses(module).of(module.state_dict(), [batch])
    broken = MLP(inputs=2, classes=2, hidden=(2, 2))
    state = {name: torch.full_like(own, math.nan) for name, own in broken.state_dict().items()}
    with pytest.raises(RunError, match="not finite"):
        Losses(broken).of(state, [batch])


# --- oracles


def test_a_memorised_model_is_found_out_by_every_attack(memorised: Path) -> None:
    found = audit(memorised, shadows=8, examples=140)
    areas = {attack.name: attack.auc for attack in found.attacks}
    assert areas["loss"] > 0.9
    assert areas["lira"] > 0.9
    assert areas["update"] > 0.5
    assert {(a.members, a.others) for a in found.attacks[:2]} == {(140, 140)}
    assert found.attacks[0].tpr > 0.2
    assert found.inversion is None
    assert found.notes == ("gradient inversion: its inputs are no images",)


def test_a_model_that_never_saw_the_examples_tells_nothing(tmp_path: Path) -> None:
    spec = experiment(data={"clients": 2, "examples-per-client": 650}, train={"epochs": 1})
    run(spec, out=tmp_path / "run")
    elsewhere = spec.model_copy(update={"seed": 9})  # other examples of the 60,000
    many = elsewhere.train.model_copy(update={"epochs": 20})
    run(elsewhere.model_copy(update={"train": many}), out=tmp_path / "other")
    model = (tmp_path / "other" / "model.safetensors").read_bytes()
    (tmp_path / "run" / "model.safetensors").write_bytes(model)
    (loss, lira, _) = audit(tmp_path / "run", shadows=4).attacks
    assert (loss.members, loss.others) == (1000, 1000)
    assert loss.auc == pytest.approx(0.5, abs=0.03)
    assert lira.auc == pytest.approx(0.5, abs=0.03)


def test_a_clients_update_shows_its_examples_and_noise_hides_them(memorised: Path) -> None:
    from flsimulation.studies.audit.updates import by_updates

    subject = Subject.load(RunRecord(memorised), 140, 0)
    subject = dataclasses.replace(subject, state=subject.initial)  # before it knows any
    losses = Losses(subject.module).of(subject.state, subject.all_batches)
    plain = by_updates(subject, losses, 140, 0, silent)
    assert plain is not None
    assert plain.auc > 0.9
    privacy = {"mode": "local", "clip": 1.0, "noise-multiplier": 5.0}
    table = type(subject.experiment.privacy).model_validate(privacy)
    hidden = subject.experiment.model_copy(update={"privacy": table})
    noisy = by_updates(dataclasses.replace(subject, experiment=hidden), losses, 140, 0, silent)
    assert noisy is not None
    assert noisy.auc == pytest.approx(0.5, abs=0.12)  # of 2 x 140 examples


def test_one_image_is_recovered_from_its_gradient_and_not_from_a_noisy_one(mnist: Path) -> None:
    subject = Subject.load(RunRecord(mnist), 200, 0)
    found = inverted(subject, 0, silent, count=1)
    assert found.mse[0] < 1e-3 < 0.02 < found.guess
    assert found.psnr[0] == pytest.approx(10 * math.log10(1 / found.mse[0]), rel=1e-4)
    assert found.labels == 1
    assert found.found.shape == found.true.shape == (1, 1, 28, 28)
    for privacy in (
        {"mode": "local", "clip": 1.0, "noise-multiplier": 1.0},
        {"mode": "example", "clip": 1.0, "noise-multiplier": 1.0},
    ):
        table = type(subject.experiment.privacy).model_validate(privacy)
        hidden = subject.experiment.model_copy(update={"privacy": table})
        noisy = inverted(dataclasses.replace(subject, experiment=hidden), 0, silent, count=1)
        assert noisy.mse[0] > noisy.guess / 2
        assert np.array_equal(noisy.true, found.true)


def test_labels_are_those_with_the_most_negative_gradient() -> None:
    weight = torch.tensor([[1.0, 2.0], [-3.0, 1.0], [0.5, 0.0]])
    assert recovered_labels([torch.ones(4, 2), weight], 1).tolist() == [1]
    assert recovered_labels([weight, torch.tensor([-2.0, 4.0, -3.0])], 2).tolist() == [2, 0]


def test_vectors_are_clipped_and_noisy() -> None:
    after = [torch.tensor([0.0, 6.0]), torch.tensor([8.0])]
    assert [part.tolist() for part in clipped(after, 5.0)] == [[0.0, 3.0], [4.0]]
    assert [part.tolist() for part in clipped(after, 20.0)] == [[0.0, 6.0], [8.0]]

    spread = with_noise([torch.zeros(20_000)], 3.0, np.random.default_rng(1))[0]
    assert float(spread.std()) == pytest.approx(3.0, rel=0.02)


@pytest.mark.parametrize(
    ("mode", "changed", "times", "rate"),
    [("local", 2, 1, 1.0), ("example", 1, 20, 0.1)],  # two epochs of ten steps
)
def test_the_noise_of_a_client_is_that_for_its_epsilon(
    mode: str, changed: int, times: int, rate: float
) -> None:
    noise = noise_of(experiment(privacy={"mode": mode, "epsilon": 8.0}), [320] * 4) / changed
    spent = [epsilon_of(Mechanism(own, rate), times, 1e-5) for own in (noise, noise - 0.01)]
    assert spent[0] <= 8.0 < spent[1]
    given = {"mode": mode, "noise-multiplier": 3.0}
    assert noise_of(experiment(privacy=given), [320] * 4) == 3.0
    assert noise_of(experiment(privacy={"mode": "central", "epsilon": 8.0}), [320] * 4) == 0.0


# --- whose examples are members


def test_clients_that_never_trained_are_not_members(tmp_path: Path) -> None:
    spec = experiment(strategy={"rounds": 1, "fraction-train": 0.5})
    run(spec, out=tmp_path / "run")
    record = RunRecord(tmp_path / "run")
    subject = Subject.load(record, 1000, 0)
    assert subject.trained == tuple(record.rounds[0]["cohort"])
    assert len(subject.trained) == 2
    assert subject.pool.members == 108  # 2 clients, a tenth of 60 held out
    members = {tuple(own.flatten().tolist()) for own in subject.pool.x[:108]}  # type: ignore[index]
    for partition in range(4):
        own = subject.data.dataset.x_train[torch.from_numpy(subject.data.train_indices(partition))]  # type: ignore[index]
        inside = sum(tuple(one.flatten().tolist()) in members for one in own)
        assert inside == (54 if partition in subject.trained else 0)
    assert shadow_epochs(subject) == 1  # two epochs of half of the clients


# --- command, file and page


def test_the_command_writes_the_audit_and_the_report(
    mnist: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["audit", str(mnist), "--shadows", "4", "--examples", "100"]
    with pytest.raises(SystemExit) as caught:
        main([*words, "--json"])
    assert caught.value.code in (0, None)
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((mnist / "audit.json").read_text())
    assert [attack["name"] for attack in printed["attacks"]] == ["loss", "lira", "update"]
    assert printed["weights-sha256"] == RunRecord(mnist).manifest["weights-sha256"]
    assert (printed["privacy"], printed["epsilon"], printed["delta"]) == ("none", None, None)
    page = (mnist / "report.html").read_text()
    assert "<h2>What leaks</h2>" in page
    assert "Final model, LiRA with 4 shadow models" in page
    assert "Gradient inversion of a batch of 4: PSNR" in page
    with pytest.raises(SystemExit):
        main(words)
    out = capsys.readouterr().out
    assert "no guarantee ([privacy] is not set)" in out
    assert f"{printed['attacks'][1]['auc']:.3f}" in out  # the same seed finds the same
    assert out.splitlines()[-2:] == [str(mnist / "audit.json"), str(mnist / "report.html")]


def test_an_audit_is_read_as_it_was_written_and_only_shown_for_its_model(
    mnist: Path, tmp_path: Path
) -> None:
    found = audit(mnist, shadows=0, examples=20)
    write_audit(tmp_path, found)
    again = read_audit(tmp_path)
    assert again is not None
    assert again.attacks == found.attacks
    assert isinstance(again.attacks[0], Attack)
    assert again.inversion is not None
    assert found.inversion is not None
    assert np.abs(again.inversion.true - found.inversion.true).max() <= 0.5 / 255 + 1e-6
    assert again.inversion.mse == pytest.approx(found.inversion.mse)
    write_audit(mnist, dataclasses.replace(found, weights_sha256="another"))
    assert "What leaks" not in write_report(mnist).read_text()
    private = dataclasses.replace(found, privacy="central", epsilon=2.5, delta=1e-5)
    write_audit(mnist, private)
    shown = write_report(mnist).read_text()
    assert "privacy.mode central, epsilon 2.5 at delta 1e-05" in shown
    (mnist / "audit.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"audit\.json: damaged .*delete it, or audit the run again"
    ):
        write_report(mnist)
    (mnist / "audit.json").unlink()


# --- refusals


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"shadows": 2}, "--shadows must be 0 or an even number of at least 4, got 2"),
        ({"shadows": 5}, "--shadows must be 0 or an even number of at least 4, got 5"),
        ({"examples": 9}, "--examples must be at least 10, got 9"),
        ({"seed": -1}, r"--seed must be from 0 to 2\^63 - 1, got -1"),
    ],
)
def test_impossible_numbers_are_refused(mnist: Path, numbers: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        audit(mnist, **numbers)  # type: ignore[arg-type]


def test_runs_that_cannot_be_audited_say_why(mnist: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(mnist, run_dir)
    manifest = run_dir / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"digest": "', '"digest": "0'))
    with pytest.raises(
        InputError, match=r"'mnist' has changed since the run .* was 0.*repeat the run"
    ):
        audit(run_dir)
    (run_dir / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"contains no model\.safetensors: no round was completed"):
        audit(run_dir)


def test_runs_of_other_tasks_and_without_others_say_why(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        f"x_{part}": rng.normal(size=(40, 3)).astype(np.float32) for part in ("train", "test")
    }
    targets = {f"y_{part}": rng.normal(size=40).astype(np.float32) for part in ("train", "test")}
    np.savez(tmp_path / "numbers.npz", **arrays, **targets)
    data = {"dataset": f"file:{tmp_path / 'numbers.npz'}", "clients": 2, "examples-per-client": 0}
    run(experiment(data=data), out=tmp_path / "run")
    with pytest.raises(InputError, match=r"data\.task is 'regression'; audit a run with"):
        audit(tmp_path / "run")


def test_a_network_of_sites_is_refused_where_their_examples_are_not(tmp_path: Path) -> None:
    spec = tmp_path / "experiment.toml"
    spec.write_text(
        'name = "s"\n[data]\ndataset = "sites:nowhere"\nsites = ["a", "b"]\nclients = 2\npartition = "natural"\n'
        '[runtime]\nkind = "network"\n'
    )
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="its examples are at the sites of a network"):
        audit(tmp_path)


def test_a_run_of_a_module_of_ones_own_is_audited(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    spec = experiment(model={"class": f"{tmp_path / 'own.py'}:Own", "args": {}})
    run(spec, out=tmp_path / "run")
    found = audit(tmp_path / "run", shadows=4, examples=60)
    assert [attack.name for attack in found.attacks] == ["loss", "lira", "update"]
    assert found.inversion is not None
    assert all(0 <= attack.auc <= 1 for attack in found.attacks)


OWN = """
import pytorch_lightning as pl
import torch
from torch import nn


class Own(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 5), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(),
                                 nn.Linear(4 * 24 * 24, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("train_loss", loss)
        return {"loss": loss}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)
"""
