"""Keys of ``train`` that may differ from one site to another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from flsimulation.experiment.section import Section, kebab

if TYPE_CHECKING:
    from flsimulation.experiment.data_section import Data

VARIABLE = "FLSIM_TRAIN_SITES"
"""Environment of ``flsim run``: ``train.sites`` as ``--set`` takes it, where sites.toml has these keys."""


class OwnTrain(Section):
    """A site's own values of some keys of ``train``; 0 for the experiment's."""

    batch_size: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Examples per step."""
    epochs: Annotated[int, Field(ge=0)] = 0
    """Passes over the site's training part in a round."""
    learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """The model's argument `learning_rate`."""

    @property
    def given(self) -> dict[str, int | float]:
        """The values that are the site's own, by key as written in the file."""
        values = {name: getattr(self, name) for name in OwnTrain.model_fields}
        return {kebab(name): value for name, value in values.items() if value}

    def as_table(self) -> str:
        """``{ epochs = 2, batch-size = 8 }``: in TOML."""
        return f"{{ {', '.join(f'{key} = {value}' for key, value in self.given.items())} }}"

    def in_words(self) -> str:
        """``epochs 2, batch-size 8``."""
        return ", ".join(f"{key} {value}" for key, value in self.given.items())


def as_override(sites: Mapping[str, OwnTrain]) -> str:
    """``train.sites`` as the value of an override; empty if no site has values of its own."""
    tables = [f"{json.dumps(name)} = {own.as_table()}" for name, own in sites.items() if own.given]
    return f"{{ {', '.join(tables)} }}" if tables else ""


def check_own(sites: Mapping[str, OwnTrain], data: Data) -> None:
    """Raise ``ValueError`` if a table of ``train.sites`` is not that of a site."""
    for name in sites:
        if name not in data.sites:
            whose = f"data.sites ({', '.join(data.sites)})"
            if not data.of_sites:
                whose = (
                    f"the sites of data.dataset, which is {data.dataset!r} and not 'sites:FOLDER'"
                )
            raise ValueError(
                f"train.sites has the table {name!r}, which is none of {whose}; remove or rename it"
            )


def own_notes(sites: Mapping[str, OwnTrain]) -> list[str]:
    """A line for each site that trains in its own way."""
    return [f"{name} trains with {own.in_words()}" for name, own in sites.items() if own.given]
