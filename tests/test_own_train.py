"""Train keys that differ from one site to another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.conftest import Recorder

from flsimulation import load_experiment, run
from flsimulation.client.workspace import Workspace
from flsimulation.errors import ExperimentError, ModelError
from flsimulation.events import ClientReplied, RoundFinished
from flsimulation.experiment import Experiment, dump_toml, flatten, unflatten
from flsimulation.rundir import RunRecord
from flsimulation.runtimes.inprocess import run_in_process

HOSPITALS = Path(__file__).parent.parent / "experiments" / "sites" / "hospitals.toml"
OWN = "{epochs = 2, batch-size = 8, learning-rate = 0.05}"


def hospitals(*overrides: str) -> Experiment:
    sets = ("strategy.rounds=2", "train.device=cpu", "train.engine=direct", "train.epochs=1")
    return load_experiment(HOSPITALS, [*sets, *overrides])


def ran(spec: Experiment, processes: int = 1) -> Recorder:
    recorder = Recorder()
    space = Workspace.load(spec, processes=processes)
    run_in_process(spec, [recorder], space)
    return recorder


def weights(recorder: Recorder) -> list[str]:
    return [event.weights_sha256 for event in recorder.of(RoundFinished)]


def losses(recorder: Recorder) -> list[float]:
    return [event.federated["loss"] for event in recorder.of(RoundFinished)]


@pytest.mark.seconds
@pytest.mark.parametrize("engine", ["direct", "lightning", "stacked"])
def test_own_keys_of_all_sites_are_those_of_the_experiment(engine: str) -> None:
    every = ", ".join(f"{site} = {OWN}" for site in ("berlin", "lodz", "porto"))
    own = hospitals(f"train.sites={{{every}}}", f"train.engine={engine}")
    keys = ("train.epochs=2", "train.batch-size=8", "model.args={learning_rate = 0.05}")
    one, other = ran(own), ran(hospitals(*keys, f"train.engine={engine}"))
    if engine != "stacked":  # where the wave takes the mean, in another order
        assert weights(one) == weights(other)
    assert losses(one) == pytest.approx(losses(other), rel=1e-5)
    assert losses(one) != pytest.approx(losses(ran(hospitals(f"train.engine={engine}"))), rel=1e-2)


@pytest.mark.seconds
def test_only_the_site_with_own_keys_trains_by_them(tmp_path: Path) -> None:
    spec = hospitals(f"train.sites={{lodz = {OWN}}}", "train.engine=auto")
    recorder = Recorder()
    result = run(spec, tmp_path / "run", [recorder])
    fits = {e.partition: e.metrics for e in recorder.of(ClientReplied) if e.phase == "train"}
    assert {p: (m["epochs"], m["steps"]) for p, m in fits.items()} == {
        0: (1, 8),  # 120 examples, 16 a step
        1: (2, 2 * 12),  # 90 examples, 8 a step
        2: (1, 5),
    }
    assert result.state == "completed"
    record = RunRecord(tmp_path / "run")
    own = {"epochs": 2, "batch-size": 8, "learning-rate": 0.05}
    assert record.manifest["data"]["train-sites"] == {"lodz": own}
    note = "lodz trains with batch-size 8, epochs 2, learning-rate 0.05"
    assert note in record.manifest["data"]["notes"]
    assert "lodz batch-size 8, epochs 2, learning-rate 0.05" in (tmp_path / "run" / "report.html").read_text()  # fmt: skip
    again = hospitals(f"train.sites={{lodz = {OWN}}}", "train.engine=auto")
    assert unflatten(json.loads(json.dumps(flatten(again)))) == again
    assert "[train.sites.lodz]" in dump_toml(again)


@pytest.mark.seconds
def test_the_cause_of_a_failure_is_found_with_the_sites_own_keys() -> None:
    own = "{epochs = 2, batch-size = 8, learning-rate = 1e30}"
    failed = [
        e for e in ran(hospitals(f"train.sites={{lodz = {own}}}")).of(ClientReplied) if e.reason
    ]
    assert {(e.partition, e.reason) for e in failed if e.phase == "train"} == {(1, "diverged")}
    assert "lower train.sites.lodz.learning-rate (1e+30)" in failed[0].error


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.sites={lodz = {epochs = 1.5}}", "train.sites.lodz.epochs must be a valid integer, got 1.5"),
        ("train.sites={lodz = {learning-rate = -1}}", "train.sites.lodz.learning-rate must be greater than or equal to 0, got -1"),
        ("train.sites={lodz = {epoch = 1}}", "train.sites.lodz.epoch is not a key, got 1; did you mean 'epochs'?"),
        ("train.sites={rome = {epochs = 1}}", "train.sites has the table 'rome', which is none of data.sites (berlin, lodz, porto); remove or rename it"),
    ],
)  # fmt: skip
def test_a_wrong_key_is_one_line(override: str, said: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        hospitals(override)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_sites_there_are_none() -> None:
    with pytest.raises(
        ExperimentError, match="none of the sites of data.dataset, which is 'mnist'"
    ):
        load_experiment(None, ["train.sites={a = {epochs = 1}}"])


def test_a_model_without_a_learning_rate_is_refused_by_key(tmp_path: Path) -> None:
    text = (HOSPITALS.parent / "readmission.py").read_text()
    (tmp_path / "m.py").write_text(text.replace("learning_rate", "speed"))
    spec = hospitals(f"train.sites={{lodz = {OWN}}}", f"model.class={tmp_path}/m.py:Readmission")
    with pytest.raises(ModelError) as caught:
        Workspace.load(spec, clients=0)  # a network's server, too
    assert str(caught.value) == (
        f"train.sites.lodz.learning-rate is the argument learning_rate of the model, but "
        f"'{tmp_path}/m.py:Readmission' does not take it (it takes: inputs, speed); add it to the class "
        f"and use it in configure_optimizers, or leave the key out"
    )
