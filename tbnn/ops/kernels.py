"""How a numba kernel is declared, compiled once per machine, and given its threads."""

import functools
import logging
import time
from collections.abc import Callable
from typing import Any, overload

import numba
import numpy as np
import torch
from numba.core import config
from torch import Tensor

logger = logging.getLogger("tbnn")

# `parallel=True` loops below this many elements run on one thread: waking a second costs more than it saves.
SERIAL_BELOW = 1 << 15

MOST_THREADS: int = config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue]


NUMPY_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}

device_function = numba.njit(inline="never", error_model="numpy", nogil=True, cache=True)
"""A helper that kernels call: compiled, cached, never called from Python on a hot path."""


class Kernel:
    """A compiled function that announces its one-off compilation and follows torch's thread count.

    No ``fastmath``: a kernel rounds after every operation, as torch does, so that both give the same bits.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = function.__name__
        self.__doc__ = function.__doc__
        self.dispatcher: Any = numba.njit(parallel=True, error_model="numpy", nogil=True, cache=True)(function)

    def __call__(self, *args: Any, work: int = SERIAL_BELOW) -> Any:
        """Run the kernel; ``work`` is the number of elements it touches, which decides about threads."""
        _start_pool()
        threads = 1 if work < SERIAL_BELOW else min(torch.get_num_threads(), MOST_THREADS)
        if numba.get_num_threads() != threads:
            numba.set_num_threads(threads)
        known = len(self.dispatcher.overloads)
        start = time.perf_counter()
        result = self.dispatcher(*args)
        if len(self.dispatcher.overloads) > known and self.dispatcher.stats.cache_misses:
            logger.info(
                "compiled %s for this machine in %.1f s (kept for next time)", self.name, time.perf_counter() - start
            )
        return result


@functools.cache
def _start_pool() -> None:
    """Start numba's threads. It sets the thread count of the OpenMP runtime, which torch may share: put that back."""
    threads = torch.get_num_threads()
    numba.get_num_threads()
    torch.set_num_threads(threads)


def kernel(function: Callable[..., Any]) -> Kernel:
    """Declare a parallel numba kernel."""
    return Kernel(function)


@overload
def as_numpy(tensor: Tensor) -> np.ndarray[Any, Any]: ...
@overload
def as_numpy(tensor: None) -> None: ...
def as_numpy(tensor: Tensor | None) -> np.ndarray[Any, Any] | None:
    """The tensor's memory as a C-contiguous array (copied only if it was not contiguous)."""
    return None if tensor is None else tensor.detach().contiguous().numpy()


def fresh(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uninitialised memory from NumPy, which asks for huge pages: first touch is five times cheaper than torch's."""
    return torch.from_numpy(np.empty(shape, NUMPY_DTYPES[dtype]))


def unexpanded(grad: Tensor) -> Tensor:
    """A gradient (T, B, F) without the copies that a sum or a mean makes: (1 or T, 1 or B, F), contiguous."""
    for axis in (0, 1):
        if grad.stride(axis) == 0:
            grad = grad.narrow(axis, 0, 1)
    return grad.contiguous()


def backend_for(
    tensor: Tensor, backend: str | None = None, kernel_dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)
) -> str:
    """``"cpu"`` (numba kernels) for ``kernel_dtypes`` on the CPU, else ``"reference"`` (torch, any device).

    ``backend`` overrides it, for tests. Raises ``ValueError`` for a name that is neither.
    """
    if backend is None:
        fits = tensor.device.type == "cpu" and tensor.dtype in kernel_dtypes
        return "cpu" if fits else "reference"
    if backend not in ("cpu", "reference"):
        raise ValueError(f"backend: expected 'cpu' or 'reference', got {backend!r}")
    return backend


def describe() -> dict[str, str]:
    """Which path runs where on this machine: for people and bug reports."""
    from llvmlite import binding

    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return {
        "torch": torch.__version__,
        "numba": numba.__version__,
        "cpu": f"{binding.get_host_cpu_name()}, {torch.get_num_threads()} threads: numba kernels (float32, float64)",
        "gpu": f"{cuda}: torch reference, a loop over time" if torch.cuda.is_available() else "none",
    }
