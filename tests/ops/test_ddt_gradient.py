"""The DDT's gradient: autograd of the definition, finite differences with the rounding error frozen, closed form."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from tbnn.ops.ddt import closed_form, ddt, sums_of

FORMS = ["affine", "linear"]


def defined(x: Tensor, q: Tensor, lam: float, form: str) -> Tensor:
    """arXiv 2409.09245, forward, over the last axis, for autograd."""
    if form == "linear":
        return (x * q).mean(-1, keepdim=True) / ((q * q).mean(-1, keepdim=True) + lam) * q
    c = q - q.mean(-1, keepdim=True)
    x_mean = x.mean(-1, keepdim=True)
    return ((x - x_mean) * c).mean(-1, keepdim=True) / ((c * c).mean(-1, keepdim=True) + lam) * c + x_mean


def defined_in_blocks(x: Tensor, q: Tensor, lam: float, form: str, axes: tuple[int, ...], block: int | None) -> Tensor:
    """``defined`` over any axes: they move to the end, flatten, split, and everything goes back."""
    last = tuple(range(x.ndim - len(axes), x.ndim))
    xm, qm = x.movedim(axes, last), q.movedim(axes, last)
    flat = (*xm.shape[: x.ndim - len(axes)], -1)
    xf, qf = xm.reshape(flat), qm.reshape(flat)
    block = block or xf.shape[-1]
    pieces = [
        defined(xf[..., lo : lo + block], qf[..., lo : lo + block], lam, form) for lo in range(0, xf.shape[-1], block)
    ]
    return torch.cat(pieces, -1).reshape(xm.shape).movedim(last, axes)


def gradients(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, q: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    x, q = x.clone().requires_grad_(), q.clone().requires_grad_()
    return torch.autograd.grad(function(x, q), (x, q), g)  # type: ignore[return-value]


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], int | None]:
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 5, 7, 33]), min_size=1, max_size=4)))
    axes = tuple(draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, max_size=len(shape), unique=True)))
    block = draw(st.none() | st.integers(1, 40)) if len(axes) == 1 else None
    return shape, axes, block


@given(layout=layouts(), form=st.sampled_from(FORMS), lam=st.sampled_from([1e-3, 0.01, 1.0]), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_closed_form_equals_autograd_of_the_definition(layout: Any, form: str, lam: float, seed: int) -> None:
    shape, axes, block = layout
    generator = torch.Generator().manual_seed(seed)
    x, q, g = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    expected = gradients(lambda x, q: defined_in_blocks(x, q, lam, form, axes, block), x, q, g)
    for backend in ("cpu", "reference"):
        got = gradients(
            lambda x, q, b=backend: ddt(x, q, lam=lam, form=form, dim=axes, block=block, backend=b), x, q, g
        )
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)


@given(
    shape=st.sampled_from([(1,), (7,), (3, 5), (2, 3, 3)]),
    block=st.none() | st.integers(1, 6),
    form=st.sampled_from(FORMS),
    lam=st.sampled_from([0.01, 0.5]),
    seed=st.integers(0, 99),
)
def test_finite_differences_with_the_rounding_error_frozen(
    shape: tuple[int, ...], block: int | None, form: str, lam: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    def f(x: Tensor) -> Tensor:
        return torch.sigmoid(2 * x) if form == "affine" else torch.tanh(x)

    delta = (f(x).round() - f(x)).detach()  # a constant, here and in the differences
    assert gradcheck(
        lambda x: ddt(x, f(x) + delta, lam=lam, form=form, dim=-1, block=block), (x,), eps=1e-6, atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("form", FORMS)
def test_differences_in_x_and_in_q_alone(form: str) -> None:
    x, q = (torch.randn(4, 9, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert gradcheck(lambda x, q: ddt(x, q, form=form, dim=0, block=3), (x, q), eps=1e-6, atol=1e-6, rtol=1e-6)


def test_pinned_gradient() -> None:
    x = torch.tensor([-1, -0.5, 0.5, 2], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([1, -2, 0.5, 3], dtype=torch.float64)
    scale = 2 * x.detach().abs().mean()
    assert scale == 2
    f = x / scale + 0.5
    q = f + ((x > 0).double() - f).detach()
    (got,) = torch.autograd.grad(ddt(x, q), x, g)
    torch.testing.assert_close(
        got, torch.tensor([0.631934, -1.711816, -0.223280, 3.803162], dtype=torch.float64), rtol=0, atol=1e-6
    )
    # the gradient written out term by term
    q, x = q.detach(), x.detach()
    n, c = 4, q - q.mean()
    s = ((x - x.mean()) * c).mean() / (c.square().mean() + 0.01)
    e = (x - x.mean()) - s * c
    a_over_d = (g * c).sum() / (n * (c.square().mean() + 0.01))
    dx, dq = g.mean() + a_over_d * c, s * (g - g.mean()) + a_over_d * (e - s * c)
    torch.testing.assert_close(got, dx + dq / scale, rtol=0, atol=1e-12)


def test_closed_form_scalars_of_the_linear_form() -> None:
    x = torch.tensor([-1, -0.5, 0.1, 2], dtype=torch.float64)
    q = torch.tensor([-1, 0, 0, 1], dtype=torch.float64)
    g = torch.tensor([1, -2, 0.5, 3], dtype=torch.float64)
    s = 0.75 / 0.51
    a_over_d = (g * q).sum() / (4 * 0.51)
    dx, dq = gradients(lambda x, q: ddt(x, q, form="linear"), x, q, g)
    torch.testing.assert_close(dx, a_over_d * q, rtol=0, atol=1e-12)
    torch.testing.assert_close(dq, s * g + a_over_d * (x - 2 * s * q), rtol=0, atol=1e-12)


def test_constant_statistics_keep_only_the_slope() -> None:
    x, q, g = (torch.randn(1, 6, 1, dtype=torch.float64) for _ in range(3))
    sums, g_sums = sums_of(x, q, 6), sums_of(g, q, 6)
    back = closed_form.gradient(sums, g_sums.x, g_sums.xq, 0.01, "affine", differentiate_stats=False)
    covariance = ((x - x.mean()) * (q - q.mean())).mean()
    assert back.s.item() == pytest.approx((covariance / (q.var(correction=0) + 0.01)).item(), rel=1e-9)
    assert back.r.item() == back.x_const.item() == back.q_const.item() == 0


def test_only_what_is_asked_for_is_differentiated() -> None:
    x, q = torch.randn(2, 8, dtype=torch.float64)
    both = gradients(ddt, x, q, torch.ones(8, dtype=torch.float64))
    for i, (xg, qg) in enumerate(((True, False), (False, True))):
        leaf = (x, q)[i].clone().requires_grad_()
        x_hat = ddt(leaf if xg else x, leaf if qg else q)
        (got,) = torch.autograd.grad(x_hat.sum(), leaf)
        torch.testing.assert_close(got, both[i], rtol=1e-12, atol=1e-12)


def test_float32_gradients_are_near_float64() -> None:
    x, g = torch.randn(2, 4, 257, dtype=torch.float64)
    q = (x > 0).double()
    exact = gradients(lambda x, q: ddt(x, q, dim=1), x, q, g)
    got = gradients(lambda x, q: ddt(x, q, dim=1), x.float(), q.float(), g.float())
    for a, b in zip(got, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


def test_a_silent_block_hands_back_the_mean_gradient() -> None:
    x, g = torch.randn(2, 5, dtype=torch.float64)
    dx, dq = gradients(ddt, x, torch.zeros_like(x), g)
    torch.testing.assert_close(dx, g.mean().expand(5), rtol=0, atol=1e-12)
    assert bool(dq.isfinite().all())
    assert math.isfinite(dx.sum().item())
