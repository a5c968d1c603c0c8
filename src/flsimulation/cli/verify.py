"""``flsim verify``: one process and a network, or Ray, round by round."""

from __future__ import annotations

from pathlib import Path

import typer

from flsimulation.errors import InputError, RunError
from flsimulation.experiment import Experiment, load_experiment


def verify_command(
    file: Path | None, overrides: list[str], runtime: str | None, *, engines: bool
) -> None:
    """Print how far two ways to run are apart in each round; raise if they do not agree."""
    if engines and runtime is not None:
        raise InputError(f"--engines compares within one process; leave out --runtime {runtime}")
    if runtime == "inprocess":
        raise InputError("--runtime inprocess: one process is compared with ray or network")
    kind = [f"runtime.kind={runtime}"] if runtime is not None else []
    experiment = load_experiment(file, [*overrides, *kind])
    ways = "stacked and sequential" if engines else f"in one process and on {_checked(experiment)}"
    from flsimulation.studies.verify import RoundComparison, verify, verify_engines

    typer.echo(f"{experiment.name}: {ways}")
    typer.echo("round   cohort   scores apart   weights apart")
    seen: list[RoundComparison] = []

    def show(round: RoundComparison) -> None:
        seen.append(round)
        cohort = "same" if round.same_cohort else "differs"
        weights = "identical" if round.identical else f"{round.weights:.1e}"
        typer.echo(f"{round.round:5}{cohort:>9}{round.scores:15.1e}{weights:>16}")

    differences = (verify_engines if engines else verify)(experiment, show)
    if differences:
        what = "engines" if engines else "runtimes"
        raise RunError("\n".join([f"the {what} do not agree", *differences]))
    exact = all(round.identical for round in seen)
    typer.echo(
        f"agree: {len(seen)} rounds, "
        + ("bit for bit" if exact else f"apart by {max(r.weights for r in seen):.1e} at most")
    )


def _checked(experiment: Experiment) -> str:
    """Where the other runtime is; raises before the minutes that one process may take."""
    runtime = experiment.runtime
    if runtime.kind == "ray":
        from flsimulation.runtimes.ray.grid import check_ray

        check_ray(runtime)
        return f"Ray at {runtime.ray_address}" if runtime.ray_address else "a Ray of its own"
    from flsimulation.runtimes.network.flower import flower

    with flower(runtime.superlink) as command:
        command.check()
    return runtime.superlink
