"""The estimators that are not the DDT: against values computed by hand."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tbnn.ops.quantize import Ddt, Ewgs, Reste, Ste, quantize, quantize_with_codes

BACKENDS = ["cpu", "reference"]


def gradient(x: torch.Tensor, g: torch.Tensor, **how: Any) -> torch.Tensor:
    leaf = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(quantize(leaf, **how), leaf, g)
    return dx


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["affine", "linear"])
def test_ddt_of_pruned_values_by_hand(backend: str, form: str) -> None:
    # −2 and 4 stay, s_f = 3, q = (0, −1, 0, 1), q̄ = 0, Σq² = Σxq/3 = 2, D = 2 + 2·λ: the same slope in both forms
    x = torch.tensor([1, -2, 0.5, 4], dtype=torch.float64)
    g = torch.tensor([1, -2, 0.5, 3], dtype=torch.float64)
    q = torch.tensor([0, -1, 0, 1], dtype=torch.float64)
    how: dict[str, Any] = {"form": form, "sparsity": 0.5, "lam": 0.5, "backend": backend}
    x_mean, g_mean = (3.5 / 4, 2.5 / 4) if form == "affine" else (0, 0)
    s, r = 6 / 3, 5 / 3
    torch.testing.assert_close(quantize(x, **how), s * q + x_mean, rtol=0, atol=1e-14)
    slope = s / 3 * g
    ridge = slope + g_mean - s / 3 * g_mean + r * (q + (x - x_mean - 2 * s * q) / 3)
    for estimator, expected in {
        "ddt": torch.where(q != 0, ridge, slope),
        "ddt_ridge": ridge,
        "ddt_slope": slope,
    }.items():
        torch.testing.assert_close(gradient(x, g, estimator=estimator, **how), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["affine", "linear"])
@pytest.mark.parametrize("bits", [1, 1.58, 4, None])
@pytest.mark.parametrize("n", [40, 70_000])  # the second is shared among tasks
def test_a_block_that_keeps_nothing_can_come_back(backend: str, form: str, bits: float | None, n: int) -> None:
    x, g = torch.randn(2, 3, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[1] = x[1].clamp(-1, 1) / 64
    how: dict[str, Any] = {"bits": bits, "form": form, "sparsity": 0.9, "scope": "tensor", "dim": 1, "backend": backend}
    mean, g_mean = (x[1].mean(), g[1].mean()) if form == "affine" else torch.zeros(2, dtype=torch.float64)
    for lam in (0.0, 0.01):
        x_hat, codes = quantize_with_codes(x, lam=lam, **how)
        torch.testing.assert_close(x_hat[1], mean.expand(n), rtol=0, atol=1e-15)
        assert codes.scale[1].item() == 0
        assert bool((codes.scale[[0, 2]] > 0).all())
        assert torch.equal(gradient(x, g, lam=lam, **how)[1], g[1])
        assert torch.equal(gradient(x, g, lam=lam, estimator="ddt_slope", **how)[1], g[1])
        ridge = gradient(x, g, lam=lam, estimator="ddt_ridge", **how)[1]
        torch.testing.assert_close(ridge, g_mean.expand(n), rtol=0, atol=1e-15)


@given(
    seed=st.integers(0, 99),
    bits=st.sampled_from([1, 1.58, 4, None]),
    form=st.sampled_from(["affine", "linear"]),
    sparsity=st.sampled_from([0.0, (3, 3)]),
    dim=st.sampled_from([0, 1, None]),
)
def test_without_pruning_the_ridge_is_over_all_values(
    seed: int, bits: float | None, form: str, sparsity: Any, dim: int | None
) -> None:
    x, g = torch.randn(2, 9, 14, generator=torch.Generator().manual_seed(seed))
    for backend in BACKENDS:
        how: dict[str, Any] = {"bits": bits, "form": form, "sparsity": sparsity, "dim": dim, "backend": backend}
        expected = gradient(x, g, estimator="ddt_ridge", **how)
        got = gradient(x, g, estimator="ddt", **how)
        assert torch.equal(got, expected)


@given(seed=st.integers(0, 99), bits=st.sampled_from([1, 1.58, 4, None]), lam=st.sampled_from([0.01, 1.0]))
def test_zeros_between_the_values_do_not_change_them(seed: int, bits: float | None, lam: float) -> None:
    x = torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    among_zeros = torch.zeros(50, dtype=torch.float64)
    among_zeros[3::10] = x
    for backend in BACKENDS:
        how: dict[str, Any] = {"bits": bits, "form": "linear", "lam": lam, "backend": backend}
        got = quantize(among_zeros, sparsity=0.9, **how)
        torch.testing.assert_close(got[3::10], quantize(x, **how), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ewgs_by_hand(backend: str) -> None:
    how: dict[str, Any] = {"estimator": Ewgs(delta=0.5), "backend": backend}
    g = torch.tensor([1, -2, 0.5, 3], dtype=torch.float64)
    # one bit, affine: s_f = 2, f = x/2 + ½ = (0, .25, .75, 1.5 clipped to 1), q = (0, 0, 1, 1), the grid spans 1
    x = torch.tensor([-1, -0.5, 0.5, 2], dtype=torch.float64)
    error = torch.tensor([0, 0.25, -0.25, 0], dtype=torch.float64)
    expected = g * (1 + 0.5 * g.sign() * error)
    torch.testing.assert_close(gradient(x, g, **how), expected, rtol=0, atol=1e-14)
    # two bits, linear: half-step 1 (see the grid's tests), f = x, q = (−3, −1, 1, 3), the grid spans 6
    x = torch.tensor([-3, -0.25, 0.75, 3], dtype=torch.float64)
    step = min(0.9957 * math.sqrt((18 + 0.625) / 4) / 2, 1.0)
    assert step == 1
    error = torch.tensor([0, 0.75, -0.25, 0], dtype=torch.float64) / 6
    expected = g * (1 + 0.5 * g.sign() * error)
    torch.testing.assert_close(gradient(x, g, bits=2, form="linear", **how), expected, rtol=0, atol=1e-14)
    # sparsity alone: what is pruned is off by x/s_f, s_f = √((9 + 9)/2) = 3
    error = torch.tensor([0, -0.25 / 3, 0.25, 0], dtype=torch.float64)
    expected = g * (1 + 0.5 * g.sign() * error)
    torch.testing.assert_close(gradient(x, g, bits=None, sparsity=0.5, **how), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["affine", "linear"])
def test_reste_by_hand(backend: str, form: str) -> None:
    x = 2 * torch.tensor([0.05, -0.5, 1.0, -1.45, 2.0], dtype=torch.float64)  # mean|x| = 2: z = x/2
    g = torch.tensor([1, -2, 0.5, 3, 7], dtype=torch.float64)
    slopes = [0.1 ** (-2 / 3), 0.5 ** (-2 / 3) / 3, 1 / 3, 1.45 ** (-2 / 3) / 3, 0]
    expected = g * torch.tensor(slopes, dtype=torch.float64)
    how: dict[str, Any] = {"form": form, "backend": backend}
    torch.testing.assert_close(gradient(x, g, estimator="reste", **how), expected, rtol=1e-12, atol=1e-14)
    clipped = gradient(x, g, estimator=Reste(power=1.0, bound=1.2), **how)
    assert clipped.tolist() == [1, -2, 0.5, 0, 0]
    # with pruning, the mean is that of what is kept: (2.9 + 4)/2
    kept = gradient(x, g, estimator=Reste(power=1.0, bound=1.15, flat=0.2), sparsity=0.6, **how)
    assert kept.tolist() == [1, -2, 0.5, 3, 0]


@given(
    seed=st.integers(0, 99),
    form=st.sampled_from(["affine", "linear"]),
    sparsity=st.sampled_from([0.0, 0.5, (1, 4)]),
    dim=st.sampled_from([0, 1, None]),
    reste=st.builds(Reste, st.floats(1, 20), st.floats(1, 3), st.floats(0.01, 0.9)),
)
def test_reste_kernels_follow_the_reference(seed: int, form: str, sparsity: Any, dim: int | None, reste: Reste) -> None:
    x, g = torch.randn(2, 9, 14, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    got, expected = (
        gradient(x, g, form=form, sparsity=sparsity, dim=dim, estimator=reste, backend=b) for b in BACKENDS
    )
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@given(seed=st.integers(0, 99), bits=st.sampled_from([1, 1.58, 4, None]), sparsity=st.sampled_from([0.0, 0.5]))
def test_every_estimator_has_the_same_forward(seed: int, bits: float | None, sparsity: float) -> None:
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed))
    for backend in BACKENDS:
        same = quantize(x, bits=bits, sparsity=sparsity, backend=backend)
        for estimator in ("ste", "ewgs", *(("reste",) if bits == 1 else ()), Ddt(), Ste(), Ewgs(2.0)):
            assert torch.equal(quantize(x, bits=bits, sparsity=sparsity, estimator=estimator, backend=backend), same)


def test_names_stand_for_the_defaults() -> None:
    x, g = torch.randn(2, 40)
    for name, estimator in {
        "ddt": Ddt(),
        "ddt_ridge": Ddt(pruned="ridge"),
        "ddt_slope": Ddt(slope_only=True),
        "ste": Ste(),
        "ewgs": Ewgs(1e-3),
        "reste": Reste(3.0, 1.5, 0.1),
    }.items():
        assert torch.equal(gradient(x, g, estimator=name), gradient(x, g, estimator=estimator))
    assert torch.equal(gradient(x, g, estimator=Ewgs(0.0)), g)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ddt(pruned="none"), "Ddt: expected pruned 'slope' or 'ridge', got 'none'"),
        (lambda: Ddt(pruned="ridge", slope_only=True), "Ddt: slope_only .* expected pruned='slope', got 'ridge'"),
        (lambda: Ewgs(-1), "Ewgs: expected a finite delta >= 0, got -1"),
        (lambda: Ewgs(math.nan), "got nan"),
        (lambda: Reste(power=0.5), "Reste: expected a finite power >= 1, got 0.5"),
        (lambda: Reste(flat=0.0), r"expected 0 < flat < bound, got flat=0.0, bound=1.5"),
        (lambda: Reste(bound=0.05), "got flat=0.1, bound=0.05"),
    ],
)
def test_refused_settings(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
