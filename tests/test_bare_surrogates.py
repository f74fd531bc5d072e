"""Surrogates without a soft spike: snntorch's, gradient for gradient, in every kernel; and where they are refused."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from snntorch import surrogate as snntorch_s
from torch import Tensor

from tbnn import surrogate
from tbnn.nn import Leaky
from tbnn.ops.lif import SpikeGradient
from tbnn.surrogate import Bare, Surrogate

PAIRS: list[tuple[Bare, Callable[[Tensor], Tensor]]] = [
    (surrogate.straight_through_estimator(), snntorch_s.straight_through_estimator()),
    (surrogate.heaviside(), snntorch_s.heaviside()),
    (surrogate.signed(), snntorch_s.triangular()),
    (surrogate.signed(0.4), snntorch_s.triangular(0.4)),
    (surrogate.spike_rate_escape(), snntorch_s.spike_rate_escape()),
    (surrogate.spike_rate_escape(3.0, 0.5), snntorch_s.spike_rate_escape(3, 0.5)),
    (surrogate.sparse_fast_sigmoid(), snntorch_s.SFS()),
    (surrogate.sparse_fast_sigmoid(2.0, -0.5), snntorch_s.SFS(2, -0.5)),
]
ALL: list[Bare] = [ours for ours, _ in PAIRS] + [surrogate.leaky_spike(0.25)]
pairs = pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=[str(ours) for ours, _ in PAIRS])
every = pytest.mark.parametrize("shape", ALL, ids=str)


@pairs
@given(
    u=st.lists(
        st.one_of(st.sampled_from([0.0, -0.0, 1.0, -0.5]), st.floats(-(2.0**100), 2.0**100, width=32)), min_size=1
    ),
    g=st.floats(-100, 100, width=32),
)
def test_the_derivative_is_snntorch_s(
    ours: Surrogate, theirs: Callable[[Tensor], Tensor], u: list[float], g: float
) -> None:
    leaf = torch.tensor(u, requires_grad=True)
    spikes, expected = ours(leaf), theirs(leaf)
    assert torch.equal(spikes, expected)
    du, wanted = (torch.autograd.grad(s, leaf, torch.full_like(s, g))[0] for s in (spikes, expected))
    torch.testing.assert_close(du, wanted, rtol=1e-6, atol=1e-30)


def test_snntorch_s_leaky_spike_raises_and_ours_is_what_it_documents() -> None:
    u = torch.tensor([-2.0, -0.0, 0.0, 1e-30, 3.0], dtype=torch.float64)
    with pytest.raises(TypeError):
        snntorch_s.LSO()(u)
    assert surrogate.leaky_spike().derivative(u).tolist() == [0.1, 0.1, 0.1, 1, 1]


@given(u=st.floats(-8, 8))
def test_the_escape_rate_peaks_one_above_the_threshold(u: float) -> None:
    shape = surrogate.spike_rate_escape()
    at, peak = shape.derivative(torch.tensor([u, 1.0], dtype=torch.float64)).tolist()
    assert at <= peak == 25


def loop(neuron: snn.Leaky, current: Tensor) -> Tensor:
    v, spikes = torch.zeros_like(current[0]), []
    for step in current.unbind(0):
        spike, v = neuron(step, v)
        spikes.append(spike)
    return torch.stack(spikes)


@pairs
@given(
    steps=st.integers(1, 40),
    features=st.sampled_from([1, 7, 63]),
    reset=st.sampled_from(["subtract", "zero", "none"]),
    scale=st.sampled_from([1.0, 0.25]),
    seed=st.integers(0, 999),
)
@settings(max_examples=15)
def test_a_layer_has_the_gradients_of_snntorch_s_loop(
    ours: Surrogate, theirs: Callable[[Tensor], Tensor], steps: int, features: int, reset: str, scale: float, seed: int
) -> None:
    """Currents large enough for levels more than 1 above the threshold; ``scale`` is on the spikes' gradient."""
    generator = torch.Generator().manual_seed(seed)
    current, weights = (torch.randn(steps, 3, features, generator=generator) for _ in range(2))
    current = (64 * current).round() / 64  # of these many a level equals the threshold
    leaves = [current.clone().requires_grad_() for _ in range(2)]
    layer = Leaky(0.5, gradient="surrogate", surrogate=ours, reset_mechanism=reset, scale=scale)
    spikes, expected = layer(leaves[0])[0], loop(snn.Leaky(0.5, spike_grad=theirs, reset_mechanism=reset), leaves[1])
    assert torch.equal(spikes, expected)
    (got,) = torch.autograd.grad((spikes * weights).sum(), leaves[0])
    (want,) = torch.autograd.grad((expected * weights * scale).sum(), leaves[1])
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6 * max(1e-6, want.abs().max().item()))


@every
def test_ddt_of_the_soft_spike_is_refused(shape: Bare) -> None:
    for refused in (lambda: SpikeGradient(surrogate=shape), lambda: Leaky(0.5, surrogate=shape)):
        with pytest.raises(ValueError, match=r"target='soft' expected one with a soft spike, got \w+\(.*\); it needs"):
            refused()
    with pytest.raises(ValueError, match=r"ddt: base: expected a surrogate with a soft spike, got \w+\("):
        surrogate.ddt(shape)
    for read in (lambda: shape.soft(torch.zeros(1)), lambda: shape.area):
        with pytest.raises(ValueError, match=r"expected a surrogate with a soft spike, got \w+\("):
            read()


@every
def test_the_trace_target_never_reads_it(shape: Bare) -> None:
    current = torch.randn(9, 2, 5)
    gradients = []
    for given_shape in (None, shape):
        leaf = current.clone().requires_grad_()
        gradients += torch.autograd.grad(
            Leaky(0.5, target="trace", surrogate=given_shape)(leaf)[0].square().sum(), leaf
        )
    assert torch.equal(*gradients)
    assert gradients[0].abs().sum() > 0


def test_numbers_make_it_again() -> None:
    assert [type(shape)(*shape.numbers) for shape in ALL] == ALL
    assert len({kind.code for kind in surrogate.SHAPES}) == len(surrogate.SHAPES)
    assert str(surrogate.sparse_fast_sigmoid()) == "SparseFastSigmoid(slope=25, gate=1)"
    assert str(surrogate.spike_rate_escape()) == "SpikeRateEscape(beta=1, slope=25)"


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (surrogate.leaky_spike, (-0.1,), "slope: expected a finite number >= 0, got -0.1"),
        (surrogate.leaky_spike, (math.nan,), "slope: expected a finite number >= 0, got nan"),
        (surrogate.signed, (0.0,), "threshold: expected a finite number > 0, got 0.0"),
        (surrogate.spike_rate_escape, (0.0,), "beta: expected a finite number > 0, got 0.0"),
        (surrogate.spike_rate_escape, (1.0, -1.0), "slope: expected a finite number > 0, got -1.0"),
        (surrogate.sparse_fast_sigmoid, (-2.0,), "slope: expected a finite number > 0, got -2.0"),
        (surrogate.sparse_fast_sigmoid, (2.0, math.inf), "gate: expected a finite number, got inf"),
    ],
)
def test_refused_numbers(make: Callable[..., Any], arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(*arguments)
