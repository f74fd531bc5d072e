"""tbnn's own HDF5 files of recordings: events one after another, or ready 0/1 frames.

Groups ``train`` and, where the layout names them, ``test`` and ``validation``; in each ``labels`` (N,) holds a class for
each recording and ``orig_index`` (N,), where it is there, its number in the original; else recordings are numbered
within their group.

events-hdf5: ``x``, ``y``, ``t``, ``p`` (E,), all events one after another, and ``offsets`` (N + 1,): recording i is
``[offsets[i]:offsets[i + 1]]``. bits-hdf5: ``spikes`` (N, steps, channels) of 0 and 1.
"""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tbnn.bits import pack_bits_numpy
from tbnn.data.events import Events, check_events
from tbnn.data.hdf5 import get_dataset, get_group, open_hdf5
from tbnn.data.recipe import Recipe
from tbnn.data.recordings import Recordings
from tbnn.data.sources.common import check_labels

if TYPE_CHECKING:
    import h5py

# Datasets are compressed in chunks of many recordings: the recordings of one run are read together and kept, so that
# reading in order unpacks each chunk about once.
_RUN_EVENTS = 1 << 18
_RUN_BITS = 1 << 22


def open_events(recipe: Recipe, folder: Path, split: str, name: str) -> Recordings:
    """The recordings in one group of an events-hdf5 file.

    Raises ``ValueError``, naming file and record, for a damaged file, missing data, labels outside the classes and
    offsets that do not cover the events in order; reading a recording raises what
    :func:`tbnn.data.events.check_events` refuses.
    """
    path = folder / name
    where = f"{path}: /{split}"
    with open_hdf5(path) as file:
        group = get_group(file, split, path)
        lengths = {key: len(get_dataset(group, key, path, 1)) for key in ("x", "y", "t", "p")}
        offsets = get_dataset(group, "offsets", path, 1)[()].astype(np.int64)
        labels, index = _labels(group, path, recipe)
    _check_offsets(offsets, lengths, len(labels), where)
    runs = offsets[:-1] // _RUN_EVENTS

    @lru_cache(maxsize=1)
    def columns(run: int) -> tuple[int, Events]:
        first, last = np.searchsorted(runs, run, "left"), np.searchsorted(runs, run, "right")
        start, end = int(offsets[first]), int(offsets[last])
        with open_hdf5(path) as file:
            group = get_group(file, split, path)
            return start, Events(*(get_dataset(group, key, path, 1)[start:end] for key in ("x", "y", "t", "p")))

    def read(i: int) -> Events:
        start, run = columns(int(runs[i]))
        part = slice(int(offsets[i]) - start, int(offsets[i + 1]) - start)
        events = Events(run.x[part], run.y[part], run.t[part], run.p[part])
        check_events(events, recipe.sensor, f"{where}: record {i}")
        return events

    return Recordings(labels, index, _names(name, split, len(labels)), read)


def open_bits(recipe: Recipe, folder: Path, split: str, name: str) -> Recordings:
    """The recordings in one group of a bits-hdf5 file; ``recipe.stack`` of its steps make a frame.

    Channel ``s * channels + c`` of a frame is channel c of its s-th step. Raises ``ValueError``, naming file and
    record, for a damaged file, missing data, labels outside the classes and another shape; reading a recording raises
    it for values other than 0 and 1.
    """
    path = folder / name
    where = f"{path}: /{split}/spikes"
    frames = recipe.frames.frames
    with open_hdf5(path) as file:
        group = get_group(file, split, path)
        shape = get_dataset(group, "spikes", path, 3).shape
        labels, index = _labels(group, path, recipe)
    expected = (len(labels), frames * recipe.stack, recipe.sensor.bits)
    if shape != expected:
        raise ValueError(
            f"{where}: expected {expected}, that is (labels, steps * stack, channels of a step), got {shape}"
        )
    together = max(1, _RUN_BITS // (shape[1] * shape[2]))

    @lru_cache(maxsize=1)
    def spikes(run: int) -> npt.NDArray[np.integer]:
        with open_hdf5(path) as file:
            dataset = get_dataset(get_group(file, split, path), "spikes", path, 3)
            return dataset[run * together : (run + 1) * together]

    def words(i: int) -> npt.NDArray[np.int32]:
        record = spikes(i // together)[i % together]
        bad = np.argwhere((record != 0) & (record != 1))
        if bad.size:
            step, channel = bad[0]
            got = record[step, channel]
            raise ValueError(f"{where}: record {i}, step {step}, channel {channel}: expected 0 or 1, got {got}")
        return pack_bits_numpy(record.reshape(frames, -1))

    def read(i: int) -> Events:
        raise ValueError(f"{where}: record {i}: expected to be asked for frames, which is what the file holds")

    return Recordings(labels, index, _names(name, split, len(labels)), read, words=words)


def _names(name: str, split: str, records: int) -> list[str]:
    return [f"{name}: /{split}: record {i}" for i in range(records)]


def _labels(group: "h5py.Group", path: Path, recipe: Recipe) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Labels and record numbers (N,), checked."""
    where = f"{path}: {group.name}"
    labels = check_labels(get_dataset(group, "labels", path, 1)[()], len(recipe.classes), f"{where}/labels")
    if "orig_index" not in group:
        return labels, np.arange(len(labels))
    index = get_dataset(group, "orig_index", path, 1)[()].astype(np.int64)
    if len(index) != len(labels):
        raise ValueError(f"{where}/orig_index: expected {len(labels)} entries, one a label, got {len(index)}")
    numbers, counts = np.unique(index, return_counts=True)
    if len(numbers) < len(index):
        twice = numbers[counts > 1][0]
        raise ValueError(f"{where}/orig_index: expected every number once, got {twice} more than once")
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
