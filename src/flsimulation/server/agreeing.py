"""Asks the sites of a network for the facts of their data, with one task each, and lets them agree."""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord
from pydantic import ValidationError

from flsimulation.clock import SYSTEM, Clock
from flsimulation.data.sites.agree import Agreement, agree
from flsimulation.data.sites.site_facts import SiteFacts
from flsimulation.errors import DataError, RunError
from flsimulation.experiment import Experiment
from flsimulation.messages.batch import Batch, Task
from flsimulation.server.exchange import Exchange
from flsimulation.server.grid import PartitionedGrid
from flsimulation.server.replies import Replies

_MOST = 10_000_000  # characters of a site's facts: ten thousand categories of ordinary length


def agreed_by(grid: PartitionedGrid, experiment: Experiment, clock: Clock = SYSTEM) -> Agreement:
    """What the sites agreed on.

    Raises
    ------
    DataError
        If a site's data cannot be used, or differs from the others'.
    RunError
        If a site does not reply.
    """
    exchange = Exchange(grid, 0.0, lambda _: None, clock=clock)
    config = ConfigRecord()
    tasks = [Task(partition, "facts", 0, config) for partition in range(experiment.data.clients)]
    replies = exchange.post(0, "facts", [Batch(ArrayRecord(), tasks)])
    for _ in exchange.outcomes():
        pass
    sites = experiment.data.sites
    return agree(
        [_facts(replies, number, site) for number, site in enumerate(sites)], experiment.data
    )


def _facts(replies: Replies, partition: int, site: str) -> SiteFacts:
    """The facts of a site, if they are what a site may report."""
    if (error := replies.failures.get(partition)) is not None:
        text = str(error)
        if error.reason == "lost":
            raise RunError(f"site {site} reported no facts of its data: {text}")
        prefix = "" if text.startswith(f"site {site}: ") else f"site {site}: "
        raise DataError(f"{prefix}{text}")
    text = replies.texts.get(partition, "")
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
