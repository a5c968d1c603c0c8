"""Sites that connect while a run is in progress: each takes part once it fits what was agreed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from flwr.app import Message
from flwr.serverapp import Grid

from flsimulation.clock import SYSTEM, Clock
from flsimulation.data.sites.agree import Agreement
from flsimulation.data.sites.late_site import check_fits
from flsimulation.data.sites.site_facts import SiteFacts
from flsimulation.errors import ClientError, DataError, FLSimulationError, one_line
from flsimulation.experiment import Experiment
from flsimulation.messages.batch import Reply
from flsimulation.messages.codec import message_of
from flsimulation.messages.received import read_reply, rejected
from flsimulation.node.assignment import Identity
from flsimulation.node.outbox import Outbox, is_flowers_own, packed, replied_to
from flsimulation.server.agreeing import facts_batch, facts_in


class LateSites:
    """Asks sites for their facts that were not there when the others agreed.

    Nothing here waits: a site is asked, its reply is read when it has arrived, and rounds continue
    without it until then.

    Parameters
    ----------
    grid : Grid
        Flower's own grid.
    experiment : Experiment
        Names the sites.
    present : set of int
        Partitions of the sites that agree before the first round.
    refuse : callable
        Called with a client's identity and one line, if it cannot take part.
    check : callable
        Raises an error if a client cannot hold the partition that it is configured for.
    clock : Clock
        The clock to use.
    """

    def __init__(
        self,
        grid: Grid,
        experiment: Experiment,
        present: set[int],
        refuse: Callable[[Identity, str], None],
        check: Callable[[Identity], None],
        clock: Clock = SYSTEM,
    ) -> None:
        self._agreement: Agreement | None = None  # until it is there, late sites wait
        self.examples: dict[int, int] = {}
        """Examples of the late sites that were admitted, by partition."""
        self._experiment, self._sites = experiment, experiment.data.sites
        self._admitted = set(present)
        self._refuse, self._check, self._clock = refuse, check, clock
        self._outbox = Outbox(grid, clock)
        self._asked: dict[str, tuple[int, Identity]] = {}  # by message
        self._refused: set[int] = set()  # nodes

    def agreed(self, agreement: Agreement) -> None:
        """From now on ask late sites for their facts, and compare them with what was agreed."""
        self._agreement = agreement
        self._admitted = {p for p, size in enumerate(agreement.sizes) if size.examples}

    def admitted(self, met: Mapping[int, Identity], online: set[int]) -> dict[int, Identity]:
        """Those of the clients that may take part now; asks the others for their facts.

        Parameters
        ----------
        met : mapping of int to Identity
            Connected clients without a partition, by node, in every call again.
        online : set of int
            All connected nodes.
        """
        self._asked = {m: asked for m, asked in self._asked.items() if asked[0] in online}
        self._read()
        if self._agreement is not None:
            busy = self._refused | {node for node, _ in self._asked.values()}
            for node in sorted(met.keys() - busy):
                self._ask(node, met[node])
        return {n: i for n, i in met.items() if self._is_admitted(n, i)}

    def forget(self, online: set[int]) -> set[int]:
        """Forget the refused clients that have left, and return their nodes: they may be corrected."""
        left = self._refused - online
        self._refused -= left
        return left

    def _is_admitted(self, node: int, identity: Identity) -> bool:
        return identity.partition in self._admitted and node not in self._refused

    def _ask(self, node: int, identity: Identity) -> None:
        try:
            partition = self._partition(identity)
        except FLSimulationError as error:
            self._turn_away(node, identity, str(error))
            return
        if partition not in self._admitted:
            message = message_of(facts_batch([partition]), node, clock=self._clock)
            (identifier,) = self._outbox.push([packed(message, {})])
            self._asked[identifier] = (node, identity)

    def _partition(self, identity: Identity) -> int:
        if identity.partition is None:
            raise DataError(
                f"client {identity.name} is none of data.sites ({', '.join(self._sites)}); start it as one of "
                f"them with --site NAME --data PATH, or add its site and start a new run"
            )
        self._check(identity)
        return identity.partition

    def _read(self) -> None:
        for identifier, outcome in self._arrived():
            node, identity = self._asked.pop(identifier)
            if outcome is None:  # the node has gone
                continue
            try:
                facts = self._facts(identity, outcome)
            except FLSimulationError as error:
                self._turn_away(node, identity, str(error))
            else:
                self._admit(identity, facts)

    def _arrived(self) -> Iterator[tuple[str, Reply | ClientError | None]]:
        self._outbox.keep(self._asked.keys())
        for message in self._outbox.pull(set(self._asked)):
            yield replied_to(message), _outcome(message)

    def _facts(self, identity: Identity, outcome: Reply | ClientError) -> SiteFacts:
        assert identity.partition is not None  # noqa: S101 - it was asked as a partition
        assert self._agreement is not None  # noqa: S101 - or it would not have been asked
        site = self._sites[identity.partition]
        text, error = _of(outcome, identity.partition)
        facts = facts_in(text, error, site)
        check_fits(facts, self._agreement, self._experiment.data)
        return facts

    def _admit(self, identity: Identity, facts: SiteFacts) -> None:
        assert identity.partition is not None  # noqa: S101 - as above
        self._admitted.add(identity.partition)
        self.examples[identity.partition] = facts.examples

    def _turn_away(self, node: int, identity: Identity, why: str) -> None:
        self._refused.add(node)
        self._refuse(identity, one_line(why))


def _outcome(message: Message) -> Reply | ClientError | None:
    return None if is_flowers_own(message) else read_reply(message)


def _of(reply: Reply | ClientError, partition: int) -> tuple[str, ClientError | None]:
    """The text and the error of a site's outcome."""
    if isinstance(reply, ClientError):
        return "", reply
    for outcome in reply.outcomes:
        if outcome.partition == partition and outcome.phase == "facts":
            return outcome.text, outcome.error
    return "", rejected("its reply has no outcome of this task")
