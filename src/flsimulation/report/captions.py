"""A sentence under each figure: what it shows, in numbers, for who cannot or need not look."""

from __future__ import annotations

import math
import statistics
from collections import Counter

from flsimulation.report.formats import count, duration, listing, plural, score, spread
from flsimulation.report.log import RunLog, look
from flsimulation.report.scores import client_spread, curve, failure_counts, phase_seconds


def captions(log: RunLog) -> dict[str, str]:
    """Write the caption of each figure, by the names of `plots.figures`."""
    return {
        "accuracy": _curves(log, "accuracy"),
        "loss": _curves(log, "loss"),
        "partition": _partition(log),
        "clients": spread_sentence(log),
        "times": _times(log),
        "failures": _failures(log),
    }


def _curves(log: RunLog, metric: str) -> str:
    sentences = []
    for source, name in (("central", "Test set"), ("federated", "Clients")):
        turns, values = curve(log, source, metric)
        found = [(v, t) for v, t in zip(values, turns, strict=True) if math.isfinite(v)]
        if found:
            last, (best, turn) = found[-1], (max if metric == "accuracy" else min)(found)
            text = f"{name}: {score(metric, last[0])} after round {last[1]}"
            sentences.append(
                text
                + (f", best {score(metric, best)} in round {turn}." if best != last[0] else ".")
            )
    return " ".join(sentences)


def _partition(log: RunLog) -> str:
    histogram = look(log.manifest, "data", "histogram") or {}
    sizes = [sum(row) for row in histogram.values()]
    if not sizes:
        return ""
    text = f"{plural(len(sizes), 'client')} with {spread(min(sizes), max(sizes))} examples each"
    held = [sum(1 for n in row if n) for row in histogram.values() if len(row) > 1]
    if held:
        text += f", of {spread(min(held), max(held))} classes"
    return f"{text}; median {count(statistics.median(sizes))} examples."


def spread_sentence(log: RunLog) -> str:
    """Write mean, deviation and worst tenth of the clients; empty where none was evaluated."""
    found = client_spread(log)
    if found is None:
        return ""
    name = found.metric
    worst, value = found.ranked[0]
    return (
        f"After round {found.round}, {plural(len(found.ranked), 'client')} evaluated on their own "
        f"held-out parts: mean {score(name, found.mean)}, standard deviation "
        f"{score(name, found.std)}, worst tenth {score(name, found.worst_tenth)}, worst "
        f"{score(name, value)} (client {worst})."
    )


def _times(log: RunLog) -> str:
    totals = [sum(phase_seconds(record).values()) for record in log.rounds]
    if not totals:
        return ""
    median, longest = statistics.median(totals), max(totals)
    turn = log.rounds[totals.index(longest)]["round"]
    return f"Median {duration(median)} a round; longest {duration(longest)} (round {turn})."


def _failures(log: RunLog) -> str:
    counts = failure_counts(log)
    reasons: Counter[str] = sum(counts.values(), Counter())
    told = ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common())
    rounds = "round" if len(counts) == 1 else "rounds"
    return f"{told}; in {rounds} {listing(list(counts))}." if counts else ""
