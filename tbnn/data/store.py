"""The packed file: one HDF5 schema for the bit frames of every dataset.

Attributes of the file: ``format`` = "tbnn-frames", ``schema``, ``name``, ``title``, ``licence``, ``source``,
``citation``, ``classes`` (JSON list), ``sensor`` (C, H, W), ``bits`` = C * H * W, ``steps``, ``time_unit``,
``bin_width``, ``recipe_hash`` and ``recipe`` (JSON). Groups ``train``, ``validation`` and ``test``, each with::

    frames  int32 (N, T, words)  packed as in tbnn.bits; bit c*H*W + y*W + x of a frame
    labels  int64 (N,)           index into classes
    index   int64 (N,)           number of the recording in the source
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tbnn.bits import has_stray_bits, words_for
from tbnn.data.events import Sensor
from tbnn.data.hdf5 import get_dataset, get_group, open_hdf5
from tbnn.data.recipe import SCHEMA, SPLITS, Recipe, json_hash, recipe_hash, recipe_json
from tbnn.files import replacing

if TYPE_CHECKING:
    import h5py

FORMAT = "tbnn-frames"

_CHUNK_BYTES = 1 << 18


@dataclass(frozen=True, eq=False)
class PackedSplit:
    """The recordings of one split, as :func:`write_store` takes them."""

    frames: npt.NDArray[np.int32]  # (N, T, words)
    labels: npt.NDArray[np.int64]  # (N,)
    index: npt.NDArray[np.int64]  # (N,)

    def take(self, mask: npt.NDArray[np.bool_]) -> "PackedSplit":
        """The recordings where ``mask`` (N,) is True, in their order."""
        return PackedSplit(self.frames[mask], self.labels[mask], self.index[mask])


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
    splits: dict[str, int]


def write_store(path: Path, recipe: Recipe, splits: Mapping[str, PackedSplit]) -> None:
    """Write a packed file: under another name in the same folder first, so that ``path`` is never half a file.

    Raises ``ValueError`` when a split is missing, or does not fit the recipe.
    """
    import h5py  # slow to import

    for name in SPLITS:
        if name not in splits:
            raise ValueError(f"{path}: expected the splits {', '.join(SPLITS)}, got {', '.join(splits) or 'none'}")
        _check_shapes(vars(splits[name]), recipe, f"{path}: {name}")
        _check_values(splits[name], recipe.sensor.bits, len(recipe.classes), f"{path}: {name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    # From this version of HDF5 on, names, shapes and attributes carry checksums, as fletcher32 gives to the data.
    with replacing(path) as temporary, h5py.File(temporary, "x", libver=("v110", "v110")) as file:
        file.attrs.update(_attributes(recipe))
        for name in SPLITS:
            _write_split(file.create_group(name), splits[name])


def _attributes(recipe: Recipe) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "name": recipe.name,
        "title": recipe.title,
        "licence": recipe.licence,
        "source": recipe.source,
        "citation": recipe.citation,
        "classes": json.dumps(recipe.classes),
        "sensor": np.array(recipe.sensor, np.int64),
        "bits": recipe.sensor.bits,
        "steps": recipe.steps,
        "time_unit": recipe.time_unit,
        "bin_width": recipe.bin_width,
        "recipe_hash": recipe_hash(recipe),
        "recipe": recipe_json(recipe),
    }


def _write_split(group: "h5py.Group", split: PackedSplit) -> None:
    recordings, steps, words = split.frames.shape
    rows = max(1, min(recordings, _CHUNK_BYTES // (steps * words * split.frames.itemsize)))
    group.create_dataset(
        "frames", data=split.frames, chunks=(rows, steps, words), compression="gzip", shuffle=True, fletcher32=True
    )
    group.create_dataset("labels", data=split.labels, compression="gzip", fletcher32=True)
    group.create_dataset("index", data=split.index, compression="gzip", fletcher32=True)


def _check_shapes(arrays: Mapping[str, Any], recipe: "Recipe | StoreInfo", where: str) -> None:
    """Shapes and dtypes of a split's arrays or HDF5 datasets."""
    frames, recordings = arrays["frames"], arrays["labels"].shape[:1]
    expected = (*recordings, recipe.steps, words_for(recipe.sensor.bits))
    if recordings == (0,):
        raise ValueError(f"{where}: expected at least one recording, got none")
    if frames.shape != expected or frames.dtype != np.int32:
        raise ValueError(
            f"{where}/frames: expected int32 {expected}, by labels, steps and sensor, got {frames.dtype} {frames.shape}"
        )
    for name in ("labels", "index"):
        array = arrays[name]
        if array.shape != recordings or array.dtype != np.int64:
            raise ValueError(f"{where}/{name}: expected int64 {recordings}, got {array.dtype} {array.shape}")


def _check_values(split: PackedSplit, bits: int, classes: int, where: str) -> None:
    bad = np.flatnonzero((split.labels < 0) | (split.labels >= classes))
    if bad.size:
        raise ValueError(f"{where}/labels: expected 0..{classes - 1}, got {split.labels[bad[0]]} at {bad[0]}")
    if has_stray_bits(torch.from_numpy(split.frames), bits):
        raise ValueError(f"{where}/frames: expected zeros past bit {bits} of a frame, got ones")


def read_info(path: str | Path) -> StoreInfo:
    """Read what a packed file says about itself, and check that the shapes in it agree; the frames are not read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a packed file, has another schema version, or is damaged; the message names the file,
            what was got and what was expected.
    """
    path = _existing(path)
    with open_hdf5(path) as file:
        return _read_structure(file, path)


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such packed file; make it with tbnn.data.make(NAME) and use the path that it returns"
        )
    return path


def _read_structure(file: "h5py.File", path: Path) -> StoreInfo:
    format_ = file.attrs.get("format")
    if format_ != FORMAT:
        raise ValueError(f"{path}: expected a packed file (attribute format = {FORMAT!r}), got format = {format_!r}")
    schema = file.attrs.get("schema")
    if schema != SCHEMA:
        raise ValueError(f"{path}: expected schema {SCHEMA}, got {schema}; make the file again")
    texts: dict[str, Any] = {
        key: _text(file, key, path)
        for key in ("name", "title", "licence", "source", "citation", "time_unit", "recipe_hash")
    }
    sizes: dict[str, Any] = {key: _sizes(file, key, path, 1)[0] for key in ("bits", "steps", "bin_width")}
    sensor = Sensor(*_sizes(file, "sensor", path, 3))
    if sensor.bits != sizes["bits"]:
        raise ValueError(
            f"{path}: attribute bits: expected {sensor.bits} for sensor {tuple(sensor)}, got {sizes['bits']}"
        )
    classes = _classes(_text(file, "classes", path), path)
    splits: dict[str, int] = {}
    info = StoreInfo(**texts, **sizes, classes=classes, sensor=sensor, splits=splits)
    for name in SPLITS:
        datasets = _datasets(file, name, path)
        _check_shapes(datasets, info, f"{path}: {name}")
        splits[name] = len(datasets["labels"])
    _check_recipe(info, _text(file, "recipe", path), path)
    return info


def _check_recipe(info: StoreInfo, text: str, path: Path) -> None:
    """The recipe in the file has the hash in the file, and says what the other attributes say."""
    if json_hash(text) != info.recipe_hash:
        raise ValueError(
            f"{path}: attribute recipe_hash: expected {json_hash(text)} as of recipe, got {info.recipe_hash}"
        )
    recipe = json.loads(text)
    recipe.update(sensor=Sensor(**recipe["sensor"]), classes=tuple(recipe["classes"]))
    for key, value in vars(info).items():
        if key in recipe and recipe[key] != value:
            raise ValueError(f"{path}: attribute {key}: expected {recipe[key]!r} as in recipe, got {value!r}")


def _datasets(file: "h5py.File", split: str, path: Path) -> "dict[str, h5py.Dataset]":
    """The three datasets of a split, unread."""
    group = get_group(file, split, path)
    return {name: get_dataset(group, name, path, ndim) for name, ndim in (("frames", 3), ("labels", 1), ("index", 1))}


def _classes(text: str, path: Path) -> tuple[str, ...]:
    try:
        classes = json.loads(text)
    except ValueError:
        classes = None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes) or not classes:
        raise ValueError(f"{path}: attribute classes: expected a JSON list of names, got {text!r}")
    return tuple(classes)


def _text(file: "h5py.File", key: str, path: Path) -> str:
    value = file.attrs.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{path}: attribute {key}: expected text, got {value!r}")
    return value


def _sizes(file: "h5py.File", key: str, path: Path, count: int) -> list[int]:
    """An attribute of ``count`` positive integers."""
    value = np.atleast_1d(np.asarray(file.attrs.get(key)))
    if value.shape != (count,) or value.dtype.kind not in "iu" or not np.all(value > 0):
        raise ValueError(f"{path}: attribute {key}: expected {count} positive integers, got {file.attrs.get(key)!r}")
    return [int(v) for v in value]


class PackedFrames(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """One split of a packed file, whole in memory: a map-style dataset of (words, label).

    Args:
        path: a file that :func:`tbnn.data.make` returned.
        split: "train", "validation" or "test".

    Attributes:
        info: what the file says about itself.
        split: as given.
        frames: int32 (N, T, words), packed as in :mod:`tbnn.bits`.
        labels: int64 (N,), index into ``info.classes``.
        index: int64 (N,), number of the recording in the source.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown split; or the file is not a packed one, has another schema version, is damaged, holds
            labels outside the classes or ones in the padding of a word.
    """

    def __init__(self, path: str | Path, split: str) -> None:
        if split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
        path = _existing(path)
        with open_hdf5(path) as file:
            self.info: StoreInfo = _read_structure(file, path)
            arrays = PackedSplit(**{name: dataset[()] for name, dataset in _datasets(file, split, path).items()})
        _check_values(arrays, self.info.bits, len(self.info.classes), f"{path}: {split}")
        self.split = split
        self.frames, self.labels, self.index = arrays.frames, arrays.labels, arrays.index

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Recording ``index``: words int32 (T, words) and its label."""
        return torch.from_numpy(self.frames[index]), int(self.labels[index])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """The recordings of a batch, for :func:`collate`."""
        return [self[i] for i in indices]


def collate(samples: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Batch samples of :class:`PackedFrames`: words int32 (T, B, words) and labels int64 (B,); time is axis 0."""
    words, labels = zip(*samples, strict=True)
    return torch.stack(words, dim=1), torch.tensor(labels, dtype=torch.int64)
