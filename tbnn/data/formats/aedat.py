"""AEDAT 2.0 (recordings of a DVS128, as CIFAR10-DVS) and AEDAT 3.1 (DVS128 Gesture)."""

import re
import struct
from pathlib import Path

import numpy as np

from tbnn.data.events import Events
from tbnn.data.formats.checks import header_length, make_events, unwrap, whole_records

MAGIC_2, MAGIC_3 = b"#!AER-DAT2.0", b"#!AER-DAT3.1"
SPECIAL = 0x8000_8000  # address bits of external and of other special events, which are no pixel's
END_3 = re.compile(rb"^#!END-HEADER\r?\n", re.MULTILINE)
PACKET = struct.Struct("<HHIIIIII")
POLARITY = 1  # packet type
RECORD_2 = np.dtype([("address", ">u4"), ("time", ">u4")])
RECORD_3 = np.dtype([("data", "<u4"), ("time", "<i4")])


def read_aedat2(path: Path) -> Events:
    """AEDAT 2.0 with DVS128 addresses: ``#`` lines, then big-endian records: address u4, time in us u4.

    Address bit 0 is 1 for OFF, bits 1-7 count columns from the right, bits 8-14 count rows from the bottom; x and y
    are given here from the top left, ``p = 1 - bit 0``, as jAER (``DVS128.java``) and the camera's drivers have them.
    SpikingJelly's CIFAR10DVS, after the dataset's ``dat2mat.m``, gives the same events with x and y exchanged.
    Special events (bit 15 or 31) are left out. The clock may wrap at 2**32. Times count from the first event.
    """
    data = path.read_bytes()
    if not data.startswith(MAGIC_2):
        raise ValueError(f"{path}: expected the header {MAGIC_2.decode()!r}, got {data[:12]!r}")
    start = header_length(data, b"#")
    whole_records(path, data, start, RECORD_2.itemsize)
    records = np.frombuffer(data, RECORD_2, offset=start)
    t = unwrap(records["time"].astype(np.int64), 32)
    address = records["address"].astype(np.uint32)
    pixel = (address & SPECIAL) == 0
    address, t = address[pixel], t[pixel]
    bad = np.flatnonzero(address >> 15)
    if bad.size:
        at = start + 8 * np.flatnonzero(pixel)[bad[0]]
        raise ValueError(f"{path}: byte {at}: expected the address of a DVS128 (15 bits), got {address[bad[0]]:#x}")
    x, y = 127 - (address >> 1 & 127).astype(np.int16), 127 - (address >> 8 & 127).astype(np.int16)
    return make_events(path, x, y, t, (1 - (address & 1)).astype(np.uint8), from_zero=True)


def read_aedat3(path: Path, *, from_zero: bool = True) -> Events:
    """AEDAT 3.1, uncompressed: ``#`` lines up to ``#!END-HEADER``, then packets of one event type each.

    A packet's header is 28 bytes, little-endian: type u2, source u2, size of an event u4, offset of its time u4,
    overflows of its clock u4 (2**31 us each), capacity u4, number of events u4, valid events u4. A polarity event
    (type 1) is data u4 (bit 0 valid, bit 1 polarity, bits 2-16 y, bits 17-31 x) and time i4. Packets of other types
    and events that are not valid are left out. Times count from the first event.

    Source: iniVation's description of AEDAT 3.1.
    """
    data = path.read_bytes()
    if not data.startswith(MAGIC_3):
        raise ValueError(f"{path}: expected the header {MAGIC_3.decode()!r}, got {data[:12]!r}")
    end = END_3.search(data)
    if end is None:
        raise ValueError(f"{path}: expected a line '#!END-HEADER', got none in {len(data)} bytes")
    form = re.search(rb"^#Format: *([^\r\n]*)", data[: end.start()], re.MULTILINE)
    if form is not None and form[1].strip() != b"RAW":
        raise ValueError(f"{path}: expected AEDAT 3.1 of the format RAW, got {form[1][:40]!r}")
    starts, numbers, overflows = _polarity_packets(path, data, end.end())
    parts = [np.frombuffer(data, RECORD_3, number, at) for at, number in zip(starts, numbers, strict=True)]
    records = np.concatenate([np.empty(0, RECORD_3), *parts])
    records_overflows = np.repeat(np.array(overflows, np.int64), numbers)
    valid = (records["data"] & 1) == 1
    word, time = records["data"][valid], records["time"][valid]
    bad = np.flatnonzero(time < 0)
    if bad.size:
        raise ValueError(f"{path}: event {bad[0]}: expected a time of 0 or later, got {time[bad[0]]}")
    t = (records_overflows[valid] << 31) + time
    x, y = (word >> 17).astype(np.int16), (word >> 2 & 0x7FFF).astype(np.int16)
    return make_events(path, x, y, t, (word >> 1 & 1).astype(np.uint8), from_zero=from_zero)


def _polarity_packets(path: Path, data: bytes, at: int) -> tuple[list[int], list[int], list[int]]:
    """Where the events of each polarity packet start, their number, and the overflows of the packet's clock."""
    starts, numbers, overflows = [], [], []
    while at < len(data):
        if len(data) - at < PACKET.size:
            raise ValueError(f"{path}: byte {at}: expected a packet header of 28 bytes, got {len(data) - at} bytes")
        kind, _, size, time_offset, overflow, capacity, number, _ = PACKET.unpack_from(data, at)
        start, length = at + PACKET.size, size * capacity
        if length > len(data) - start:
            raise ValueError(
                f"{path}: byte {at}: expected a packet of {capacity} events of {size} bytes, got the"
                f" {len(data) - start} bytes to the end of the file"
            )
        if kind & 0x8000:
            raise ValueError(f"{path}: byte {at}: expected an uncompressed packet, got a compressed one (type {kind})")
        if kind == POLARITY:
            if (size, time_offset) != (8, 4) or number > capacity or overflow >= 1 << 30:
                raise ValueError(
                    f"{path}: byte {at}: expected a packet of polarity events (8 bytes, time at 4, no more of them than"
                    f" its capacity, below 2**30 overflows), got {size} bytes, time at {time_offset}, {number} events,"
                    f" capacity {capacity}, {overflow} overflows"
                )
            starts.append(start)
            numbers.append(number)
            overflows.append(overflow)
        at = start + length
    return starts, numbers, overflows
