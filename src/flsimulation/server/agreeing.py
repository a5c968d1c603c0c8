"""Asks the sites of a network for the facts of their data, with one task each, and lets them agree."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import ArrayRecord, ConfigRecord
from pydantic import ValidationError

from flsimulation.clock import SYSTEM, Clock
from flsimulation.data.sites.agree import Agreement, agree, sizes_of
from flsimulation.data.sites.late_site import check_fits
from flsimulation.data.sites.site_facts import SiteFacts
from flsimulation.errors import ClientError, DataError, RunError
from flsimulation.events import Noticed, Sink, silent
from flsimulation.experiment import Experiment
from flsimulation.messages.batch import Batch, Task
from flsimulation.server.exchange import Exchange
from flsimulation.server.grid import PartitionedGrid
from flsimulation.server.replies import Replies

_MOST = 10_000_000  # characters of a site's facts: ten thousand categories of ordinary length


def agreed_by(
    grid: PartitionedGrid,
    experiment: Experiment,
    clock: Clock = SYSTEM,
    before: Agreement | None = None,
    emit: Sink = silent,
) -> Agreement:
    """What the sites agreed on; with ``round.late = "join"`` those that are connected and reply.

    Parameters
    ----------
    grid : PartitionedGrid
        Of which every connected client is a site.
    experiment : Experiment
        Names the sites.
    clock : Clock
        The clock to use.
    before : Agreement, optional
        Of a run that is resumed: the sites have to fit it, and only their sizes are new.
    emit : callable
        Called with a notice of each site that was lost before it replied, where sites may join late.

    Raises
    ------
    DataError
        If a site's data cannot be used, or differs from the others'.
    RunError
        If a site does not reply, and the run cannot begin without it.
    """
    spec, partitions = experiment.data, list(range(experiment.data.clients))
    if experiment.round.late == "join":
        partitions = list(grid.partitions.values())
    replies = _asked(grid, partitions, clock)
    if experiment.round.late == "join":
        partitions = _without_lost(replies, experiment, emit)
    facts = [
        facts_in(replies.texts.get(p, ""), replies.failures.get(p), spec.sites[p])
        for p in partitions
    ]
    if before is None:
        return agree(facts, spec, [spec.sites[partition] for partition in partitions])
    for own in facts:
        check_fits(own, before, spec)
    sizes = sizes_of(facts, before.classes, spec)
    kept = zip(sizes, before.sizes, strict=True)
    merged = tuple(now if now.examples else earlier for now, earlier in kept)
    return before.model_copy(update={"sizes": merged})


def facts_batch(partitions: Sequence[int]) -> Batch:
    """The tasks that ask the sites of some partitions for their facts."""
    config = ConfigRecord()
    return Batch(ArrayRecord(), [Task(partition, "facts", 0, config) for partition in partitions])


def facts_in(text: str, error: ClientError | None, site: str) -> SiteFacts:
    """The facts of a site in the outcome of its task, if they are what a site may report.

    Parameters
    ----------
    text, error
        Of the outcome.
    site : str
        The site that was asked.

    Raises
    ------
    DataError
        If they are not, or if the site's data cannot be used.
    RunError
        If it did not reply.
    """
    if error is not None:
        text = str(error)
        if error.reason == "lost":
            raise RunError(f"site {site} reported no facts of its data: {text}")
        prefix = "" if text.startswith(f"site {site}: ") else f"site {site}: "
        raise DataError(f"{prefix}{text}")
    if len(text) > _MOST:
        raise DataError(f"site {site} reports {len(text):,} characters of facts, {_MOST:,} at most")
    try:
        facts = SiteFacts.model_validate_json(text)
    except ValidationError as wrong:
        what = ", ".join(".".join(map(str, item["loc"])) or "all" for item in wrong.errors()[:3])
        raise DataError(
            f"site {site} reports facts that cannot be read ({what}); start its client from the same "
            f"version of this program"
        ) from None
    if facts.site != site:
        raise DataError(f"site {site} reports the facts of {facts.site!r}; check its --site")
    return facts


def _asked(grid: PartitionedGrid, partitions: Sequence[int], clock: Clock) -> Replies:
    exchange = Exchange(grid, 0.0, lambda _: None, clock=clock)
    replies = exchange.post(0, "facts", [facts_batch(partitions)])
    for _ in exchange.outcomes():
        pass
    return replies


def _without_lost(replies: Replies, experiment: Experiment, emit: Sink) -> list[int]:
    """The partitions that replied, if they are enough; the others may join late.

    Raises
    ------
    RunError
        If too few are left.
    """
    lost = {p: error for p, error in replies.failures.items() if error.reason == "lost"}
    there = [partition for partition in replies.cohort if partition not in lost]
    named = [f"site {experiment.data.sites[p]} ({error})" for p, error in sorted(lost.items())]
    if lost and len(there) < experiment.least_clients:
        raise RunError(
            f"{len(there)} of {len(replies.cohort)} sites reported the facts of their data, at least "
            f"{experiment.least_clients} needed; missing: {', '.join(named)}"
        )
    for site in named:
        emit(Noticed(f"{site} is left out until it reconnects: it reported no facts of its data"))
    return there
