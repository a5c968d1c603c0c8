"""Differential privacy of clients: cohorts, clipping, noise, and what a run says of them."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg
from pydantic import ValidationError
from rich.console import Console

from flsimulation import run
from flsimulation.cli.view import PlainView
from flsimulation.client.workspace import Workspace
from flsimulation.errors import InputError
from flsimulation.events import ClientReplied, Noticed, RoundFinished, RunFinished, RunStarted
from flsimulation.experiment import Experiment
from flsimulation.privacy import adaptive, transforms
from flsimulation.privacy.accountant import Mechanism, epsilon_of
from flsimulation.privacy.ledger import ledger_of
from flsimulation.privacy.notes import privacy_advice
from flsimulation.runner import resume
from flsimulation.runtimes.inprocess import run_in_process
from flsimulation.server.private import Central, spending_of
from flsimulation.server.replies import Replies
from flsimulation.studies.agreement import Observed
from flsimulation.studies.verify import verify_engines
from flsimulation.training.jobs import Terms

Make = Callable[..., Experiment]

NORM = 0.05  # about half of what a client's training changes here
CENTRAL = {"mode": "central", "noise-multiplier": 1.0, "delta": 0.01, "clip": NORM}


def observed(spec: Experiment) -> Observed:
    found = Observed()
    run_in_process(spec, [found])
    return found


def start_of(spec: Experiment) -> dict[str, np.ndarray]:
    state = Workspace.load(spec).initial_state()
    return {name: value.numpy() for name, value in state.items()}


def rounds_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]


def length(after: Any, before: Any) -> float:
    gaps = (after[name].astype(np.float64) - before[name] for name in before)
    return math.sqrt(sum(float((gap**2).sum()) for gap in gaps))


def without_noise(make: Make, **tables: Any) -> Experiment:
    """Noise so small that it changes no digit that is looked at."""
    privacy = {**CENTRAL, "noise-multiplier": 1e-9, **tables.pop("privacy", {})}
    data = {"clients": 8, **tables.pop("data", {})}
    return make(data=data, privacy=privacy, **tables)


@pytest.mark.parametrize("engine", ["stacked", "direct", "lightning"])
def test_every_update_is_clipped_and_all_clients_weigh_the_same(
    make_experiment: Make, engine: str
) -> None:
    """Of updates that are all longer than the norm, the mean is of unit vectors times the norm."""
    clients = {"clients": 8, "partition": "shards"}
    space = Workspace.load(make_experiment(data=clients, train={"engine": "lightning"}))
    start = space.initial_state()
    jobs = [space.train_job(partition, 1) for partition in range(8)]
    fitted = list(space.engine.fit(start, jobs, Terms()))
    expected = {name: np.zeros(value.shape) for name, value in start.items()}
    lengths = []
    for one in fitted:
        (done,) = one.results.values()
        gap = {n: (done.state[n] - start[n]).numpy().astype(np.float64) for n in start}
        lengths.append(math.sqrt(sum(float((g**2).sum()) for g in gap.values())))
        for name in gap:
            expected[name] += gap[name] * min(1.0, NORM / lengths[-1]) / 8
    assert min(lengths) > NORM  # the norm matters to all
    spec = without_noise(
        make_experiment, data=clients, train={"engine": engine}, strategy={"rounds": 1}
    )
    found = observed(spec)
    model = found.models[1]
    for name, value in expected.items():
        assert np.abs(model[name] - start[name].numpy() - value).max() < 2e-5
    assert length(model, start_of(spec)) <= NORM + 1e-6


def test_engines_give_the_same_private_models(make_experiment: Make) -> None:
    runs = [
        observed(
            make_experiment(
                data={"clients": 8},
                train={"engine": engine},
                strategy={"rounds": 3, "fraction-train": 0.5},
                privacy=CENTRAL,
            )
        )
        for engine in ("stacked", "direct", "lightning")
    ]
    first, *others = runs
    for other in others:
        assert [r.cohort for r in other.rounds] == [r.cohort for r in first.rounds]
        for number, model in first.models.items():
            for name in model:
                assert np.abs(model[name] - other.models[number][name]).max() < 1e-4


def test_a_cohort_is_a_poisson_sample_of_the_seed(make_experiment: Make) -> None:
    spec = make_experiment(
        data={"clients": 40}, strategy={"rounds": 30, "fraction-train": 0.2}, privacy=CENTRAL
    )
    cohorts = [e.cohort for e in observed(spec).rounds]
    sizes = [len(cohort) for cohort in cohorts]
    assert len(set(sizes)) > 5  # not a fixed size
    assert abs(np.mean(sizes) - 8) < 3 * math.sqrt(40 * 0.2 * 0.8 / 30)
    assert cohorts == [e.cohort for e in observed(spec).rounds]
    assert cohorts != [e.cohort for e in observed(spec.model_copy(update={"seed": 1})).rounds]


def test_a_round_without_any_client_is_noise_only(make_experiment: Make) -> None:
    spec = make_experiment(
        data={"clients": 8},
        strategy={"rounds": 8, "fraction-train": 0.125},
        privacy={**CENTRAL, "noise-multiplier": 2.0},
    )
    found = observed(spec)
    empty = [e for e in found.rounds if not e.cohort]
    assert empty
    number = empty[0].round
    assert empty[0].train is None
    before = found.models[number - 1] if number > 1 else start_of(spec)
    gaps = np.concatenate([(found.models[number][n] - before[n]).ravel() for n in before])
    assert np.std(gaps) == pytest.approx(2.0 * NORM / 1, rel=0.15)  # one client expected


@pytest.mark.parametrize(
    "strategy", ["fedavg", "fedprox", "fedavgm", "fedadam", "fedadagrad", "fedyogi"]
)
def test_the_noise_has_its_standard_deviation_before_the_strategys_step(
    make_experiment: Make, strategy: str
) -> None:
    own = {"proximal-mu": 0.1} if strategy == "fedprox" else {}
    spec = make_experiment(
        data={"clients": 4},
        strategy={"rounds": 2, "name": strategy, **own},
        privacy={**CENTRAL, "noise-multiplier": 40.0},
    )
    found = observed(spec)
    if strategy not in ("fedavg", "fedprox"):
        assert len(found.models) == 2
        return
    before = start_of(spec)
    gaps = np.concatenate([(found.models[1][n] - before[n]).ravel() for n in before])
    assert np.std(gaps) == pytest.approx(40.0 * NORM / 4, rel=0.12)
    second = np.concatenate(
        [(found.models[2][n] - found.models[1][n]).ravel() for n in found.models[1]]
    )
    assert abs(np.corrcoef(gaps, second)[0, 1]) < 0.3  # other noise in each round


BATCH_NORM = """
import torch
from pytorch_lightning import LightningModule
from torch import nn

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def training_step(self, batch):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    validation_step = training_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
"""


@pytest.mark.parametrize("engine", ["stacked", "lightning"])
@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
@pytest.mark.parametrize("mode", ["central", "local"])
def test_buffers_and_frozen_weights_are_not_sent_past_the_clipping(
    make_experiment: Make,
    own_modules: Callable[[str], Path],
    recorder: Any,
    engine: str,
    strategy: str,
    mode: str,
) -> None:
    path = own_modules(BATCH_NORM)
    spec = make_experiment(
        model={"class": f"{path}:Net", "args": {}},
        train={"engine": engine, "batch-size": 10},
        strategy={"name": strategy, "rounds": 2},
        privacy={**CENTRAL, "mode": mode},
    )
    found = Observed()
    run_in_process(spec, [found, recorder])
    before = start_of(spec)
    kept = {name for name in before if np.array_equal(before[name], found.models[2][name])}
    buffers = {"net.1.running_mean", "net.1.running_var", "net.1.num_batches_tracked"}
    assert kept == buffers | {"frozen"}
    (started,) = recorder.of(RunStarted)
    (line,) = [note for note in started.notes if "stay as in the first model" in note]
    assert "net.1.running_mean" in line or "frozen" in line


def test_epsilon_is_that_of_the_accountant_and_is_in_every_rounds_line(
    make_experiment: Make, tmp_path: Path, recorder: Any
) -> None:
    spec = make_experiment(
        data={"clients": 10},
        strategy={"rounds": 3, "fraction-train": 0.2},
        privacy={**CENTRAL, "noise-multiplier": 0.9},
    )
    run(spec, tmp_path / "run", [recorder])
    lines = rounds_of(tmp_path / "run")
    expected = [epsilon_of(Mechanism(0.9, 0.2), times, 0.01) for times in (1, 2, 3)]
    assert [line["privacy"]["epsilon"] for line in lines] == pytest.approx(expected)
    assert {key: lines[2]["privacy"][key] for key in ("delta", "clip", "noise")} == {
        "delta": 0.01,
        "clip": NORM,
        "noise": pytest.approx(0.9 * NORM),
    }
    (started,) = recorder.of(RunStarted)
    assert (
        f"privacy: each client is hidden from all who see the global models: epsilon "
        f"{expected[2]:.4g} at delta 0.01 after 3 rounds (noise multiplier 0.9, each client in a round "
        f"with probability 0.2; neighbours differ by one client; accountant rdp)"
    ) in started.notes


def test_noise_is_computed_from_epsilon(make_experiment: Make) -> None:
    """Of q 1, delta 1e-3, 20 rounds: 7.19, 4.04 and 2.33 for epsilon 2, 4 and 8."""
    for epsilon, noise in ((2.0, 7.19), (4.0, 4.04), (8.0, 2.33)):
        spec = make_experiment(
            strategy={"rounds": 20},
            privacy={"mode": "central", "epsilon": epsilon, "delta": 1e-3},
        )
        ledger = ledger_of(spec)
        assert ledger is not None
        assert ledger.noise == pytest.approx(noise, abs=0.005)
        assert ledger.epsilon(20) <= epsilon
    local = ledger_of(
        make_experiment(
            strategy={"rounds": 20}, privacy={"mode": "local", "epsilon": 8.0, "delta": 1e-3}
        )
    )
    assert local is not None
    assert local.noise == pytest.approx(2 * 2.33, abs=0.01)  # an update may turn round


def test_the_budget_ends_a_run_with_the_last_permitted_model(
    make_experiment: Make, tmp_path: Path, recorder: Any
) -> None:
    tables: dict[str, Any] = {"data": {"clients": 10}, "strategy": {"rounds": 5}}
    two = epsilon_of(Mechanism(1.0, 1.0), 2, 0.01)
    free = observed(make_experiment(**tables, privacy=CENTRAL))
    spec = make_experiment(**tables, privacy={**CENTRAL, "budget-epsilon": two + 1e-6})
    result = run(spec, tmp_path / "run", [recorder])
    assert (result.state, result.rounds) == ("completed", 2)
    assert result.weights_sha256 == free.rounds[1].weights_sha256
    (text,) = [e.text for e in recorder.of(Noticed) if "budget" in e.text]
    three = epsilon_of(Mechanism(1.0, 1.0), 3, 0.01)
    assert text == (
        f"privacy.budget-epsilon is {two:g}: epsilon would be {three:.4g} after round 3; the run ends "
        f"before it"
    )
    again = resume(tmp_path / "run")  # does not train another round
    assert (again.rounds, again.weights_sha256) == (2, result.weights_sha256)


class Interrupt:
    def __init__(self, round: int) -> None:
        self.round = round

    def __call__(self, event: Any) -> None:
        if isinstance(event, ClientReplied) and event.round == self.round:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "privacy",
    [
        CENTRAL,
        {**CENTRAL, "clipping": "adaptive", "clip-count-noise": 1.0},
        {**CENTRAL, "mode": "local"},
    ],
    ids=["fixed", "adaptive", "local"],
)
def test_a_resumed_run_has_the_same_models_and_epsilon(
    make_experiment: Make, tmp_path: Path, privacy: dict[str, Any]
) -> None:
    spec = make_experiment(
        data={"clients": 10}, strategy={"rounds": 4, "fraction-train": 0.5}, privacy=privacy
    )
    whole = run(spec, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(spec, tmp_path / "cut", [Interrupt(3)])
    assert resume(tmp_path / "cut").weights_sha256 == whole.weights_sha256
    first, second = (
        [line["privacy"] for line in rounds_of(tmp_path / name)] for name in ("whole", "cut")
    )
    assert first == second
    assert len(first) == 4
    manifests = [json.loads((tmp_path / n / "manifest.json").read_text()) for n in ("whole", "cut")]
    assert [manifest["resumes"] for manifest in manifests] == [0, 1]


@pytest.mark.parametrize(("mode", "times", "spent"), [("central", 1.0, 8), ("local", 0.5, 7)])
def test_a_networks_resumes_count_what_was_sent_of_rounds_that_are_repeated(
    make_experiment: Make, mode: str, times: float, spent: int
) -> None:
    """Of two resumes each one model of central, and each two updates of a client."""
    privacy = {**CENTRAL, "mode": mode}
    spec = make_experiment(
        data={"clients": 10},
        strategy={"rounds": 6},
        privacy={**privacy, "budget-epsilon": epsilon_of(Mechanism(times, 1.0), 7, 0.01)},
        runtime={"kind": "network"},
    )
    trained = [(p, None) for p in range(10)] * 3
    private = spending_of(spec, {"w": "w"}, FedAvg(), trained, resumes=2)
    assert private is not None
    assert private.times(6) == spent
    assert private.why_over(6) is not None
    once = spending_of(spec, {"w": "w"}, FedAvg(), trained, resumes=1)
    assert once is not None
    assert once.why_over(6) is None
    total = 6 + private.repeated
    assert private.note.endswith(
        f"{private.repeated} rounds more may have been spent, and are counted: epsilon "
        f"{epsilon_of(Mechanism(times, 1.0), total, 0.01):.4g} after 6 rounds"
    )
    here = spec.model_copy(update={"runtime": make_experiment().runtime})
    same = spending_of(here, {"w": "w"}, FedAvg(), trained, resumes=2)
    assert same is not None  # whose repeated rounds have the same noise
    assert (same.repeated, same.note) == (0, "")


def test_adaptive_clipping_follows_the_quantile(make_experiment: Make) -> None:
    """Andrew et al.: the norm falls where more updates than the quantile fit below it."""
    spec = make_experiment(
        data={"clients": 8},
        strategy={"rounds": 4},
        privacy={
            **CENTRAL,
            "noise-multiplier": 0.5,
            "clip": 100.0,
            "clipping": "adaptive",
            "clip-count-noise": 1e3,
        },
    )
    spec = spec.model_copy(
        update={"privacy": spec.privacy.model_copy(update={"clip_count_noise": 0.2500001})}
    )
    with pytest.raises(InputError, match="clip-count-noise is 0.2"):
        observed(
            spec.model_copy(
                update={"privacy": spec.privacy.model_copy(update={"clip_count_noise": 0.2})}
            )
        )
    found = observed(spec)
    clips = [e.privacy["clip"] for e in found.rounds if e.privacy is not None]
    # all 8 fit: the share is 1, up to the noise on a count of 8
    assert clips[0] == 100.0
    for one, other in itertools.pairwise(clips):
        assert other / one == pytest.approx(math.exp(-0.2 * 0.5), rel=0.03)


def test_in_local_mode_each_client_adds_noise_of_its_own(make_experiment: Make) -> None:
    spec = make_experiment(
        strategy={"rounds": 1},
        privacy={**CENTRAL, "mode": "local", "noise-multiplier": 50.0},
    )
    found, before = observed(spec), start_of(spec)
    gaps = np.concatenate([(found.models[1][n] - before[n]).ravel() for n in before])
    assert np.std(gaps) == pytest.approx(50.0 * NORM / math.sqrt(4), rel=0.12)
    (line,) = [e.privacy for e in found.rounds]
    assert line is not None
    assert line["epsilon"] == pytest.approx(epsilon_of(Mechanism(25.0, 1.0), 1, 0.01))


def test_engines_give_the_same_local_noise(make_experiment: Make) -> None:
    privacy = {**CENTRAL, "mode": "local"}
    first, *others = (
        observed(make_experiment(train={"engine": engine}, privacy=privacy))
        for engine in ("stacked", "direct", "lightning")
    )
    for other in others:
        for name, value in first.models[2].items():
            assert np.abs(value - other.models[2][name]).max() < 1e-4


def test_local_epsilon_is_of_the_client_that_took_part_most(make_experiment: Make) -> None:
    spec = make_experiment(
        data={"clients": 8},
        strategy={"rounds": 5, "fraction-train": 0.25},
        privacy={**CENTRAL, "mode": "local"},
    )
    found = observed(spec)
    counts: dict[int, int] = {}
    for event in found.rounds:
        for partition in event.cohort:
            counts[partition] = counts.get(partition, 0) + 1
        assert event.privacy is not None
        expected = epsilon_of(Mechanism(0.5, 1.0), max(counts.values()), 0.01)
        assert event.privacy["epsilon"] == pytest.approx(expected)


def test_a_failed_client_contributes_zero_and_changes_no_denominator(
    make_experiment: Make, own_modules: Callable[[str], Path], recorder: Any
) -> None:
    """Client 0 of four fails: the others' sum is still divided by four."""
    failing = BATCH_NORM.replace("nn.BatchNorm1d(8), ", "").replace(
        "x, y = batch", "x, y = batch\n        assert not (x > 1e5).any()"
    )
    path = own_modules(failing)
    spec = without_noise(
        make_experiment,
        data={"clients": 4},
        model={"class": f"{path}:Net", "args": {}},
        train={"engine": "lightning"},
        strategy={"rounds": 1},
    )
    whole = observed(spec)
    space = Workspace.load(spec)
    x = space.data.dataset.x_train
    x[torch.as_tensor(space.data.train_indices(0))[:1]] = 1e6
    found = Observed()
    run_in_process(spec, [found, recorder], space)
    (finished,) = recorder.of(RoundFinished)
    assert finished.failures.get("error") or finished.failures.get("diverged")
    start = start_of(spec)
    # four unit vectors times the norm over four, without one of them
    longest = length(whole.models[1], start)
    assert length(found.models[1], start) <= NORM * 3 / 4 + 1e-6
    assert longest > 0
    assert [e.state for e in recorder.of(RunFinished)] == ["degraded"]


REFUSED = {
    "krum": (
        {"strategy": {"name": "krum", "rounds": 2}},
        "strategy.name is 'krum', which does not only use the mean of the updates, to which privacy.mode "
        "'central' adds the noise; use one of fedavg, fedprox, fedavgm, fedadam, fedadagrad, fedyogi",
    ),
    "qfedavg": (
        {"strategy": {"name": "qfedavg", "client-learning-rate": 0.1}},
        "strategy.name is 'qfedavg', which",
    ),
    "min-results": (
        {"round": {"min-results": 3}},
        "round.min-results is 3, but a cohort of privacy.mode 'central' is a sample of any size, and its "
        "sum is divided by the same number whoever fails; leave the key out",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_undoes_the_guarantee_is_refused_in_one_line(make_experiment: Make, kind: str) -> None:
    tables, text = REFUSED[kind]
    with pytest.raises(ValidationError) as caught:
        make_experiment(privacy=CENTRAL, **tables)
    assert text in str(caught.value)
    make_experiment(privacy={**CENTRAL, "mode": "local"}, **tables)  # after the noise


def test_a_budget_that_allows_no_round_is_refused(make_experiment: Make, tmp_path: Path) -> None:
    spec = make_experiment(privacy={**CENTRAL, "budget-epsilon": 0.5})
    one = epsilon_of(Mechanism(1.0, 1.0), 1, 0.01)
    with pytest.raises(InputError) as caught:
        run(spec, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert str(caught.value) == (
        f"privacy.budget-epsilon is 0.5, but one round spends {one:.3g}; raise it, or set more noise"
    )


def test_a_guarantee_that_cannot_be_useful_is_said(make_experiment: Make) -> None:
    """Of 20 clients, epsilon 8, delta 1e-3, 136,074 parameters: 43 norms."""
    module = torch.nn.Linear(136_073, 1)
    spec = make_experiment(
        data={"clients": 20},
        strategy={"rounds": 20},
        privacy={"mode": "central", "epsilon": 8.0, "delta": 1e-3},
    )
    assert privacy_advice(spec, module) == [
        "privacy: the noise on the mean update is 42.9 clipping norms long (noise multiplier 2.33, "
        "136,074 parameters, 20 clients a round): the model will hardly learn; a cohort of 858 would do, "
        "or a smaller model"
    ]
    wide = privacy_advice(
        spec.model_copy(update={"privacy": spec.privacy.model_copy(update={"delta": 0.05})}),
        torch.nn.Linear(1, 1),
    )
    assert wide == [
        "privacy.delta is 0.05, which is not less than 1 / 20 clients: such a guarantee may give one of "
        "them away; set less than 0.05"
    ]
    assert privacy_advice(spec, torch.nn.Linear(3, 1)) == []
    assert privacy_advice(make_experiment(), module) == []


def test_advice_counts_the_noise_of_adaptive_clipping_that_is_on_the_updates(
    make_experiment: Make,
) -> None:
    """1 / sqrt(1 / 2^2 - 1 / (2 * 1.25)^2) = 10 / 3, of 400 numbers."""
    adaptive = {"clipping": "adaptive", "clip-count-noise": 1.25, "noise-multiplier": 2.0}
    spec = make_experiment(data={"clients": 20}, privacy={**CENTRAL, **adaptive})
    (line,) = privacy_advice(spec, torch.nn.Linear(399, 1))
    assert "3.33 clipping norms long (noise multiplier 3.33, 400 parameters, 20 clients" in line
    assert "a cohort of 67 would do" in line


@pytest.mark.parametrize(("budget", "said"), [(0.0, True), (20.0, False), (21.0, True)])
def test_an_epsilon_that_says_little_is_said(
    make_experiment: Make, budget: float, said: bool
) -> None:
    privacy = {**CENTRAL, "noise-multiplier": 0.5, "budget-epsilon": budget}
    spec = make_experiment(data={"clients": 20}, strategy={"rounds": 9}, privacy=privacy)
    spent = budget or epsilon_of(Mechanism(0.5, 1.0), 9, 0.01)
    wanted = [
        f"privacy: epsilon {spent:.3g} says little: 8 is common, and above 20 an attack may succeed almost as often "
        f"as without noise; set more noise, fewer rounds, or privacy.epsilon"
    ]
    assert privacy_advice(spec, torch.nn.Linear(1, 1)) == (wanted if said else [])


def test_steps_that_are_drowned_by_their_noise_are_said(make_experiment: Make) -> None:
    """4 rounds of 2 and of 1 step, with 32 and 9 of the clients' 60 and 9 examples on average.

    Gradients: (60 * 2 + 9 * 1) / 2. Noise: 8 sqrt(400 (2 (60 / 32)^2 + 1) / 2 / (2 * 4)) = 8 sqrt(200.78).
    """
    privacy = {"mode": "example", "noise-multiplier": 8.0, "delta": 0.001}
    spec = make_experiment(
        data={"clients": 2}, strategy={"rounds": 4}, train={"batch-size": 32}, privacy=privacy
    )
    assert privacy_advice(spec, torch.nn.Linear(399, 1), [60, 9]) == [
        "privacy: the noise of all steps is 1.76 times as long as their clipped gradients can be together (noise "
        "multiplier 8, 400 parameters, 2 clients a round, 4 rounds): the model will hardly learn; a cohort of 7 "
        "would do, or a smaller model"
    ]
    assert privacy_advice(spec, torch.nn.Linear(99, 1), [60, 9]) == []


def test_tied_parameters_count_once_and_stay_tied() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    module[1].weight = module[0].weight
    names = transforms.updated(module)
    assert names == {
        "0.weight": "0.weight", "0.bias": "0.bias", "1.weight": "0.weight", "1.bias": "1.bias",
    }  # fmt: skip
    origin = {name: torch.zeros_like(value) for name, value in module.state_dict().items()}
    rows = {name: torch.full((1, *value.shape), 2.0) for name, value in origin.items()}
    lengths = transforms.norms(rows, origin, names)
    assert lengths.tolist() == [pytest.approx(2.0 * math.sqrt(15))]
    kept = transforms.shares(lengths, 1.0)
    sent = transforms.client(rows, origin, names, kept, 1.0, [lambda: np.random.default_rng(1)])
    assert torch.equal(sent["0.weight"], sent["1.weight"])
    mean = {name: value[0].numpy() for name, value in sent.items()}
    noisy = transforms.server(mean, names, 1.0, np.random.default_rng(2))
    assert np.array_equal(noisy["0.weight"], noisy["1.weight"])
    assert not np.array_equal(noisy["0.weight"], mean["0.weight"])


def test_an_update_of_zeros_is_sent_as_it_is() -> None:
    module = torch.nn.Linear(2, 1)
    names, origin = transforms.updated(module), dict(module.state_dict())
    rows = {name: torch.stack([value, value + 3.0]) for name, value in origin.items()}
    kept = transforms.shares(transforms.norms(rows, origin, names), 1.5)
    assert kept.tolist() == [1.0, pytest.approx(1.5 / (3 * math.sqrt(3)))]
    sent = transforms.client(rows, origin, names, kept)
    for name, value in origin.items():
        assert torch.equal(sent[name][0], value)
    gaps = torch.cat([(sent[name][1] - value).flatten() for name, value in origin.items()])
    assert float(gaps.norm()) == pytest.approx(1.5, rel=1e-5)


def test_verify_compares_private_rounds_with_the_noise_of_the_run(make_experiment: Make) -> None:
    spec = make_experiment(
        data={"clients": 8},
        strategy={"rounds": 3},
        privacy={"mode": "central", "epsilon": 8.0, "delta": 0.01},
    )
    assert verify_engines(spec) == []


@pytest.mark.parametrize("noise", [0.8, 3.0])
def test_the_noise_of_updates_and_count_makes_the_whole(noise: float) -> None:
    """Andrew et al., theorem 1: z^-2 = z_delta^-2 + (2 sigma_b)^-2."""
    both = adaptive.noise_of_updates(noise, 5.0)
    assert both**-2 + (2 * 5.0) ** -2 == pytest.approx(noise**-2)
    assert adaptive.noisy_share(6, 2, 8, 0.0) == 0.75
    assert adaptive.noisy_share(3, 1, 8, 0.0) == 0.625  # four did not reply: a half each
    assert adaptive.next_norm(2.0, 1.0, 0.5, 0.2) == pytest.approx(2.0 * math.exp(-0.1))


def test_the_server_clips_what_a_client_did_not(make_experiment: Make) -> None:
    spec = without_noise(make_experiment, data={"clients": 4}, strategy={"rounds": 1})
    before = ArrayRecord({"w": Array(np.zeros(4, np.float32)), "n": Array(np.array(7))})
    long = ArrayRecord({"w": Array(np.full(4, 100.0, np.float32)), "n": Array(np.array(9))})
    short = ArrayRecord({"w": Array(np.full(4, 0.01, np.float32)), "n": Array(np.array(9))})
    trained = Replies(1, "train", (0, 1), models={0: long, 1: short})
    private = spending_of(spec, {"w": "w"}, FedAvg())
    assert isinstance(private, Central)
    found = private.mean(1, trained, before)
    # of the long one half a norm in each of four numbers, over four clients
    expected = (NORM / 2 + 0.01) / 4
    assert found["w"].numpy() == pytest.approx(np.full(4, expected), abs=1e-6)
    assert int(found["n"].numpy()) == 7


def test_epsilon_is_on_the_console_and_in_the_report(make_experiment: Make, tmp_path: Path) -> None:
    two = epsilon_of(Mechanism(1.0, 1.0), 2, 0.01)
    spec = make_experiment(
        data={"clients": 10},
        strategy={"rounds": 5},
        privacy={**CENTRAL, "budget-epsilon": two + 1e-6},
    )
    console = Console(file=io.StringIO(), width=200)
    run(spec, tmp_path / "run", [PlainView(console, spec)])
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    (header,) = [line for line in shown.splitlines() if line.strip().startswith("round ")]
    assert header.split()[-3:] == ["epsilon", "seconds", "failed"]
    (last,) = [line for line in shown.splitlines() if line.strip().startswith("2/5")]
    assert last.split()[-3] == f"{two:.4f}"
    assert "completed: 2 of 5 rounds" in shown
    assert "privacy budget spent" in shown
    assert "target accuracy" not in shown
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<h2>Privacy</h2>" in page
    assert "Privacy spent" in page
    assert f"Epsilon {two:.4g} at delta 0.01 after round 2; updates of norm 0.05 at most" in page
    run(make_experiment(), tmp_path / "plain")
    assert "Privacy spent" not in (tmp_path / "plain" / "report.html").read_text()
