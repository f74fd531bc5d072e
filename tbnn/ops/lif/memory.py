"""Large arrays that are used again: the first touch of fresh memory costs more than the scan that fills it.

A freed buffer waits here for the next array of its size. The system may take its pages whenever memory is short
(``MADV_FREE``), and no more than ``MOST`` bytes wait.
"""

import math
import mmap
import weakref

import numpy as np
import torch
from torch import Tensor

from tbnn.ops.kernels import fresh

SMALLEST = 1 << 22  # bytes: below, malloc itself keeps what was freed
HUGE_PAGE = 1 << 21
MOST = 1 << 30

_waiting: list[mmap.mmap] = []  # oldest first. No lock: each list operation is atomic, and a finalizer may run anywhere


def reused(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """As :func:`tbnn.ops.kernels.fresh`: uninitialised memory, a freed array's where one of this size waits."""
    size = math.prod(shape) * dtype.itemsize
    if size < SMALLEST or not hasattr(mmap, "MADV_FREE"):
        return fresh(shape, dtype)
    buffer = _take(-(-size // HUGE_PAGE) * HUGE_PAGE)
    memory = np.frombuffer(buffer, np.uint8, size)
    weakref.finalize(memory, _give, buffer).atexit = False
    return torch.from_numpy(memory).view(dtype).view(shape)


def _take(size: int) -> mmap.mmap:
    for buffer in tuple(_waiting):
        if len(buffer) == size:
            try:
                _waiting.remove(buffer)
            except ValueError:  # another thread was faster
                continue
            return buffer
    buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


def _give(buffer: mmap.mmap) -> None:
    buffer.madvise(mmap.MADV_FREE)
    _waiting.append(buffer)
    while sum(len(b) for b in tuple(_waiting)) > MOST:
        _waiting.pop(0)
