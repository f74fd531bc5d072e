"""Damaged files of every format: a right answer or one ValueError that names the file, in little time and memory."""

import time
import tracemalloc
from pathlib import Path

import numpy as np
import numpy.testing as npt
import pytest
from mutate import mutations
from write_formats import (
    EVT_HEADER,
    aedat2_file,
    aedat3_file,
    aedat4_file,
    bin_file,
    dat_file,
    evt2_file,
    evt3_file,
    mat_file,
    npy_file,
    random_events,
)

from tbnn.data.events import Events
from tbnn.data.formats import READERS, read_file

CASES, CUTS = 250, 80  # of each file below
SECONDS = 5.0
RATIO, ALLOWANCE = 160, 16 << 20  # the bound of read_file

EVENTS = random_events(np.random.default_rng(5), 150, 128, 128, 300_000)
SIZES = np.array([40, 100, 10])


def structured() -> np.ndarray:
    array = np.zeros(len(EVENTS), [("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "u1")])
    for name in "txyp":
        array[name] = getattr(EVENTS, name)
    return array


def variables() -> dict[str, np.ndarray]:
    return {"x": EVENTS.x.astype("u1"), "y": EVENTS.y, "ts": EVENTS.t.astype("f8"), "pol": EVENTS.p}


def sources() -> list[tuple[str, str, bytes]]:
    """Reader, columns, file."""
    plain = np.stack([EVENTS.x, EVENTS.y, EVENTS.p, EVENTS.t], axis=1).astype("f8")
    return [
        ("bin", "", bin_file(EVENTS)),
        ("aedat2", "", aedat2_file(EVENTS)),
        ("aedat3", "", aedat3_file(EVENTS, SIZES)),
        ("aedat4", "", aedat4_file(EVENTS, SIZES)),
        ("dat", "", dat_file(EVENTS)),
        ("evt2", "", evt2_file(EVENTS)),
        ("evt3", "", evt3_file(EVENTS)),
        ("npy", "", npy_file(structured())),
        ("npy", "xypt", npy_file(plain)),
        ("mat", "", mat_file(variables(), compressed=False)),
        ("mat", "", mat_file(variables(), compressed=True)),
    ]


def read_guarded(path: Path, reader: str, columns: str, data: bytes) -> Events | None:
    """The events of these bytes, or None for the error every defect must give; checks memory and time."""
    path.write_bytes(data)
    tracemalloc.start()
    began = time.perf_counter()
    try:
        events = read_file(path, reader, columns=columns)
    except ValueError as error:
        events, message = None, str(error)
    else:
        message = f"{path}: got it"
    assert message.startswith(f"{path}: ")
    assert "got" in message
    assert time.perf_counter() - began < SECONDS
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= RATIO * len(data) + ALLOWANCE
    return events


def check_shape(events: Events) -> None:
    columns = (events.x, events.y, events.t, events.p)
    assert {column.shape for column in columns} == {(len(events),)}
    assert len(events) > 0
    assert events.x.dtype in (np.int16, np.int32)
    assert events.y.dtype in (np.int16, np.int32)
    assert (events.t.dtype, events.p.dtype) == (np.int64, np.uint8)
    assert min(column.min() for column in columns) >= 0
    assert events.p.max() <= 1
    assert (events.t[1:] >= events.t[:-1]).all()


def test_every_reader_is_here() -> None:
    assert {reader for reader, _, _ in sources()} == set(READERS)


@pytest.mark.parametrize("number", range(len(sources())))
def test_damaged_files(tmp_path: Path, number: int) -> None:
    reader, columns, data = sources()[number]
    refused = 0
    for damaged in mutations(data, np.random.default_rng(number), CASES):
        events = read_guarded(tmp_path / "a", reader, columns, damaged)
        if events is None:
            refused += 1
        else:
            check_shape(events)
    assert 0.4 * CASES < refused < CASES


@pytest.mark.parametrize("compression", [1, 3])
def test_damaged_compressed_files(tmp_path: Path, compression: int) -> None:
    pytest.importorskip("lz4" if compression == 1 else "zstandard")
    data = aedat4_file(EVENTS, SIZES, compression)
    for damaged in mutations(data, np.random.default_rng(compression), CASES):
        events = read_guarded(tmp_path / "a", "aedat4", "", damaged)
        if events is not None:
            check_shape(events)


@pytest.mark.parametrize("number", range(len(sources())))
def test_files_cut_short(tmp_path: Path, number: int) -> None:
    """What is left of a cut file is refused, or it is the first events of the whole one."""
    reader, columns, data = sources()[number]
    for length in np.random.default_rng(number).integers(0, len(data), CUTS):
        events = read_guarded(tmp_path / "a", reader, columns, data[:length])
        if events is None:
            continue
        assert 0 < len(events) <= len(EVENTS)
        whole = read_guarded(tmp_path / "a", reader, columns, data)
        assert whole is not None
        for name in "xytp":
            npt.assert_array_equal(getattr(events, name), getattr(whole, name)[: len(events)])


def dense_vectors(words: int) -> bytes:
    """EVT 3.0 at its densest: 12 events in each word, one of them out of turn."""
    body = np.full(words, 0x4FFF, "<u2")
    body[::100] = 0x3000
    head = np.array([0x8001, 0x6800, 0x0000, 0x3000, 0x4FFF, 0x6700, 0x3000], "<u2")
    return EVT_HEADER.replace(b"%s", b"3.0") + head.tobytes() + body.tobytes()


@pytest.mark.parametrize("reader", ["bin", "aedat2", "aedat4", "dat", "evt2", "evt3", "npy", "mat"])
def test_memory_of_larger_files(tmp_path: Path, reader: str) -> None:
    """At some MB the allowance no longer hides what a reader allocates per byte; an event out of turn adds a sort."""
    n = 200_000
    events = random_events(np.random.default_rng(0), n, 100, 100, 4_000_000)
    events.t[1], events.t[2] = events.t[2], events.t[1]
    narrow = np.zeros(n, [("t", "<u2"), ("x", "u1"), ("y", "u1"), ("p", "?")])
    narrow["t"] = events.t // 64
    files = {
        "aedat2": lambda: aedat2_file(events),
        "aedat4": lambda: aedat4_file(events, np.full(n // 50, 50)),
        "dat": lambda: dat_file(events),
        "evt3": lambda: dense_vectors(300_000),
        "npy": lambda: npy_file(narrow),
        "mat": lambda: mat_file({"x": narrow["x"], "y": narrow["y"], "ts": narrow["t"], "pol": narrow["x"]}, False),
        "evt2": lambda: EVT_HEADER.replace(b"%s", b"2.0") + np.repeat(np.array([1 << 31, 0], "<u4"), n).tobytes(),
        "bin": lambda: bytes([3, 4, 128, 0, 9]) * n,
    }
    data = files[reader]()
    found = read_guarded(tmp_path / "a", reader, "", data)
    assert found is not None
    assert len(found) >= n


@pytest.mark.parametrize("reader", ["lz4", "zstandard", "mat"])
def test_files_that_unpack_to_very_much(tmp_path: Path, reader: str) -> None:
    """64 MiB of events or of numbers in less than 0.4 MB: refused before they are all in memory."""
    if reader == "mat":
        data, times = mat_file({"x": np.zeros(1 << 23)}, compressed=True), 16
    else:
        pytest.importorskip(reader)
        zeros = Events(*(np.zeros(1 << 22, np.int64) for _ in range(4)))
        data, times = aedat4_file(zeros, np.array([1 << 22]), compression=1 if reader == "lz4" else 3), 32
        reader = "aedat4"
    assert len(data) < 400_000
    assert read_guarded(tmp_path / "a", reader, "", data) is None
    with pytest.raises(
        ValueError, match=f"unpack to at most {times} times the file's size and 1048576 bytes, got more"
    ):
        read_file(tmp_path / "a", reader)


def test_a_header_that_claims_to_be_very_long(tmp_path: Path) -> None:
    """Version 2 of .npy gives its header's length in 4 bytes; NumPy allocates that much."""
    data = npy_file(structured())
    lying = data[:6] + b"\x02\x00" + (1 << 31).to_bytes(4, "little") + data[12:]
    assert read_guarded(tmp_path / "a", "npy", "", lying) is None
    with pytest.raises(ValueError, match="expected a header of at most 10000 bytes, got 2147483648"):
        read_file(tmp_path / "a", "npy")


@pytest.mark.parametrize("rare", [0.02, 0.1, 0.25, 0.4])
def test_memory_of_packed_matlab_files(tmp_path: Path, rare: float) -> None:
    """Columns that pack to few bits, up to the limit and past it."""
    n, rng = 400_000, np.random.default_rng(0)
    packed = {name: (rng.random(n) < rare).astype("u1") for name in ("x", "y", "pol")}
    packed["ts"] = np.sort(rng.integers(0, 200, n)).astype("u1")
    packed["ts"][100] += 1
    found = read_guarded(tmp_path / "a", "mat", "", mat_file(packed, compressed=True))
    assert (found is None) == (rare < 0.2)


def test_memory_of_packed_aedat4_files(tmp_path: Path) -> None:
    """Events that LZ4 packs to half a byte each, in one packet, one of them out of turn."""
    pytest.importorskip("lz4")
    t = np.arange(400_000) // 20 * 7
    t[60] = 0
    data = aedat4_file(Events(t * 0 + 5, t // 50 % 100, t, t % 2), np.array([len(t)]), compression=1)
    assert 25 * len(data) < 16 * len(t)
    found = read_guarded(tmp_path / "a", "aedat4", "", data)
    assert found is not None
    assert len(found) == len(t)
