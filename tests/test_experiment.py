"""The experiment file: defaults, validation in one line, and the way to Flower and back."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from flsimulation.errors import ExperimentError
from flsimulation.experiment import Experiment, dump_toml, flatten, load_experiment, unflatten
from flsimulation.experiment.strategy import STRATEGIES, own_parameters

ROOT = Path(__file__).parent.parent


def complaint(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(ExperimentError) as caught:
        load_experiment(path, overrides)
    return str(caught.value)


def test_default_is_the_tutorials_federation() -> None:
    default = load_experiment()
    assert (default.data.clients, default.data.examples_per_client) == (2, 5000)
    assert (default.model.class_, default.model.args) == ("mlp", {"learning_rate": 0.001})
    assert (default.train.epochs, default.train.batch_size) == (1, 32)
    assert (default.strategy.name, default.strategy.rounds) == ("fedavg", 3)


def test_the_old_name_of_an_engine_is_accepted() -> None:
    spec = load_experiment(None, ["train.engine=sequential"])
    assert spec == load_experiment(None, ["train.engine=lightning"])
    assert spec != load_experiment(None, ["train.engine=direct"])
    assert 'engine = "lightning"' in dump_toml(spec)
    assert "got 'serial'" in complaint("train.engine=serial")


def test_default_file_in_the_package_is_the_one_in_experiments() -> None:
    assert load_experiment() == load_experiment(ROOT / "experiments" / "default.toml")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.epoch=2", ["train.epoch is not a key", "got 2", "did you mean 'epochs'?"]),
        ("dat.alpha=1", ["dat is not a key", "did you mean 'data'?"]),
        ("zzz=1", ["zzz is not a key", "known: name, seed, data, model"]),
        ('train.epochs="2"', ["train.epochs must be a valid integer", "got '2'"]),
        ("train.epochs=0", ["train.epochs must be greater than or equal to 1", "got 0"]),
        ("train.epochs=true", ["train.epochs must be a valid integer", "got True"]),
        (
            "data.standardize=both",
            ["data.standardize must be true, false or 'federated'", "'both'"],
        ),
        ("data.standardize=1", ["data.standardize must be true, false or 'federated', got 1"]),
        ("data.alpha=-1", ["data.alpha must be greater than 0", "got -1"]),
        ("data.alpha=nan", ["data.alpha must be", "got nan"]),
        ("data.partition=dirichle", ["data.partition must be 'iid', 'dirichlet'", "'dirichle'"]),
        ("data.clients=1e3", ["data.clients must be a valid integer", "got 1000.0"]),
        ("name=../x", ["name must match pattern", "got '../x'"]),
        ("seed=-1", ["seed must be greater than or equal to 0", "got -1"]),
        ("train=3", ["train must be a valid dictionary", "got 3"]),
        ("train.epochs.x=3", ["epochs is a value, not a table of keys"]),
        ("strategy.name=fedavgg", ["strategy.name must be one of fedavg, fedprox", "'fedavgg'"]),
        ("strategy.proximal-mu=0.1", ["strategy.proximal-mu is not a parameter of fedavg"]),
        ("strategy.fraction-train=1.5", ["strategy.fraction-train must be less", "got 1.5"]),
        ("strategy.min-train-nodes=3", ["strategy.min-train-nodes must be at most", "got 3"]),
        ("round.min-results=3", ["round.min-results must be at most the 2 clients", "got 3"]),
    ],
)
def test_a_mistake_gives_one_line_with_key_value_and_remedy(
    override: str, parts: list[str]
) -> None:
    line = complaint(override)
    assert "\n" not in line
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["strategy.name=fedprox", "strategy.proximal-nu=0.1"], "did you mean 'proximal-mu'?"),
        (["strategy.name=fedprox", "strategy.proximal-mu=x"], "must be of type float, got 'x'"),
        (["strategy.name=fedprox", "strategy.proximal-mu=-1.0"], "must not be negative, got -1.0"),
        (["strategy.name=fedprox", "strategy.proximal-mu=true"], "must be of type float, got True"),
        (
            ["strategy.name=krum", "strategy.num-malicious-nodes=0.5"],
            "must be of type int, got 0.5",
        ),
        (["strategy.name=fedtrimmedavg", "strategy.beta=0.7"], "[0, 0.5)"),
        (["strategy.name=qfedavg"], "strategy.client-learning-rate is required by qfedavg"),
        (["strategy.name=bulyan"], "bulyan needs at least 3 clients a round"),
        (
            ["strategy.name=krum", "strategy.num-malicious-nodes=5"],
            "krum needs at least 13 clients",
        ),
        (
            ["strategy.name=multikrum", "strategy.num-nodes-to-select=3"],
            "must be at most the 2 clients",
        ),
    ],
)
def test_strategy_parameters_are_checked_against_flowers_signature(
    overrides: list[str], part: str
) -> None:
    assert part in complaint(*overrides)


def test_every_mistake_gets_its_line_with_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text("[train]\nepochs = 0\nbatch-sise = 3\n")
    lines = complaint(path=path).splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{path}: train.") for line in lines)


@pytest.mark.parametrize(
    ("content", "part"),
    [(b"[data\n", "not valid TOML"), (b"\xff\xfe", "cannot be read"), (None, "no such file")],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | None, part: str
) -> None:
    path = tmp_path / "e.toml"
    if content is not None:
        path.write_bytes(content)
    assert complaint(path=path).startswith(f"{path}: {part}")


def test_an_override_without_a_value_is_refused() -> None:
    assert complaint("train.epochs") == (
        "--set train.epochs: write it as key=value, for example train.epochs=2"
    )


def test_overrides_are_toml_values_or_bare_words() -> None:
    experiment = load_experiment(
        None, ["name=mine", "data.alpha=2", "model.args.hidden=[3, 4]", "train.validate=true"]
    )
    assert experiment.name == "mine"
    assert experiment.data.alpha == 2.0
    assert experiment.model.args == {"learning_rate": 0.001, "hidden": [3, 4]}
    assert experiment.train.validate_ is True


def test_own_paths_are_relative_to_the_experiment_file(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    path.write_text('[data]\ndataset = "file:d/x.npz"\n[model]\nclass = "m.py:Net"\n')
    experiment = load_experiment(path)
    assert experiment.data.dataset == f"file:{tmp_path}/d/x.npz"
    assert experiment.model.class_ == f"{tmp_path}/m.py:Net"


def test_paths_on_the_command_line_are_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = load_experiment(None, ["model.class=m.py:Net", "data.dataset=file:x.npz"])
    assert experiment.model.class_ == f"{tmp_path}/m.py:Net"
    assert experiment.model.args == {}  # those in the file were another class's
    for order in (1, -1):
        both = load_experiment(None, ["model.class=2nn", "model.args.momentum=0.5"][::order])
        assert both.model.args == {"momentum": 0.5}
    assert experiment.data.dataset == f"file:{tmp_path}/x.npz"


def test_the_experiment_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_experiment().train.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_accepts_its_own_defaults(name: str) -> None:
    given = {
        key: parameter.default
        for key, parameter in own_parameters(name).items()
        if isinstance(parameter.default, float | int)
    }
    given |= {"client-learning-rate": 0.1} if name == "qfedavg" else {}
    experiment = Experiment.model_validate(
        {"data": {"clients": 7}, "strategy": {"name": name, **given}}
    )
    assert experiment.strategy.parameters == given


json_values = st.recursive(
    st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
positive = st.floats(1e-6, 1e6)
experiments = st.fixed_dictionaries(
    {},
    optional={
        "name": st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}[A-Za-z0-9_-]\Z"),
        "seed": st.integers(0, 2**63 - 1),
        "data": st.fixed_dictionaries(
            {},
            optional={
                "dataset": st.text(max_size=10),
                "clients": st.integers(1, 10**6),
                "partition": st.sampled_from(["iid", "dirichlet", "natural"]),
                "alpha": positive,
                "examples-per-client": st.integers(0, 10**6),
                "validation-fraction": st.floats(0, 0.99),
                "args": st.dictionaries(st.text(max_size=5), json_values, max_size=3),
            },
        ),
        "model": st.fixed_dictionaries(
            {"class": st.text(max_size=10)},
            optional={"args": st.dictionaries(st.text(max_size=5), json_values, max_size=3)},
        ),
        "train": st.fixed_dictionaries(
            {}, optional={"epochs": st.integers(1, 99), "validate": st.booleans(), "gradient-clip": positive}
        ),
        "strategy": st.one_of(
            st.fixed_dictionaries({"rounds": st.integers(1, 99), "fraction-train": st.floats(0.01, 1)}),
            st.fixed_dictionaries({"name": st.just("fedprox"), "proximal-mu": st.floats(0, 9)}),
            st.fixed_dictionaries({"name": st.just("krum"), "num-malicious-nodes": st.just(0)}),
        ),
        "round": st.fixed_dictionaries({"deadline": st.floats(0, 1e6)}),
    },
)  # fmt: skip


@settings(deadline=None)  # the first example imports Flower
@given(experiments)
def test_flattening_to_flowers_run_config_loses_nothing(table: dict[str, object]) -> None:
    experiment = Experiment.model_validate(table)
    flat = flatten(experiment)
    assert all(isinstance(value, bool | int | float | str) for value in flat.values())
    assert unflatten(flat) == experiment


@settings(deadline=None)  # the first example imports Flower
@given(experiments)
def test_the_written_toml_is_the_same_experiment(table: dict[str, object]) -> None:
    experiment = Experiment.model_validate(table)
    assert Experiment.model_validate(tomllib.loads(dump_toml(experiment))) == experiment


def test_flat_keys_are_dotted_and_kebab_case() -> None:
    flat = flatten(load_experiment())
    assert flat["data.examples-per-client"] == 5000
    assert flat["model.args"] == '{"learning_rate": 0.001}'


@pytest.mark.parametrize("address", ["foo", "http://foo:8080", "foo:", "a b:1"])
def test_a_superlink_that_is_no_address_is_refused_with_the_form(address: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        load_experiment(None, [f"runtime.superlink={address}"])
    assert str(caught.value) == (
        f"--set runtime.superlink={address}: runtime.superlink must be host:port, for example "
        f"superlink:8080, got {address!r}"
    )


def test_no_key_runs_code_while_an_experiment_is_read(tmp_path: Path) -> None:
    """Code is only what the four keys of references name, and only once a run begins."""
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath(__file__ + 'ran').touch()\n")
    named = f"{tmp_path / 'evil.py'}:x"
    keys = ("data.dataset", "data.transform", "data.evaluation-transform", "model.class")
    experiment = load_experiment(
        overrides=[*(f"{key}={named}" for key in keys), f"model.args.x={named}"]
    )
    assert experiment.model.class_ == named
    assert not (tmp_path / "evil.pyran").exists()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["privacy.epsilon=2.0"], "privacy.epsilon is 2.0, but privacy.mode is 'none'"),
        (
            ["privacy.mode=central"],
            "privacy.noise-multiplier is 0 and privacy.epsilon is 0; set one",
        ),
        (
            ["privacy.mode=central", "privacy.epsilon=2", "privacy.noise-multiplier=1.5"],
            "privacy.noise-multiplier is 1.5 and privacy.epsilon is 2; set only one of them",
        ),
        (
            ["privacy.mode=local", "privacy.epsilon=2", "privacy.clipping=adaptive"],
            "privacy.clipping is 'adaptive', which privacy.mode = 'local' does not have",
        ),
        (
            ["privacy.mode=central", "privacy.epsilon=2", "privacy.clip-quantile=0.3"],
            "privacy.clip-quantile is 0.3, but privacy.clipping is 'fixed'; set it to 'adaptive'",
        ),
        (
            ["privacy.mode=local", "privacy.epsilon=2", "privacy.clip-count-noise=3"],
            "privacy.clip-count-noise is 3.0, but privacy.clipping is 'fixed'; set it to 'adaptive'",
        ),
        (
            [
                "privacy.mode=example",
                "privacy.epsilon=2",
                "data.partition=drawn",
                "data.examples-per-client=60",
            ],
            "data.partition is 'drawn', so that clients share examples, and privacy.mode 'example' ",
        ),
        (["privacy.delta=1.0", "privacy.mode=local", "privacy.epsilon=2"], "privacy.delta"),
        (["privacy.mode=centrl"], "privacy.mode"),
    ],
)
def test_privacy_that_cannot_be_is_one_line(changes: list[str], line: str) -> None:
    with pytest.raises(ExperimentError) as raised:
        load_experiment(None, changes)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "got {" not in str(raised.value)


def test_privacy_is_kept_by_the_file_that_a_run_writes(tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    for changes in (
        [],
        ["privacy.mode=central", "privacy.epsilon=2", "privacy.budget-epsilon=1.5"],
    ):
        experiment = load_experiment(None, changes)
        path.write_text(dump_toml(experiment))
        assert load_experiment(path) == experiment
