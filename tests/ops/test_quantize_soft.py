"""QGait's soft quantiser and PEGE's mixture: closed forms, finite differences, limits, reproducibility."""

import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tbnn.ops.quantize import Ddt, Ewgs, Pege, Qgait, Reste, Ste, quantize, quantize_with_codes
from tbnn.ops.quantize.estimators import Estimator
from tbnn.ops.quantize.grid import ODD, SIGN, scheme_of
from tbnn.ops.quantize.reference import place

BACKENDS = ["cpu", "reference"]
SOFT = [(bits, form) for bits in (1, 1.58, 2, 4) for form in ("affine", "linear")]


def gradient(x: torch.Tensor, g: torch.Tensor, **how: Any) -> torch.Tensor:
    leaf = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(quantize(leaf, **how), leaf, g)
    return dx


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["affine", "linear"])
def test_qgait_by_hand(backend: str, form: str) -> None:
    x = 2 * torch.tensor([0.0, 0.5, -1.0, 1.0, -2.5], dtype=torch.float64)  # mean|x| = 2: codes at x = ±2, a jump at 0
    g = torch.tensor([1, -2, 0.5, 3, 7], dtype=torch.float64)
    k = 3.0
    at_code = k / math.sinh(k)
    quarter = k / 2 / math.tanh(k / 2) / math.cosh(k / 4) ** 2
    expected = g * torch.tensor([k / 2 / math.tanh(k / 2), quarter, at_code, at_code, at_code], dtype=torch.float64)
    got = gradient(x, g, form=form, estimator=Qgait(sharpness=k), backend=backend)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def staircase(f: torch.Tensor, bits: float, form: str, k: float) -> torch.Tensor:
    """The soft quantiser itself, in units of the grid; beyond the codes a line."""
    scheme = scheme_of(bits, form, 0.01)
    apart = scheme.high - scheme.low if scheme.rule == SIGN else 2.0 if scheme.rule == ODD else 1.0
    inside = f.clamp(scheme.low, scheme.high)
    place = (inside - scheme.low) / apart
    t = place - place.floor()
    phi = 0.5 + (k * (t - 0.5)).tanh() / (2 * math.tanh(k / 2))
    return scheme.low + apart * (place.floor() + phi) + (f - inside) * k / math.sinh(k)


@pytest.mark.parametrize(("bits", "form"), SOFT)
def test_qgait_is_the_slope_of_the_staircase(bits: float, form: str) -> None:
    x, k, h = normal(4, 40), 4.0, 1e-6
    grid = place(x, torch.ones_like(x, dtype=torch.bool), scheme_of(bits, form, 0.01))
    f = (x - grid.origin) * grid.slope
    numeric = (staircase(f + h, bits, form, k) - staircase(f - h, bits, form, k)) / (2 * h)
    got = gradient(x, torch.ones_like(x), bits=bits, form=form, dim=1, estimator=Qgait(sharpness=k))
    torch.testing.assert_close(got, numeric, rtol=1e-5, atol=1e-6)
    assert got.max() > 1.8
    assert got.min() < 0.16


@given(
    seed=st.integers(0, 99),
    case=st.sampled_from([*SOFT, (None, "affine")]),
    sparsity=st.sampled_from([0.0, 0.5, (1, 4)]),
    dim=st.sampled_from([0, 1, None]),
    block=st.sampled_from([None, 4]),
    k=st.floats(0, 30),
)
@settings(max_examples=40, derandomize=True, deadline=None)
def test_qgait_with_kernels_is_the_reference(
    seed: int, case: tuple[float | None, str], sparsity: Any, dim: int | None, block: int | None, k: float
) -> None:
    x, g = normal(2, 9, 14, seed=seed)
    how: dict[str, Any] = {"bits": case[0], "form": case[1], "sparsity": sparsity, "dim": dim}
    how["block"] = block if dim is not None else None
    results = []
    for backend in BACKENDS:
        leaf = x.clone().requires_grad_()
        y = quantize(leaf, estimator=Qgait(sharpness=k), backend=backend, **how)
        assert torch.equal(y, quantize(x, backend=backend, **how))  # forward, it is what the others are
        results.append(torch.autograd.grad(y, leaf, g)[0])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("bits", "form"), SOFT)
def test_limits_of_qgait(bits: float, form: str) -> None:
    x, g = normal(2, 3, 50, seed=1)
    how: dict[str, Any] = {"bits": bits, "form": form, "dim": 1}
    assert torch.equal(gradient(x, g, estimator=Qgait(sharpness=0.0), **how), g)
    torch.testing.assert_close(gradient(x, g, estimator=Qgait(sharpness=1e-3), **how), g, rtol=1e-6, atol=0)
    sharp = gradient(x, torch.ones_like(x), estimator=Qgait(sharpness=100.0), **how)
    away = sharp < 1e-3  # the rounding is flat but near its jumps
    assert away.float().mean() > 0.7
    # between two codes the slopes of any sharpness are 1 on average: a step is a step
    line = torch.linspace(-1, 1, 20002, dtype=torch.float64)[1::2]
    half = quantize(line)[-1].item() / (0.5 / 0.51)  # mean|x| = ½: codes at ±½
    between = line.abs() < 0.5
    assert half == pytest.approx(0.5, abs=0.02)
    for k in (0.5, 2.2, 9.0):
        slopes = gradient(line, torch.ones_like(line), estimator=Qgait(sharpness=k))
        assert slopes[between].mean().item() == pytest.approx(1, abs=1e-3)


def test_at_gives_a_point_of_training() -> None:
    for steady in (Ddt(), Ste(), Ewgs(0.5)):
        assert steady.at(0.3) is steady
    moved = Reste(power=5.0).at(0.25)
    assert moved.power_now == 2
    assert moved.at(1.0) == Reste(power=5.0)
    x, g = normal(2, 60)
    for backend in BACKENDS:
        expected = gradient(x, g, estimator=Reste(power=2.0), backend=backend)
        assert torch.equal(gradient(x, g, estimator=moved, backend=backend), expected)
        early = gradient(x, g, estimator=Qgait(start=0.4).at(0.39), backend=backend)
        assert torch.equal(early, g)  # the first of two stages
        assert not torch.equal(gradient(x, g, estimator=Qgait(start=0.4).at(0.4), backend=backend), g)
    shares = [Pege().at(p / 10).share for p in range(11)]
    assert shares[0] == 0
    assert shares[-1] == 1
    assert shares[5] == pytest.approx(math.log(1 + (math.e - 1) / 2))
    steps = [b - a for a, b in itertools.pairwise(shares)]
    assert all(a > b > 0 for a, b in itertools.pairwise(steps))  # fast at first
    assert Pege(0.2).at(0.1).at(0.7) == Pege(0.2, 0.7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits", [1, 1.58, 3, None])
def test_pege_at_both_ends(backend: str, bits: float | None) -> None:
    x, g = normal(2, 5, 30)
    how: dict[str, Any] = {"bits": bits, "dim": 1, "sparsity": 0.4, "backend": backend}
    x_hat, before = quantize(x, **how), torch.get_rng_state()
    assert torch.equal(quantize(x, estimator=Pege(progress=0.0), **how), x)
    assert torch.equal(gradient(x, g, estimator=Pege(weight=3.0, progress=0.0), **how), g)
    assert torch.equal(quantize(x, estimator="pege", **how), x_hat)
    assert torch.equal(gradient(x, g, estimator=Pege(weight=0.0), **how), g)  # "ste"
    pulled = gradient(x, g, estimator=Pege(weight=0.25), **how)
    torch.testing.assert_close(pulled, g + 0.25 * (x - x_hat), rtol=1e-14, atol=1e-14)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_pege_mixes(backend: str, dtype: torch.dtype) -> None:
    x, g = (t.to(dtype) for t in normal(2, 40, 50))
    how: dict[str, Any] = {"dim": 1, "block": 16, "backend": backend}
    pege = Pege(weight=0.5, progress=0.3)
    x_hat = quantize(x, **how)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(5)
        leaf = x.clone().requires_grad_()
        y = quantize(leaf, estimator=pege, **how)
        return y.detach(), torch.autograd.grad(y, leaf, g)[0]

    (y, dx), again = run(), run()
    assert y.dtype == dx.dtype == dtype
    assert torch.equal(y, again[0])
    assert torch.equal(dx, again[1])
    assert not torch.equal(y, quantize(x, estimator=pege, **how))  # drawn anew
    replaced = y == x_hat
    assert torch.equal(torch.where(replaced, x_hat, x), y)
    spread = math.sqrt(pege.share * (1 - pege.share) / x.numel())
    assert abs(replaced.float().mean().item() - pege.share) < 4 * spread
    expected = g + 0.5 * (x - x_hat) * replaced
    torch.testing.assert_close(dx, expected, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


def test_pege_draws_the_same_with_kernels_and_without() -> None:
    x = normal(6, 20)
    results = []
    for backend in BACKENDS:
        torch.manual_seed(1)
        results.append(quantize(x, dim=0, estimator=Pege(progress=0.5), backend=backend))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_of_a_mixture_make_it_up(backend: str) -> None:
    x = normal(4, 10)
    x_hat, codes = quantize_with_codes(x, dim=1, block=4, estimator=Pege(progress=0.5), backend=backend)
    assert codes.scale.shape == codes.offset.shape == (4, 3, 1)
    assert torch.equal(codes.values * codes.scale[:, :1, 0] + codes.offset[:, :1, 0], x_hat)
    settled, parts = quantize_with_codes(x, dim=1, estimator="pege", backend=backend)
    torch.testing.assert_close(parts.values * parts.scale[..., 0] + parts.offset[..., 0], settled)


@pytest.fixture
def _torch_may_warn() -> Any:
    """torch warns of its own ways while it compiles; that is not ours to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_torch_may_warn")
@pytest.mark.parametrize("estimator", [Qgait(), Pege(weight=0.1, progress=0.4)])
def test_a_compiler_sees_through_them(estimator: Estimator) -> None:
    x = torch.randn(4, 32)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (quantize(x, estimator=estimator, dim=1) * torch.arange(32.0)).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for function in (loss, compiled):
        torch.manual_seed(0)
        leaf = x.clone().requires_grad_()
        results.append(torch.autograd.grad(function(leaf), leaf)[0])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Qgait(sharpness=-1), r"Qgait: expected a sharpness in \[0, 100\], got -1"),
        (lambda: Qgait(sharpness=math.nan), "got nan"),
        (lambda: Qgait(start=1.5), r"Qgait: expected a start in \[0, 1\], got 1.5"),
        (lambda: Qgait().at(-0.1), r"Qgait: expected a progress in \[0, 1\], got -0.1"),
        (lambda: Pege(weight=-1), "Pege: expected a finite weight >= 0, got -1"),
        (lambda: Pege(weight=math.inf), "got inf"),
        (lambda: Pege(progress=1.1), r"Pege: expected a progress in \[0, 1\], got 1.1"),
        (lambda: Reste().at(2), r"Reste: expected a progress in \[0, 1\], got 2"),
        (lambda: Ste().at(math.nan), r"Ste: expected a progress in \[0, 1\], got nan"),
        (
            lambda: quantize(torch.ones(2), estimator="peg"),
            "'ewgs', 'reste', 'qgait', 'pege', or an instance, got 'peg'",
        ),
    ],
)
def test_refused_settings(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
