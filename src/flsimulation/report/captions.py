"""A sentence under each figure: what it shows, in numbers, for who cannot or need not look."""

from __future__ import annotations

import math
import statistics
from collections import Counter

from flsimulation.events import SOURCES
from flsimulation.report.audited import audit_of, inversion_sentence
from flsimulation.report.formats import count, duration, heading, listing, plural, score, spread
from flsimulation.report.scores import (
    client_spread,
    curve,
    failure_counts,
    own_metric,
    phase_seconds,
)
from flsimulation.rundir import RunRecord, look, number


def captions(run: RunRecord) -> dict[str, str]:
    """Write the caption of each figure, by the names of `plots.figures`."""
    return {
        "accuracy": _curves(run, "accuracy"),
        "metric": _curves(run, own_metric(run)),
        "loss": _curves(run, "loss"),
        "partition": _partition(run),
        "clients": spread_sentence(run),
        "times": _times(run),
        "failures": _failures(run),
        "epsilon": _epsilon(run),
        "inverted": _inverted(run),
    }


def _curves(run: RunRecord, metric: str | None) -> str:
    """Last and best value; of a metric of the module's own it is not known which is better."""
    if metric is None:
        return ""
    sentences = []
    for source, name in zip(SOURCES, ("Test set", "Clients"), strict=True):
        turns, values = curve(run, source, metric)
        found = [(v, t) for v, t in zip(values, turns, strict=True) if math.isfinite(v)]
        if found:
            last = found[-1]
            best, turn = {"accuracy": max(found), "loss": min(found)}.get(metric, last)
            text = f"{name}: {score(metric, last[0])} after round {last[1]}"
            sentences.append(
                text
                + (f", best {score(metric, best)} in round {turn}." if best != last[0] else ".")
            )
    if sentences and not run.has_test:
        sentences.append("There is no test set.")
    return " ".join(sentences)


def _partition(run: RunRecord) -> str:
    histogram = look(run.manifest, "data", "histogram") or {}
    sizes = [sum(row) for row in histogram.values()]
    if not sizes:
        return ""
    text = f"{plural(len(sizes), 'client')} with {spread(min(sizes), max(sizes))} examples each"
    held = [sum(1 for n in row if n) for row in histogram.values() if len(row) > 1]
    if held:
        text += f", of {spread(min(held), max(held))} classes"
    return f"{text}; median {count(statistics.median(sizes))} examples."


def spread_sentence(run: RunRecord) -> str:
    """Write mean, deviation and worst tenth of the clients; empty where none was evaluated."""
    found = client_spread(run)
    if found is None:
        return ""
    name = found.metric
    worst, value = found.ranked[0]
    return (
        f"After round {found.round}, {plural(len(found.ranked), 'client')} evaluated on their own "
        f"held-out parts: mean {score(name, found.mean)}, standard deviation "
        f"{score(name, found.std)}, worst tenth {score(name, found.worst_tenth)}, worst "
        f"{score(name, value)} (client {run.client_name(worst)})."
    )


def _inverted(run: RunRecord) -> str:
    found = audit_of(run)
    sentence = "" if found is None else inversion_sentence(found)
    return f"{heading(sentence)}." if sentence else ""


def _times(run: RunRecord) -> str:
    totals = [sum(phase_seconds(record).values()) for record in run.rounds]
    if not totals:
        return ""
    median, longest = statistics.median(totals), max(totals)
    turn = run.rounds[totals.index(longest)]["round"]
    return f"Median {duration(median)} a round; longest {duration(longest)} (round {turn})."


def _epsilon(run: RunRecord) -> str:
    """What was spent, and what a round of it was."""
    last = next((record for record in reversed(run.rounds) if look(record, "privacy")), None)
    if last is None:
        return ""
    spent, delta, clip, noise = (
        number(last, "privacy", name) for name in ("epsilon", "delta", "clip", "noise")
    )
    told = f"Epsilon {spent:.4g} at delta {delta:g} after round {last['round']}" if spent else ""
    of = f"; updates of norm {clip:.4g} at most, noise {noise:.4g}" if clip and noise else ""
    return f"{told}{of}. Scores that clients report are not covered by it." if told else ""


def _failures(run: RunRecord) -> str:
    counts = failure_counts(run)
    reasons: Counter[str] = sum(counts.values(), Counter())
    failures = ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common())
    rounds = "round" if len(counts) == 1 else "rounds"
    return f"{failures}; in {rounds} {listing(list(counts))}." if counts else ""
