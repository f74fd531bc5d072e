"""Spike trains of artificial cochleas in HDF5: the Heidelberg sets (SHD, SSC) and N-TIDIGITS18.

spikes-hdf5, one file a split: ``spikes/times`` (N,) of float arrays, seconds; ``spikes/units`` (N,) of integer arrays;
``labels`` (N,); and, where they are there, ``extra/speaker`` (N,) and ``extra/keys`` (classes,), the classes' names
(B. Cramer et al., IEEE TNNLS 33:2744, 2022; zenkelab.org/resources/spiking-heidelberg-datasets-shd).

ntidigits-hdf5, one file: ``train_labels`` (N,) of names such as "man-ae-a-1" (sex, speaker, first or second time,
spoken digits), ``train_addresses/<name>`` and ``train_timestamps/<name>``, seconds; the same for ``test``
(J. Anumula et al., Frontiers in Neuroscience 12:23, 2018). Only recordings of a single digit are used.

Times become whole microseconds, rounded. The Heidelberg sets store half precision: steps of 1/1024 s after the first
second. Spikes are put in time order; equal times keep their order in the file.

Each file is first read in a process of its own (see :mod:`tbnn.data.sources.guard`).
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tbnn.data.events import Events, Sensor, check_events
from tbnn.data.hdf5 import get_dataset, get_group, open_hdf5
from tbnn.data.recipe import Recipe
from tbnn.data.recordings import Recordings
from tbnn.data.sources.common import check_labels
from tbnn.data.sources.guard import check_readable

if TYPE_CHECKING:
    import h5py

_LATEST = 1e9  # seconds; keeps microseconds within int64


def open_spikes(recipe: Recipe, folder: Path, split: str, name: str) -> Recordings:
    """The recordings of one file of SHD or SSC; speakers are the groups.

    Where the file names the recipe's classes in another order, labels follow the names. Raises ``ValueError``, naming
    file and record, for a damaged file, missing data and labels outside the classes; reading a recording raises it for
    spikes whose times and units differ in number, times that are negative or no number, and units off the sensor.
    """
    path = folder / name
    check_readable(path)
    with open_hdf5(path) as file:
        labels = check_labels(get_dataset(file, "labels", path, 1)[()], len(recipe.classes), f"{path}: /labels")
        spikes = get_group(file, "spikes", path)
        for key, kinds in (("times", "f"), ("units", "iu")):
            length = len(_get_ragged(spikes, key, path, kinds))
            if length != len(labels):
                raise ValueError(f"{path}: /spikes/{key}: expected {len(labels)} rows, one a label, got {length}")
        order = _class_order(file, path, recipe.classes)
        speakers = _speakers(file, path, len(labels))

    def read(i: int) -> Events:
        with open_hdf5(path) as file:
            spikes = get_group(file, "spikes", path)
            times = _get_ragged(spikes, "times", path, "f")[i]
            units = _get_ragged(spikes, "units", path, "iu")[i]
        return _to_events(times, units, recipe.sensor, f"{path}: record {i}")

    names = [f"{name}: record {i}" for i in range(len(labels))]
    return Recordings(order[labels], np.arange(len(labels)), names, read, speakers)


def open_ntidigits(recipe: Recipe, folder: Path, split: str, name: str) -> Recordings:
    """The recordings of single digits in one half of N-TIDIGITS18; speakers are the groups.

    ``index`` counts all recordings of the half. Raises ``ValueError``, naming file and record, for a damaged file,
    missing data, and a name that is not of four parts, comes twice or ends in no class; reading a recording raises what
    :func:`open_spikes` does.
    """
    path = folder / name
    where = f"{path}: /{split}_labels"
    check_readable(path)
    with open_hdf5(path) as file:
        texts = _texts(get_dataset(file, f"{split}_labels", path, 1, kinds="SO")[()], where)
        for kind in ("addresses", "timestamps"):
            get_group(file, f"{split}_{kind}", path)
    parts = [text.split("-") for text in texts]
    for i, text in enumerate(texts):
        if len(parts[i]) != 4:
            raise ValueError(f"{where}: record {i}: expected sex-speaker-time-digits, got {text!r}")
    index = np.array([i for i, part in enumerate(parts) if len(part[3]) == 1], np.int64)
    if len({texts[i] for i in index}) < len(index):
        raise ValueError(f"{where}: expected every name once, got one twice")
    unknown = [texts[i] for i in index if parts[i][3] not in recipe.classes]
    if unknown:
        raise ValueError(f"{where}: {unknown[0]}: expected a digit of {', '.join(recipe.classes)}")
    labels = np.array([recipe.classes.index(parts[i][3]) for i in index], np.int64)
    labels = check_labels(labels, len(recipe.classes), where)
    _, speakers = np.unique([f"{parts[i][0]}-{parts[i][1]}" for i in index], return_inverse=True)

    def read(i: int) -> Events:
        record = texts[index[i]]
        with open_hdf5(path) as file:
            groups = {kind: get_group(file, f"{split}_{kind}", path) for kind in ("addresses", "timestamps")}
            for group in groups.values():
                if record not in group:  # get_dataset would list thousands of names
                    raise ValueError(f"{path}: {group.name}: expected a dataset {record}, got none")
            times = get_dataset(groups["timestamps"], record, path, 1, kinds="iuf")[()]
            units = get_dataset(groups["addresses"], record, path, 1, kinds="iuf")[()]
        return _to_events(times, units, recipe.sensor, f"{path}: {record}")

    return Recordings(labels, index, [f"{name}: {texts[i]}" for i in index], read, speakers.astype(np.int64))


def _to_events(times: npt.NDArray, units: npt.NDArray, sensor: Sensor, where: str) -> Events:
    """Spikes (E,) in seconds as events of a sensor (1, 1, units), checked."""
    if times.shape != units.shape or times.ndim != 1:
        raise ValueError(f"{where}: expected as many times as units, got {times.shape} and {units.shape}")
    seconds = times.astype(np.float64)  # first: in half precision a second is too many microseconds
    bad = np.flatnonzero(~((seconds >= 0) & (seconds < _LATEST)))
    if bad.size:
        raise ValueError(f"{where}: spike {bad[0]}: expected a time of 0 s or later, got {seconds[bad[0]]}")
    if units.dtype.kind == "f":
        bad = np.flatnonzero(~((units >= 0) & (units < sensor.width) & (units % 1 == 0)))
        if bad.size:
            raise ValueError(f"{where}: spike {bad[0]}: expected a unit in 0..{sensor.width - 1}, got {units[bad[0]]}")
        units = units.astype(np.int64)
    order = np.argsort(seconds, kind="stable")
    zeros = np.zeros(len(order), np.uint8)
    events = Events(units[order], zeros, np.rint(seconds[order] * 1e6).astype(np.int64), zeros)
    check_events(events, sensor, where)
    return events


def _get_ragged(group: "h5py.Group", name: str, path: Path, kinds: str) -> "h5py.Dataset":
    """A dataset (N,) of arrays with a dtype of one of the NumPy ``kinds``."""
    import h5py

    found = get_dataset(group, name, path, 1, kinds="O")
    base = h5py.check_vlen_dtype(found.dtype)
    if not isinstance(base, np.dtype) or base.kind not in kinds:
        raise ValueError(f"{path}: {group.name}/{name}: expected arrays of numbers, got {base or found.dtype}")
    return found


def _texts(values: npt.NDArray, where: str) -> list[str]:
    """Strings stored as bytes."""
    try:
        return [value.decode() for value in values.tolist()]
    except (AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: expected texts, got {values.dtype} ({error})") from error


def _class_order(file: "h5py.File", path: Path, classes: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """The recipe's label for each label of the file (classes,)."""
    if "extra/keys" not in file:
        return np.arange(len(classes))
    where = f"{path}: /extra/keys"
    keys = [key.casefold() for key in _texts(get_dataset(file, "extra/keys", path, 1, kinds="SO")[()], where)]
    if len(keys) != len(classes):
        raise ValueError(f"{where}: expected {len(classes)} classes, got {len(keys)}")
    wanted = [name.casefold() for name in classes]
    return np.array([wanted.index(key) for key in keys] if set(keys) == set(wanted) else range(len(classes)))


def _speakers(file: "h5py.File", path: Path, records: int) -> npt.NDArray[np.int64] | None:
    """A number for each recording's speaker (N,), where the file tells."""
    if "extra/speaker" not in file:
        return None
    found = get_dataset(file, "extra/speaker", path, 1, kinds="iuSO")
    if len(found) != records:
        raise ValueError(f"{path}: /extra/speaker: expected {records} entries, one a label, got {len(found)}")
    if found.dtype.kind in "iu":
        return found[()].astype(np.int64)
    _, numbers = np.unique(_texts(found[()], f"{path}: /extra/speaker"), return_inverse=True)
    return numbers.astype(np.int64)
