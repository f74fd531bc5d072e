"""Reading HDF5 files of unknown quality: each defect becomes one ``ValueError`` that names the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import h5py

_MOST_GROWTH = 1100  # deflate's limit is 1,032
_KINDS = {"i": "integers", "f": "floats", "S": "texts", "O": "arrays or texts of free length"}


@contextmanager
def open_hdf5(path: Path) -> Iterator["h5py.File"]:
    """Open an existing file for reading; a damaged one is a ``ValueError``, wherever in the block it shows."""
    import h5py  # slow to import

    try:
        with h5py.File(path, "r") as file:
            yield file
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError) as error:
        if str(error).startswith(str(path)):
            raise
        reason = str(error).strip("'\"")  # the rest is what h5py raises for truncated and damaged files
        raise ValueError(f"{path}: expected a whole HDF5 file, got one that cannot be read ({reason})") from error


def get_group(file: "h5py.File", name: str, path: Path) -> "h5py.Group":
    """The group of that name."""
    import h5py

    found = file.get(name)
    if not isinstance(found, h5py.Group):
        raise ValueError(f"{path}: expected a group {name!r}, got {_kind(found)} (the file has: {', '.join(file)})")
    return found


def get_dataset(group: "h5py.Group", name: str, path: Path, ndim: int, kinds: str = "biu") -> "h5py.Dataset":
    """The dataset of that name, with ``ndim`` axes and a dtype of one of the NumPy ``kinds``.

    One that claims more than 1,100 times the file's size and a MiB is refused: no compression goes that far.
    """
    import h5py

    found = group.get(name)
    where = f"{path}: {(group.name or '').rstrip('/')}/{name}"
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{where}: expected a dataset, got {_kind(found)} (the group has: {', '.join(group)})")
    if len(found.shape or ()) != ndim or found.dtype.kind not in kinds:
        expected = " or ".join(_KINDS[kind] for kind in kinds if kind in _KINDS)
        raise ValueError(f"{where}: expected {expected} with {ndim} axes, got {found.dtype} {found.shape}")
    most = _MOST_GROWTH * path.stat().st_size + (1 << 20)
    if found.size * found.dtype.itemsize > most:
        raise ValueError(
            f"{where}: expected at most {most:,} bytes in a file of this size, got {found.dtype} {found.shape}"
        )
    return found


def _kind(found: object) -> str:
    return "none" if found is None else f"a {type(found).__name__.lower()}"
