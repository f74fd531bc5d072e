"""Ragged HDF5 files, read once in a process of their own before they are read in ours.

HDF5 puts ragged arrays and texts of free length into heaps without checksums, and does not check what it finds there: on
some altered files it (2.0.0 at least) crashes, or loops for ever, and takes its process along.
"""

import subprocess
import sys
from pathlib import Path

SECONDS = 30.0  # and a second more for each 2 MB
_BYTES_A_SECOND = 2e6
_ROOM = 1 << 30  # bytes of memory beyond what Python takes, and 64 for each byte of the file

_READ_ALL = f"""
import os, sys
import h5py
path = sys.argv[1]
try:
    import resource
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + {_ROOM} + 64 * os.path.getsize(path),) * 2)
except (ImportError, OSError, ValueError):
    pass
def read(name, item):
    if isinstance(item, h5py.Dataset):
        for start in range(0, item.shape[0] if item.shape else 0, 64):
            item[start : start + 64]
try:
    with h5py.File(path, "r") as file:
        file.visititems(read)
except MemoryError:
    sys.exit(3)
except Exception:
    sys.exit(0)  # what can be told, the reader tells
"""


def check_readable(path: Path) -> None:
    """Raise ``ValueError`` when reading all of an HDF5 file crashes, takes too long or too much memory.

    Files that HDF5 refuses by itself pass: opening them tells what is wrong.
    """
    limit = SECONDS + path.stat().st_size / _BYTES_A_SECOND
    try:
        result = subprocess.run(
            [sys.executable, "-I", "-c", _READ_ALL, str(path)], capture_output=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        raise _damaged(path, f"takes HDF5 more than {limit:.0f} s to read") from None
    if result.returncode < 0:
        raise _damaged(path, "crashes HDF5")
    if result.returncode == 3:
        raise _damaged(path, "claims more memory than a file of its size can need")
    if result.returncode:
        raise RuntimeError(f"{path}: the reading process failed: {result.stderr.decode(errors='replace')[-300:]}")


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path}: expected a whole HDF5 file, got one that {what}")
