"""``flsim verify``: one process and a network, round by round."""

from __future__ import annotations

from pathlib import Path

import typer

from flsimulation.errors import RunError
from flsimulation.experiment import load_experiment


def verify_command(file: Path | None, overrides: list[str]) -> None:
    """Print how far the runtimes are apart in each round; raise if they do not agree."""
    experiment = load_experiment(file, overrides)
    from flsimulation.network.flower import flower
    from flsimulation.network.verify import RoundComparison, verify

    with flower(experiment.runtime.superlink) as command:
        command.check()  # before the minutes that the run in one process may take
    typer.echo(f"{experiment.name}: in one process and on {experiment.runtime.superlink}")
    typer.echo("round   cohort   scores apart   weights apart")
    seen: list[RoundComparison] = []

    def show(round: RoundComparison) -> None:
        seen.append(round)
        cohort = "same" if round.same_cohort else "differs"
        weights = "identical" if round.identical else f"{round.weights:.1e}"
        typer.echo(f"{round.round:5}{cohort:>9}{round.scores:15.1e}{weights:>16}")

    differences = verify(experiment, show)
    if differences:
        raise RunError("\n".join(["the runtimes do not agree", *differences]))
    exact = all(round.identical for round in seen)
    typer.echo(
        f"agree: {len(seen)} rounds, "
        + ("bit for bit" if exact else f"apart by {max(r.weights for r in seen):.1e} at most")
    )
