"""The estimators that are not the DDT: against values computed by hand."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tbnn.ops.quantize import Ddt, Ewgs, Reste, Ste, quantize

BACKENDS = ["cpu", "reference"]


def gradient(x: torch.Tensor, g: torch.Tensor, **how: Any) -> torch.Tensor:
    leaf = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(quantize(leaf, **how), leaf, g)
    return dx


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
    for name, estimator in {"ddt": Ddt(), "ste": Ste(), "ewgs": Ewgs(1e-3), "reste": Reste(3.0, 1.5, 0.1)}.items():
        assert torch.equal(gradient(x, g, estimator=name), gradient(x, g, estimator=estimator))
    assert torch.equal(gradient(x, g, estimator=Ewgs(0.0)), g)


@pytest.mark.parametrize(
    ("make", "message"),
    [
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
