"""The choice between stacked and direct by what a few steps take; no test waits on a clock."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from flsimulation import resume, run
from flsimulation.cli.title import engine_line
from flsimulation.cli.view import PlainView
from flsimulation.client.workspace import Workspace
from flsimulation.clock import SYSTEM, Clock, VirtualClock
from flsimulation.events import NOT_DIRECT, EngineReported, Event, PhaseStarted, RoundFinished
from flsimulation.experiment.spec import Train
from flsimulation.runtimes import local
from flsimulation.training.engine import NOT_FASTER, Before, Engine, engine_for
from flsimulation.training.stacked.compiler.program import StepPrograms
from flsimulation.training.timing import one_thread
from flsimulation.training.work import Work

pytestmark = pytest.mark.usefixtures("cpu")

X, Y = torch.randn(64, 6, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3
LONG = Work(rounds=100, fits=400, steps=1600, examples=16.0)
"""Four clients of 16 examples in a round: each takes four steps with batches of four."""
STEPS = 4
"""Of a fit that is measured."""


class Net(pl.LightningModule):
    """A layer, by SGD."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def training_step(self, batch: Any, _: int) -> Tensor:
        return functional.cross_entropy(self.head(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Costs(VirtualClock):
    """A processor that each engine, in turns, takes for its own number of seconds."""

    def __init__(self, *seconds: float) -> None:
        super().__init__()
        self.looks, self._costs = 0, seconds

    def processor(self) -> float:
        turn, ends = divmod(self.looks, 2)
        self.looks += 1
        if ends:
            self.sleep(self._costs[turn % len(self._costs)])
        return super().processor()


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    """One wave has all four clients."""
    with one_thread():
        yield


def chosen(clock: Clock = SYSTEM, **given: Any) -> Engine:
    spec = given.pop("spec", Train(batch_size=4))
    options = {"work": LONG, "measures": True, **given}
    return engine_for(Net(), spec, X, Y, 8, 1, clock, **options)


@pytest.mark.parametrize(
    ("direct", "name", "looks"),
    [
        (0.25, "direct", 8),  # clear after a turn to warm up and one more, of two looks each
        (0.89, "direct", 16),
        (0.91, "stacked", 16),
        (0.999, "stacked", 16),
        (1.0, "stacked", 8),
        (2.0, "stacked", 8),
    ],
)
def test_direct_is_taken_where_its_steps_are_clearly_faster(
    direct: float, name: str, looks: int
) -> None:
    clock = Costs(4.0, direct)  # of four clients, and of one
    engine = chosen(clock)
    assert (engine.name, clock.looks) == (name, looks)
    assert engine.why_not == (NOT_FASTER if name == "direct" else None)
    expected = {"stacked": 1.0 / STEPS, "direct": direct / STEPS}
    assert engine.step_seconds == pytest.approx(expected)


def test_an_odd_turn_does_not_decide() -> None:
    #             to warm up, then three turns: medians 1.0 and 0.95
    clock = Costs(400.0, 9.0, 4.0, 0.8, 4.0, 0.95, 4.0, 0.95)
    assert chosen(clock).name == "stacked"


@pytest.mark.parametrize(
    "given",
    [
        {"spec": Train(batch_size=4, engine="stacked")},
        {"measures": False},
        {"before": Before("stacked", None, {"stacked": 3.0, "direct": 1.0})},
        {"work": Work(rounds=4, fits=16, steps=199, examples=16.0), "spec": Train(batch_size=4)},
    ],
    ids=["requested", "elsewhere", "resumed", "few steps"],
)
def test_nothing_is_measured_where_it_must_not_decide(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Work, "is_worth_tracing", lambda *_: True)
    clock = Costs(4.0, 0.1)
    engine = chosen(clock, **given)
    assert (engine.name, engine.why_not, clock.looks) == ("stacked", None, 0)
    kept = given["before"].step_seconds if "before" in given else {}
    assert engine.step_seconds == kept


def test_steps_are_measured_from_forty_times_their_number() -> None:
    # a turn is of four clients and one, with a step each
    enough = Work(50, 50 * 4, 200, 4.0, decided=True)
    assert chosen(Costs(4.0, 0.1), work=enough).why_not == NOT_FASTER


def test_a_resumed_run_is_not_stacked_again() -> None:
    before = Before("direct", NOT_FASTER, {"stacked": 2.0, "direct": 1.0})
    engine = chosen(Costs(4.0, 40.0), before=before)
    assert (engine.name, engine.why_not) == ("direct", NOT_FASTER)
    assert engine.step_seconds == before.step_seconds
    few = Work(rounds=1, fits=4, steps=16, examples=16.0)
    assert chosen(before=Before("stacked"), work=few).name == "stacked"
    assert chosen(before=Before(None), work=few).name == "direct"
    other = Before("lightning, stacked")  # of clients on a network
    assert chosen(Costs(4.0, 40.0), before=other).name == "stacked"
    asked = chosen(Costs(4.0, 40.0), before=before, spec=Train(batch_size=4, engine="stacked"))
    assert asked.name == "stacked"


def test_a_client_of_practice_that_fails_leaves_the_choice_as_it_was() -> None:
    class Broken(VirtualClock):
        """Stops the practice at its second look."""

        def processor(self) -> float:
            raise RuntimeError("no processor")

    engine = chosen(Broken())
    assert (engine.name, engine.step_seconds) == ("stacked", {})


def test_what_is_measured_is_the_program_although_few_steps_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def by_autograd(*_: Any) -> Any:
        raise AssertionError("a step that stands for many was taken by autograd")

    monkeypatch.setattr(StepPrograms, "by_autograd", by_autograd)
    short = Work(rounds=1, fits=4, steps=1600, examples=1600.0, decided=True)  # one wave
    assert chosen(Costs(4.0, 4.0), work=short).step_seconds


@pytest.mark.parametrize("measures", [True, False])
def test_only_where_it_is_allowed_a_workspace_measures(
    measures: bool, make_experiment: Any
) -> None:
    long = make_experiment(strategy={"rounds": 200})
    engine = Workspace.load(long, clock=Costs(4.0, 1e-9), measures=measures).engine
    assert engine.name == ("direct" if measures else "stacked")
    assert bool(engine.step_seconds) == measures


@pytest.mark.parametrize("measures", [True, False])
def test_only_where_one_process_chooses_its_cores_count(
    measures: bool, make_experiment: Any
) -> None:
    # 640 steps are worth a trace, unless two processes share them
    long = make_experiment(strategy={"rounds": 80})
    space = Workspace.load(long, clock=Costs(4.0, 4.0), measures=measures, processes=2)
    assert str(space.engine.why_not).startswith("640 training steps in all") == measures


def test_a_run_in_one_process_measures_and_on_ray_none(
    make_experiment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment()
    with local.open_process(experiment) as alone:
        assert alone.measures
    monkeypatch.setattr(local, "ray_federation", lambda *_: contextlib.nullcontext())
    with local.open_ray(experiment) as on_ray:
        assert not on_ray.measures


@pytest.mark.seconds
def test_the_run_directory_keeps_the_choice_and_a_resumed_run_takes_it(
    make_experiment: Any, tmp_path: Path
) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.round == 2:
            raise KeyboardInterrupt

    def stop_at_once(event: Event) -> None:
        if isinstance(event, PhaseStarted):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_experiment(strategy={"rounds": 200}), tmp_path / "run", [stop])
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["engine"] in ("stacked", "direct")
    assert set(manifest["step-seconds"]) == {"stacked", "direct"}
    assert min(manifest["step-seconds"].values()) > 0
    for engine, why in (("direct", NOT_FASTER), ("stacked", None)):
        kept = {"engine": engine, "not-stacked": why, "step-seconds": {"stacked": 7.0, engine: 5.0}}
        path.write_text(json.dumps({**manifest, **kept}))
        with pytest.raises(KeyboardInterrupt):
            resume(tmp_path / "run", [stop_at_once])
        again = json.loads(path.read_text())
        assert {key: again[key] for key in kept} == kept


def test_the_line_of_the_engine() -> None:
    measured = {"stacked": 0.00021, "direct": 0.00055}
    assert engine_line("stacked", None) == "engine: stacked"
    assert engine_line("stacked", None, measured) == (
        "engine: stacked (0.21 ms a client's step; direct 0.55 ms)"
    )
    assert engine_line("direct", NOT_FASTER, {"stacked": 0.0123, "direct": 0.00099}) == (
        "engine: direct (0.99 ms a client's step; stacked 12 ms)"
    )
    assert engine_line("direct", "it draws") == "engine: direct (not stacked: it draws)"
    assert engine_line("lightning", "it needs it") == "engine: lightning (it needs it)"
    assert engine_line("lightning", f"it draws{NOT_DIRECT}it needs it") == (
        "engine: lightning (not stacked: it draws; not direct: it needs it)"
    )


def test_engines_that_clients_report_are_lines(
    make_experiment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    view = PlainView(Console(), make_experiment())
    view(EngineReported("stacked"))
    view(EngineReported("lightning", f"it draws{NOT_DIRECT}it needs it"))
    assert capsys.readouterr().out == (
        "  engine: stacked\n  engine: lightning (not stacked: it draws; not direct: it needs it)\n"
    )
