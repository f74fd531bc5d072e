"""The leaky integrator against its loop and its closed form."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tbnn.ops.lif.integrate import leaky_integrate


def test_closed_form() -> None:
    """v[t] = β^(t+1)·v0 + Σ β^(t−k)·I[k]."""
    current, beta, v0 = (
        torch.randn(9, 2, 3, dtype=torch.float64),
        torch.tensor([0.0, 0.5, 1.0]).double(),
        torch.randn(2, 3).double(),
    )
    for backend in ("cpu", "reference"):
        v = leaky_integrate(current, beta, v0, backend)
        for t in (0, 3, 8):
            expected = beta ** (t + 1) * v0 + sum(beta ** (t - k) * current[k] for k in range(t + 1))
            torch.testing.assert_close(v[t], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 3, 63), (7, 2, 63), (500, 2, 5), (4, 3, 500), (3, 1, 600)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_cpu_equals_the_loop(size: tuple[int, int, int], dtype: torch.dtype, tolerance: float) -> None:
    inputs = torch.randn(size, dtype=dtype), torch.rand(size[2], dtype=dtype), torch.randn(size[1:], dtype=dtype)
    weights = torch.randn(size, dtype=dtype)
    results = []
    for backend in ("cpu", "reference"):
        leaves = [t.clone().requires_grad_() for t in inputs]
        v = leaky_integrate(*leaves, backend)
        results.append((v.detach(), torch.autograd.grad(v, leaves, weights)))
    (v, grads), (expected_v, expected) = results
    assert torch.equal(v, expected_v)
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1, b.abs().max().item()))


def test_threads_and_fresh_memory_change_no_bit(
    poisoned_memory: Callable[[], Any], with_threads: Callable[..., Any]
) -> None:
    inputs = torch.randn(17, 3, 1030), torch.rand(1030), torch.randn(3, 1030)

    def run() -> tuple[Tensor, ...]:
        leaves = [t.clone().requires_grad_() for t in inputs]
        v = leaky_integrate(*leaves)
        return v.detach(), *torch.autograd.grad(v, leaves, inputs[0])

    plain = with_threads(1, run)
    assert all(torch.equal(a, b) for a, b in zip(plain, with_threads(2, run), strict=True))
    with poisoned_memory():
        assert all(torch.equal(a, b) for a, b in zip(plain, run(), strict=True))
