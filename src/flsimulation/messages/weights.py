"""Functions of models as arrays: digest, check for NaN, weighted mean."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from flwr.app import Array, ArrayRecord

from flsimulation.messages.arrays import HeldArray, joined


def weights_sha256(arrays: ArrayRecord) -> str:
    """SHA-256 (hex) over all arrays in name order: name, dtype, shape and bytes."""
    return sha256_of(values_of(arrays))


def values_of(arrays: ArrayRecord) -> dict[str, np.ndarray]:
    """The values of a model, for another thread.

    A Flower array that was received decodes itself with ``ast``, which CPython 3.11 does not do in
    two threads at once.
    """
    return {str(name): array.numpy() for name, array in arrays.items()}


def sha256_of(values: Mapping[str, np.ndarray]) -> str:
    """`weights_sha256` of a model's values."""
    sha = hashlib.sha256()
    for name in sorted(values):
        value = values[name]
        sha.update(f"{name} {value.dtype} {value.shape}\n".encode())
        sha.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def first_diverged(arrays: ArrayRecord, before: ArrayRecord) -> str | None:
    """Name of the first array with a NaN or an infinity where ``before`` has a finite number.

    Parameters
    ----------
    arrays, before : ArrayRecord
        A model after and before a round.
    """
    for name in not_finite(arrays):
        if (~np.isfinite(arrays[name].numpy()) & np.isfinite(before[name].numpy())).any():
            return name
    return None


def not_finite(arrays: ArrayRecord) -> list[str]:
    """Names of the arrays that hold a NaN or an infinity, for example a causal mask."""
    values = ((str(name), array.numpy()) for name, array in arrays.items())
    return [
        name for name, value in values if value.dtype.kind in "fc" and not np.isfinite(value).all()
    ]


def without(arrays: ArrayRecord, names: Collection[str]) -> ArrayRecord:
    """``arrays`` without those with these names."""
    return joined({name: array for name, array in arrays.items() if name not in names})


def same_bits(one: Array, other: Array) -> bool:
    """Whether two arrays are of one type and shape, and the same bit for bit."""
    if one is other:
        return True
    if (one.dtype, tuple(one.shape)) != (other.dtype, tuple(other.shape)):
        return False
    ours, theirs = (np.ascontiguousarray(a.numpy()).reshape(-1) for a in (one, other))
    return np.array_equal(ours.view(np.uint8), theirs.view(np.uint8))


def unchanged(names: Iterable[str], before: ArrayRecord, models: Sequence[ArrayRecord]) -> set[str]:
    """Names of the arrays that are in all models what they were before, bit for bit."""
    return {
        name
        for name in names
        if name in before and all(same_bits(before[name], model[name]) for model in models)
    }


def average_of(
    names: Iterable[str], models: Sequence[ArrayRecord], weights: Sequence[float]
) -> dict[str, Array]:
    """The weighted mean over ``models`` of the arrays with these names.

    An array that is the same in all of them is that array, bit for bit: a sum would round it.

    Parameters
    ----------
    names : iterable of str
        Names of the arrays.
    models, weights
        The clients' models and the weight of each.
    """
    shares = np.asarray(weights, np.float64) / np.sum(weights)

    def mean(name: str) -> Array:
        own = [model[name] for model in models]
        if all(same_bits(own[0], other) for other in own[1:]):
            return own[0]
        total = sum(s * a.numpy() for s, a in zip(shares, own, strict=True))
        return HeldArray(np.asarray(total))

    return {name: mean(name) for name in names}


def mean_of(models: Sequence[ArrayRecord], weights: Sequence[float]) -> ArrayRecord:
    """The weighted mean of models, in the types of the first."""
    return with_types_of(joined(average_of(models[0], models, weights)), models[0])


def with_types_of(arrays: ArrayRecord, model: ArrayRecord) -> ArrayRecord:
    """``arrays`` in the types of ``model``; integers are rounded.

    Strategies compute in the type that results from their weights, so that a counter would become a
    float and float32 would become float64 from one round to the next.
    """
    return joined({name: _typed(array, model.get(name, array)) for name, array in arrays.items()})


def _typed(array: Array, like: Array) -> Array:
    if array.dtype == like.dtype:
        return array
    value, kind = array.numpy(), np.dtype(like.dtype)
    return HeldArray(np.asarray(value if kind.kind in "fc" else np.rint(value), kind))
