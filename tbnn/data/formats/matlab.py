"""Events in MATLAB files of version 5 (ASL-DVS)."""

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tbnn.data.events import Events
from tbnn.data.formats.arrays import events_of

NAMES = {"x": "x", "y": "y", "ts": "t", "pol": "p"}  # the variables, and what they are here
MATRIX, COMPRESSED, INT8, INT32, UINT32 = 14, 15, 1, 5, 6
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
CLASSES = range(6, 16)  # double, single, int8 to uint64
COMPLEX = 0x0800
GROWTH, ALLOWANCE = 16, 1 << 20  # variables may unpack to 16 times the file's size and 1 MiB, in all
EVENTS_PER_BYTE, EVENTS_ALLOWANCE = 2, 1 << 16  # what packed events may come to, at 55 bytes each while they are read

Element = tuple[int, int, memoryview]  # where it starts, its type, its bytes
NOTHING: Element = (0, 0, memoryview(b""))  # where an element was expected and none came


def read_mat(path: Path, time_scale: float = 1.0) -> Events:
    """MATLAB, version 5: variables ``x``, ``y``, ``ts`` and ``pol``, each a matrix (N, 1) or (1, N) of numbers.

    Times are multiplied by ``time_scale`` (us in their unit), rounded, and count from the first event. Variables of
    other names are left out. Compressed variables together may unpack to 16 times the file's size and 1 MiB, and to
    2 events a byte of the file and 65,536.

    Source: MathWorks, MAT-File Format (version 5); Bi et al. 2019, ICCV (ASL-DVS).
    """
    data = path.read_bytes()
    order = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}.get(data[124:128])
    if order is None:
        got = "version 7.3, an HDF5 file" if data[124:126] == b"\x00\x02" else f"{data[:8]!r}"
        raise ValueError(f"{path}: expected a MATLAB file of version 5, got {got} ({len(data)} bytes)")
    budget = GROWTH * len(data) + ALLOWANCE
    found: dict[str, npt.NDArray[Any]] = {}
    for at, kind, body in _elements(str(path), memoryview(data)[128:], order, 128):
        where = f"{path}: element at byte {at}"
        if kind == COMPRESSED:
            unpacked = _unpack(where, body, budget)
            budget -= len(unpacked)
            _, kind, body = next(_elements(where, memoryview(unpacked), order, 0), NOTHING)
        if kind != MATRIX:
            raise ValueError(f"{where}: expected a matrix ({MATRIX}), got type {kind}")
        name, values = _variable(where, body, order)
        if name in NAMES:
            found[NAMES[name]] = values
    if len(found) < len(NAMES):
        raise ValueError(f"{path}: expected the variables {', '.join(NAMES)}, got only those for {sorted(found)}")
    most = max(map(len, found.values()))
    if most > EVENTS_PER_BYTE * len(data) + EVENTS_ALLOWANCE:
        raise ValueError(
            f"{path}: expected at most {EVENTS_PER_BYTE} events a byte and {EVENTS_ALLOWANCE}, got {most} in"
            f" {len(data)} bytes"
        )
    return events_of(path, found, time_scale, from_zero=True)


def _elements(where: str, data: memoryview, order: str, base: int) -> Iterator[Element]:
    """The data elements one after another; those of up to 4 bytes have type and size in one word."""
    at = 0
    while at < len(data):
        if len(data) - at < 8:
            raise ValueError(f"{where}: byte {base + at}: expected a tag of 8 bytes, got {len(data) - at}")
        kind, size = struct.unpack_from(order + "II", data, at)
        start = at + 8
        padding = 0 if kind == COMPRESSED else -size % 8
        if kind >> 16:
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
            padding = 4 - size
        stop = start + size
        if stop > len(data) or padding < 0:
            raise ValueError(
                f"{where}: byte {base + at}: expected an element of {size} bytes, got the {len(data) - start} bytes to"
                f" the end"
            )
        yield base + at, kind, data[start:stop]
        at = stop + padding


def _variable(where: str, body: memoryview, order: str) -> tuple[str, npt.NDArray[Any]]:
    """Name and numbers (N,) of a matrix; an empty array where the name is not one of ours."""
    parts = _elements(where, body, order, 0)
    leading = [next(parts, NOTHING) for _ in range(3)]
    kinds = [kind for _, kind, _ in leading]
    flags, dimensions, label = (part for _, _, part in leading)
    if kinds != [UINT32, INT32, INT8] or len(flags) != 8 or len(dimensions) % 4:
        raise ValueError(f"{where}: expected flags, dimensions and a name, got elements of types {kinds}")
    name = bytes(label).decode("latin-1")
    if name not in NAMES:
        return name, np.empty(0)
    flag = struct.unpack_from(order + "I", flags)[0]
    shape = np.frombuffer(dimensions, order + "i4").tolist()
    _, kind, numbers = next(parts, NOTHING)
    if flag & 0xFF not in CLASSES or flag & COMPLEX or kind not in NUMBERS:
        raise ValueError(f"{where}: {name}: expected real numbers, got class {flag & 0xFF}, type {kind}")
    dtype = np.dtype(order + NUMBERS[kind])
    if len(shape) != 2 or 1 not in shape or math.prod(shape) * dtype.itemsize != len(numbers):
        raise ValueError(
            f"{where}: {name}: expected a matrix (N, 1) or (1, N), got {tuple(shape)[:8]} and {len(numbers)} bytes"
        )
    return name, np.frombuffer(numbers, dtype)


def _unpack(where: str, packed: memoryview, limit: int) -> bytes:
    decoder = zlib.decompressobj()
    try:
        unpacked = decoder.decompress(packed, limit + 1)
    except zlib.error as error:
        raise ValueError(f"{where}: expected zlib data, got some that cannot be unpacked ({error})") from error
    if len(unpacked) > limit:
        raise ValueError(
            f"{where}: expected variables that unpack to at most {GROWTH} times the file's size and {ALLOWANCE} bytes,"
            f" got more"
        )
    if not decoder.eof:
        raise ValueError(f"{where}: expected whole zlib data, got some that ends too early")
    return unpacked
