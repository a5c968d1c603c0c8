"""Before a run of sites: the clients connect, report their facts, and agree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flwr.serverapp import Grid

from flsimulation.clock import SYSTEM, Clock
from flsimulation.data.federated import FederatedData
from flsimulation.data.sites.agree import Agreement
from flsimulation.data.sites.joined import load_no_site
from flsimulation.errors import InputError, one_line
from flsimulation.events import ClientsConnected, Event, Sink
from flsimulation.experiment import Experiment
from flsimulation.host.files import write_atomic
from flsimulation.node.grid import AssignedGrid, connect
from flsimulation.node.identified import Names
from flsimulation.rundir.layout import AGREEMENT
from flsimulation.server.agreeing import agreed_by
from flsimulation.server.grid import PartitionedGrid


@dataclass
class _Relay:
    """A sink that passes events to another one, which may change."""

    to: Sink

    def __call__(self, event: Event) -> None:
        """Pass the event."""
        self.to(event)


@dataclass(frozen=True)
class Sited:
    """Sites that agreed, and their connected clients."""

    grid: AssignedGrid
    data: FederatedData
    """Its examples are placeholders: the server has none."""
    clients: int
    _relay: _Relay

    def continued(self, emit: Sink) -> PartitionedGrid:
        """The grid, whose events go to the run's sinks from now on."""
        self._relay.to = emit
        emit(ClientsConnected(tuple(self.grid.partitions.values()), self.clients))
        return self.grid


def keep_agreement(run_dir: Path, sited: Sited) -> None:
    """Write what the sites agreed on, so that the resumed run does not agree again with others."""
    if (agreed := sited.data.dataset.agreed) is not None:
        write_atomic(run_dir / AGREEMENT, agreed.model_dump_json(indent=2) + "\n")


def kept_agreement(run_dir: Path) -> Agreement | None:
    """What the sites of a run agreed on; None if they all have to be there.

    Raises
    ------
    InputError
        If the file is damaged.
    """
    path = run_dir / AGREEMENT
    if not path.exists():
        return None
    try:
        return Agreement.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({one_line(error, 200)}); restore it, or start a new run"
        ) from None


def agreed_sites(
    grid: Grid,
    experiment: Experiment,
    emit: Sink,
    memory: Path | None = None,
    names: Names | None = None,
    clock: Clock = SYSTEM,
    before: Agreement | None = None,
) -> Sited:
    """Wait for the sites, ask each for its facts, and let them agree.

    Parameters
    ----------
    grid : Grid
        Flower's own grid.
    experiment : Experiment
        With sites.
    emit : callable
        Notified of clients that connect or disconnect.
    memory : Path, optional
        File that stores which client holds which partition.
    names : callable, optional
        Returns the names of the admitted nodes; without it, names are those that clients report.
    clock : Clock
        The clock to use.
    before : Agreement, optional
        Of a run that is resumed.

    Raises
    ------
    RunError
        If a site does not connect, or does not reply.
    DataError
        In one sentence that names the site, if its data cannot be used or differs from the others'.
    """
    relay = _Relay(emit)
    assigned = connect(grid, experiment, relay, clock, memory, names)
    joins = experiment.round.late == "join"
    if joins:
        assigned.expect_late_sites(experiment)
    agreement = agreed_by(assigned, experiment, clock, before, relay)
    if joins:
        assigned.sites_agreed(agreement)
    dataset = load_no_site(experiment.data, agreement)
    data = FederatedData.divide(dataset, experiment)
    return Sited(assigned, data, experiment.data.clients, relay)
