"""Every grid: kernels against the reference, codes where they belong, steps as published, identities."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tbnn.ops.ddt import BlockLayout, ddt
from tbnn.ops.quantize import Codes, quantize, quantize_with_codes
from tbnn.ops.quantize.grid import OPTIMAL_STEP

BITS = [1, 1.58, 2, 3, 4, 8, None]
BLOCKINGS: list[dict[str, Any]] = [
    {},
    {"dim": 0},
    {"dim": -1, "block": 3},
    {"dim": 1, "block": 100},
    {"dim": (0, 2)},
    {"dim": 1, "block": 2},
    {"dim": 0, "block": 2},
]
SPARSITIES: list[Any] = [0.0, 0.0, 0.3, 0.9, (2, 4), "1:3", (3, 3)]
DISTORTION = {2: 0.3634, 3: 0.1902, 4: 0.1188, 8: 0.03744, 16: 0.01154, 32: 0.00349}  # Max 1960, table II

choices = st.fixed_dictionaries({
    "bits": st.sampled_from(BITS),
    "sparsity": st.sampled_from(SPARSITIES),
    "scope": st.sampled_from(["block", "row", "tensor"]),
    "form": st.sampled_from(["affine", "linear"]),
    "lam": st.sampled_from([0.01, 1.0]),
    "blocking": st.sampled_from(BLOCKINGS),
})  # fmt: skip

arguments = choices.map(lambda how: {k: v for k, v in how.items() if k != "blocking"} | how["blocking"])


def latent(shape: tuple[int, ...], seed: int, lattice: bool = False) -> Tensor:
    """Gaussian values; on a lattice many are equal and all sums exact, so that every tie must fall as defined."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (4 * x).round() / 4 if lattice else x


def spread(per_block: Tensor, x: Tensor, dim: Any = None, block: int | None = None) -> Tensor:
    """One value a block, (outer, runs, inner), repeated over the tensor's shape."""
    layout = BlockLayout(x, dim, block)
    n = layout.sizes[1]
    lengths = [min(layout.block, n - lo) for lo in range(0, n, layout.block)]
    return layout.join(per_block.repeat_interleave(torch.tensor(lengths), dim=1))


def run(x: Tensor, g: Tensor, **how: Any) -> tuple[Tensor, Tensor, Codes]:
    leaf = x.clone().requires_grad_()
    y, codes = quantize_with_codes(leaf, **how)
    (dx,) = torch.autograd.grad(y, leaf, g)
    assert torch.equal(quantize(x, **how), y.detach())
    return y.detach(), dx, codes


@given(
    how=arguments,
    estimator=st.sampled_from(["ddt", "ddt", "ddt_ridge", "ddt_slope", "ewgs", "ste"]),
    seed=st.integers(0, 999),
    lattice=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
@settings(max_examples=250)
def test_kernels_follow_the_reference(
    how: dict[str, Any], estimator: str, seed: int, lattice: bool, dtype: torch.dtype
) -> None:
    how = {**how, "estimator": estimator}
    x, g = latent((3, 11, 5), seed, lattice).to(dtype), latent((3, 11, 5), seed + 1).to(dtype)
    y, dx, codes = run(x, g, backend="cpu", **how)
    expected_y, expected_dx, expected = run(x.double(), g.double(), backend="reference", **how)
    if how["bits"] is not None:
        assert torch.equal(codes.values.double(), expected.values)
    tolerance = {"rtol": 1e-9, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    for got, wanted in ((y, expected_y), (dx, expected_dx), *zip(codes, expected, strict=True)):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), wanted, **tolerance)


@pytest.mark.parametrize("shape", [(1, 1), (1, 63), (2, 130), (3, 1030), (2, 8193), (1, 140_001), (2, 300_000)])
@pytest.mark.parametrize(("bits", "sparsity"), [(1, 0.0), (4, 0.0), (1.58, 0.7), (3, (2, 4)), (1, (3, 5))])
def test_rows_of_every_length(shape: tuple[int, int], bits: float, sparsity: Any) -> None:
    x, g = latent(shape, 1).float(), latent(shape, 2).float()
    for dim in (0, 1, None):
        if dim != 0 or shape[1] < 10_000:
            y, dx, codes = run(x, g, bits=bits, sparsity=sparsity, dim=dim)
            expected = run(x.double(), g.double(), bits=bits, sparsity=sparsity, dim=dim, backend="reference")
            assert torch.equal(codes.values.double(), expected[2].values)
            torch.testing.assert_close(y.double(), expected[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(dx.double(), expected[1], rtol=1e-5, atol=1e-5)


@given(how=arguments, seed=st.integers(0, 999))
@settings(max_examples=60)
def test_codes_lie_on_the_grid_and_rebuild_the_forward(how: dict[str, Any], seed: int) -> None:
    blocking = {k: how.get(k) for k in ("dim", "block")}
    x = latent((3, 11, 5), seed)
    codes = quantize_with_codes(x, **how)[1]
    rebuilt = spread(codes.scale, x, **blocking) * codes.values + spread(codes.offset, x, **blocking)
    torch.testing.assert_close(rebuilt, quantize(x, **how), rtol=1e-11, atol=1e-11)
    bits, pruned = how["bits"], how["sparsity"] not in (0.0, (3, 3))
    if bits == 1.58:
        assert set(codes.values.unique().tolist()) <= {-1, 0, 1}
    elif bits is not None:
        grid = {float(v) for v in range(1 - 2**bits, 2**bits, 2)} | ({0.0} if pruned else set())
        assert set(codes.values.unique().tolist()) <= grid
    assert how["form"] == "affine" or not codes.offset.any()


def step_by_hand(x: Tensor, bits: float | None, form: str, kept: Tensor) -> float:
    """s_f of one block, from the table in the docstring of quantize."""
    values, pruned = x[kept], bool((~kept).any())
    rms, peak = values.square().mean().sqrt(), values.abs().max()
    if bits is None:
        return rms.item()
    if bits == 1:
        return values.abs().mean().item() * (2 if form == "affine" and not pruned else 1)
    n = 3 if bits == 1.58 else 2 ** int(bits)
    c = OPTIMAL_STEP[n]
    if form == "linear" or pruned:
        return min(c * rms, peak).item() if n == 3 else min(c * rms / 2, peak / (n - 1)).item()
    deviation, mean = x.std(correction=0), x.mean()
    if n == 3:
        return min(c * deviation, (x.max() - x.min()) / 2).item()
    reach = c * deviation * (n - 1) / 2
    return ((min(x.max(), mean + reach) - max(x.min(), mean - reach)) / (n - 1)).item()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("form", ["affine", "linear"])
@pytest.mark.parametrize("sparsity", [0.0, 0.4, "2:4"])
def test_finite_differences_with_the_errors_frozen(
    bits: float | None, form: str, sparsity: Any, numeric_gradient: Callable[..., Tensor]
) -> None:
    x, g = latent((13,), 1), latent((13,), 2)
    values = quantize_with_codes(x, bits=bits, form=form, sparsity=sparsity)[1].values
    kept = values != 0 if sparsity else torch.ones_like(x, dtype=torch.bool)
    if sparsity and bits == 1.58:  # a kept value may become 0: ask another grid what stays
        kept = quantize_with_codes(x, bits=1, form=form, sparsity=sparsity)[1].values != 0
    step = step_by_hand(x, bits, form, kept)
    counts_from_0 = bits not in (1.58, None) and form == "affine" and not sparsity
    q = (values + 2 ** int(bits or 0) - 1) / 2 if counts_from_0 else values
    if bits is None:
        torch.testing.assert_close(q, x * kept / step, rtol=1e-6, atol=1e-9)
    lam = 0.05 * kept.double().mean().item()  # λ counts what is kept

    def denoised(moved: Tensor, data: Tensor) -> Tensor:
        """x̂ as ``moved`` goes into the ridge's sums where it is data of them, and into its own q everywhere."""
        moved_q = q + (moved - x) / step
        x_data, q_data = torch.where(data, moved, x), torch.where(data, moved_q, q)
        x_away, q_away = x_data - x_data.mean(), q_data - q_data.mean()
        if form == "linear":
            return (x_data * q_data).mean() / (q_data.square().mean() + lam) * moved_q
        s = (x_away * q_away).mean() / (q_away.square().mean() + lam)
        return s * (moved_q - q_data.mean()) + x_data.mean()

    for estimator, data in (("ddt", kept), ("ddt_ridge", kept | True), ("ddt_slope", kept & False)):
        leaf = x.clone().requires_grad_()
        y = quantize(leaf, bits=bits, form=form, sparsity=sparsity, lam=0.05, estimator=estimator)
        torch.testing.assert_close(y, ddt(x, q, form=form, lam=lam), rtol=1e-7, atol=1e-7)
        (dx,) = torch.autograd.grad(y, leaf, g)
        expected = numeric_gradient(lambda moved, data=data: (g * denoised(moved, data)).sum(), x)
        torch.testing.assert_close(dx, expected, rtol=1e-5, atol=1e-6)


def gaussian_distortion(step: float, levels: int) -> float:
    """The mean square error of a uniform quantiser on a standard Gaussian, by integration."""
    x = torch.linspace(-9, 9, 180_001, dtype=torch.float64)
    half = (levels - 1) / 2
    q = ((x / step + half).round().clamp(0, levels - 1) - half) * step
    density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return torch.trapezoid((x - q).square() * density, x).item()


@pytest.mark.parametrize("levels", OPTIMAL_STEP)
def test_steps_are_optimal_for_a_gaussian(levels: int) -> None:
    step = OPTIMAL_STEP[levels]
    least = min(gaussian_distortion(step * (1 + k / 500), levels) for k in range(-15, 16))
    assert gaussian_distortion(step, levels) == pytest.approx(least, rel=1e-3)
    if levels in DISTORTION:
        assert least == pytest.approx(DISTORTION[levels], rel=5e-3)


@pytest.mark.parametrize("form", ["affine", "linear"])
def test_more_bits_lose_less_and_about_what_max_published(form: str) -> None:
    x = latent((200_000,), 0)
    errors = [
        (quantize(x, bits=bits, form=form, lam=1e-6) - x).square().mean().item() for bits in (1, 1.58, *range(2, 9))
    ]
    assert errors == sorted(errors, reverse=True)
    for error, levels in zip(errors, (2, 3, 4, 8, 16, 32), strict=False):
        assert error == pytest.approx(DISTORTION[levels], rel=0.03)


@given(how=arguments, exponent=st.integers(-30, 30), seed=st.integers(0, 999))
def test_powers_of_two_pass_through(how: dict[str, Any], exponent: int, seed: int) -> None:
    x, factor = latent((3, 11, 5), seed), 2.0**exponent
    for backend in ("cpu", "reference"):
        assert torch.equal(quantize(factor * x, backend=backend, **how), factor * quantize(x, backend=backend, **how))


@given(bits=st.sampled_from([1.58, 2, 4, 8]), shift=st.integers(-50, 50), seed=st.integers(0, 999))
def test_shifts_pass_through_the_affine_form(bits: float, shift: int, seed: int) -> None:
    x = (latent((4, 16), seed) * 64).round() / 64
    torch.testing.assert_close(
        quantize(x + shift, bits=bits, dim=1), quantize(x, bits=bits, dim=1) + shift, rtol=0, atol=1e-9
    )


@given(how=arguments, seed=st.integers(0, 999))
def test_no_other_scale_or_offset_has_a_lower_objective(how: dict[str, Any], seed: int) -> None:
    how = {**how, "lam": 0.05, "dim": None, "block": None}
    x = latent((40,), seed)
    codes = quantize_with_codes(x, **how)[1]
    factor = (
        2.0 if how["bits"] not in (1.58, None) and how["form"] == "affine" and how["sparsity"] in (0.0, (3, 3)) else 1.0
    )
    s, b = codes.scale.item(), codes.offset.item()  # x̂ = s·values + b; λ counts on q's own grid, factor·s
    lam = 0.05 * (quantize_with_codes(x, **{**how, "bits": 1})[1].values != 0).double().mean().item()

    def objective(s: float, b: float) -> float:
        return (0.5 * (s * codes.values + b - x).square().mean() + 0.5 * lam * (factor * s) ** 2).item()

    # the affine optimum in (s, b) of values is that of q: b moves with s
    for ds, db in [(1e-3, 0), (-1e-3, 0), (0, 1e-3), (0, -1e-3), (1e-3, 1e-3), (1e-3, -1e-3)]:
        if how["form"] == "affine" or db == 0:
            assert objective(s + ds, b + db) > objective(s, b)


@given(how=arguments)
def test_a_large_lambda_leaves_the_mean(how: dict[str, Any]) -> None:
    how = {**how, "lam": 1e15}
    x = latent((3, 11, 5), 5)
    expected = ddt(x, torch.zeros_like(x), form=how["form"], dim=how.get("dim"), block=how.get("block"))
    torch.testing.assert_close(quantize(x, **how), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("form", ["affine", "linear"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, (1, 2)])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("constant", [0.0, 0.1, -1e-30])
def test_constant_blocks_stay_finite(
    bits: float | None, form: str, sparsity: Any, backend: str, constant: float
) -> None:
    for dtype in (torch.float32, torch.float64):
        x = latent((3, 7), 0).to(dtype)
        x[1] = constant
        x.requires_grad_()
        y = quantize(x, bits=bits, form=form, sparsity=sparsity, dim=1, backend=backend)
        y.square().sum().backward()
        assert bool(y.isfinite().all())
        assert bool(x.grad.isfinite().all())
        if constant == 0 or (form == "affine" and not sparsity):
            torch.testing.assert_close(y[1], x[1], rtol=1e-6, atol=0)


def test_pinned_ternary() -> None:
    x = torch.tensor([-1, -0.5, 0.1, 2], dtype=torch.float64)
    y, codes = quantize_with_codes(x, bits=1.58, form="linear")
    assert codes.values.tolist() == [-1, 0, 0, 1]
    assert codes.scale.item() == pytest.approx(1.4705882352941178, abs=1e-15)
    assert y.tolist() == pytest.approx([-0.75 / 0.51, 0, 0, 0.75 / 0.51], abs=1e-14)


def test_pinned_two_bits() -> None:
    # mean 0, σ = √5/2: 0.9957·σ·1.5 = 1.67 reaches past ±1.5, so the grid spans the range, step 1
    x = torch.tensor([-1.5, -0.5, 0.5, 1.5], dtype=torch.float64)
    for form in ("affine", "linear"):
        codes = quantize_with_codes(x, bits=2, form=form, lam=0.0)[1]
        assert codes.values.tolist() == [-3, -1, 1, 3]
        assert (codes.scale.item(), codes.offset.item()) == pytest.approx((0.5, 0), abs=1e-15)


def test_halves_fall_to_even_and_ties_between_odd_numbers_to_the_lower() -> None:
    x = torch.tensor([0.0, 0.5, 1.5, 2.5, 3.0], dtype=torch.float64)  # affine, 2 bits: lo = 0, hi = 3, step = 1
    assert quantize_with_codes(x, bits=2)[1].values.tolist() == [-3, -3, 1, 1, 3]
    x = torch.tensor([-3.0, -2.0, 0.0, 2.0, 3.0], dtype=torch.float64)  # linear, 2 bits: half-step min(…, 3/3) = 1
    assert quantize_with_codes(x, bits=2, form="linear")[1].values.tolist() == [-3, -3, -1, 1, 3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", BITS)
def test_half_precision_is_rounded_only_at_the_end(dtype: torch.dtype, bits: float | None) -> None:
    x, g = latent((4, 130), 3).to(dtype), latent((4, 130), 4).to(dtype)
    wide = run(x.double(), g.double(), bits=bits, dim=1, block=64)
    for backend in ("cpu", "reference"):
        y, dx, codes = run(x, g, bits=bits, dim=1, block=64, backend=backend)
        assert y.dtype == dx.dtype == codes.values.dtype == codes.scale.dtype == dtype
        for got, wanted in ((y, wide[0]), (dx, wide[1]), *zip(codes, wide[2], strict=True)):
            one_rounding = torch.finfo(dtype).eps * wanted.abs().clamp(min=1e-3)
            assert bool(((got.double() - wanted).abs() <= one_rounding).all())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("bits", "form", "x"), [(4, "affine", [1.0, 1.0]), (1.58, "linear", [0.0, 0.0]), (1, "affine", [2.0])]
)
def test_lambda_0_is_refused_without_a_slope(backend: str, bits: float, form: str, x: list[float]) -> None:
    with pytest.raises(ValueError, match="lam=0 divides by zero"):
        quantize(torch.tensor(x), bits=bits, form=form, lam=0, backend=backend)
