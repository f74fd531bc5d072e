"""How a numba kernel is declared, compiled once per machine, and given its threads."""

import functools
import hashlib
import importlib.util
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

import numba
import numpy as np
import torch
from numba.core import config
from torch import Tensor

logger = logging.getLogger("tbnn")

F = TypeVar("F", bound=Callable[..., Any])

# `parallel=True` loops below this many elements run on one thread: waking a second costs more than it saves.
SERIAL_BELOW = 1 << 15

MOST_THREADS: int = config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue]


NUMPY_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


@functools.cache
def _sources(own: str) -> str:
    """A digest of every file below tbnn/ops and of a kernel's own: kernels call helpers of other files, so a cached one depends on all."""
    root = Path(__file__).parent
    below = [(path.relative_to(root).as_posix(), path.stat()) for path in sorted(root.rglob("*.py"))]
    facts = [*below, (Path(own).name, Path(own).stat())]
    return hashlib.sha256(repr([(n, s.st_mtime_ns, s.st_size) for n, s in facts]).encode()).hexdigest()


def _compiled(function: Callable[..., Any], **options: Any) -> Any:
    """numba's dispatcher with its cache; numba by itself looks at the file of the function alone."""
    dispatcher: Any = numba.njit(error_model="numpy", nogil=True, cache=True, **options)(function)
    dispatcher._cache._cache_file._source_stamp = _sources(function.__code__.co_filename)
    return dispatcher


def device_function(function: Callable[..., Any]) -> Any:
    """A helper that kernels call: compiled, cached, never called from Python on a hot path."""
    return _compiled(function, inline="never")


class Kernel:
    """A compiled function that announces its one-off compilation and follows torch's thread count.

    No ``fastmath``: a kernel rounds after every operation, as torch does, so that both give the same bits.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = function.__name__
        self.__doc__ = function.__doc__
        self.dispatcher = _compiled(function, parallel=True)

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


def untraced(function: F) -> F:
    """Declare a function that calls numba to be none of a tracer's business: torch.compile breaks its graph around it.

    torch.compiler.disable at once would make ``import tbnn`` import the compiler; whoever compiles has imported it.
    """
    disabled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    return call  # pyright: ignore[reportReturnType]


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


def autocasts(x: Tensor) -> bool:
    """Whether torch.autocast is on for the tensor's device, where it has one: "meta" has not."""
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed; it is imported when a kernel first runs."""
    return importlib.util.find_spec("triton") is not None


def backend_for(
    tensor: Tensor,
    backend: str | None = None,
    kernel_dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64),
    gpu_dtypes: tuple[torch.dtype, ...] = (),
    exports: bool = False,
) -> str:
    """``"cpu"`` (numba) or ``"gpu"`` (Triton, CUDA tensors) for the dtypes that have kernels, else ``"reference"`` (torch).

    ``exports``: whether torch.export knows the kernels as operators; else it gets the reference to trace.
    ``backend`` overrides it, for tests. Raises ``ValueError`` for another name, or one that is not for this device.
    """
    device = tensor.device.type
    if backend is None:
        if not exports and torch.compiler.is_exporting():
            return "reference"
        if device == "cuda":
            return "gpu" if tensor.dtype in gpu_dtypes and has_triton() else "reference"
        return "cpu" if device == "cpu" and tensor.dtype in kernel_dtypes else "reference"
    compiled = "gpu" if device == "cuda" else "cpu"
    if backend not in (compiled, "reference"):
        raise ValueError(f"backend: expected {compiled!r} or 'reference', got {backend!r}")
    return backend


def describe() -> dict[str, str]:
    """Which path runs where on this machine: for people and bug reports."""
    from llvmlite import binding

    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return {
        "torch": torch.__version__,
        "numba": numba.__version__,
        "cpu": f"{binding.get_host_cpu_name()}, {torch.get_num_threads()} threads: numba kernels (float32, float64)",
        "gpu": f"{cuda}: {_gpu_path()}" if torch.cuda.is_available() else "none",
    }


def _gpu_path() -> str:
    if not has_triton():
        return "torch reference, a loop over time (Triton is not installed: pip install 'tbnn[gpu]')"
    return "Triton kernels (float32, bfloat16, float16; weights also float64); neurons with winners or in float64: torch reference"
