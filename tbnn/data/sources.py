"""Readers of recordings: one for each format of source that a recipe may name.

Both sources are HDF5 files with the groups ``train`` and ``test``; ``labels`` (N,) holds a class for each recording and
``orig_index`` (N,), where it is there, its number in the original; else recordings are numbered within their group.

events-hdf5: ``x``, ``y``, ``t``, ``p`` (E,), all events one after another, and ``offsets`` (N + 1,): recording i is
``[offsets[i]:offsets[i + 1]]``. bits-hdf5: ``spikes`` (N, steps, channels) of 0 and 1.
"""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tbnn.bits import pack_bits_numpy, words_for
from tbnn.data.events import Events, events_to_frames
from tbnn.data.hdf5 import get_dataset, get_group, open_hdf5
from tbnn.data.recipe import Recipe
from tbnn.data.store import PackedSplit

if TYPE_CHECKING:
    import h5py


def read_events(path: Path, split: str, recipe: Recipe) -> PackedSplit:
    """Read one group of an events-hdf5 file and bin its recordings into packed frames.

    Raises ``ValueError``, naming file and record, for a damaged file, missing data, labels outside the classes,
    offsets that do not cover the events in order, and what :func:`tbnn.data.events_to_frames` refuses.
    """
    with open_hdf5(path) as file:
        group = get_group(file, split, path)
        x, y, t, p = (get_dataset(group, name, path, 1)[()] for name in ("x", "y", "t", "p"))
        offsets = get_dataset(group, "offsets", path, 1)[()].astype(np.int64)
        labels, index = _labels(group, path, recipe)
    where = f"{path}: /{split}"
    _check_offsets(offsets, {"x": len(x), "y": len(y), "t": len(t), "p": len(p)}, len(labels), where)
    frames = np.empty((len(labels), recipe.steps, words_for(recipe.sensor.bits)), np.int32)
    for i, (start, end) in enumerate(pairwise(offsets)):
        events = Events(x[start:end], y[start:end], t[start:end], p[start:end])
        bits = events_to_frames(events, recipe.sensor, recipe.bin_width, recipe.steps, f"{where}: record {i}")
        frames[i] = pack_bits_numpy(bits.reshape(recipe.steps, -1))
    return PackedSplit(frames, labels, index)


def read_bits(path: Path, split: str, recipe: Recipe) -> PackedSplit:
    """Read one group of a bits-hdf5 file, join ``recipe.stack`` steps to a frame and pack.

    Channel ``s * channels + c`` of a frame is channel c of its s-th step. Raises ``ValueError``, naming file and
    record, for a damaged file, missing data, labels outside the classes, another shape, and values other than 0 and 1.
    """
    with open_hdf5(path) as file:
        group = get_group(file, split, path)
        spikes = get_dataset(group, "spikes", path, 3)[()]
        labels, index = _labels(group, path, recipe)
    where = f"{path}: /{split}/spikes"
    channels = recipe.sensor.bits // recipe.stack
    expected = (len(labels), recipe.steps * recipe.stack, channels)
    if spikes.shape != expected:
        raise ValueError(
            f"{where}: expected {expected}, that is (labels, steps * stack, channels of a step), got {spikes.shape}"
        )
    bad = np.argwhere((spikes != 0) & (spikes != 1))
    if bad.size:
        i, step, channel = bad[0]
        raise ValueError(
            f"{where}: record {i}, step {step}, channel {channel}: expected 0 or 1, got {spikes[i, step, channel]}"
        )
    return PackedSplit(pack_bits_numpy(spikes.reshape(len(labels), recipe.steps, -1)), labels, index)


def _labels(group: "h5py.Group", path: Path, recipe: Recipe) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Labels and record numbers (N,), checked against the classes."""
    labels = get_dataset(group, "labels", path, 1)[()].astype(np.int64)
    where = f"{path}: {group.name}"
    if len(labels) == 0:
        raise ValueError(f"{where}/labels: expected at least one recording, got none")
    bad = np.flatnonzero((labels < 0) | (labels >= len(recipe.classes)))
    if bad.size:
        got = f"got {labels[bad[0]]} for record {bad[0]}"
        raise ValueError(f"{where}/labels: expected 0..{len(recipe.classes) - 1}, {got}")
    if "orig_index" not in group:
        return labels, np.arange(len(labels))
    index = get_dataset(group, "orig_index", path, 1)[()].astype(np.int64)
    if len(index) != len(labels):
        raise ValueError(f"{where}/orig_index: expected {len(labels)} entries, one a label, got {len(index)}")
    return labels, index


def _check_offsets(offsets: npt.NDArray[np.int64], lengths: dict[str, int], records: int, where: str) -> None:
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"{where}: expected x, y, t and p of one length, got {got}")
    if len(offsets) != records + 1:
        raise ValueError(f"{where}/offsets: expected {records + 1} entries, one more than labels, got {len(offsets)}")
    if offsets[0] != 0 or offsets[-1] != lengths["t"]:
        raise ValueError(f"{where}/offsets: expected 0 to {lengths['t']} events, got {offsets[0]} to {offsets[-1]}")
    backward = np.flatnonzero(np.diff(offsets) < 0)
    if backward.size:
        i = backward[0] + 1
        raise ValueError(f"{where}/offsets: expected rising values, got {offsets[i]} after {offsets[i - 1]} at {i}")
