"""NumPy and MATLAB files: written events come back in every type; SciPy reads and writes the same MATLAB files."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.testing as npt
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st
from write_formats import mat_file, npy_file, random_events

from tbnn.data.events import Events, Sensor
from tbnn.data.formats import READERS, read_file

SEEDS = st.integers(0, 2**32 - 1)
DVS_LIP = [("t", "<u4"), ("x", "<i2"), ("y", "<i2"), ("p", "i1"), ("frame", "<i8")]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arrays") / "a"


def assert_same(got: Events, expected: Events) -> None:
    for name in "xytp":
        npt.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)


def structured(events: Events, dtype: list[tuple[str, str]] = DVS_LIP) -> np.ndarray:
    array = np.zeros(len(events), dtype)
    for name in "xytp":
        array[name] = getattr(events, name)
    return array


def variables(events: Events, form: str = "f8") -> dict[str, np.ndarray]:
    columns = {"ts": events.t, "x": events.x, "y": events.y, "pol": events.p, "other": np.arange(3)}
    return {name: column.astype(form) for name, column in columns.items()}


@given(seed=SEEDS, n=st.integers(1, 60), clock=st.sampled_from(["<i4", ">u8", "<f8"]), pixel=st.sampled_from("BHf"))
def test_structured(path: Path, seed: int, n: int, clock: str, pixel: str) -> None:
    events = random_events(np.random.default_rng(seed), n, 128, 128, 1_000_000, 40)
    dtype = [("p", "?"), ("x", pixel), ("y", pixel), ("t", clock)]
    path.write_bytes(npy_file(structured(events, dtype)))
    assert_same(read_file(path, "npy"), events)


@given(seed=SEEDS, n=st.integers(1, 60), columns=st.permutations("xytp"), fortran=st.booleans())
def test_plain(path: Path, seed: int, n: int, columns: list[str], fortran: bool) -> None:
    """Times in milliseconds, as in tonic's copy of DVS Gesture; either memory order."""
    events = random_events(np.random.default_rng(seed), n, 128, 128, 1_000_000, 40)
    array = np.stack([getattr(events, name) / (1000 if name == "t" else 1) for name in columns], axis=1)
    path.write_bytes(npy_file(np.asfortranarray(array) if fortran else array))
    assert_same(read_file(path, "npy", columns="".join(columns), time_scale=1000), events)


PLAIN = np.arange(8.0).reshape(2, 4) % 2
ONE = np.ones(2, DVS_LIP)


@pytest.mark.parametrize(
    ("data", "columns", "message"),
    [
        (b"", "", r"expected a .npy file, which starts with b'\\x93NUMPY', got b''"),
        (b"PK\x03\x04" + bytes(40), "", "expected a .npy file, which starts with"),
        (npy_file(ONE)[:20], "", "expected a whole .npy file without objects, got one NumPy refuses"),
        (npy_file(ONE)[:-1], "", "expected a whole .npy file without objects"),
        (npy_file(ONE) + b"1", "", f"expected {len(npy_file(ONE))} bytes for .*, got {len(npy_file(ONE)) + 1}"),
        (
            npy_file(ONE).replace(b"(2,)", b"(1,)"),
            "",
            f"expected {len(npy_file(ONE)) - 17} bytes for .*, got {len(npy_file(ONE))}",
        ),
        (npy_file(ONE).replace(b"(2,)", b"(-2,)"), "", "expected"),
        (npy_file(np.array([{}, 1])), "", "without objects"),
        (npy_file(np.ones(2, DVS_LIP[:3])), "", "expected a structured array .* with t, x, y and columns ''"),
        (npy_file(ONE[:, None]), "", r"expected a structured array \(N,\) .* got \(2, 1\)"),
        (npy_file(ONE), "xypt", "and columns 'xypt'"),
        (npy_file(ONE[:0]), "", "expected"),
        (
            npy_file(PLAIN),
            "",
            r"expected an array \(N, 4\) and columns such as 'xytp', got float64 \(2, 4\) and columns ''",
        ),
        (npy_file(PLAIN), "xyyt", "columns 'xyyt'"),
        (npy_file(PLAIN.astype("S1")), "xypt", r"x: expected numbers, got \|S1"),
        (npy_file(PLAIN + 1j), "xypt", "x: expected numbers, got complex128"),
        (npy_file(PLAIN + 0.5), "xypt", "event 0: expected a whole number for x, got 0.5"),
        (npy_file(PLAIN - 1), "xypt", "event 0: expected x of 0 or more, got -1"),
        (npy_file(PLAIN * [1, 1, 3, 1]), "xptx", "columns 'xptx'"),
        (npy_file(PLAIN * 1e300), "yxpt", "event 0: expected a finite x below 2147483648, got 1e[+]300"),
        (
            npy_file(np.array([[0, 0, 1, np.nan]])),
            "xypt",
            "event 0: expected a finite t below 4611686018427387904, got nan",
        ),
        (npy_file(np.array([[0, 0, 1, np.inf]])), "xypt", "event 0: expected a finite t"),
        (npy_file(np.array([[0, 0, 1, 2**63]], np.uint64)), "xypt", "event 0: expected a finite t"),
        (npy_file(np.array([[0, 0, 2, 1]])), "xypt", "event 0: expected a finite p below 2, got 2"),
        (npy_file(np.array([[0, 0, -1, 1]])), "xypt", "event 0: expected p of 0 or 1, got -1"),
        (npy_file(np.array([[0, 0, 1, -9]])), "xypt", "expected times of 0 or later, got -9 us"),
    ],
)
def test_npy_damage(path: Path, data: bytes, columns: str, message: str) -> None:
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_file(path, "npy", columns=columns)
    assert str(error.value).startswith(f"{path}: ")


@given(
    seed=SEEDS,
    n=st.integers(1, 60),
    form=st.sampled_from(["f8", "f4", "i4", "u4", "i8", "u8", "i2", "u2"]),
    compressed=st.booleans(),
    order=st.sampled_from("<>"),
)
def test_mat(path: Path, seed: int, n: int, form: str, compressed: bool, order: str) -> None:
    events = random_events(np.random.default_rng(seed), n, 240, 180, 20_000, 300)
    path.write_bytes(mat_file(variables(events, form), compressed, order))
    theirs = scipy.io.loadmat(path)
    assert_same(Events(*(theirs[name].ravel() for name in ("x", "y", "ts", "pol"))), events)
    expected = Events(events.x, 179 - events.y, events.t - events.t[0], events.p)
    assert_same(read_file(path, "mat", sensor=Sensor(2, 180, 240), flip_y=True), expected)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("column", [True, False])
def test_mat_files_of_scipy(path: Path, compressed: bool, column: bool) -> None:
    for seed, n in enumerate((1, 2, 3, 63, 5000)):
        events = random_events(np.random.default_rng(seed), n, 240, 180, 20_000)
        shape = (-1, 1) if column else (1, -1)
        columns = {name: values.reshape(shape) for name, values in variables(events, "u2").items()}
        columns |= {"text": np.array(["abc"]), "cell": np.array([1, "b"], object), "z": np.array([[1j]])}
        scipy.io.savemat(path, columns, do_compression=compressed, appendmat=False)
        got = read_file(path, "mat", time_scale=10)
        assert_same(got, Events(events.x, events.y, (events.t - events.t[0]) * 10, events.p))


MAT = mat_file(variables(random_events(np.random.default_rng(0), 9, 9, 9, 9), "u1"), compressed=False)
ZIP = mat_file(variables(random_events(np.random.default_rng(0), 9, 9, 9, 9), "u1"), compressed=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"expected a MATLAB file of version 5, got b'' \(0 bytes\)"),
        (MAT[:124] + b"\x00\x02IM", "version 7.3, an HDF5 file"),
        (MAT[:128], r"expected the variables x, y, ts, pol, got only those for \[\]"),
        (MAT.replace(b"pol", b"pil"), r"only those for \['t', 'x', 'y'\]"),
        (MAT[:132], "byte 128: expected a tag of 8 bytes, got 4"),
        (MAT[:-1], r"byte \d+: expected an element of \d+ bytes, got the \d+ bytes to the end"),
        (ZIP[:-1], r"byte \d+: expected an element of"),
        (ZIP[:140] + b"\xff" + ZIP[141:], "byte 128: expected zlib data"),
        (MAT[:128] + b"\x01\x00\x00\x00\x08\x00\x00\x00" + bytes(8), r"byte 128: expected a matrix \(14\), got type 1"),
        (MAT[:144] + b"\x04" + MAT[145:], "byte 128: ts: expected real numbers, got class 4, type 2"),
        (MAT[:145] + b"\x08" + MAT[146:], "byte 128: ts: expected real numbers"),
        (
            MAT[:160] + b"\x08" + MAT[161:],
            r"byte 128: ts: expected a matrix \(N, 1\) or \(1, N\), got \(8, 1\) and 9 bytes",
        ),
        (MAT[:164] + b"\x02" + MAT[165:], r"got \(9, 2\)"),
        (mat_file({n: np.ones(3 + (n == "x")) for n in ("x", "y", "ts", "pol")}, True), r"of one shape \(N,\), got"),
    ],
)
def test_mat_damage(path: Path, data: bytes, message: str) -> None:
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_file(path, "mat")
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("reader", "arguments", "message"),
    [
        ("csv", {}, "expected a reader of bin, aedat2, aedat3, aedat4, dat, evt2, evt3, npy, mat, got 'csv'"),
        ("bin", {"columns": "xypt"}, "expected columns with the reader npy only, got 'xypt' with bin"),
        (
            "bin",
            {"time_scale": 1000.0},
            "a time_scale above 0, and 1 with readers but npy and mat, got 1000.0 with bin",
        ),
        ("npy", {"time_scale": 0.0}, "expected a time_scale above 0"),
        ("npy", {"time_scale": float("nan")}, "expected a time_scale above 0"),
        ("npy", {"flip_y": True}, "expected a sensor to flip rows on, got none"),
        ("npy", {"flip_y": True, "sensor": Sensor(2, 1, 5)}, "event 0: expected y in 0..0 to flip, got 1"),
    ],
)
def test_arguments(path: Path, reader: str, arguments: dict[str, Any], message: str) -> None:
    path.write_bytes(npy_file(ONE))
    with pytest.raises(ValueError, match=message) as error:
        read_file(path, reader, **arguments)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("reader", READERS)
def test_a_missing_file(tmp_path: Path, reader: str) -> None:
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none", reader)
