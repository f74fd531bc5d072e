"""DAT, EVT 2.0 and EVT 3.0: written events come back, also from expelliarmus' files, and words decoded by hand."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.testing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from write_formats import DAT_HEADER, EVT_HEADER, dat_file, evt2_file, evt3_file, random_events

from tbnn.data.events import Events
from tbnn.data.formats import read_file

SEEDS = st.integers(0, 2**32 - 1)
EVT2, EVT3 = EVT_HEADER.replace(b"%s", b"2.0"), EVT_HEADER.replace(b"%s", b"3.0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prophesee")


def assert_same(got: Events, expected: Events) -> None:
    """Equal but for the time of the first event."""
    for name in "xyp":
        npt.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)
    npt.assert_array_equal(got.t, expected.t - expected.t[0])


def read(folder: Path, reader: str, data: bytes) -> Events:
    path = folder / ("a.dat" if reader == "dat" else "a.raw")
    path.write_bytes(data)
    return read_file(path, reader)


@given(seed=SEEDS, n=st.integers(1, 60), start=st.sampled_from([0, 5, 2**32 - 500]))
def test_dat(folder: Path, seed: int, n: int, start: int) -> None:
    events = random_events(np.random.default_rng(seed), n, 1 << 14, 1 << 14, 1000, start)
    assert_same(read(folder, "dat", dat_file(events)), events)


@given(seed=SEEDS, n=st.integers(1, 60), start=st.sampled_from([0, 5, 2**32 - 500, 2**34 - 500]))
def test_evt2(folder: Path, seed: int, n: int, start: int) -> None:
    events = random_events(np.random.default_rng(seed), n, 2048, 2048, 1000, start)
    assert_same(read(folder, "evt2", evt2_file(events)), events)


@given(seed=SEEDS, n=st.integers(1, 200), start=st.sampled_from([0, 5, 2**24 - 5000, 5 * 2**24 - 5000]))
def test_evt3(folder: Path, seed: int, n: int, start: int) -> None:
    """Few rows and times, so that many events come as vectors; the clock passes 2**12 and 2**24."""
    events = random_events(np.random.default_rng(seed), n, 2048 if n < 20 else 40, 2, 100, 0)
    events = replace(events, t=events.t // 10 * 1000 + start)
    order = np.lexsort((events.x, events.p, events.y, events.t))
    events = Events(events.x[order], events.y[order], events.t[order], events.p[order])
    assert_same(read(folder, "evt3", evt3_file(events)), events)


def test_evt3_by_hand(folder: Path) -> None:
    """Each kind of word; the low bits of the clock start again with a new TIME_HIGH, before TIME_LOW says so."""
    words = [
        *(0x2001, 0x0805, 0x8FFE, 0x6FFF),  # event without a time: left out; row 5; 0xFFEFFF us
        *(0x2803, 0x2004),  # ON in column 3, OFF in column 4
        *(0x8FFF, 0x2005, 0x6001, 0x8FFF, 0x2006),  # at 0xFFF000, then at 0xFFF001 (the same TIME_HIGH again)
        *(0x380A, 0x4801, 0x5081, 0x4001),  # ON from column 10: 10, 21; 22, 29; 30
        *(0x2007, 0x0006, 0x5003, 0xA001, 0x7001, 0xE001, 0xF001),  # OFF in 7; row 6: ON in 42, 43
        *(0x8000, 0x2001),  # the clock has wrapped
    ]
    events = read(folder, "evt3", EVT3 + np.array(words, "<u2").tobytes())
    assert events.x.tolist() == [3, 4, 5, 6, 10, 21, 22, 29, 30, 7, 42, 43, 1]
    assert events.y.tolist() == [5] * 10 + [6] * 3
    assert events.p.tolist() == [1, 0, 0, 0, 1, 1, 1, 1, 1, 0, 1, 1, 0]
    assert events.t.tolist() == [0, 0, 1, *[2] * 9, 0x1001]


def test_evt2_by_hand(folder: Path) -> None:
    words = [0x1000_0000, 0x8000_0002, 1 << 28 | 3 << 22 | 7 << 11 | 9, 0xA000_0001, 0x8000_0003, 5 << 11 | 6]
    events = read(folder, "evt2", EVT2 + np.array(words, "<u4").tobytes())
    assert (events.x.tolist(), events.y.tolist(), events.p.tolist()) == ([7, 5], [9, 6], [1, 0])
    assert events.t.tolist() == [0, 3 * 64 - (2 * 64 + 3)]


def test_n_cars_by_hand(folder: Path) -> None:
    data = DAT_HEADER + b"\x00\x08" + struct.pack("<IIII", 70, 1 << 28 | 99 << 14 | 119, 72, 3 << 14 | 2)
    events = read(folder, "dat", data)
    assert (events.x.tolist(), events.y.tolist(), events.p.tolist()) == ([119, 2], [99, 3], [1, 0])
    assert events.t.tolist() == [0, 2]


@pytest.mark.parametrize("encoding", ["dat", "evt2", "evt3"])
def test_files_of_expelliarmus(folder: Path, encoding: str) -> None:
    """Its files read as the events they were made of, and its reader agrees; EVT 3.0 below 4,096 us only.

    expelliarmus 1.1.12 writes TIME_HIGH once, at the start, and reading it adds 4,096 us where TIME_LOW falls even if
    TIME_HIGH has said so.
    """
    wizard = pytest.importorskip("expelliarmus").Wizard(encoding=encoding)
    path = folder / ("e.dat" if encoding == "dat" else "e.raw")
    for seed, n in enumerate((1, 2, 63, 5000)):
        duration = 3000 if encoding == "evt3" else 2_000_000
        events = random_events(np.random.default_rng(seed), n, 1280, 720, duration, 1000)
        array = np.zeros(n, [("t", np.int64), ("y", np.int16), ("x", np.int16), ("p", np.uint8)])
        for name in "tyxp":
            array[name] = getattr(events, name)
        wizard.save(fpath=path, arr=array)
        assert_same(read_file(path, encoding), events)
        theirs = wizard.read(path)
        assert_same(read_file(path, encoding), Events(*(theirs[name] for name in "xytp")))


@pytest.mark.parametrize(
    ("reader", "data", "message"),
    [
        ("dat", b"", "expected a header of lines that start with '% ', .* got a file that starts with b''"),
        ("dat", b"\x00\x08" + bytes(8), "expected a header of lines"),
        ("dat", DAT_HEADER.replace(b"Version 2", b"Version 1"), "expected version 2 of DAT, got '1'"),
        (
            "dat",
            DAT_HEADER,
            rf"byte {len(DAT_HEADER)}: expected an event type of \(0, 12, 40\) and the record size 8, got \(\)",
        ),
        ("dat", DAT_HEADER + b"\x0e\x10", r"the record size 8, got \(14, 16\)"),
        (
            "dat",
            DAT_HEADER + b"\x00\x08",
            f"one or more records of 8 bytes from byte {len(DAT_HEADER) + 2} on, got 0 bytes",
        ),
        ("dat", DAT_HEADER + b"\x00\x08" + bytes(15), "got 15 bytes .1 whole records and 7 bytes."),
        ("dat", DAT_HEADER + b"\x00\x08" + b"\xff" * 8, "event 0: expected p of 0 or 1, got 15"),
        ("dat", b"% " + b"x" * 70_000 + b"\n", "at most 65536 bytes, got 70003 bytes"),
        ("evt2", EVT3 + bytes(4), "expected a header that says 'evt 2.0', got '3.0'"),
        ("evt3", EVT2 + bytes(4), "expected a header that says 'evt 3.0', got '2.0'"),
        ("evt3", b"% format EVT21;height=720;width=1280\n% end\n" + bytes(8), "'evt 3.0', got '2.1'"),
        ("evt2", b"% evt 2.0\n% endianness big\n", "expected little-endian data, got 'big'"),
        ("evt2", EVT2, "one or more records of 4 bytes"),
        ("evt2", EVT2 + bytes(6), "got 6 bytes .1 whole records and 2 bytes."),
        ("evt2", EVT2 + bytes(8), "expected at least one event, got none"),
        ("evt2", EVT2 + bytes(4) + struct.pack("<I", 5 << 28), r"byte \d+: expected a word of one .*, got kind 5"),
        ("evt3", EVT3, "one or more records of 2 bytes"),
        ("evt3", EVT3 + bytes(3), "got 3 bytes .1 whole records and 1 bytes."),
        ("evt3", EVT3 + struct.pack("<H", 1 << 12), "got kind 1"),
        ("evt3", EVT3 + struct.pack("<H", 2 << 12), "events after a TIME_HIGH word, got none in 1 words"),
        ("evt3", EVT3 + struct.pack("<HH", 8 << 12, 2 << 12), "expected ADDR_Y before the first events"),
        (
            "evt3",
            EVT3 + struct.pack("<HHHH", 8 << 12, 0x6FFF, 0x6000, 0x2001),
            "TIME_LOW falls from 4095 to 0, got none",
        ),
        ("evt3", EVT3 + struct.pack("<HHH", 8 << 12, 0, 0x4001), "expected VECT_BASE_X before the first events"),
        ("evt3", EVT3 + struct.pack("<HHHHH", 8 << 12, 0, 0x37FF, 0x4000, 0x5001), "columns 0..2047, got column 2059"),
    ],
)
def test_damage(folder: Path, reader: str, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read(folder, reader, data)
    assert str(error.value).startswith(f"{folder}")


def test_a_header_that_names_the_format(folder: Path) -> None:
    words = struct.pack("<HHHH", 8 << 12, 0, 0x2001, 0x2002)
    events = read(folder, "evt3", b"% format EVT3;height=720;width=1280\n% end\n" + words)
    assert events.x.tolist() == [1, 2]


def test_data_that_looks_like_a_header_line(folder: Path) -> None:
    """After '% end' words may start with the bytes of '% '."""
    words = struct.pack("<HHHH", 0x2025, 8 << 12, 0, 0x2002)
    assert words.startswith(b"% ")
    assert read(folder, "evt3", EVT3 + words).x.tolist() == [2]
