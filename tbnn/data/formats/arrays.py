"""Events in NumPy files (DVS-Lip, tonic's copy of DVS Gesture)."""

import tokenize
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tbnn.data.events import Events
from tbnn.data.formats.checks import TIME_LIMIT, Int64, make_events

NAMES = ("x", "y", "t", "p")
COORDINATE_LIMIT = 1 << 31
MAGIC = b"\x93NUMPY"
HEADER_LIMIT = 10_000  # bytes, NumPy's own limit
REFUSALS = (  # what np.load raises for damaged headers
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    ArithmeticError,
    SyntaxError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)


def read_npy(path: Path, columns: str = "", time_scale: float = 1.0) -> Events:
    """One array: structured (N,) with fields x, y, t and p, or plain (N, 4) with ``columns`` as their order.

    Integers, or floats that are finite and, but for times, whole. Times are multiplied by ``time_scale`` (us in their
    unit) and rounded; their zero is the file's own.
    The file is mapped, never loaded whole; pickled objects are refused.
    """
    array = _mapped(path)
    if array.dtype.names is not None:
        if columns or array.ndim != 1 or not set(NAMES) <= set(array.dtype.names):
            raise ValueError(
                f"{path}: expected a structured array (N,) with fields x, y, t, p and columns '', got {array.shape}"
                f" with {', '.join(array.dtype.names)} and columns {columns!r}"
            )
        found = {name: array[name] for name in NAMES}
    else:
        if sorted(columns) != sorted(NAMES) or array.ndim != 2 or array.shape[1] != len(columns):
            raise ValueError(
                f"{path}: expected an array (N, 4) and columns such as 'xytp', got {array.dtype} {array.shape} and"
                f" columns {columns!r}"
            )
        found = {name: array[:, columns.index(name)] for name in NAMES}
    return events_of(path, found, time_scale, from_zero=False)


def events_of(path: Path, columns: dict[str, npt.NDArray[Any]], time_scale: float, *, from_zero: bool) -> Events:
    """The recording with these columns of numbers (N,), named x, y, t and p."""
    lengths = {name: column.shape for name, column in columns.items()}
    if len(set(lengths.values())) > 1 or len(lengths["x"]) != 1:
        raise ValueError(f"{path}: expected x, y, t and p of one shape (N,), got {lengths}")
    x, y = (whole_numbers(path, name, columns[name]).astype(np.int32) for name in "xy")
    t = whole_numbers(path, "t", columns["t"], time_scale)
    return make_events(path, x, y, t, whole_numbers(path, "p", columns["p"]).astype(np.int8), from_zero=from_zero)


def whole_numbers(path: Path, name: str, column: npt.NDArray[Any], scale: float | None = None) -> Int64:
    """int64 (N,) of the numbers times ``scale``, rounded; with no scale they must be whole and small."""
    limit = {"p": 2, "t": TIME_LIMIT}.get(name, COORDINATE_LIMIT)
    if column.dtype.kind not in "biuf":
        raise ValueError(f"{path}: {name}: expected numbers, got {column.dtype}")
    values = column
    if column.dtype.kind == "f" or scale not in (None, 1.0):
        with np.errstate(over="ignore", invalid="ignore"):
            values = column.astype(np.float64) * (1.0 if scale is None else scale)
    bad = np.flatnonzero(~((values > -limit) & (values < limit)))  # NaN too
    if bad.size:
        raise ValueError(f"{path}: event {bad[0]}: expected a finite {name} below {limit}, got {column[bad[0]]}")
    if values.dtype.kind != "f":
        return values.astype(np.int64)
    rounded = np.rint(values)
    bad = np.flatnonzero(rounded != values)
    if bad.size and scale is None:
        raise ValueError(f"{path}: event {bad[0]}: expected a whole number for {name}, got {column[bad[0]]}")
    return rounded.astype(np.int64)


def _mapped(path: Path) -> npt.NDArray[Any]:
    """The array of a ``.npy`` file, mapped; one that is not exactly as long as its header says is an error."""
    with path.open("rb") as file:
        start = file.read(12)
    if not start.startswith(MAGIC):  # NumPy would take it for a zip archive or a pickle
        raise ValueError(f"{path}: expected a .npy file, which starts with {MAGIC!r}, got {start[: len(MAGIC)]!r}")
    length = int.from_bytes(start[8 : 10 if start[6:7] == b"\x01" else 12], "little")
    if length > HEADER_LIMIT:  # NumPy would allocate it before it looks
        raise ValueError(f"{path}: expected a header of at most {HEADER_LIMIT} bytes, got {length}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that Python 2 wrote
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except REFUSALS as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path}: expected a whole .npy file without objects, got one NumPy refuses ({reason})"
        ) from error
    size, expected = path.stat().st_size, array.offset + array.nbytes
    if size != expected:
        raise ValueError(f"{path}: expected {expected} bytes for {array.dtype} {array.shape}, got {size}")
    return array
