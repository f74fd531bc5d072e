"""Maxima over windows: torch's forward, a gradient shared among equals."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tbnn.ops.max_pool import max_pool


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 1), st.integers(3, 9), st.booleans())
def test_forward_is_torchs_and_backward_the_references(
    size: int, wide: int, step: int, pad: int, side: int, bits: bool
) -> None:
    torch.manual_seed(size * 1000 + wide * 100 + step * 10 + side)
    kernel, stride, padding = (size, wide), (step, 1 + step % 2), (min(pad, size // 2), min(pad, wide // 2))
    x = torch.randn(2, 3, side, side + 1, dtype=torch.float64)
    x = ((x > 0.5).double() if bits else x).requires_grad_()
    y = max_pool(x, kernel, stride, padding)
    assert torch.equal(y, F.max_pool2d(x, kernel, stride, padding))
    g = torch.randn_like(y)
    got, want = (torch.autograd.grad(out, x, g)[0] for out in (y, max_pool(x, kernel, stride, padding, "reference")))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got.sum(), g.sum())  # all of it arrives somewhere
    if not bits:
        torch.testing.assert_close(got, torch.autograd.grad(F.max_pool2d(x, kernel, stride, padding), x, g)[0])


def test_a_silent_window_shares_its_gradient() -> None:
    x = torch.zeros(1, 2, 2, requires_grad=True)
    max_pool(x, (2, 2), (2, 2)).sum().backward()
    assert torch.equal(x.grad, torch.full((1, 2, 2), 0.25))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_and_strided_input(dtype: torch.dtype) -> None:
    x = torch.randn(4, 6, 8).to(dtype).transpose(0, 2)  # (8, 6, 4), not contiguous
    assert torch.equal(max_pool(x, (2, 2), (2, 2)), F.max_pool2d(x, 2))
