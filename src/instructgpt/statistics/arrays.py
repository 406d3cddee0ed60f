"""Array types, and cluster keys as numbers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
ClusterKeys = Sequence[Hashable] | IntArray


def factorize(keys: ClusterKeys) -> IntArray:
    """Return keys as numbers from 0 (N,): first appearance first; integer arrays keep their own order."""
    if isinstance(keys, np.ndarray) and keys.dtype.kind == "i":
        return np.unique(keys, return_inverse=True)[1].astype(np.int64)
    indices: dict[Hashable, int] = {}
    return np.array([indices.setdefault(key, len(indices)) for key in keys], dtype=np.int64)


def unique_with_counts(keys: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Return unique keys in order, the index of each row (N,), and counts;
    counts instead of sorting where the range allows.
    """
    max_key = int(keys.max(initial=0))
    if max_key > 8 * len(keys) + 1_000_000:
        unique, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        return unique, inverse, counts
    counts = np.bincount(keys, minlength=1)
    unique = np.flatnonzero(counts)
    inverse = np.zeros(len(counts), dtype=np.int64)
    inverse[unique] = np.arange(len(unique))
    return unique, inverse[keys], counts[unique]


class CrossedKeys(NamedTuple):
    """Combinations of two keys that occur ("cells"): the number of each row's cell (N,), and each cell's keys (C,)."""

    cell: IntArray
    first: IntArray
    second: IntArray


def cross_keys(a: IntArray, b: IntArray) -> CrossedKeys:
    """Cross two keys (N,)."""
    size = int(b.max(initial=0)) + 1
    keys, cell, _ = unique_with_counts(a * size + b)
    return CrossedKeys(cell, keys // size, keys % size)
