"""What the runs of several peers come to: medians, what is odd about them, and a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BAND = 0.03  # of the final accuracy, around that of the bare loop
_LEFT_OUT = 2  # rounds, in which things are done for the first time
_OWN_STATISTICS = "BatchNorm's statistics are not averaged, each process keeps its own"
UNLIKE = {
    peer: dict.fromkeys(("W6", "W10", "W6s", "W10s"), _OWN_STATISTICS) for peer in ("pfl", "fedlab")
}
"""What peers cannot do, by peer and workload."""


@dataclass(frozen=True)
class Run:
    """One peer, once."""

    rounds: list[float]
    """Seconds of each round."""
    command_seconds: float
    peak_bytes: int
    accuracy: float
    """Of the last model, on the test images."""
    steps: int
    """Of all clients' optimizers in all rounds."""
    versions: dict[str, str]

    @property
    def round_seconds(self) -> float:
        return statistics.median(self.rounds[_LEFT_OUT:] or self.rounds)


def compared(
    workload: str, found: dict[str, list[Run]], expected_steps: int, repeats: int
) -> list[dict[str, Any]]:
    """A row for each peer that ran: medians over its runs, and what is odd about them.

    ``ratio`` is the median round over that of the bare loop, None without one.
    """
    found = {peer: runs for peer, runs in found.items() if runs}
    medians = {
        peer: statistics.median(run.round_seconds for run in runs) for peer, runs in found.items()
    }
    good = [run.accuracy for run in found.get("bare", [])]
    rows = []
    for peer, runs in found.items():
        accuracy = statistics.median(run.accuracy for run in runs)
        odd = []
        if got := [run.steps for run in runs if run.steps != expected_steps]:
            odd.append(f"{got[0]} steps, not {expected_steps}")
        if good and any(abs(run.accuracy - statistics.median(good)) > BAND for run in runs):
            odd.append(f"accuracy not within {BAND} of bare's")
        rows.append(
            {
                "peer": peer,
                "versions": runs[0].versions,
                "median-seconds": medians[peer],
                "least-seconds": min(run.round_seconds for run in runs),
                "ratio": medians[peer] / medians["bare"] if "bare" in medians else None,
                "command-seconds": statistics.median(run.command_seconds for run in runs),
                "peak-bytes": round(statistics.median(run.peak_bytes for run in runs)),
                "accuracy": accuracy,
                "steps": runs[0].steps,
                "odd": "; ".join(odd),
                "unlike": UNLIKE.get(peer, {}).get(workload, ""),
                "failed": repeats - len(runs),
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    heads = ("round, s", "least", "ratio", "command, s", "peak, MiB", "accuracy")
    lines = [f"{'peer':18}" + "".join(f"{head:>12}" for head in heads)]
    for row in rows:
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        lines.append(
            f"{row['peer']:18}{row['median-seconds']:12.3f}{row['least-seconds']:12.3f}{ratio:>12}"
            f"{row['command-seconds']:12.1f}{row['peak-bytes'] / 2**20:12.0f}"
            f"{row['accuracy']:12.4f}"
            + (f"  OTHER WORK: {row['odd']}" if row["odd"] else "")
            + (f"  UNLIKE: {row['unlike']}" if row["unlike"] else "")
            + (f"  FAILED RUNS: {row['failed']}" if row["failed"] else "")
        )
    return "\n".join(lines)
