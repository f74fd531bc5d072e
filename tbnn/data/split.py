"""Holding recordings out: by the recipe's rule, class by class, or whole groups of people at a time."""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tbnn.data.recipe import Split
from tbnn.data.recordings import Recordings

BoolArray = npt.NDArray[np.bool_]


def hold_out(recordings: Recordings, fraction: float, split: Split, rng: np.random.Generator, where: str) -> BoolArray:
    """Mark ``fraction`` of the recordings, as ``split`` says: bool (N,).

    Raises ``ValueError``, starting with ``where``, when that takes none or all of them, or for a split by groups where the
    source knows none.
    """
    if split.by_group:
        if recordings.groups is None:
            raise ValueError(f"{where}: split.by_group: expected a source that names people or speakers, got none")
        return _groups(recordings.groups, fraction, split.seed, where)
    order = rng if split.rule == "random" else _ranks(recordings.names, split.seed)
    return _by_class(recordings.labels, fraction, order, where)


def _by_class(
    labels: npt.NDArray[np.int64], fraction: float, order: np.random.Generator | npt.NDArray[np.int64], where: str
) -> BoolArray:
    """``round(fraction * N)`` times True.

    Each class gives its share rounded down; the classes with the largest remainders give one more. Within a class the
    recordings are drawn, or those of lowest rank are taken.
    """
    total = _share(fraction, len(labels), "recordings", where)
    shares = fraction * np.bincount(labels)
    quota = np.floor(shares).astype(np.int64)
    for label in np.argsort(quota - shares, kind="stable")[: max(0, total - quota.sum())]:
        quota[label] += 1
    held = np.zeros(len(labels), np.bool_)
    for label, count in enumerate(quota):
        members = np.flatnonzero(labels == label)
        members = members[np.argsort(order[members])] if isinstance(order, np.ndarray) else order.permutation(members)
        held[members[:count]] = True
    return held


def _groups(groups: npt.NDArray[np.int64], fraction: float, seed: int, where: str) -> BoolArray:
    """Whole groups in the order of their hashes, ``round(fraction * groups)`` of them and at least one."""
    names = np.unique(groups)
    total = _share(max(fraction, 1 / len(names)), len(names), "groups", where)
    lowest = np.argsort(_ranks([str(name) for name in names], seed))[:total]
    return np.isin(groups, names[lowest])


def _share(fraction: float, count: int, what: str, where: str) -> int:
    total = round(fraction * count)
    if not 0 < total < count:
        raise ValueError(f"{where}: split: expected some of {count} {what} held out, some left, got {total} held out")
    return total


def _ranks(names: Sequence[str], seed: int) -> npt.NDArray[np.int64]:
    """The place of each name in the order of SHA-256("seed/name"): the same for ever, whatever NumPy's generators do."""
    digests = [hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in names]
    ranks = np.empty(len(names), np.int64)
    ranks[sorted(range(len(names)), key=digests.__getitem__)] = np.arange(len(names))
    return ranks
