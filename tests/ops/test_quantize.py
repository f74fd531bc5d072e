"""One bit a value: forward against the ridge, both gradients, codes, refusals."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tbnn.ops.ddt import BlockLayout, ddt
from tbnn.ops.quantize import Codes, quantize, quantize_with_codes

FORMS = ["affine", "linear"]
BLOCKINGS: list[dict[str, Any]] = [
    {},
    {"dim": 0},
    {"dim": -1, "block": 3},
    {"dim": 1, "block": 100},
    {"dim": (0, 2)},
    {"block": 2},
]

blockings = st.sampled_from(BLOCKINGS)
forms = st.sampled_from(FORMS)


def spread(per_block: Tensor, layout: BlockLayout) -> Tensor:
    """One value a block, (outer, runs, inner), repeated over the tensor's shape."""
    n = layout.sizes[1]
    lengths = [min(layout.block, n - lo) for lo in range(0, n, layout.block)]
    return layout.join(per_block.repeat_interleave(torch.tensor(lengths), dim=1))


def codes_of(x: Tensor, **arguments: Any) -> Codes:
    return quantize_with_codes(x, **arguments)[1]


def latent(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grid(form: str, x: Tensor) -> Tensor:
    """The codes: {0, 1} or {−1, 1}."""
    return torch.where(x > 0, 1.0, 0.0 if form == "affine" else -1.0).to(x.dtype)


def mean_magnitude(x: Tensor, dim: Any = None, block: int | None = None) -> Tensor:
    """mean|x| of the block around each value."""
    if block is None:
        axes = tuple(range(x.ndim)) if dim is None else dim
        return x.abs().mean(axes, keepdim=True).expand_as(x)
    pieces = torch.split(x.abs(), block, dim=-1 if dim is None else dim)
    axis = -1 if dim is None else dim
    return torch.cat([p.mean(axis, keepdim=True).expand_as(p) for p in pieces], axis)


def by_definition(x: Tensor, form: str, lam: float, blocking: dict[str, Any]) -> Tensor:
    """f onto the grid, q = f + δ with δ constant, then the DDT (arXiv 2409.09245)."""
    step = mean_magnitude(x.detach(), **blocking) * (2 if form == "affine" else 1)
    f = x / step + (0.5 if form == "affine" else 0)
    q = f + (grid(form, x) - f).detach()
    return ddt(x, q, lam=lam, form=form, backend="reference", **blocking)


@given(blocking=blockings, form=forms, lam=st.sampled_from([0.01, 1.0]), seed=st.integers(0, 99))
def test_forward_and_gradient_follow_the_definition(blocking: dict[str, Any], form: str, lam: float, seed: int) -> None:
    x, g = latent((3, 5, 7), seed).requires_grad_(), latent((3, 5, 7), seed + 1)
    expected = by_definition(x, form, lam, blocking)
    (expected_dx,) = torch.autograd.grad(expected, x, g)
    for backend in ("cpu", "reference"):
        got = quantize(x, form=form, lam=lam, backend=backend, **blocking)
        (dx,) = torch.autograd.grad(got, x, g)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(dx, expected_dx, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", [None, 4])
def test_finite_differences_with_codes_and_grid_frozen(
    form: str, block: int | None, numeric_gradient: Callable[..., Tensor]
) -> None:
    x, g = latent((2, 9), 1), latent((2, 9), 2)
    step = mean_magnitude(x, 1, block) * (2 if form == "affine" else 1)
    half = 0.5 if form == "affine" else 0
    delta = grid(form, x) - (x / step + half)

    def loss(moved: Tensor) -> Tensor:
        return (g * ddt(moved, moved / step + half + delta, form=form, dim=1, block=block)).sum()

    leaf = x.clone().requires_grad_()
    (quantize(leaf, form=form, dim=1, block=block) * g).sum().backward()
    torch.testing.assert_close(leaf.grad, numeric_gradient(loss, x), rtol=1e-6, atol=1e-6)


@given(blocking=blockings, form=forms, seed=st.integers(0, 99))
def test_ste_has_the_same_forward_and_the_identity_as_gradient(blocking: dict[str, Any], form: str, seed: int) -> None:
    x, g = latent((3, 5, 7), seed).requires_grad_(), latent((3, 5, 7), seed + 1)
    for backend in ("cpu", "reference"):
        ste = quantize(x, form=form, estimator="ste", backend=backend, **blocking)
        torch.testing.assert_close(ste, quantize(x, form=form, backend=backend, **blocking), rtol=1e-12, atol=1e-12)
        (dx,) = torch.autograd.grad(ste, x, g)
        assert torch.equal(dx, g)


@given(blocking=blockings, form=forms, lam=st.sampled_from([0.01, 3.0]), seed=st.integers(0, 99))
def test_codes_rebuild_the_forward(blocking: dict[str, Any], form: str, lam: float, seed: int) -> None:
    x = latent((3, 5, 7), seed)
    codes, layout = (
        codes_of(x, form=form, lam=lam, **blocking),
        BlockLayout(x, blocking.get("dim"), blocking.get("block")),
    )
    rebuilt = spread(codes.scale, layout) * codes.values + spread(codes.offset, layout)
    torch.testing.assert_close(rebuilt, quantize(x, form=form, lam=lam, **blocking), rtol=1e-12, atol=1e-12)
    assert torch.equal(codes.values, torch.where(x > 0, 1.0, -1.0).double())
    assert form == "affine" or not codes.offset.any()


def test_pinned_values() -> None:
    x = torch.tensor([-1, -0.5, 0.5, 2], dtype=torch.float64)
    s = ((x - 0.25) * torch.tensor([-0.5, -0.5, 0.5, 0.5])).mean().item() / 0.26
    assert quantize(x).tolist() == pytest.approx([0.25 - s / 2] * 2 + [0.25 + s / 2] * 2, abs=1e-14)
    assert quantize(x, form="linear").tolist() == pytest.approx([-1 / 1.01] * 2 + [1 / 1.01] * 2, abs=1e-14)
    codes = codes_of(x, form="affine", lam=0.01)
    assert (codes.scale.item(), codes.offset.item()) == pytest.approx((s / 2, 0.25), abs=1e-14)
    assert codes.values.tolist() == [-1, -1, 1, 1]


def test_pinned_gradient_of_the_linear_form() -> None:
    x = torch.tensor([-1, -0.5, 0.5, 2], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([1, -2, 0.5, 3], dtype=torch.float64)
    q, s, a_over_d = torch.tensor([-1, -1, 1, 1], dtype=torch.float64), 1 / 1.01, 4.5 / (4 * 1.01)
    (dx,) = torch.autograd.grad(quantize(x, form="linear"), x, g)
    torch.testing.assert_close(dx, a_over_d * q + (s * g + a_over_d * (x.detach() - 2 * s * q)) / 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zero_counts_as_negative(zero: float) -> None:
    x = torch.tensor([zero, 1.0, -1.0], dtype=torch.float64)
    assert codes_of(x, form="linear", lam=0.01).values.tolist() == [-1, 1, -1]
    assert quantize(x, form="linear")[0] < 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("estimator", ["ddt", "ste"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_block_of_zeros_stays_finite(form: str, estimator: str, backend: str) -> None:
    x = torch.zeros(2, 5, dtype=torch.float64)
    x[1] = latent((5,), 0)
    x.requires_grad_()
    y = quantize(x, form=form, estimator=estimator, dim=1, backend=backend)
    y.square().sum().backward()
    assert torch.equal(y[0], torch.zeros(5, dtype=torch.float64))
    assert bool(x.grad.isfinite().all())
    alone = x.detach()[1:].clone().requires_grad_()
    quantize(alone, form=form, estimator=estimator, dim=1, backend=backend).square().sum().backward()
    torch.testing.assert_close(x.grad[1:], alone.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_near_float64(dtype: torch.dtype) -> None:
    x = latent((4, 130), 3).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    got = quantize(x, dim=1, block=64)
    torch.testing.assert_close(got.double(), quantize(x.double(), dim=1, block=64), rtol=tolerance, atol=tolerance)
    codes = codes_of(x, form="affine", lam=0.01, dim=1, block=64)
    assert codes.values.dtype == codes.scale.dtype == dtype


def test_non_contiguous_values() -> None:
    x = latent((6, 9), 5)
    g = latent((9, 6), 6)
    leaf, straight = x.clone().requires_grad_(), x.T.contiguous().requires_grad_()
    got, expected = quantize(leaf.T, dim=1, block=4), quantize(straight, dim=1, block=4)
    assert torch.equal(got, expected)
    torch.testing.assert_close(
        torch.autograd.grad(got, leaf, g)[0].T, torch.autograd.grad(expected, straight, g)[0], rtol=1e-12, atol=1e-12
    )


def test_threads_and_fresh_memory_change_no_bit(
    poisoned_memory: Callable[[], Any], with_threads: Callable[..., Any]
) -> None:
    x = torch.randn(70, 999)

    def run() -> tuple[Tensor, ...]:
        leaf = x.clone().requires_grad_()
        y = quantize(leaf, dim=1, block=128)
        (y * x.flip(0)).sum().backward()
        return y.detach(), leaf.grad, *codes_of(x, form="affine", lam=0.01, dim=1, block=128)

    plain = with_threads(1, run)
    assert all(torch.equal(a, b) for a, b in zip(plain, with_threads(2, run), strict=True))
    with poisoned_memory():
        assert all(torch.equal(a, b) for a, b in zip(plain, run(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 0}, "bits: .* got 0"),
        ({"bits": 1.5}, "bits: .* got 1.5"),
        ({"sparsity": -0.5}, "sparsity: .* got -0.5"),
        ({"form": "ternary"}, "form: expected 'affine' or 'linear', got 'ternary'"),
        ({"lam": -1}, "lam: .* got -1"),
        ({"lam": math.nan}, "lam: .* got nan"),
        ({"estimator": "DDT"}, "estimator: expected one of 'ddt', 'ddt_ridge', .*, or an instance, got .DDT."),
        ({"dim": 3}, "dim: .* got 3"),
        ({"dim": (0, 1), "block": 2}, "block: expected a length >= 1 along one axis"),
        ({"dim": 0, "block": -1}, "got block=-1"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(torch.ones(3, 4), **arguments)


@pytest.mark.parametrize("x", [torch.ones(3, dtype=torch.int64), torch.ones(0, 3)])
def test_refused_values(x: Tensor) -> None:
    with pytest.raises(ValueError, match="quantize: expected a floating point tensor with values, got"):
        quantize(x)
