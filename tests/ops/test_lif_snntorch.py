"""The neuron against snntorch's: the same spikes to the bit, the same gradients with the same surrogates."""

from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor

from tbnn import surrogate
from tbnn.ops.lif import LifState, SpikeGradient, lif
from tbnn.surrogate import Surrogate

RESETS = ["subtract", "zero", "none"]
SURROGATES = [
    (surrogate.atan(), snn.surrogate.atan()),
    (surrogate.fast_sigmoid(), snn.surrogate.fast_sigmoid()),
    (surrogate.fast_sigmoid(3), snn.surrogate.fast_sigmoid(3)),
    (surrogate.sigmoid(4), snn.surrogate.sigmoid(4)),
    (surrogate.straight_through_estimator(), snn.surrogate.straight_through_estimator()),
    (surrogate.heaviside(), snn.surrogate.heaviside()),
    (surrogate.signed(0.5), snn.surrogate.triangular(0.5)),
    (surrogate.spike_rate_escape(2.0, 0.5), snn.surrogate.spike_rate_escape(2, 0.5)),
    (surrogate.sparse_fast_sigmoid(5.0, 0.25), snn.surrogate.SFS(5, 0.25)),
]


def theirs(neuron: snn.Leaky, current: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
    v = torch.zeros_like(current[0]) if v is None else v
    spikes = []
    for current_t in current.unbind(0):
        spikes_t, v = neuron(current_t, v)
        spikes.append(spikes_t)
    return torch.stack(spikes), v


def drive(kind: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Random currents, of multiples of 1/64 or of any floats."""
    current = 0.5 * torch.randn(shape, dtype=dtype) + 0.1
    return (current * 64).round() / 64 if kind == "multiples of 1/64" else current


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("kind", ["multiples of 1/64", "floats"])
@pytest.mark.parametrize("beta", [0.9375, 0.9, 0.0, 1.0])
def test_same_spikes_and_membranes(reset: str, kind: str, beta: float) -> None:
    current = drive(kind, (500, 2, 500))
    if beta == 1 and reset == "none":
        current = current - 0.1
    spikes, v = theirs(snn.Leaky(beta, reset_mechanism=reset), current)
    got = lif(current, beta, reset=reset)
    assert 0.001 < spikes.mean() < 0.9
    assert got.out.dtype == spikes.dtype == torch.float32
    assert torch.equal(got.out, spikes)
    assert torch.equal(got.state.v, v)


def test_the_comparison_can_fail() -> None:
    current = drive("floats", (500, 2, 500))
    spikes, _ = theirs(snn.Leaky(0.9), current)
    others: list[dict[str, Any]] = [
        {"beta": 0.901},
        {"beta": 0.9, "threshold": 1.001},
        {"beta": 0.9, "reset": "zero"},
        {"beta": 0.9, "reset": "none"},
    ]
    for arguments in others:
        assert not torch.equal(lif(current, **arguments).out, spikes)


def test_a_membrane_at_the_threshold_is_silent_in_both() -> None:
    current = torch.tensor([1.0, 0.5, 2.0, 0.0]).reshape(4, 1, 1)
    spikes, _ = theirs(snn.Leaky(0.5), current)
    assert spikes.flatten().tolist() == [0, 0, 1, 0]
    assert torch.equal(lif(current, 0.5).out, spikes)


def test_a_threshold_and_a_beta_for_each_neuron_and_a_state() -> None:
    current, v0 = drive("floats", (40, 3, 63)), torch.randn(3, 63)
    beta, threshold = torch.rand(63), 0.5 + torch.rand(63)
    spikes, v = theirs(snn.Leaky(beta, threshold=threshold), current, v0)
    got = lif(current, beta, threshold, LifState(v0))
    assert torch.equal(got.out, spikes)
    assert torch.equal(got.state.v, v)


def close(got: Tensor, expected: Tensor, rtol: float = 1e-5) -> None:
    """Within rtol of the largest entry."""
    assert expected.abs().max() > 0
    torch.testing.assert_close(got, expected, rtol=rtol, atol=rtol * expected.abs().max().item())


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize(("ours", "shape"), SURROGATES, ids=[str(ours) for ours, _ in SURROGATES])
def test_same_gradients(reset: str, ours: Surrogate, shape: Any) -> None:
    """Currents, initial membranes, a learnable beta and threshold; the loss reads spikes and the last membrane."""
    current, v0 = drive("floats", (60, 3, 37)), torch.randn(3, 37)
    weights, v_weights = torch.randn(60, 3, 37), torch.randn(3, 37)
    their_current, their_v0 = current.clone().requires_grad_(), v0.clone().requires_grad_()
    neuron = snn.Leaky(
        torch.tensor(0.8),
        threshold=torch.tensor(0.9),
        spike_grad=shape,
        learn_beta=True,
        learn_threshold=True,
        reset_mechanism=reset,
    )
    spikes, v = theirs(neuron, their_current, their_v0)
    expected = torch.autograd.grad(
        (spikes * weights).sum() + (v * v_weights).sum(), (their_current, their_v0, neuron.beta, neuron.threshold)
    )
    leaves = [t.clone().requires_grad_() for t in (current, v0, torch.tensor(0.8), torch.tensor(0.9))]
    gradient = SpikeGradient(gradient="surrogate", surrogate=ours)
    got = lif(leaves[0], leaves[2], leaves[3], LifState(leaves[1]), reset=reset, gradient=gradient)
    assert torch.equal(got.out, spikes)
    grads = torch.autograd.grad((got.out * weights).sum() + (got.state.v * v_weights).sum(), leaves)
    for name, a, b in zip(("current", "v0", "beta", "threshold"), grads, expected, strict=True):
        close(a, b, 1e-5 if name in ("current", "v0") else 1e-4)


def test_same_gradients_over_a_long_sequence_of_many_neurons() -> None:
    current, weights = drive("multiples of 1/64", (500, 2, 500)), torch.randn(500, 2, 500)
    leaf, their_leaf = current.clone().requires_grad_(), current.clone().requires_grad_()
    spikes, _ = theirs(snn.Leaky(0.9375), their_leaf)
    got = lif(leaf, 0.9375, gradient=SpikeGradient(gradient="surrogate"))
    assert torch.equal(got.out, spikes)
    close(
        torch.autograd.grad((got.out * weights).sum(), leaf)[0],
        torch.autograd.grad((spikes * weights).sum(), their_leaf)[0],
    )
