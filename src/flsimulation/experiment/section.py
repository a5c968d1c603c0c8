"""What the tables of an experiment file have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]


def kebab(name: str) -> str:
    """``batch_size`` -> ``batch-size``, the spelling of the experiment file."""
    return name.rstrip("_").replace("_", "-")


class Section(BaseModel):
    """A table of the experiment file: frozen, strictly typed, no unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        alias_generator=kebab,
        validate_by_name=True,
        validate_by_alias=True,
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )
