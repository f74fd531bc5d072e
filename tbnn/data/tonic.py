"""Recordings and transforms of tonic (Lenz et al., https://tonic.readthedocs.io), there and back.

tonic holds a recording as a structured array with fields of the names x, y, t and p in any order, ``t`` in microseconds,
and a sensor's size as (W, H, C), where tbnn has (C, H, W). Its data sets and transforms are objects that are passed in:
nothing here imports tonic, which ``pip install 'tbnn[data]'`` brings.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tbnn.data.events import Events, check_events
from tbnn.data.recordings import Recordings

_FIELDS = np.dtype([("x", np.int64), ("y", np.int64), ("t", np.int64), ("p", np.int64)])


class MapStyle(Protocol):
    """A data set of (structured array, target), as tonic's are."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[npt.NDArray[Any], Any]: ...


def to_tonic(events: Events) -> npt.NDArray[np.void]:
    """A recording as tonic's transforms take it: a structured array (E,) of int64 x, y, t, p; a copy."""
    array = np.empty(len(events), _FIELDS)
    for name in ("x", "y", "t", "p"):
        array[name] = getattr(events, name)
    return array


def from_tonic(array: npt.NDArray[Any], where: str = "from_tonic", channels: int | None = None) -> Events:
    """A structured array of tonic's as a recording; a copy.

    Args:
        array: structured (E,) or (E, 1), with the fields ``x`` and ``t`` and possibly ``y`` and ``p``, in any order; a
            missing one is all zeros (audio has no ``y``). Polarities may be bool or -1/1, -1 becoming 0; times that
            are not whole numbers are rounded down.
        where: how error messages begin.
        channels: of the sensor, where known: with 1, a polarity that is the same for all events becomes 0 (tonic's
            audio has polarity 1 throughout).

    Raises:
        ValueError: another array, pixels that are not whole numbers, times that are not finite, or that run backward.
    """
    names = array.dtype.names or ()
    if array.ndim == 2 and array.shape[1] == 1:  # what tonic makes of MATLAB's columns
        array = array[:, 0]
    if array.ndim != 1 or not {"x", "t"} <= set(names):
        got = f"fields {', '.join(names)}" if names else str(array.dtype)
        raise ValueError(f"{where}: expected a structured array (E,) with fields x and t, got {got} {array.shape}")
    if array["t"].dtype.kind == "f" and not np.isfinite(array["t"]).all():
        raise ValueError(f"{where}: expected finite times, got {array['t'][~np.isfinite(array['t'])][0]}")
    t = np.floor(array["t"]).astype(np.int64)
    backward = np.flatnonzero(t[1:] < t[:-1])
    if backward.size:
        i = backward[0] + 1
        raise ValueError(f"{where}: event {i}: expected times in order, got {t[i]} after {t[i - 1]}")
    return Events(
        x=_whole(array, "x", where),
        y=_whole(array, "y", where) if "y" in names else np.zeros(len(array), np.int64),
        t=t,
        p=_polarity(array, where, channels) if "p" in names else np.zeros(len(array), np.uint8),
    )


def _whole(array: npt.NDArray[Any], name: str, where: str) -> npt.NDArray[np.integer]:
    column = array[name]
    if column.dtype.kind == "b":
        return column.astype(np.uint8)
    if column.dtype.kind not in "iu":
        raise ValueError(f"{where}: {name}: expected whole numbers, got {column.dtype}")
    return np.ascontiguousarray(column).copy()


def _polarity(array: npt.NDArray[Any], where: str, channels: int | None) -> npt.NDArray[np.integer]:
    column = _whole(array, "p", where)
    if channels == 1 and len(column) and (column == column[0]).all():
        return np.zeros_like(column)
    return np.where(column == -1, 0, column) if column.dtype.kind == "i" else column


def transformed(
    events: Events,
    transform: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
    sensor: tuple[int, int, int],
    rng: np.random.Generator | None = None,
) -> Events:
    """What one of ``tonic.transforms`` makes of a recording, in time order (some leave events unordered).

    Args:
        events: a recording, which is not changed.
        transform: from events to events, ``tonic.transforms.Compose`` included; ``ToFrame`` and its like are refused.
        sensor: (C, H, W) of what comes out.
        rng: makes the transform's random numbers reproducible: with that of
            :func:`tbnn.data.augment.sample_rng` the same sample, epoch and seed give the same result. See
            :func:`numpy_seeded`.

    Raises:
        ValueError: a result that is no recording of the sensor: no events, pixels outside, negative times.
    """
    where = type(transform).__name__
    with numpy_seeded(rng) if rng is not None else contextlib.nullcontext():
        array = np.asarray(transform(to_tonic(events)))
    if array.dtype.names and "t" in array.dtype.names:
        array = array[np.argsort(array["t"], kind="stable")]
    result = from_tonic(array, where, sensor[0])
    check_events(result, sensor, where)
    return result


@contextlib.contextmanager
def numpy_seeded(rng: np.random.Generator) -> Iterator[None]:
    """Seed numpy's global generator from ``rng`` inside the block, and put it back as it was afterwards.

    tonic's transforms draw from the global ``np.random``, whose state is one for the whole process: a data loader's
    forked workers all inherit the same, and threads disturb each other, also inside the block.
    """
    state = np.random.get_state()  # noqa: NPY002 - the global generator is what tonic uses
    np.random.seed(rng.integers(1 << 32, size=4, dtype=np.uint64).astype(np.uint32))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def tonic_recordings(dataset: MapStyle, classes: Sequence[str] | None = None, name: str = "") -> Recordings:
    """A data set of tonic's, or any sequence of (structured array, target), as the recordings of a split.

    The labels are those of ``dataset.targets`` where there is one target for each recording and the data set transforms
    no targets; else every recording is read once for its target.

    Args:
        dataset: gives the recordings; read again each time one is asked for.
        classes: names; targets that are text become their number in it.
        name: what the recordings are called in messages, "name/number"; default: the data set's class.

    Raises:
        ValueError: an empty data set, a target that is neither a whole number of 0 or more nor one of ``classes``. Reading
            a recording raises it as :func:`from_tonic` does.
    """
    name = name or type(dataset).__name__
    size = len(dataset)
    sensor_size = getattr(dataset, "sensor_size", None)  # (W, H, C)
    channels = None if sensor_size is None else sensor_size[2]
    if size == 0:
        raise ValueError(f"{name}: expected at least one recording, got none")
    labels = [_label(target, classes, f"{name}/{i}") for i, target in enumerate(_targets(dataset, size))]
    return Recordings(
        labels=np.array(labels, np.int64),
        index=np.arange(size, dtype=np.int64),
        names=[f"{name}/{i}" for i in range(size)],
        read=lambda i: from_tonic(dataset[i][0], f"{name}/{i}", channels),
    )


def _targets(dataset: MapStyle, size: int) -> Sequence[Any]:
    targets = getattr(dataset, "targets", None)
    untouched = all(getattr(dataset, key, None) is None for key in ("target_transform", "transforms"))
    # tonic's data sets that do not know their targets beforehand leave an empty list there.
    if targets is not None and untouched and len(targets) == size:
        return targets
    return [dataset[i][1] for i in range(size)]


def _label(target: Any, classes: Sequence[str] | None, where: str) -> int:
    if isinstance(target, bytes):
        target = target.decode()
    if isinstance(target, str):
        if classes is None or target not in classes:
            given = "no classes" if classes is None else f"the classes {', '.join(classes)}"
            raise ValueError(
                f"{where}: expected a target that is a number or one of classes, got {target!r} and {given}"
            )
        return list(classes).index(target)
    value = np.asarray(target)
    if (
        value.shape != ()
        or value.dtype.kind not in "biu"
        or value < 0
        or (classes is not None and value >= len(classes))
    ):
        limit = "of 0 or more" if classes is None else f"in 0..{len(classes) - 1}"
        raise ValueError(f"{where}: expected a target that is a whole number {limit}, got {target!r}")
    return int(value)
