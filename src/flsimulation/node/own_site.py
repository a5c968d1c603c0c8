"""The site of a network's client: its name, and its data, which no other program reads."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from flsimulation.errors import InputError
from flsimulation.experiment import Experiment
from flsimulation.experiment.sites import SITE_NAME
from flsimulation.runtimes.network.names import SITE, SITE_DATA

if TYPE_CHECKING:  # the data's modules are slow to import, and `flsim client` needs none
    from flsimulation.data.federated import FederatedData
    from flsimulation.data.sites.site_facts import SiteFacts


def become_site(site: str | None, data: Path | None) -> None:
    """Make this process and those that it starts a site's; without a site, do nothing.

    Raises
    ------
    InputError
        If one of the two is missing, if the name or the path cannot be used, or if nothing can be
        written on this machine.
    """
    if site is None and data is None:
        return
    if site is None or data is None:
        given, lacking = ("--data", "--site NAME") if site is None else ("--site", "--data PATH")
        raise InputError(f"{given} without {lacking}: add it, so that the client is a site")
    if not SITE_NAME.fullmatch(site):
        raise InputError(f"--site {site}: use letters, digits, '.', '_' and '-', 63 at most")
    if not data.exists() or not os.access(data, os.R_OK):
        what = "cannot be read" if data.exists() else "there is no such file or folder"
        raise InputError(f"--data {data}: {what}; give the path of the data of site {site}")
    _require_scratch(site)
    os.environ[SITE], os.environ[SITE_DATA] = site, str(data.resolve())


def _require_scratch(site: str) -> None:
    """The data may be on a read-only disk, but Flower's programs write temporary files."""
    try:
        with tempfile.TemporaryFile():
            pass
    except OSError as error:
        raise InputError(
            f"site {site}: temporary files cannot be written here ({error.strerror or error}); set TMPDIR "
            f"to a folder that can be written, for example one in memory"
        ) from None


@dataclass(frozen=True)
class OwnSite:
    """The site of a client."""

    name: str
    path: Path

    @classmethod
    def of_environment(cls) -> Self | None:
        """The site of this process; None if it is none."""
        name, path = os.environ.get(SITE), os.environ.get(SITE_DATA)
        return cls(name, Path(path)) if name and path else None

    def partition(self, experiment: Experiment) -> tuple[int | None, str]:
        """The site's partition, and why it has none."""
        sites = experiment.data.sites
        if self.name in sites:
            return sites.index(self.name), ""
        known = ", ".join(sites)
        return None, f"its site {self.name!r} is none of data.sites ({known}); add it there"

    def facts(self, experiment: Experiment) -> SiteFacts:
        """What the site reports of its data. Raises `DataError`."""
        from flsimulation.data.sites.joined import read_facts

        return read_facts(experiment.data, self.name, self.path)

    def data(self, experiment: Experiment, agreement: str) -> FederatedData:
        """The site's data, encoded as agreed. Raises `DataError`."""
        from flsimulation.data.federated import FederatedData
        from flsimulation.data.sites.agree import Agreement
        from flsimulation.data.sites.joined import load_site

        agreed = Agreement.model_validate_json(agreement)
        dataset = load_site(experiment.data, agreed, self.name, self.path)
        return FederatedData.divide(dataset, experiment)
