"""AEDAT 4.0, as iniVation's DV software writes it: packets of FlatBuffers, plain or compressed."""

import importlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tbnn.data.events import Events
from tbnn.data.formats.checks import make_events

MAGIC = b"#!AER-DAT4.0\r\n"
COMPRESSIONS = ("none", "lz4", "lz4", "zstd", "zstd")  # by their number in the header; two levels of each
MODULES = {"lz4": "lz4.frame", "zstd": "zstandard"}
PACKAGES = {"lz4": "lz4", "zstd": "zstandard"}
EVENT = np.dtype([("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("on", "u1"), ("pad", "V3")])
GROWTH, ALLOWANCE = 32, 1 << 20  # event packets may unpack to 32 times the file's size and 1 MiB, in all
PIECE = 1 << 18  # bytes unpacked at once
WINDOW = 1 << 23  # bytes a Zstandard decoder may keep: 8 MiB, what RFC 8878 asks of every decoder

INT32, UINT16, UINT32, INT64 = (struct.Struct(form) for form in ("<i", "<H", "<I", "<q"))


def read_aedat4(path: Path) -> Events:
    """The events of AEDAT 4.0: the stream with the lowest number that has packets marked ``EVTS``.

    After ``#!AER-DAT4.0``: the size of the header u4, the header (a FlatBuffer: compression, place of the closing
    table or -1), then packets: stream i4, size i4, a FlatBuffer with its size before it, compressed or plain. Of an
    event 16 bytes: time in us i8, x i2, y i2, on u1. Other streams are left out. Times count from the first event.

    LZ4 needs the package ``lz4``, Zstandard ``zstandard``. All event packets together may unpack to 32 times the
    file's size and 1 MiB; random events pack to a half and to a third.

    Source: iniVation, AEDAT 4.0 format (docs.inivation.com); FlatBuffers' internals (flatbuffers.dev).
    """
    data = path.read_bytes()
    if not data.startswith(MAGIC):
        raise ValueError(f"{path}: expected the header {MAGIC!r}, got {data[: len(MAGIC)]!r}")
    compression, start, stop = _header(path, data)
    budget = GROWTH * len(data) + ALLOWANCE
    stream, columns = None, []
    for at, number, packed in _packets(path, data, start, stop):
        where = f"{path}: packet at byte {at}"
        if stream is None or number < stream:
            if _unpack(where, packed, compression, 12, whole=False)[8:12] != b"EVTS":
                continue
            stream, columns = number, []
        if number != stream:
            continue
        packet = _unpack(where, packed, compression, budget)
        if compression != "none":
            budget -= len(packet)
        events = _events(where, packet)
        if len(events):
            columns.append([events[name].copy() for name in ("x", "y", "t", "on")])
    if not columns:
        raise ValueError(f"{path}: expected packets of events (EVTS), got none")
    x, y, t, p = (np.concatenate(column) for column in zip(*columns, strict=True))
    return make_events(path, x, y, t, p, from_zero=True)


def _header(path: Path, data: bytes) -> tuple[str, int, int]:
    """The compression, where the packets start and where they stop."""
    where, at = f"{path}: header", len(MAGIC)
    size = _number(where, UINT32, data, at)
    header = data[at : at + 4 + size]
    if len(header) < 4 + size:
        raise ValueError(f"{where}: expected {size} bytes, got {len(header) - 4}")
    compression, position = _field(where, header, 0), _field(where, header, 1)
    kind = 0 if compression is None else _number(where, INT32, header, compression)
    stop = -1 if position is None else _number(where, INT64, header, position)
    if not 0 <= kind < len(COMPRESSIONS):
        raise ValueError(f"{where}: expected a compression of 0..{len(COMPRESSIONS) - 1}, got {kind}")
    start = at + 4 + size
    if stop == -1:  # a recording that was not closed
        stop = len(data)
    if not start <= stop <= len(data):
        raise ValueError(f"{where}: expected the closing table in bytes {start}..{len(data)}, got {stop}")
    return COMPRESSIONS[kind], start, stop


def _packets(path: Path, data: bytes, at: int, stop: int) -> Iterator[tuple[int, int, memoryview]]:
    """Place, stream and bytes of each packet between ``at`` and ``stop``."""
    view = memoryview(data)
    while at < stop:
        where = f"{path}: packet at byte {at}"
        if stop - at < 8:
            raise ValueError(f"{where}: expected 8 bytes (stream and size), got {stop - at}")
        number, size = _number(where, INT32, data, at), _number(where, INT32, data, at + 4)
        if number < 0 or not 0 <= size <= stop - at - 8:
            raise ValueError(
                f"{where}: expected a stream of 0 or more and at most {stop - at - 8} bytes, got {number}, {size}"
            )
        yield at, number, view[at + 8 : at + 8 + size]
        at += 8 + size


def _events(where: str, packet: bytes | memoryview) -> np.ndarray:
    """The records (``EVENT``) of a FlatBuffer EventPacket, whose field 0 is their vector."""
    if _number(where, UINT32, packet, 0) != len(packet) - 4:
        raise ValueError(f"{where}: expected {_number(where, UINT32, packet, 0)} bytes, got {len(packet) - 4}")
    if packet[8:12] != b"EVTS":
        raise ValueError(
            f"{where}: expected a packet of events (EVTS) as before in its stream, got {bytes(packet[8:12])}"
        )
    field = _field(where, packet, 0)
    if field is None:
        return np.empty(0, EVENT)
    vector = field + _number(where, UINT32, packet, field)
    length = _number(where, UINT32, packet, vector)
    if length * EVENT.itemsize > len(packet) - vector - 4:
        raise ValueError(f"{where}: expected {length} events, got the {len(packet) - vector - 4} bytes to its end")
    return np.frombuffer(packet, EVENT, length, vector + 4)


def _field(where: str, buffer: bytes | memoryview, index: int) -> int | None:
    """Where that field of the root table lies in a FlatBuffer with its size before it; None for a default value."""
    table = 4 + _number(where, UINT32, buffer, 4)
    fields = table - _number(where, INT32, buffer, table)
    if 4 + 2 * index + 2 > _number(where, UINT16, buffer, fields):
        return None
    offset = _number(where, UINT16, buffer, fields + 4 + 2 * index)
    return table + offset if offset else None


def _number(where: str, form: struct.Struct, buffer: bytes | memoryview, at: int) -> int:
    if not 0 <= at <= len(buffer) - form.size:
        raise ValueError(f"{where}: expected {form.size} bytes at {at}, got a FlatBuffer of {len(buffer)} bytes")
    return form.unpack_from(buffer, at)[0]


def _unpack(where: str, packed: memoryview, compression: str, limit: int, *, whole: bool = True) -> bytes | memoryview:
    """The bytes of a packet; with ``whole`` more than ``limit`` of them are an error, else they are cut off."""
    if compression == "none":
        return packed if whole else packed[:limit]
    try:
        codec = importlib.import_module(MODULES[compression])
    except ImportError as error:
        raise ValueError(
            f"{where}: expected the package {PACKAGES[compression]}, which unpacks this file, got none (pip install"
            f" {PACKAGES[compression]})"
        ) from error
    pieces = (_pieces_lz4 if compression == "lz4" else _pieces_zstd)(codec, packed, PIECE if whole else limit)
    parts, got = [], 0
    failures = (RuntimeError, ValueError, EOFError) if compression == "lz4" else codec.ZstdError
    try:
        for part in pieces:
            parts.append(part)
            got += len(part)
            if got >= limit:
                break
    except failures as error:
        raise ValueError(f"{where}: expected {compression} data, got some that cannot be unpacked ({error})") from error
    if whole and got > limit:
        raise ValueError(
            f"{where}: expected packets that unpack to at most {GROWTH} times the file's size and {ALLOWANCE} bytes,"
            f" got more"
        )
    return b"".join(parts)


def _pieces_lz4(codec: Any, packed: memoryview, size: int) -> Iterator[bytes]:
    decoder = codec.LZ4FrameDecompressor()
    piece = decoder.decompress(packed, max_length=size)
    yield piece
    while not decoder.eof:
        if decoder.needs_input:
            raise EOFError("it ends too early")
        piece = decoder.decompress(b"", max_length=size)
        yield piece


def _pieces_zstd(codec: Any, packed: memoryview, size: int) -> Iterator[bytes]:
    reader = codec.ZstdDecompressor(max_window_size=WINDOW).stream_reader(packed)
    while piece := reader.read(size):
        yield piece
