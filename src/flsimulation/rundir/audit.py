"""audit.json: what attacks on a run's models and updates found."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flsimulation.errors import InputError
from flsimulation.host.files import write_atomic
from flsimulation.rundir.jsonlines import JsonObject, decode, read_file
from flsimulation.rundir.layout import AUDIT

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Attack:
    """How well an attack tells members from others."""

    name: str
    """``loss``, ``lira`` or ``update``."""
    auc: float
    """Area under the ROC curve: 0.5 for a guess."""
    auc_error: float
    """Its standard error."""
    tpr: float
    """Share of the members that are found where at most 0.1 % of the others are taken for one."""
    members: int
    others: int


@dataclass(frozen=True, eq=False)
class Inversion:
    """Images that an update was inverted to."""

    true: Pixels
    """[n, channels, height, width]."""
    found: Pixels
    """The same shape, in the same order."""
    mse: tuple[float, ...]
    """Mean squared difference of each found image from the true one."""
    psnr: tuple[float, ...]
    """10 log10(range^2 / mse) of each, in dB."""
    guess: float
    """Mean squared difference of the true images from the mean of others: what a guess comes to."""
    labels: int
    """Labels that were recovered."""


@dataclass(frozen=True, eq=False)
class Audit:
    """What an audit found."""

    weights_sha256: str | None
    """Of the final model that was audited."""
    seed: int
    shadows: int
    privacy: str
    """``privacy.mode`` of the run."""
    epsilon: float | None
    """Of the whole run, if it has a guarantee."""
    delta: float | None
    accuracy: float | None
    attacks: tuple[Attack, ...]
    inversion: Inversion | None
    notes: tuple[str, ...] = ()
    """What was left out, and why."""

    def json(self) -> str:
        """One JSON object; images are the bytes of their values from 0 to 255, in base64."""
        pictures = self.inversion
        fields = {
            **{name: getattr(self, name) for name in _PLAIN},
            "notes": list(self.notes),
            "attacks": [asdict(attack) for attack in self.attacks],
            "inversion": _inverted(pictures) if pictures is not None else None,
        }
        return json.dumps({name.replace("_", "-"): value for name, value in fields.items()})


_PLAIN = ("weights_sha256", "seed", "shadows", "privacy", "epsilon", "delta", "accuracy")


def write_audit(run_dir: Path, audit: Audit) -> Path:
    """Write ``audit.json`` in place of one from before. Raises ``OSError``."""
    return write_atomic(run_dir / AUDIT, audit.json() + "\n")


def read_audit(run_dir: Path) -> Audit | None:
    """The audit of a run; None if there is none. Raises `InputError` if the file is damaged."""
    path = run_dir / AUDIT
    content = read_file(path)
    if content is None:
        return None
    try:
        return _audit(decode(content))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); delete it, or audit the run again") from None


def _audit(record: JsonObject) -> Audit:
    found = record["inversion"]
    return Audit(
        **{name: record[name.replace("_", "-")] for name in _PLAIN},
        attacks=tuple(Attack(**attack) for attack in record["attacks"]),
        inversion=None if found is None else _inversion(found),
        notes=tuple(map(str, record["notes"])),
    )


def _inverted(found: Inversion) -> JsonObject:
    low, high = float(found.true.min()), float(found.true.max())
    return {
        "shape": list(found.true.shape),
        "low": low,
        "high": high,
        "true": _bytes(found.true, low, high),
        "found": _bytes(found.found, low, high),
        "mse": list(found.mse),
        "psnr": list(found.psnr),
        "guess": found.guess,
        "labels": found.labels,
    }


def _inversion(record: Mapping[str, Any]) -> Inversion:
    true, found = (
        _pixels(record[name], record["shape"], record["low"], record["high"])
        for name in ("true", "found")
    )
    mse, psnr = (tuple(map(float, record[name])) for name in ("mse", "psnr"))
    return Inversion(true, found, mse, psnr, float(record["guess"]), int(record["labels"]))


def _bytes(images: Pixels, low: float, high: float) -> str:
    share = (images - low) / ((high - low) or 1.0)
    return base64.b64encode(np.round(255 * np.clip(share, 0, 1)).astype(np.uint8)).decode()


def _pixels(text: str, shape: list[int], low: float, high: float) -> Pixels:
    values = np.frombuffer(base64.b64decode(text), np.uint8).reshape(shape)
    return (low + values.astype(np.float32) / 255 * (high - low)).astype(np.float32)
