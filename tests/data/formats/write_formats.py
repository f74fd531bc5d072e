"""Writers of small files in the formats that tbnn.data.formats reads, from the formats' descriptions."""

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt

from tbnn.data.events import Events

AEDAT2_HEADER = b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n# Timestamps tick is 1 us\r\n"
AEDAT3_HEADER = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#Start-Time: 2017-01-01\r\n#!END-HEADER\r\n"
DAT_HEADER = b"% Data file containing Event2D events.\n% Version 2\n% Date 2017-03-28 16:27:20\n"
EVT_HEADER = b"% Date 2024-01-01 00:00:00\n% integrator_name Prophesee\n% evt %s\n% end\n"
MARKS = (b"EVTS", b"FRME", b"IMUS", b"TRIG")


def random_events(rng: np.random.Generator, n: int, width: int, height: int, duration: int, start: int = 0) -> Events:
    """n events at random places and times in start..start+duration, in order."""
    t = np.sort(rng.integers(0, duration, n)) + start
    x, y = rng.integers(0, width, n).astype(np.int16), rng.integers(0, height, n).astype(np.int16)
    return Events(x, y, t.astype(np.int64), rng.integers(0, 2, n).astype(np.uint8))


def bin_file(events: Events) -> bytes:
    """N-MNIST records; a clock that would pass 23 bits goes on with overflow records."""
    out, overflow = [], 0
    for x, y, t, p in zip(events.x, events.y, events.t, events.p, strict=True):
        while t - overflow >= 1 << 23:
            overflow += 1 << 13
            out.append(bytes([0, 240, 0, 0, 0]))
        out.append(bytes([x, y]) + int(int(p) << 23 | t - overflow).to_bytes(3, "big"))
    return b"".join(out)


def aedat2_file(events: Events) -> bytes:
    """DVS128 addresses; times modulo 2**32."""
    address = (127 - events.y.astype(np.uint32)) << 8 | (127 - events.x.astype(np.uint32)) << 1 | (1 - events.p)
    records = np.stack([address, events.t % (1 << 32)], axis=1).astype(">u4")
    return AEDAT2_HEADER + records.tobytes()


def aedat3_packet(kind: int, size: int, overflow: int, data: bytes, capacity: int | None = None) -> bytes:
    number = len(data) // size
    return struct.pack("<HHIIIIII", kind, 1, size, 4, overflow, capacity or number, number, number) + data


def aedat3_file(events: Events, sizes: npt.NDArray[np.integer]) -> bytes:
    """Polarity packets of those sizes (cut at overflows), each with an event that is not valid, and other packets."""
    out, first = [AEDAT3_HEADER], 0
    word = events.x.astype(np.uint32) << 17 | events.y.astype(np.uint32) << 2 | events.p.astype(np.uint32) << 1 | 1
    stops = np.cumsum(sizes)
    for stop in sorted({*stops.tolist(), *(np.flatnonzero(np.diff(events.t >> 31)) + 1).tolist()}):
        part = slice(first, stop)
        records = np.stack([word[part], events.t[part] & 0x7FFF_FFFF], axis=1).astype("<u4")
        records = np.concatenate([records, [[0x0003_0004, 5]]]).astype("<u4")
        out.append(aedat3_packet(1, 8, int(events.t[first]) >> 31, records.tobytes()))
        out.append(aedat3_packet(0, 8, 0, bytes(16)))
        first = stop
    return b"".join(out)


def flat_table(mark: bytes, fields: list[bytes], tail: bytes = b"") -> bytes:
    """A FlatBuffer with its size before it: one table with these inline fields of 4 or 8 bytes; then ``tail``.

    A field of the bytes ``->`` is an offset to the tail, which must start with its length.
    """
    sizes = [4 if field == b"->" else len(field) for field in fields]
    vtable_size = 4 + 2 * len(fields)
    table = 12 + vtable_size + -(12 + vtable_size + 4) % 8  # fields of 8 bytes start at table + 4, aligned
    order = np.argsort([-size for size in sizes], kind="stable")
    places, at = [0] * len(fields), 4
    for i in order:
        places[i], at = at, at + sizes[i]
    end = table + at
    end += -(end + 4) % 8  # the records after the tail's length are aligned to 8
    out = bytearray(end)
    out[4:8], out[8:12] = struct.pack("<I", table - 4), mark
    struct.pack_into(f"<HH{len(fields)}H", out, 12, vtable_size, at, *places)
    struct.pack_into("<i", out, table, table - 12)
    for field, place in zip(fields, places, strict=True):
        value = struct.pack("<I", end - table - place) if field == b"->" else field
        out[table + place : table + place + len(value)] = value
    out += tail
    struct.pack_into("<I", out, 0, len(out) - 4)
    return bytes(out)


def events_packet(events: Events) -> bytes:
    records = np.zeros(len(events), [("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("on", "u1"), ("pad", "V3")])
    records["t"], records["x"], records["y"], records["on"] = events.t, events.x, events.y, events.p
    return flat_table(b"EVTS", [b"->"], struct.pack("<I", len(events)) + records.tobytes())


def compress(data: bytes, compression: int) -> bytes:
    if compression in (1, 2):
        import lz4.frame

        return lz4.frame.compress(data, compression_level=9 * (compression - 1))
    if compression in (3, 4):
        import zstandard

        return zstandard.ZstdCompressor(level=3 * (compression - 2)).compress(data)
    return data


def aedat4_file(events: Events, sizes: npt.NDArray[np.integer], compression: int = 0, closed: bool = True) -> bytes:
    """Packets of those sizes as stream 1, between packets of streams 0 (triggers) and 2 (other events)."""
    streams = {0: b"TRIG", 1: b"EVTS", 2: b"EVTS"}
    nodes = "".join(
        f'<node name="{i}" path="/{i}/"><attr key="typeIdentifier" type="string">{mark.decode()}</attr>'
        f'<node name="info" path="/{i}/info/"><attr key="sizeX" type="int">346</attr>'
        f'<attr key="sizeY" type="int">260</attr></node></node>'
        for i, mark in streams.items()
    )
    xml = f'<dv version="2.0"><node name="outInfo" path="/">{nodes}</node></dv>'.encode()
    other = events_packet(Events(*(np.ones(3, np.int64) for _ in range(4))))
    body, first = [], 0
    for stop in np.cumsum(sizes).tolist():
        part = slice(first, stop)
        chosen = Events(events.x[part], events.y[part], events.t[part], events.p[part])
        for i, packet in ((0, flat_table(b"TRIG", [b"->"], bytes(4))), (2, other), (1, events_packet(chosen))):
            packed = compress(packet, compression)
            body.append(struct.pack("<ii", i, len(packed)) + packed)
        first = stop
    text = struct.pack("<I", len(xml)) + xml + b"\0"

    def header(position: int) -> bytes:
        return flat_table(b"IOHE", [struct.pack("<i", compression), struct.pack("<q", position), b"->"], text)

    start = len(b"#!AER-DAT4.0\r\n") + len(header(-1))
    position = start + sum(map(len, body)) if closed else -1
    table = compress(flat_table(b"FTAB", []), compression) if closed else b""
    return b"".join([b"#!AER-DAT4.0\r\n", header(position), *body, table])


def dat_file(events: Events) -> bytes:
    word = events.p.astype(np.int64) << 28 | events.y.astype(np.int64) << 14 | events.x
    return DAT_HEADER + b"\x0c\x08" + np.stack([events.t % (1 << 32), word], axis=1).astype("<u4").tobytes()


def evt2_file(events: Events) -> bytes:
    """A TIME_HIGH word wherever the high bits change, and triggers between."""
    words, last = [], None
    for x, y, t, p in zip(*(c.tolist() for c in (events.x, events.y, events.t, events.p)), strict=True):
        high = t >> 6 & 0xFFF_FFFF
        if high != last:
            words += [0x8 << 28 | high, 0xA << 28 | 1, 0x8 << 28 | high]
            last = high
        words.append(p << 28 | (t & 63) << 22 | x << 11 | y)
    return EVT_HEADER.replace(b"%s", b"2.0") + np.array(words, "<u4").tobytes()


def evt3_file(events: Events) -> bytes:
    """Words only where the state changes; neighbours of one time, row and polarity as vectors; triggers between."""
    words: list[int] = []
    state: dict[str, int] = {}

    def put(name: str, value: int, kind: int) -> None:
        if state.get(name) != value:
            words.append(kind << 12 | value)
            state[name] = value

    x, y, t, p = (c.tolist() for c in (events.x, events.y, events.t, events.p))
    i = 0
    while i < len(x):
        if state.get("high") != t[i] >> 12 & 0xFFF:
            state["low"] = 0  # a new TIME_HIGH sets the low bits to 0
        put("high", t[i] >> 12 & 0xFFF, 0x8)
        put("low", t[i] & 0xFFF, 0x6)
        put("y", y[i], 0x0)
        stop = i + 1
        while stop < len(x) and (t[stop], y[stop], p[stop]) == (t[i], y[i], p[i]) and x[stop - 1] < x[stop] < x[i] + 32:
            stop += 1
        if stop - i == 1:
            words.append(0x2 << 12 | p[i] << 11 | x[i])
        else:
            bits = sum(1 << (column - x[i]) for column in x[i:stop])
            words += [0x3 << 12 | p[i] << 11 | x[i], 0x4 << 12 | bits & 0xFFF]
            words += [0x4 << 12 | bits >> 12 & 0xFFF, 0x5 << 12 | bits >> 24]
        words += [0xA << 12, 0x7 << 12, 0xF << 12] if i % 7 == 0 else []
        i = stop
    return EVT_HEADER.replace(b"%s", b"3.0") + np.array(words, "<u2").tobytes()


def npy_file(array: npt.NDArray[np.generic]) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def mat_file(variables: dict[str, npt.NDArray[np.generic]], compressed: bool, order: str = "<") -> bytes:
    """MATLAB version 5 in either byte order, each variable (N, 1)."""
    numbers = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 9, "i8": 12, "u8": 13}
    classes = {"f8": 6, "f4": 7, "i1": 8, "u1": 9, "i2": 10, "u2": 11, "i4": 12, "u4": 13, "i8": 14, "u8": 15}

    def element(kind: int, data: bytes) -> bytes:
        if 0 < len(data) <= 4:
            return struct.pack(order + "I", len(data) << 16 | kind) + data.ljust(4, b"\0")
        return struct.pack(order + "II", kind, len(data)) + data + bytes(-len(data) % 8)

    out = [b"MATLAB 5.0 MAT-file, written by a test".ljust(124), struct.pack(order + "H", 0x0100)]
    out.append(b"IM" if order == "<" else b"MI")
    for name, values in variables.items():
        form = values.dtype.str[1:]
        body = element(6, struct.pack(order + "II", classes[form], 0)) + element(
            5, struct.pack(order + "ii", len(values), 1)
        )
        body += element(1, name.encode()) + element(numbers[form], values.astype(order + form).tobytes())
        matrix = struct.pack(order + "II", 14, len(body)) + body
        packed = zlib.compress(matrix)
        out.append(struct.pack(order + "II", 15, len(packed)) + packed if compressed else matrix)
    return b"".join(out)
