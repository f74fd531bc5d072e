"""Spiking sequential MNIST: an image read pixel by pixel, threshold crossings of its grey value as spikes.

An image's 784 pixels g_0, g_1, ... (rows after one another) are one signal. Of N = 2 M + 1 units, with thresholds
theta_k = floor(254 k / (M - 1)), k = 0 .. M - 1::

    unit N - k      fires at j when g_j <  theta_k <= g_{j+1}     (upward)
    unit M + 1 - k  fires at j when g_j >= theta_k >  g_{j+1}     (downward)
    unit 0          fires at j when g_j = 255

and each pixel lasts two steps of 1 ms, in both of which the unit fires (N = 99; G. Bellec et al., "Long short-term
memory and learning-to-learn in networks of spiking neurons", NeurIPS 2018, in the version of ``tonic.datasets.SMNIST``).
theta_0 = 0 is never crossed, so units 1 and M + 1 stay silent.

The files are MNIST's, plain or compressed by gzip: idx, big-endian: 0x803, count, 28, 28, pixels; 0x801, count, labels.
"""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from tbnn.data.events import Events, check_events
from tbnn.data.recipe import Recipe
from tbnn.data.recordings import Recordings
from tbnn.data.sources.common import check_labels

_STEP = 1000  # microseconds
_STEPS_PER_PIXEL = 2
_SIDE = 28
_PIECE = 1 << 20


def open_smnist(recipe: Recipe, folder: Path, split: str, name: str) -> Recordings:
    """The images in the file ``name``, or its compressed or plain version; labels lie in the file beside it.

    Raises ``FileNotFoundError`` when neither version is there and ``ValueError``, naming the file, when one is damaged
    or the two differ in number, or the sensor is not (1, 1, odd number of 5 or more).
    """
    units = recipe.sensor.width
    if recipe.sensor != (1, 1, units) or units % 2 == 0 or units < 5:
        raise ValueError(f"{recipe.name}: sensor: expected (1, 1, odd number of 5 or more), got {tuple(recipe.sensor)}")
    path = _find(folder, name)
    if "images-idx3" not in name:
        raise ValueError(f"{path}: expected a name such as train-images-idx3-ubyte")
    images = read_idx(path, (_SIDE, _SIDE)).reshape(-1, _SIDE * _SIDE)
    labels_path = _find(folder, name.replace("images-idx3", "labels-idx1"))
    labels = check_labels(read_idx(labels_path, ()), len(recipe.classes), str(labels_path))
    if len(labels) != len(images):
        raise ValueError(f"{labels_path}: expected {len(images)} labels, one an image, got {len(labels)}")

    def read(i: int) -> Events:
        events = crossings(images[i], units)
        check_events(events, recipe.sensor, f"{path}: image {i}")
        return events

    names = [f"{name.removesuffix('.gz')}: image {i}" for i in range(len(labels))]
    return Recordings(labels, np.arange(len(labels)), names, read)


def crossings(pixels: npt.NDArray[np.uint8], units: int) -> Events:
    """The events of one image: grey values (P,) -> events of a sensor (1, 1, units), see the module."""
    half = units // 2
    thresholds = np.arange(half) * 254 // (half - 1)  # (M,)
    above = pixels[:, None] >= thresholds  # (P, M)
    up_at, up = np.nonzero(~above[:-1] & above[1:])
    down_at, down = np.nonzero(above[:-1] & ~above[1:])
    white_at = np.flatnonzero(pixels == 255)
    pixel = np.concatenate([up_at, down_at, white_at])
    unit = np.concatenate([units - up, half + 1 - down, np.zeros_like(white_at)])
    t = (pixel[:, None] * _STEPS_PER_PIXEL + np.arange(_STEPS_PER_PIXEL)).ravel() * _STEP
    x = np.repeat(unit, _STEPS_PER_PIXEL)
    order = np.lexsort((x, t))
    zeros = np.zeros(len(order), np.uint8)
    return Events(x[order], zeros, t[order], zeros)


def read_idx(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """The bytes of an idx file whose items have that shape: uint8 (N, *shape).

    Raises ``ValueError``, naming the file, for another kind of file, another shape, and too few or too many bytes.
    """
    header = 8 + 4 * len(shape)
    with _reading(path) as file:
        head = _read_up_to(file, header)
        words = np.frombuffer(head[: len(head) // 4 * 4], ">u4").tolist()
        if len(head) < header or words[0] != 0x801 + len(shape) or tuple(words[2:]) != shape:
            expected = (hex(0x801 + len(shape)), "count", *shape)
            raise ValueError(f"{path}: expected an idx file that starts with {expected}, got {head.hex(' ', 4)}")
        size = words[1] * int(np.prod(shape))
        data = _read_up_to(file, size + 1)
    if len(data) != size:
        got = f"{len(data)} bytes" if len(data) < size else "more"
        raise ValueError(f"{path}: expected {words[1]} items, that is {size} bytes, got {got}")
    return np.frombuffer(data, np.uint8).reshape(-1, *shape)


def _find(folder: Path, name: str) -> Path:
    """The file, plain or with .gz, whichever the recipe names."""
    for path in (folder / name, folder / name.removesuffix(".gz"), folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder / name}: expected this file, plain or with .gz, found neither")


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    """The file, decompressed if it is compressed, whatever its name says."""
    with path.open("rb") as plain:
        compressed = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        try:
            with gzip.GzipFile(fileobj=plain) if compressed else plain as file:
                yield cast(BinaryIO, file)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: expected a whole gzip file, got a damaged one ({error})") from error


def _read_up_to(file: BinaryIO, size: int) -> bytes:
    """``size`` bytes, or what there is; never more memory than the file's content needs, whatever its header says."""
    pieces: list[bytes] = []
    while size > 0 and (piece := file.read(min(size, _PIECE))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
