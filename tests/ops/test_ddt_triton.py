"""The DDT's Triton kernels under the interpreter against the definition: sums, forward, both gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tbnn.ops.ddt import closed_form
from tbnn.ops.ddt.closed_form import Sums
from tbnn.ops.ddt.reference import ddt_reference
from tests.interpreter import interpreted

pytestmark = interpreted

# (outer, n, inner) and block: rows, the whole tensor, runs of 128 with a remainder, columns, tiles with edges.
LAYOUTS = [
    ((1, 1, 1), 1), ((3, 5, 1), 5), ((1, 300, 1), 300), ((2, 300, 1), 128), ((5, 17, 1), 3), ((1, 9, 5), 9), ((2, 7, 3), 4),
]  # fmt: skip


def by_definition(x: Tensor, q: Tensor, lam: float, form: str, block: int) -> Tensor:
    pieces = zip(*(torch.split(t.transpose(1, 2), block, dim=-1) for t in (x, q)), strict=True)
    return torch.cat([ddt_reference(a, b, lam, form) for a, b in pieces], dim=-1).transpose(1, 2)


@pytest.mark.parametrize("form", ["affine", "linear"])
@pytest.mark.parametrize(("shape", "block"), LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_are_the_definition(
    shape: tuple[int, int, int], block: int, form: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tbnn.ops.ddt import gpu

    monkeypatch.setattr(gpu, "VALUES", 64)
    monkeypatch.setattr(gpu, "PART", 128)
    x, g = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    q = (x > 0.3).to(dtype) + 0.25 * torch.randn(shape, dtype=dtype)
    a, b = x.double().requires_grad_(), q.double().requires_grad_()
    expected = by_definition(a, b, 0.01, form, block)
    expected_dx, expected_dq = torch.autograd.grad(expected, (a, b), g.double())
    x_hat, sums = gpu.ddt(x, q, 0.01, form, block)
    dx, dq = gpu.ddt_backward(g, x, q, sums, 0.01, form, block, True, True)
    assert x_hat.dtype == dx.dtype == dq.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    for got, wanted in ((x_hat, expected), (dx, expected_dx), (dq, expected_dq)):
        torch.testing.assert_close(got.double(), wanted.detach(), rtol=tolerance, atol=tolerance)
    nothing, again = gpu.ddt_backward(g, x, q, sums, 0.01, form, block, False, True)
    assert nothing.numel() == 0
    assert torch.equal(again, dq)


def test_the_closed_form_on_the_device() -> None:
    from tbnn.ops.ddt import gpu

    numbers = torch.rand(5, 2, 3, 4, dtype=torch.float64) + 0.5
    numbers[0], numbers[3] = 40, 40 * numbers[3] + numbers[2].square()
    g, gq = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    for form in ("affine", "linear"):
        here, there = numbers, Sums(*numbers.numpy())
        pairs: list[tuple[Any, Any]] = list(
            zip(gpu.solve(here, 0.01, form), closed_form.solve(there, 0.01, form), strict=True)
        )
        for full in (True, False):
            mine = gpu.gradient(here, g, gq, 0.01, form, full)
            pairs += zip(mine, closed_form.gradient(there, g.numpy(), gq.numpy(), 0.01, form, full), strict=True)
        for a, b in pairs:
            np.testing.assert_allclose(np.broadcast_to(a, b.shape), b, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_fresh_memory(dtype: torch.dtype, poisoned_memory: Any) -> None:
    from tbnn.ops.ddt import gpu

    x = torch.randn(3, 17, 1).to(dtype)
    q = (x > 0).to(dtype)
    with poisoned_memory():
        x_hat, _ = gpu.ddt(x, q, 0.01, "affine", 17)
    expected = gpu.ddt(x.float(), q.float(), 0.01, "affine", 17)[0]
    # the interpreter cuts bfloat16 off where a GPU rounds
    torch.testing.assert_close(x_hat.float(), expected, rtol=2**-7 if dtype == torch.bfloat16 else 2**-11, atol=0)


def test_no_slope_is_refused() -> None:
    from tbnn.ops.ddt import gpu

    x = torch.randn(2, 5, 1)
    with pytest.raises(ValueError, match="lam=0 divides by zero, Var\\(q\\) is 0 in 2 of 2 blocks"):
        gpu.ddt(x, torch.ones_like(x), 0.0, "affine", 5)
