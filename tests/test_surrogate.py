"""Surrogates: each derivative is its soft spike's, they match snntorch's, and the ridge-denoised one plugs into it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tbnn
from tbnn import surrogate
from tbnn.ops.ddt import ddt
from tbnn.surrogate import Surrogate

SHAPES: list[Surrogate] = [
    surrogate.atan(),
    surrogate.atan(0.7),
    surrogate.fast_sigmoid(),
    surrogate.fast_sigmoid(3),
    surrogate.sigmoid(),
    surrogate.sigmoid(2),
    surrogate.triangular(),
    surrogate.triangular(0.4),
    surrogate.boxcar(),
    surrogate.boxcar(2.5),
]
KINKS = {surrogate.Triangular: (0.0, 1.0), surrogate.Boxcar: (0.5,), surrogate.FastSigmoid: (0.0,)}

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@shapes
def test_soft_spike_is_the_integral_of_the_derivative(shape: Surrogate) -> None:
    u = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    for kink in KINKS.get(type(shape), ()):
        u = u[(u.abs() - kink * (shape.parameter if type(shape) is not surrogate.FastSigmoid else 1)).abs() > 1e-4]
    step = 1e-6
    slope = (shape.soft(u + step) - shape.soft(u - step)) / (2 * step)
    torch.testing.assert_close(slope, shape.derivative(u) / shape.area, rtol=1e-5, atol=1e-7)


@shapes
def test_soft_spike_runs_from_0_to_1_through_one_half(shape: Surrogate) -> None:
    far = torch.tensor([-math.inf, -1e12, 0, 1e12], dtype=torch.float64)
    assert shape.soft(far)[1:].tolist() == pytest.approx([0, 0.5, 1], abs=1e-9)
    if not isinstance(shape, surrogate.FastSigmoid):  # ∞/∞ there
        assert shape.soft(far)[0] == pytest.approx(0, abs=1e-15)
    u = torch.linspace(-3, 3, 301, dtype=torch.float64)
    soft = shape.soft(u)
    assert bool((soft.diff() >= 0).all())
    torch.testing.assert_close(soft + shape.soft(-u), torch.ones_like(u))


@shapes
def test_area_is_the_integral(shape: Surrogate) -> None:
    edges = torch.cat(
        [-torch.logspace(6, -6, 60_001, dtype=torch.float64), torch.logspace(-6, 6, 60_001, dtype=torch.float64)]
    )
    area = torch.trapezoid(shape.derivative(edges), edges).item()
    assert area == pytest.approx(shape.area, rel=2e-3)


@shapes
def test_forward_is_a_step_and_backward_the_derivative(shape: Surrogate) -> None:
    u = torch.randn(64, dtype=torch.float64)
    u[:3] = torch.tensor([0.0, -0.0, 1e-300])
    u.requires_grad_()
    g = torch.randn(64, dtype=torch.float64)
    spikes = shape(u)
    assert spikes.tolist() == [float(value > 0) for value in u.tolist()]
    torch.testing.assert_close(torch.autograd.grad(spikes, u, g)[0], g * shape.derivative(u.detach()))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (surrogate.atan(), snn.surrogate.atan()),
        (surrogate.atan(0.5), snn.surrogate.atan(0.5)),
        (surrogate.fast_sigmoid(), snn.surrogate.fast_sigmoid()),
        (surrogate.fast_sigmoid(4), snn.surrogate.fast_sigmoid(4)),
        (surrogate.sigmoid(), snn.surrogate.sigmoid()),
        (surrogate.sigmoid(5), snn.surrogate.sigmoid(5)),
    ],
    ids=lambda f: str(f) if isinstance(f, Surrogate) else "",
)
def test_same_function_as_snntorch(ours: Surrogate, theirs: Callable[[Tensor], Tensor]) -> None:
    u = torch.linspace(-3, 3, 1201, requires_grad=True)
    assert torch.equal(ours(u), theirs(u))
    du, expected = (torch.autograd.grad(f(u).sum(), u)[0] for f in (ours, theirs))
    torch.testing.assert_close(du, expected, rtol=1e-5, atol=1e-7)


def test_the_sigmoid_stays_finite_where_the_naive_one_overflows() -> None:
    u = torch.tensor([-50.0, -4.0, 4.0, 50.0], requires_grad=True)
    (ours,) = torch.autograd.grad(surrogate.sigmoid()(u).sum(), u)
    (naive,) = torch.autograd.grad(snn.surrogate.sigmoid()(u).sum(), u)
    assert not bool(naive.isfinite().all())
    assert bool(ours.isfinite().all())


def run(neuron: snn.Leaky, current: Tensor) -> Tensor:
    v, spikes = torch.zeros_like(current[0]), []
    for step in current.unbind(0):
        spike, v = neuron(step, v)
        spikes.append(spike)
    return torch.stack(spikes)


@pytest.mark.parametrize("base", [None, surrogate.fast_sigmoid(4), surrogate.triangular(2.0)], ids=str)
@pytest.mark.parametrize(("lam", "scale"), [(0.01, 1.0), (0.3, 0.25)])
def test_ridge_spike_in_snntorch_is_our_neuron_with_step_statistics(
    base: Surrogate | None, lam: float, scale: float
) -> None:
    current = torch.randn(12, 3, 7, dtype=torch.float64).requires_grad_()
    weights = torch.randn(12, 3, 7, dtype=torch.float64)
    spikes = run(snn.Leaky(0.875, spike_grad=surrogate.ddt(base, lam=lam, scale=scale)), current)
    assert torch.equal(spikes, run(snn.Leaky(0.875), current))
    ours, _ = tbnn.nn.Leaky(0.875, surrogate=base, stats="step", lam=lam, scale=scale)(current)
    assert torch.equal(spikes, ours)
    expected, got = (torch.autograd.grad((s * weights).sum(), current)[0] for s in (ours, spikes))
    assert expected.abs().sum() > 0
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


@given(
    shape=st.sampled_from([SHAPES[0], SHAPES[3], SHAPES[5]]),
    lam=st.sampled_from([0.01, 1.0]),
    scale=st.sampled_from([1.0, 3.0]),
    seed=st.integers(0, 99),
)
def test_ridge_gradient_is_the_difference_with_frozen_codes(
    shape: Surrogate, lam: float, scale: float, seed: int, numeric_gradient: Callable[..., Tensor]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    u, g = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    delta = (u > 0).double() - shape.soft(u)
    leaf = u.clone().requires_grad_()
    (got,) = torch.autograd.grad(surrogate.ddt(shape, lam=lam, scale=scale)(leaf), leaf, g)
    expected = numeric_gradient(lambda u: scale * (g * ddt(shape.soft(u), shape.soft(u) + delta, lam=lam)).sum(), u)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("level", [-5.0, 5.0])
def test_a_silent_or_saturated_step_hears_the_mean_gradient(level: float) -> None:
    u = torch.full((2, 3), level, dtype=torch.float64, requires_grad=True)
    g = torch.randn(2, 3, dtype=torch.float64)
    (du,) = torch.autograd.grad(surrogate.ddt()(u), u, g)
    torch.testing.assert_close(du, g.mean() * surrogate.atan().derivative(u.detach()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stats": "sequence"}, "expected stats='step' .*, got 'sequence'"),
        ({"lam": 0.0}, "lam: expected a finite number > 0, got 0.0"),
        ({"lam": -1.0}, "lam: .* got -1.0"),
        ({"lam": math.nan}, "lam: .* got nan"),
        ({"scale": 0.0}, "scale: .* got 0.0"),
        ({"scale": math.inf}, "scale: .* got inf"),
    ],
)
def test_refused_ridge_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        surrogate.ddt(**arguments)


@pytest.mark.parametrize(
    "make", [surrogate.atan, surrogate.fast_sigmoid, surrogate.sigmoid, surrogate.triangular, surrogate.boxcar]
)
@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_refused_widths(make: Callable[[float], Surrogate], bad: float) -> None:
    with pytest.raises(ValueError, match=rf"(alpha|slope|width): expected a finite number > 0, got {bad}"):
        make(bad)


def test_defaults_are_snntorch_s() -> None:
    defaults = [make().parameter for make in (surrogate.atan, surrogate.fast_sigmoid, surrogate.sigmoid)]
    assert defaults == [2.0, 25.0, 25.0]
