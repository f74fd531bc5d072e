"""The compiled soft spikes against NumPy in float64, and the memory that large arrays take turns in."""

import mmap
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
import torch

from tbnn import surrogate
from tbnn.ops.lif import SpikeGradient, lif
from tbnn.ops.lif import memory as reuse
from tbnn.ops.lif.smooth import arctan_single, exp_single
from tbnn.ops.lif.target import slope_row, soft_row

SHAPES = [
    surrogate.atan(2.0),
    surrogate.sigmoid(5),
    surrogate.fast_sigmoid(25),
    surrogate.boxcar(),
    surrogate.triangular(),
]


BARE = [
    surrogate.straight_through_estimator(),
    surrogate.heaviside(),
    surrogate.leaky_spike(),
    surrogate.signed(0.5),
    surrogate.spike_rate_escape(3.0, 2.0),
    surrogate.sparse_fast_sigmoid(2.0, -0.5),
    surrogate.sparse_fast_sigmoid(),
]


@numba.vectorize(["float32(float32)"])
def arctan(a):  # pyright: ignore
    return arctan_single(a)


@numba.vectorize(["float32(float32)"])
def exp(a):  # pyright: ignore
    return exp_single(a)


@numba.njit
def soft_and_slope(level, threshold, shape, parameter, extra, x, w):  # pyright: ignore
    soft_row(level, threshold, shape, parameter, x)
    slope_row(level, threshold, shape, parameter, extra, w)


def every(step: int) -> np.ndarray:
    """Every ``step``-th float32 from 0 to infinity, infinity included, and their negatives."""
    positive = np.arange(0, 0x7F800001, step, dtype=np.uint32).view(np.float32)
    return np.concatenate([-positive, positive])


def ulps(got: np.ndarray, exact: np.ndarray) -> float:
    return float(np.max(np.abs(got - exact) / np.spacing(np.abs(exact).astype(np.float32))))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a comparison with NaN sets a flag
def test_arctan_is_within_two_ulp_of_the_whole_range() -> None:
    a = every(1999)
    assert ulps(arctan(a), np.arctan(a.astype(np.float64))) < 2
    assert np.isnan(arctan(np.float32(np.nan)))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_exp_is_within_one_ulp_of_the_range_it_is_for() -> None:
    a = every(1999)
    a = a[(a <= 0) & (a >= -87)]
    assert ulps(exp(a), np.exp(a.astype(np.float64))) < 1
    assert not exp(np.array([-87.01, -100, -1e30, -np.inf], np.float32)).any()
    assert np.isnan(exp(np.float32(np.nan)))


@pytest.mark.parametrize("shape", [*SHAPES, *BARE], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 3e-7), (np.float64, 1e-15)])
def test_rows_are_the_surrogates_of_float64(shape: surrogate.Surrogate, dtype: type, tolerance: float) -> None:
    """Dyadic levels and thresholds, whose difference is exact; absolute error: a soft spike lies between 0 and 1."""
    level = np.concatenate([np.arange(-4096, 4096) / 512, np.array([-1e6, -1e3, 1e3, 1e6])]).astype(dtype)
    threshold = np.full_like(level, 0.75)
    x, w = np.empty_like(level), np.empty_like(level)
    soft_and_slope(level, threshold, shape.code, float(shape.parameter), shape.extra, x, w)
    u = torch.from_numpy(level.astype(np.float64) - 0.75)
    assert shape in BARE or np.max(np.abs(x - shape.soft(u).numpy())) <= tolerance
    slope = shape.derivative(u).numpy()
    assert np.max(np.abs(w - slope)) <= 4 * tolerance * max(1, slope.max())


@pytest.fixture
def _no_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "_waiting", [])


needs_madvise = pytest.mark.skipif(not hasattr(mmap, "MADV_FREE"), reason="arrays are not reused on this system")


def large() -> torch.Tensor:
    return reuse.reused((reuse.SMALLEST // 4,), torch.float32)


@needs_madvise
@pytest.mark.usefixtures("_no_buffers")
def test_a_freed_array_is_used_again_and_a_living_one_is_not() -> None:
    first, second = large(), large()
    place, other = first.data_ptr(), second.data_ptr()
    part = first[1:]
    del first
    third = large()  # a part keeps the whole alive
    assert len({place, other, third.data_ptr()}) == 3
    del part
    assert large().data_ptr() == place
    assert second.data_ptr() == other


@needs_madvise
@pytest.mark.usefixtures("_no_buffers")
def test_no_more_waits_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "MOST", 3 * reuse.SMALLEST)
    arrays = [large() for _ in range(5)]
    last = arrays[0].data_ptr()  # a list lets go of its end first
    arrays.clear()
    assert sum(len(b) for b in reuse._waiting) == 3 * reuse.SMALLEST
    again = [large() for _ in range(3)]  # what waits is the last three
    assert last in {array.data_ptr() for array in again}


@pytest.mark.usefixtures("_no_buffers")
@pytest.mark.parametrize(
    "estimator", [{"gradient": "surrogate"}, {}, {"emit": "denoised"}, {"target": "trace"}], ids=str
)
def test_reused_memory_and_threads_change_no_bit(
    estimator: dict[str, Any], with_threads: Callable[..., tuple[torch.Tensor, ...]]
) -> None:
    current, weights = torch.randn(2, 20, 27, 2048)

    def run() -> tuple[torch.Tensor, ...]:
        leaf = current.clone().requires_grad_()
        out = lif(leaf, 0.8, gradient=SpikeGradient(**estimator)).out
        return out.detach(), torch.autograd.grad(out, leaf, weights)[0]

    first = with_threads(1, run)
    for other in (with_threads(2, run), with_threads(1, run)):
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
