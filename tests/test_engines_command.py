"""``flsim doctor FILE``: which engine trains an experiment, why not a faster one, and the remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flsimulation.cli.engines import _advice, _table
from flsimulation.cli.main import main
from flsimulation.cli.tables import print_table
from flsimulation.clock import VirtualClock
from flsimulation.studies.engines import Examination, Rated, examine
from flsimulation.training.remedies import remedy_of

pytestmark = pytest.mark.usefixtures("cpu")

Command = Callable[..., tuple[int, str, str]]

MODEL = """
from flsimulation.models import MLP

class Net(MLP):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (2 if self.current_epoch else 1)

class Hooked(MLP):
    def configure_callbacks(self):
        return []
"""


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run ``flsim doctor``: exit status, output, errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["doctor", *map(str, arguments)])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def with_model(tmp_path: Path, experiment_file: Any) -> Callable[[str], Path]:
    """An experiment with one of the models above."""

    def write(name: str) -> Path:
        path = tmp_path / "net.py"
        path.write_text(MODEL)
        more = f'[model]\nclass = "{path}:{name}"\nargs = {{ inputs = 6, classes = 3 }}\n'
        return Path(experiment_file(more))

    return write


@pytest.mark.seconds
def test_it_names_the_engine_the_reason_its_line_and_the_remedy(
    doctor: Command, with_model: Any
) -> None:
    status, output, errors = doctor(with_model("Net"), "--set", "strategy.rounds=200")
    assert (status, errors) == (0, "")
    lines = [line.rstrip() for line in output.splitlines()]
    cores = lines[0].rpartition(" on ")[2]
    assert lines[0] == f"test: 4 clients a round with 2 steps each, in one process on {cores}"
    table = {line.split()[0]: line for line in lines[3:6]}
    assert list(table) == ["stacked", "direct", "lightning"]
    assert table["stacked"].endswith("not possible")
    assert table["direct"].endswith("trains this experiment")
    assert " ms " in table["direct"]
    assert " ms " in table["lightning"]
    assert lines[7].startswith("not stacked: training_step uses self.current_epoch otherwise than")
    assert lines[7].endswith(" (net.py:6)")
    assert lines[8].startswith(
        "  remedy: in place of `if`, `min` and float() of such a number write"
    )


@pytest.mark.seconds
def test_a_reason_against_two_engines_is_said_once(doctor: Command, with_model: Any) -> None:
    _, output, _ = doctor(with_model("Hooked"), "--set", "strategy.rounds=200")
    assert output.count("configure_callbacks of its own") == 1
    assert "not stacked, not direct: the module has a configure_callbacks of its own\n" in output


@pytest.mark.seconds
def test_few_steps_have_nothing_to_gain_and_json_has_it_all(
    doctor: Command, experiment_file: Any
) -> None:
    status, output, errors = doctor(experiment_file("[strategy]\nrounds = 1\n"), "--json")
    assert (status, errors) == (0, "")
    found = json.loads(output)
    assert (found["engine"], found["cohort"], found["rounds"]) == ("direct", 4, 1)
    stacked, direct, _ = found["engines"]
    assert (stacked["possible"], direct["reason"]) == (True, None)
    assert stacked["reason"].endswith("too few to prepare for training many clients at once")
    assert stacked["remedy"].startswith("none needed: ")
    assert min(stacked["step_seconds"], stacked["start_seconds"], direct["step_seconds"]) > 0
    total = direct["step_seconds"] * found["steps"] * found["cohort"] / found["cores"]
    assert direct["round_seconds"] == pytest.approx(total)


def test_an_engine_that_was_requested_is_the_reason(make_experiment: Any) -> None:
    found = examine(make_experiment(train={"engine": "direct"}), VirtualClock())
    assert found.engine == "direct"
    (stacked,) = found.faster
    assert stacked.reason == "train.engine = 'direct' requests the other"
    assert [rated.step_seconds for rated in found.engines] == [0.0, 0.0, 0.0]  # time stands still


def test_clients_of_practice_that_fail_have_no_figures(make_experiment: Any) -> None:
    class Broken(VirtualClock):
        """Has no processor."""

        def processor(self) -> float:
            raise RuntimeError

    found = examine(make_experiment(), Broken())
    assert [rated.step_seconds for rated in found.engines] == [None, None, None]
    assert _advice(found)[-1].startswith("steps were not measured")


def test_an_engine_that_promises_most_has_no_advice(capsys: pytest.CaptureFixture[str]) -> None:
    rated = (
        Rated("stacked", None, None, True, 1.5, 0.0002, 0.25),
        Rated("direct", None, None, True, 0.0, 0.0005, 0.5),
    )
    found = Examination("stacked", 1.5, 10, 19.0, 2, 1000, rated)
    assert _advice(found) == ["nothing to change: no engine promises more"]
    print_table(_table(found))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][-4:] == ["round", "start", "1,000", "rounds"]
    first = "stacked 0.20 ms 0.25 s 1.5 s 251.5 s trains this experiment"
    assert lines[1] == first.split()
    assert lines[2] == ["direct", "0.50", "ms", "0.50", "s", "0.0", "s", "500.0", "s"]


@pytest.mark.parametrize("engine", ["stacked", "direct"])
def test_where_clients_have_a_gpu_one_by_one_it_is_shared(engine: str) -> None:
    rated = (Rated(engine, None, None, True, 0.0, None, None),)
    lines = _advice(Examination(engine, 0.1, 10, 19.0, 2, 100, rated, gpu=True))
    assert any("runtime.actor-gpus = 0.125" in line for line in lines) == (engine == "direct")


@pytest.mark.parametrize(("start", "pays"), [(2.6, True), (4.3, False)])
def test_what_was_counted_not_to_pay_and_does_here_is_advised(start: float, pays: bool) -> None:
    few = "1700 training steps in all are too few to prepare for training many clients at once"
    rated = (
        Rated("stacked", few, remedy_of(few), True, start, 0.0029, 1.2),
        Rated("direct", None, None, True, 0.0, 0.0082, 3.5),
    )
    lines = _advice(Examination("direct", 0.1, 10, 85.0, 2, 2, rated))
    assert lines[0] == f"not stacked: {few}"
    advice = (
        "  remedy: set train.engine = 'stacked': by these figures it takes 5.0 s with its start, "
        "less than direct"
    )
    assert lines[1:] == ([advice] if pays else [f"  remedy: {remedy_of(few)}"])  # 6.7 of 7.0 s


def test_what_starts_sooner_is_advised_for_few_rounds() -> None:
    rated = (
        Rated("stacked", None, None, True, 1.5, 0.0013, 0.18),
        Rated("direct", None, None, True, 0.0, 0.0015, 0.21),
        Rated("lightning", None, None, True, 0.0, 0.0028, 0.39),
    )
    assert _advice(Examination("stacked", 1.5, 2, 141.0, 2, 3, rated)) == [
        "for 3 rounds: set train.engine = 'direct': by these figures it takes 0.6 s with its start, "
        "less than stacked"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.toml"], "gone.toml: no such file"),
        (["--set", "train.epochs=2"], "--set and --json are of an experiment; name its file"),
        (["--json"], "--set and --json are of an experiment; name its file"),
        (["x.toml", "--clients", "3"], "--clients and --file are of the network; drop them"),
    ],
)
def test_bad_input_is_one_line(doctor: Command, arguments: list[str], message: str) -> None:
    status, output, errors = doctor(*arguments)
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith(f"flsim: {message}")
