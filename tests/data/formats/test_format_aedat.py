"""AEDAT 2, 3 and 4: written events come back, clocks wrap, other packets are skipped; the package aedat reads the same."""

import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.testing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from write_formats import (
    AEDAT2_HEADER,
    AEDAT3_HEADER,
    aedat2_file,
    aedat3_file,
    aedat3_packet,
    aedat4_file,
    events_packet,
    flat_table,
    random_events,
)

from tbnn.data.events import Events
from tbnn.data.formats import read_file

SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("aedat") / "a.aedat"


def assert_same(got: Events, expected: Events) -> None:
    """Equal but for the time of the first event."""
    for name in "xyp":
        npt.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)
    npt.assert_array_equal(got.t, expected.t - expected.t[0])


def sizes_of(rng: np.random.Generator, total: int) -> np.ndarray:
    """Up to four packet sizes, 1 or more each, that add up to ``total``."""
    cuts = np.unique(rng.integers(1, total, 3)) if total > 1 else np.empty(0, int)
    return np.diff(np.concatenate([[0], cuts, [total]]))


def assert_refused(path: Path, reader: str, data: bytes, message: str) -> None:
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_file(path, reader)
    assert str(error.value).startswith(f"{path}: ")


@given(seed=SEEDS, n=st.integers(1, 60), start=st.sampled_from([0, 5, 2**31 - 500, 2**32 - 500]))
def test_aedat2(path: Path, seed: int, n: int, start: int) -> None:
    events = random_events(np.random.default_rng(seed), n, 128, 128, 1000, start)
    path.write_bytes(aedat2_file(events))
    assert_same(read_file(path, "aedat2"), events)


def test_aedat2_by_hand(path: Path) -> None:
    """The driver's decoding of DVS128: bit 0 clear is ON, columns from the right, rows from the bottom."""
    records = np.array([[0, 1000], [1 | 5 << 1 | 100 << 8, 1007]], ">u4")
    path.write_bytes(AEDAT2_HEADER + records.tobytes())
    events = read_file(path, "aedat2")
    assert events.x.tolist() == [127, 122]
    assert events.y.tolist() == [127, 27]
    assert events.p.tolist() == [1, 0]
    assert events.t.tolist() == [0, 7]


def test_aedat2_special_events_are_left_out(path: Path) -> None:
    records = np.array([[0x8000, 3], [2, 10], [0x8000_0001, 11], [4, 12]], ">u4")
    path.write_bytes(AEDAT2_HEADER + records.tobytes())
    events = read_file(path, "aedat2")
    assert (events.x.tolist(), events.t.tolist()) == ([126, 125], [0, 2])


def test_events_of_one_time_keep_their_order(path: Path) -> None:
    times = np.random.default_rng(0).integers(0, 9, 500).tolist()
    records = [[(i & 127) << 1 | (i >> 7) << 8, t] for i, t in enumerate(times)]
    path.write_bytes(AEDAT2_HEADER + np.array(records, ">u4").tobytes())
    events = read_file(path, "aedat2")
    number = (127 - events.x.astype(int)) + 128 * (127 - events.y.astype(int))
    assert number.tolist() == sorted(range(500), key=times.__getitem__)


def test_events_out_of_turn_are_sorted_in(path: Path) -> None:
    """Up to 65,536 us late; later ones are an error."""
    times = [70_000, 70_005, 70_001, 70_005, 4_469, 70_005]
    records = [[i << 1, t] for i, t in enumerate(times)]
    path.write_bytes(AEDAT2_HEADER + np.array(records, ">u4").tobytes())
    events = read_file(path, "aedat2")
    assert (127 - events.x).tolist() == [4, 0, 2, 1, 3, 5]
    assert (events.t + 4_469).tolist() == sorted(times)
    records[4][1] -= 1
    message = "event 4: expected times in order, or at most 65536 us back, got 4468 us after 70005 us"
    assert_refused(path, "aedat2", AEDAT2_HEADER + np.array(records, ">u4").tobytes(), message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected the header '#!AER-DAT2.0', got b''"),
        (AEDAT3_HEADER, "expected the header '#!AER-DAT2.0', got b'#!AER-DAT3.1'"),
        (AEDAT2_HEADER, f"one or more records of 8 bytes from byte {len(AEDAT2_HEADER)} on, got 0 bytes"),
        (AEDAT2_HEADER + bytes(13), "got 13 bytes .1 whole records and 5 bytes."),
        (
            AEDAT2_HEADER + bytes(8) + struct.pack(">II", 1 << 22, 1),
            f"byte {len(AEDAT2_HEADER) + 8}: .*DVS128 .15 bits., got 0x400000",
        ),
        (AEDAT2_HEADER + struct.pack(">II", 0x8000, 1), "expected at least one event, got none"),
    ],
)
def test_aedat2_damage(path: Path, data: bytes, message: str) -> None:
    assert_refused(path, "aedat2", data, message)


@given(seed=SEEDS, n=st.integers(1, 60), start=st.sampled_from([0, 9, 2**31 - 500, 3 * 2**31 - 500]))
def test_aedat3(path: Path, seed: int, n: int, start: int) -> None:
    rng = np.random.default_rng(seed)
    events = random_events(rng, n, 1 << 15, 1 << 15, 1000, start)
    path.write_bytes(aedat3_file(events, sizes_of(rng, n)))
    assert_same(read_file(path, "aedat3"), events)


def test_aedat3_by_hand(path: Path) -> None:
    data = struct.pack("<IiIi", 6 << 17 | 9 << 2 | 2 | 1, 50, 7 << 17 | 8 << 2 | 1, 52)
    path.write_bytes(
        AEDAT3_HEADER + aedat3_packet(1, 8, 0, data + bytes(8), capacity=3) + aedat3_packet(3, 4, 0, b"1234")
    )
    events = read_file(path, "aedat3")
    assert events.x.tolist() == [6, 7]
    assert events.y.tolist() == [9, 8]
    assert events.p.tolist() == [1, 0]
    assert events.t.tolist() == [0, 2]


PACKET = aedat3_packet(1, 8, 0, struct.pack("<Ii", 1, 5))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected the header '#!AER-DAT3.1', got b''"),
        (AEDAT3_HEADER[:60], "expected a line '#!END-HEADER', got none in 60 bytes"),
        (AEDAT3_HEADER.replace(b"RAW", b"PNG"), "expected AEDAT 3.1 of the format RAW, got b'PNG'"),
        (AEDAT3_HEADER, "expected at least one event, got none"),
        (AEDAT3_HEADER + PACKET[:20], f"byte {len(AEDAT3_HEADER)}: expected a packet header of 28 bytes, got 20 bytes"),
        (
            AEDAT3_HEADER + PACKET[:-1],
            f"byte {len(AEDAT3_HEADER)}: expected a packet of 1 events of 8 bytes, got the 7 bytes to the end",
        ),
        (
            AEDAT3_HEADER + aedat3_packet(0x8001, 8, 0, bytes(8)),
            f"byte {len(AEDAT3_HEADER)}: expected an uncompressed packet",
        ),
        (AEDAT3_HEADER + aedat3_packet(1, 4, 0, bytes(4)), "expected a packet of polarity events"),
        (AEDAT3_HEADER + aedat3_packet(1, 8, 1 << 31, bytes(8)), "expected a packet of polarity events"),
        (AEDAT3_HEADER + aedat3_packet(1, 8, 0, struct.pack("<Ii", 1, -5)), "event 0: expected a time of 0 or later"),
    ],
)
def test_aedat3_damage(path: Path, data: bytes, message: str) -> None:
    assert_refused(path, "aedat3", data, message)


def needs_codec(compression: int) -> None:
    if compression:
        pytest.importorskip("lz4" if compression < 3 else "zstandard")


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("compression", range(5))
def test_aedat4(path: Path, compression: int, closed: bool) -> None:
    """Each compression; a recording that was closed and one that was not; streams 0 and 2 are left out."""
    needs_codec(compression)
    for seed, n in enumerate((1, 2, 63, 500)):
        rng = np.random.default_rng(seed)
        events = random_events(rng, n, 1 << 15, 1 << 15, 100_000, 1_700_000_000_000_000)
        path.write_bytes(aedat4_file(events, sizes_of(rng, n), compression, closed))
        assert_same(read_file(path, "aedat4"), events)


@pytest.mark.parametrize("compression", range(5))
def test_aedat4_as_the_package_aedat(path: Path, compression: int) -> None:
    aedat = pytest.importorskip("aedat")
    needs_codec(compression)
    rng = np.random.default_rng(compression)
    events = random_events(rng, 200, 346, 260, 100_000, 1_700_000_000_000_000)
    path.write_bytes(aedat4_file(events, sizes_of(rng, 200), compression))
    theirs = np.concatenate([packet["events"] for packet in aedat.Decoder(str(path)) if packet["stream_id"] == 1])
    expected = Events(theirs["x"], theirs["y"], theirs["t"].astype(np.int64), theirs["p"])
    assert_same(read_file(path, "aedat4"), expected)


def test_aedat4_lowest_stream_of_events(path: Path) -> None:
    """Also where it comes after a higher one, and after packets without events."""
    events = random_events(np.random.default_rng(0), 5, 10, 10, 100, 7)
    packets = [
        (4, events_packet(replace(events, x=events.x + 1))),
        (3, flat_table(b"EVTS", [])),
        (3, events_packet(events)),
    ]
    body = b"".join(struct.pack("<ii", stream, len(packet)) + packet for stream, packet in packets)
    path.write_bytes(b"#!AER-DAT4.0\r\n" + flat_table(b"IOHE", []) + body)
    assert_same(read_file(path, "aedat4"), events)


def file4(*packets: bytes, compression: int = 0, position: int = -1) -> bytes:
    """One stream, its packets as they are."""
    header = flat_table(b"IOHE", [struct.pack("<i", compression), struct.pack("<q", position)])
    body = b"".join(struct.pack("<ii", 0, len(packet)) + packet for packet in packets)
    return b"#!AER-DAT4.0\r\n" + header + body


START = len(file4())
ONE = events_packet(random_events(np.random.default_rng(0), 1, 10, 10, 10))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected the header b'#!AER-DAT4.0"),
        (b"#!AER-DAT4.0\r\n", "header: expected 4 bytes at 14, got a FlatBuffer of 14 bytes"),
        (b"#!AER-DAT4.0\r\n" + b"\xff" * 8, "header: expected 4294967295 bytes, got 4"),
        (file4(), "expected packets of events .EVTS., got none"),
        (file4(ONE, compression=9), "header: expected a compression of 0..4, got 9"),
        (file4(ONE, position=10_000), rf"closing table in bytes {START}..\d+, got 10000"),
        (
            file4(ONE)[:-1],
            f"packet at byte {START}: expected a stream of 0 or more and at most {len(ONE) - 1} bytes, got 0, {len(ONE)}",
        ),
        (file4(ONE, flat_table(b"IMUS", [])), r"EVTS. as before in its stream, got b'IMUS'"),
        (file4(ONE) + b"123", f"packet at byte {len(file4(ONE))}: expected 8 bytes .stream and size., got 3"),
        (file4(ONE[:-1]), f"packet at byte {START}: expected {len(ONE) - 4} bytes, got {len(ONE) - 5}"),
        (
            file4(ONE[:-20] + b"\x02" + ONE[-19:]),
            f"packet at byte {START}: expected 2 events, got the 16 bytes to its end",
        ),
        (file4(ONE[:-24] + b"\xff" * 4 + ONE[-20:]), f"packet at byte {START}: expected"),
    ],
)
def test_aedat4_damage(path: Path, data: bytes, message: str) -> None:
    assert_refused(path, "aedat4", data, message)


@pytest.mark.parametrize(("compression", "module", "package"), [(1, "lz4.frame", "lz4"), (3, "zstandard", "zstandard")])
def test_aedat4_without_its_package(
    path: Path, monkeypatch: pytest.MonkeyPatch, compression: int, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    message = f"expected the package {package}, which unpacks this file, got none .pip install {package}."
    assert_refused(path, "aedat4", file4(b"1234", compression=compression), message)
