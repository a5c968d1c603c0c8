"""``flsim verify``: compares runtimes or engines, round by round."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import typer

from flsimulation.errors import InputError, ModelError, RunError
from flsimulation.experiment import Experiment, load_experiment
from flsimulation.runtimes import apart_from_here, open_runtime

if TYPE_CHECKING:
    from flsimulation.studies.verify import RoundComparison

Compare: TypeAlias = "Callable[[Callable[[RoundComparison], None]], list[str]]"


def verify_command(
    file: Path | None, overrides: list[str], runtime: str | None, *, engines: bool
) -> None:
    """Print how much two runtimes or engines differ in each round; raise if they do not agree."""
    if engines and runtime is not None:
        raise InputError(f"--engines compares within one process; leave out --runtime {runtime}")
    if runtime == "inprocess":
        raise InputError(
            "--runtime inprocess: choose ray or network, which is compared with one process"
        )
    kind = [f"runtime.kind={runtime}"] if runtime is not None else []
    experiment = load_experiment(file, [*overrides, *kind])
    if engines:
        _compare_engines(experiment)
        return
    with open_runtime(apart_from_here(experiment)) as there:
        from flsimulation.studies.verify import verify

        ways = f"in one process and on {there.place}"
        _show(experiment, ways, "runtimes", functools.partial(verify, there))


def _compare_engines(experiment: Experiment) -> None:
    """Compare the engines that the model allows with Lightning's Trainer. Raises `ModelError`."""
    from flsimulation.studies.verify import verify_engines

    requested = experiment.train.engine
    engines = (requested,) if requested in _ENGINES else _ENGINES
    refused: list[ModelError] = []
    for engine in engines:
        compare = functools.partial(verify_engines, experiment, engine=engine)
        try:
            _show(experiment, f"{engine} and lightning", "engines", compare)
        except ModelError as error:
            refused.append(error)
            typer.echo(f"not compared: {error}")
    if len(refused) == len(engines):
        raise refused[0]


_ENGINES = ("stacked", "direct")


def _show(experiment: Experiment, ways: str, what: str, compare: Compare) -> None:
    """Print the comparison of each round; raise if the two do not agree."""
    typer.echo(f"{experiment.name}: {ways}")
    typer.echo("round   cohort   scores apart   weights apart")
    seen: list[RoundComparison] = []

    def show(round: RoundComparison) -> None:
        seen.append(round)
        cohort = "same" if round.same_cohort else "differs"
        weights = "identical" if round.identical else f"{round.weights:.1e}"
        typer.echo(f"{round.round:5}{cohort:>9}{round.scores:15.1e}{weights:>16}")

    if differences := compare(show):
        raise RunError("\n".join([f"the {what} do not agree", *differences]))
    exact = all(round.identical for round in seen)
    typer.echo(
        f"agree: {len(seen)} rounds, "
        + ("bit for bit" if exact else f"apart by {max(r.weights for r in seen):.1e} at most")
    )
