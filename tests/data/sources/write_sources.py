"""Small sources in the real formats of the datasets, and recipes to read them with."""

import csv
import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from tbnn.data.events import Events, Sensor
from tbnn.data.frames.spec import FrameSpec
from tbnn.data.recipe import Layout, Recipe, Split

DVS128_HEADER = b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n"
DVS_GESTURE_HEADER = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"


def a_recipe(
    format: str, sensor: tuple[int, int, int], classes: tuple[str, ...], layout: Layout, **more: Any
) -> Recipe:
    """A recipe of that format; what the source lacks is drawn."""
    fields: dict[str, Any] = {
        "name": "tiny",
        "title": "Tiny",
        "description": "",
        "source": "a test",
        "licence": "none",
        "citation": "",
        "frames": FrameSpec(bins=2),
        "split": Split(validation=0.0 if layout.validation else 0.5, seed=1, test=0.0 if layout.test else 0.5),
    }
    return Recipe(format=format, sensor=Sensor(*sensor), classes=classes, layout=layout, **{**fields, **more})


def random_events(
    rng: np.random.Generator, sensor: tuple[int, int, int], count: int, start: int = 0, step: int = 900
) -> Events:
    """``count`` events in time order, the first at ``start``."""
    channels, height, width = sensor
    t = start + np.cumsum(np.concatenate([[0], rng.integers(0, step, count - 1)]))
    x, y, p = (rng.integers(0, size, count) for size in (width, height, channels))
    return Events(x, y, t, p)


def assert_same(got: Events, expected: Events) -> None:
    for name in ("x", "y", "t", "p"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)


def columns(events: Events, order: str) -> npt.NDArray[np.int64]:
    """The events as an array (E, 4)."""
    return np.stack([getattr(events, name) for name in order], axis=1).astype(np.int64)


def write_bin(path: Path, events: Events) -> None:
    """The five bytes of N-MNIST and N-Caltech101; times below 2**23."""
    t = events.t.astype(np.int64)
    rows = [events.x, events.y, events.p.astype(np.int64) << 7 | t >> 16, t >> 8 & 255, t & 255]
    path.write_bytes(np.stack(rows, axis=1).astype(np.uint8).tobytes())


def write_aedat2(path: Path, events: Events) -> None:
    """A DVS128's addresses, as in CIFAR10-DVS: x from the right, y from below, bit 0 set for OFF."""
    address = (127 - events.y) << 8 | (127 - events.x) << 1 | (1 - events.p)
    path.write_bytes(DVS128_HEADER + np.stack([address, events.t], axis=1).astype(">u4").tobytes())


def write_aedat3(path: Path, events: Events, packet: int = 50) -> None:
    """Polarity packets, as in DVS Gesture."""
    data = events.x.astype(np.int64) << 17 | events.y.astype(np.int64) << 2 | events.p.astype(np.int64) << 1 | 1
    records = np.stack([data, events.t], axis=1).astype("<u4")
    content = DVS_GESTURE_HEADER
    for start in range(0, len(records), packet):
        part = records[start : start + packet]
        content += struct.pack("<HHIIIIII", 1, 1, 8, 4, 0, len(part), len(part), len(part)) + part.tobytes()
    path.write_bytes(content)


def write_dat(path: Path, events: Events) -> None:
    """Prophesee's DAT, as in N-CARS."""
    word = events.p.astype(np.int64) << 28 | events.y.astype(np.int64) << 14 | events.x.astype(np.int64)
    header = b"% Data file containing CD events.\n% Version 2\n" + bytes([0, 8])
    path.write_bytes(header + np.stack([events.t, word], axis=1).astype("<u4").tobytes())


def write_table(path: Path, rows: list[tuple[int, int, int]]) -> None:
    """A table of DVS Gesture."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "startTime_usec", "endTime_usec"])
        writer.writerows(rows)


def write_idx(path: Path, array: npt.NDArray[np.uint8]) -> None:
    """An idx file of MNIST's kinds."""
    path.write_bytes(struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes())


def write_spikes(
    path: Path,
    trains: list[tuple[npt.NDArray, npt.NDArray]],
    labels: list[int],
    keys: list[str] | None = None,
    speakers: list[int] | None = None,
) -> None:
    """A file of SHD or SSC: (times in seconds, units) of each recording."""
    with h5py.File(path, "w") as file:
        times = file.create_dataset("spikes/times", (len(trains),), h5py.vlen_dtype(np.float16))
        units = file.create_dataset("spikes/units", (len(trains),), h5py.vlen_dtype(np.uint16))
        for i, (t, x) in enumerate(trains):
            times[i], units[i] = t, x
        file["labels"] = np.array(labels, np.uint16)
        if keys is not None:
            file["extra/keys"] = np.array([key.encode() for key in keys])
        if speakers is not None:
            file["extra/speaker"] = np.array(speakers, np.uint16)


def write_ntidigits(path: Path, halves: dict[str, dict[str, tuple[npt.NDArray, npt.NDArray]]]) -> None:
    """A file of N-TIDIGITS18: of each half the names, and (times in seconds, units) of each."""
    with h5py.File(path, "w") as file:
        for half, records in halves.items():
            file[f"{half}_labels"] = np.array([name.encode() for name in records])
            for name, (times, units) in records.items():
                file[f"{half}_timestamps/{name}"] = times
                file[f"{half}_addresses/{name}"] = units


def write_events_hdf5(path: Path, groups: dict[str, tuple[list[Events], list[int]]], **compression: Any) -> None:
    """tbnn's own file of events."""
    with h5py.File(path, "w") as file:
        for name, (recordings, labels) in groups.items():
            group = file.create_group(name)
            for key, dtype in (("x", np.uint8), ("y", np.uint8), ("t", np.uint32), ("p", np.uint8)):
                joined = np.concatenate([getattr(events, key) for events in recordings]).astype(dtype)
                group.create_dataset(key, data=joined, **compression)
            group["offsets"] = np.cumsum([0, *map(len, recordings)])
            group["labels"] = np.array(labels, np.uint8)
