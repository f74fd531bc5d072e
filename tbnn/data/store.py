"""The packed file: one HDF5 schema for the bit frames of every dataset.

Attributes of the file: ``format`` = "tbnn-frames", ``schema``, ``name``, ``title``, ``licence``, ``source``,
``citation``, ``classes`` (JSON list), ``sensor`` (C, H, W) of a frame, ``bits`` = C * H * W, ``steps``, ``time_unit``,
``bin_width`` (0 where a recording's own length decides), ``recipe_hash``, ``recipe`` (JSON) and ``fingerprint`` of sources
that no checksum pins. Groups ``train``, ``validation`` and ``test``, each with::

    frames     int32 (N, T, words)  packed as in tbnn.bits; bit c*H*W + y*W + x of a frame
    labels     int64 (N,)           index into classes
    index      int64 (N,)           number of the recording in the source
    lengths    int64 (N,)           frames up to the recording's end; later ones are zeros
    events     int64 (N,)           events of the recording, before they became bits
    durations  int64 (N,)           microseconds from its first to its last event
    crc        uint32 (N,)          CRC-32 of the recording's frames

``frames`` lies in one piece (to be mapped into memory, by as many processes as like), or in gzip chunks.
"""

import json
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from tbnn.bits import has_stray_bits, words_for
from tbnn.data.events import Sensor
from tbnn.data.hdf5 import get_dataset, get_group, open_hdf5
from tbnn.data.recipe import SCHEMA, SPLITS, Recipe, json_hash, recipe_hash, recipe_json
from tbnn.files import replacing

if TYPE_CHECKING:
    import h5py

FORMAT = "tbnn-frames"
COMPRESSIONS = ("none", "gzip")
COLUMNS = ("labels", "index", "lengths", "events", "durations", "crc")

_CHUNK_BYTES = 1 << 18
_ALIGNMENT = 64

IntArray = npt.NDArray[np.int64]


class PackedRecording(NamedTuple):
    """One recording as it is stored."""

    words: npt.NDArray[np.int32]  # (T, words)
    length: int
    events: int
    duration: int


@dataclass(frozen=True, eq=False)
class PackedSplit:
    """The recordings of one split, as :func:`write_store` takes them: one at a time, so that they need not fit into memory."""

    labels: IntArray  # (N,)
    index: IntArray  # (N,)
    pack: Callable[[int], PackedRecording]

    @classmethod
    def of(cls, frames: npt.NDArray[np.int32], labels: IntArray, index: IntArray | None = None) -> "PackedSplit":
        """A split of frames (N, T, words) that are there already; every bit counts as an event."""

        def pack(i: int) -> PackedRecording:
            events = int(np.bitwise_count(frames[i].view(np.uint32)).sum())
            return PackedRecording(frames[i], frames.shape[1], events, 0)

        return cls(labels, np.arange(len(labels)) if index is None else index, pack)


@dataclass(frozen=True)
class StoreInfo:
    """What a packed file says about itself; ``splits``: the number of recordings in train, validation and test."""

    name: str
    title: str
    classes: tuple[str, ...]
    sensor: Sensor
    bits: int
    steps: int
    time_unit: str
    bin_width: int
    licence: str
    source: str
    citation: str
    recipe_hash: str
    fingerprint: str
    splits: dict[str, int] = field(default_factory=dict)


def write_store(
    path: Path,
    recipe: Recipe,
    splits: Mapping[str, PackedSplit],
    *,
    compression: str = "none",
    fingerprint: str = "",
    progress: Callable[[], None] | None = None,
) -> None:
    """Write a packed file: under another name in the same folder first, so that ``path`` is never half a file.

    ``progress`` is called after each recording. Raises ``ValueError`` when a split is missing or does not fit the recipe,
    ``OSError`` when the disk has no room.
    """
    import h5py  # slow to import

    for name in SPLITS:
        if name not in splits:
            raise ValueError(f"{path}: expected the splits {', '.join(SPLITS)}, got {', '.join(splits) or 'none'}")
        _check_labels(splits[name].labels, len(recipe.classes), f"{path}: {name}")
    if compression not in COMPRESSIONS:
        raise ValueError(f"compression: expected one of {', '.join(COMPRESSIONS)}, got {compression!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if compression == "none":
        _check_room(path, recipe, sum(len(split.labels) for split in splits.values()))
    # From this version of HDF5 on, names, shapes and attributes carry checksums, as fletcher32 gives to the columns.
    layout: dict[str, Any] = {"libver": ("v110", "v110"), "alignment_threshold": 1, "alignment_interval": _ALIGNMENT}
    with replacing(path) as temporary, h5py.File(temporary, "x", **layout) as file:
        for key, value in {**_attributes(recipe), "fingerprint": fingerprint}.items():
            _write_attribute(file, key, value)
        for name in SPLITS:
            group = file.create_group(name)
            _write_split(group, splits[name], recipe, f"{path}: {name}", compression, progress or (lambda: None))


def _write_attribute(file: "h5py.File", key: str, value: Any) -> None:
    """Text goes by its length into the header, which has a checksum; of free length it would go into a heap without one,
    and HDF5 can loop for ever in a damaged heap."""
    import h5py

    if isinstance(value, str):
        encoded = value.encode()
        file.attrs.create(key, encoded, dtype=h5py.string_dtype("utf-8", max(1, len(encoded))))
    else:
        file.attrs[key] = value


def _check_room(path: Path, recipe: Recipe, recordings: int) -> None:
    needed = recordings * recipe.frames.frames * words_for(recipe.frame_sensor.bits) * 4
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(
            f"{path}: expected {needed / 1e9:.2f} GB of free disk space for the frames, got {free / 1e9:.2f} GB"
        )


def _attributes(recipe: Recipe) -> dict[str, Any]:
    sensor = recipe.frame_sensor
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "name": recipe.name,
        "title": recipe.title,
        "licence": recipe.licence,
        "source": recipe.source,
        "citation": recipe.citation,
        "classes": json.dumps(recipe.classes),
        "sensor": np.array(sensor, np.int64),
        "bits": sensor.bits,
        "steps": recipe.frames.frames,
        "time_unit": "us",
        "bin_width": recipe.frames.bin_width or 0,
        "recipe_hash": recipe_hash(recipe),
        "recipe": recipe_json(recipe),
    }


def _write_split(
    group: "h5py.Group", split: PackedSplit, recipe: Recipe, where: str, compression: str, progress: Callable[[], None]
) -> None:
    recordings, steps, bits = len(split.labels), recipe.frames.frames, recipe.frame_sensor.bits
    shape = (recordings, steps, words_for(bits))
    rows = max(1, min(recordings, _CHUNK_BYTES // (4 * steps * shape[2])))
    chunked: dict[str, Any] = {"compression": "gzip", "shuffle": True, "fletcher32": True}
    options = {"chunks": (rows, *shape[1:]), **chunked} if compression == "gzip" else {}
    frames = group.create_dataset("frames", shape, np.int32, **options)
    columns = {name: np.zeros(recordings, np.uint32 if name == "crc" else np.int64) for name in COLUMNS}
    columns["labels"], columns["index"] = split.labels, split.index
    for start in range(0, recordings, rows):
        block = np.empty((min(rows, recordings - start), *shape[1:]), np.int32)
        for i in range(len(block)):
            words, *facts = split.pack(start + i)
            _check_words(words, shape[1:], bits, f"{where}: recording {start + i}")
            block[i] = words
            for name, value in zip(("lengths", "events", "durations"), facts, strict=True):
                columns[name][start + i] = value
            columns["crc"][start + i] = zlib.crc32(block[i])
            progress()
        frames[start : start + len(block)] = block
    for name, column in columns.items():
        group.create_dataset(name, data=column, compression="gzip", fletcher32=True)


def _check_words(words: npt.NDArray[np.int32], shape: tuple[int, ...], bits: int, where: str) -> None:
    if words.shape != shape or words.dtype != np.int32:
        raise ValueError(f"{where}: expected int32 {shape}, by steps and sensor, got {words.dtype} {words.shape}")
    if has_stray_bits(torch.from_numpy(words), bits):
        raise ValueError(f"{where}: expected zeros past bit {bits} of a frame, got ones")


def _check_labels(labels: IntArray, classes: int, where: str) -> None:
    if len(labels) == 0:
        raise ValueError(f"{where}: expected at least one recording, got none")
    bad = np.flatnonzero((labels < 0) | (labels >= classes))
    if bad.size:
        raise ValueError(f"{where}/labels: expected 0..{classes - 1}, got {labels[bad[0]]} at {bad[0]}")


def read_info(path: str | Path) -> StoreInfo:
    """Read what a packed file says about itself, and check that the shapes in it agree; the frames are not read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a packed file, has another schema version, or is damaged; the message names the file,
            what was got and what was expected.
    """
    path = existing(path)
    with open_hdf5(path) as file:
        return read_structure(file, path)


def existing(path: str | Path) -> Path:
    """``path``, if it is a file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such packed file; make it with tbnn.data.make(NAME) and use the path that it returns"
        )
    return path


def read_structure(file: "h5py.File", path: Path) -> StoreInfo:
    """:func:`read_info` of an open file."""
    format_ = _decoded(file.attrs.get("format"))
    if format_ != FORMAT:
        raise ValueError(f"{path}: expected a packed file (attribute format = {FORMAT!r}), got format = {format_!r}")
    schema = file.attrs.get("schema")
    if schema != SCHEMA:
        raise ValueError(f"{path}: expected schema {SCHEMA}, got {schema}; make the file again")
    texts: dict[str, Any] = {
        key: _text(file, key, path)
        for key in ("name", "title", "licence", "source", "citation", "time_unit", "recipe_hash", "fingerprint")
    }
    sizes: dict[str, Any] = {key: _sizes(file, key, path, 1)[0] for key in ("bits", "steps")}
    sizes["bin_width"] = _sizes(file, "bin_width", path, 1, least=0)[0]
    sensor = Sensor(*_sizes(file, "sensor", path, 3))
    if sensor.bits != sizes["bits"]:
        raise ValueError(
            f"{path}: attribute bits: expected {sensor.bits} for sensor {tuple(sensor)}, got {sizes['bits']}"
        )
    classes = _classes(_text(file, "classes", path), path)
    info = StoreInfo(**texts, **sizes, classes=classes, sensor=sensor)
    for name in SPLITS:
        datasets = split_datasets(file, name, path)
        _check_shapes(datasets, info, f"{path}: {name}")
        info.splits[name] = len(datasets["labels"])
    _check_recipe(info, _text(file, "recipe", path), path)
    return info


def _check_shapes(arrays: "dict[str, h5py.Dataset]", info: StoreInfo, where: str) -> None:
    """Shapes and dtypes of a split's datasets."""
    frames, recordings = arrays["frames"], arrays["labels"].shape[:1]
    expected = (*recordings, info.steps, words_for(info.bits))
    if recordings == (0,):
        raise ValueError(f"{where}: expected at least one recording, got none")
    if frames.shape != expected or frames.dtype != np.int32:
        raise ValueError(
            f"{where}/frames: expected int32 {expected}, by labels, steps and sensor, got {frames.dtype} {frames.shape}"
        )
    for name in COLUMNS:
        array, dtype = arrays[name], np.dtype(np.uint32 if name == "crc" else np.int64)
        if array.shape != recordings or array.dtype != dtype:
            raise ValueError(f"{where}/{name}: expected {dtype} {recordings}, got {array.dtype} {array.shape}")


def _check_recipe(info: StoreInfo, text: str, path: Path) -> None:
    """The recipe in the file has the hash in the file, and says what the other attributes say."""
    if json_hash(text) != info.recipe_hash:
        raise ValueError(
            f"{path}: attribute recipe_hash: expected {json_hash(text)} as of recipe, got {info.recipe_hash}"
        )
    recipe = json.loads(text)
    told: dict[str, Any] = {key: recipe[key] for key in ("name", "title", "licence", "source", "citation")}
    told.update(classes=tuple(recipe["classes"]), bin_width=recipe["frames"]["bin_width"] or 0)
    told.update(steps=recipe["frames"]["bins"] or recipe["frames"]["steps"], time_unit="us")
    for key, value in told.items():
        if getattr(info, key) != value:
            raise ValueError(f"{path}: attribute {key}: expected {value!r} as in recipe, got {getattr(info, key)!r}")


def split_datasets(file: "h5py.File", split: str, path: Path) -> "dict[str, h5py.Dataset]":
    """The datasets of a split, unread."""
    group = get_group(file, split, path)
    return {name: get_dataset(group, name, path, 3 if name == "frames" else 1) for name in ("frames", *COLUMNS)}


def _classes(text: str, path: Path) -> tuple[str, ...]:
    try:
        classes = json.loads(text)
    except ValueError:
        classes = None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes) or not classes:
        raise ValueError(f"{path}: attribute classes: expected a JSON list of names, got {text!r}")
    return tuple(classes)


def _text(file: "h5py.File", key: str, path: Path) -> str:
    value = _decoded(file.attrs.get(key))
    if not isinstance(value, str):
        raise ValueError(f"{path}: attribute {key}: expected text, got {value!r}")
    return value


def _decoded(value: object) -> object:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _sizes(file: "h5py.File", key: str, path: Path, count: int, least: int = 1) -> list[int]:
    """An attribute of ``count`` integers."""
    value = np.atleast_1d(np.asarray(file.attrs.get(key)))
    if value.shape != (count,) or value.dtype.kind not in "iu" or not np.all(value >= least):
        kind = "positive integers" if least else "integers of 0 or more"
        raise ValueError(f"{path}: attribute {key}: expected {count} {kind}, got {file.attrs.get(key)!r}")
    return [int(v) for v in value]
