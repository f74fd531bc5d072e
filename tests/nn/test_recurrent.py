"""Recurrence: against a hand-written loop and snntorch's RLeaky, step by step and in halves."""

from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from tbnn.nn import BinaryLinear, Leaky, LifState, Recurrent, RecurrentState, Synaptic


def eighths(*shape: int) -> Tensor:
    """Numbers exact in float, so that the order of a sum does not matter."""
    return (8 * torch.randn(*shape)).round() / 8


def plain(n: int, **arguments: Any) -> Recurrent:
    layer = nn.Linear(n, n)
    with torch.no_grad():
        layer.weight.copy_(eighths(n, n) / 2)
        layer.bias.copy_(eighths(n) / 4)
    return Recurrent(Leaky(0.5, **arguments), layer)


def test_same_spikes_and_gradients_as_snntorch() -> None:
    ours, theirs = plain(6, gradient="surrogate"), snn.RLeaky(0.5, linear_features=6)
    theirs.recurrent.load_state_dict(ours.recurrent_layer.state_dict())
    x, weights = eighths(14, 3, 6), torch.randn(14, 3, 6)
    leaf, their_leaf = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, _ = ours(leaf)
    spikes_t, v, spikes = torch.zeros(3, 6), torch.zeros(3, 6), []
    for x_t in their_leaf.unbind(0):
        spikes_t, v = theirs(x_t, spikes_t, v)
        spikes.append(spikes_t)
    assert torch.equal(out, torch.stack(spikes))
    assert 0.05 < out.mean() < 0.9
    got = torch.autograd.grad(out, [leaf, *ours.recurrent_layer.parameters()], weights)
    want = torch.autograd.grad(torch.stack(spikes), [their_leaf, *theirs.recurrent.parameters()], weights)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize(
    "arguments", [{"stats": "step"}, {}, {"target": "trace"}, {"gradient": "surrogate"}, {"emit": "denoised"}], ids=str
)
def test_equals_a_loop_over_steps(arguments: dict[str, Any]) -> None:
    """Forward and every gradient, with binary weights whose quantisation is one node of the graph."""
    layer = BinaryLinear(9, 9).double()
    recurrent, neuron = Recurrent(Leaky(0.8, **arguments).double(), layer), Leaky(0.8, **arguments).double()
    x, weights = torch.randn(2, 11, 3, 9, dtype=torch.float64)
    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, last = recurrent(leaf)
    quantised, state, back, loop = layer.quantized_weight(), None, torch.zeros(3, 9, dtype=torch.float64), []
    for x_t in other.unbind(0):
        back, state = neuron.step(x_t + back @ quantised.T + layer.bias, state)
        loop.append(back)
    torch.testing.assert_close(out, torch.stack(loop), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(last.neuron.v, state.v, rtol=1e-9, atol=1e-9)
    got = torch.autograd.grad(out, [leaf, *layer.parameters()], weights)
    want = torch.autograd.grad(torch.stack(loop), [other, *layer.parameters()], weights)
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)
    assert got[1].abs().sum() > 0


def assert_same_state(got: RecurrentState, expected: RecurrentState) -> None:
    assert torch.equal(got.out, expected.out)
    assert torch.equal(got.neuron.v, expected.neuron.v)


@pytest.mark.parametrize("binary", [False, True])
def test_steps_and_halves_equal_the_sequence(binary: bool) -> None:
    recurrent = (Recurrent(Leaky(0.5, stats="step"), BinaryLinear(6, 6)) if binary else plain(6, stats="step")).double()
    x, weights = eighths(13, 3, 6).double().requires_grad_(), torch.randn(13, 3, 6, dtype=torch.float64)
    leaves = [x, *recurrent.recurrent_layer.parameters()]
    out, last = recurrent(x)
    state, steps = None, []
    for x_t in x.unbind(0):
        step, state = recurrent.step(x_t, state)
        steps.append(step)
    first, middle = recurrent(x[:5])
    second, end = recurrent(x[5:], middle)
    whole = torch.autograd.grad(out, leaves, weights)
    for other, other_state in ((torch.stack(steps), state), (torch.cat([first, second]), end)):
        assert torch.equal(other, out)
        assert_same_state(other_state, last)
        torch.testing.assert_close(torch.autograd.grad(other, leaves, weights), whole, rtol=1e-8, atol=1e-9)


def test_the_feedback_arrives_one_step_later() -> None:
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 0.0], [5.0, 0.0]]))  # neuron 0 excites neuron 1
    x = torch.zeros(4, 1, 2)
    x[1, 0, 0] = 2
    out, _ = Recurrent(Leaky(0.0), layer)(x)
    assert out[:, 0].tolist() == [[0, 0], [1, 0], [0, 1], [0, 0]]


def test_two_layers_share_nothing() -> None:
    one, two, x = plain(6), plain(6), eighths(9, 2, 6)
    alone = two(x)[0]
    first = one(x)[0]
    one(3 * x)
    assert torch.equal(one(x)[0], first)
    assert torch.equal(two(x)[0], alone)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="Recurrent: expected a layer from N to N features, got 3 -> 4"):
        Recurrent(Leaky(0.5), nn.Linear(3, 4))
    layer, x = Recurrent(Leaky(0.5), nn.Linear(3, 3)), torch.zeros(4, 2, 3)
    for bad in (x[0], x[:0], x[..., None]):
        with pytest.raises(ValueError, match=r"Recurrent: expected \(T, B, (features...\), no axis empty|3\)), got"):
            layer(bad)
    with pytest.raises(ValueError, match=r"state.out: expected \(2, 3\), got \(1, 3\)"):
        layer(x, RecurrentState(None, torch.zeros(1, 3)))
    with pytest.raises(ValueError, match=r"state.v: expected \(2, 3\) .* got \(2, 4\)"):
        layer(x, RecurrentState(LifState(torch.zeros(2, 4)), torch.zeros(2, 3)))


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_a_delay_returns_spikes_later(delay: int) -> None:
    """Against a loop; in halves and steps as well."""
    layer, x = plain(6).recurrent_layer, eighths(13, 2, 6)
    recurrent = Recurrent(Leaky(0.5), layer, delay=delay)
    out, state = recurrent(x)
    neuron, now, loop = Leaky(0.5), None, [torch.zeros(2, 6)] * delay
    for x_t in x.unbind(0):
        out_t, now = neuron.step(x_t + layer(loop[-delay]), now)
        loop.append(out_t)
    assert torch.equal(out, torch.stack(loop[delay:]))
    first, middle = recurrent(x[:5])
    second, last = recurrent(x[5:], middle)
    assert torch.equal(torch.cat([first, second]), out)
    assert torch.equal(last.out, state.out)
    steps, now = [], None
    for x_t in x.unbind(0):
        out_t, now = recurrent.step(x_t, now)
        steps.append(out_t)
    assert torch.equal(torch.stack(steps), out)
    with pytest.raises(ValueError, match=r"delay: expected a number of steps >= 1, got 0"):
        Recurrent(Leaky(0.5), layer, delay=0)


@pytest.mark.parametrize("delay", [1, 2])
def test_a_padded_batch_is_each_sequence_alone(delay: int) -> None:
    recurrent, x = Recurrent(Leaky(0.5, gradient="surrogate"), plain(6).recurrent_layer, delay=delay), eighths(9, 3, 6)
    lengths = [9, 4, 1]
    mask = torch.arange(9).unsqueeze(1) < torch.tensor(lengths)
    out, state = recurrent(torch.where(mask.unsqueeze(2), x, torch.nan), mask=mask)
    assert out[~mask].abs().sum() == 0
    for b, n in enumerate(lengths):
        alone, last = recurrent(x[:n, b : b + 1])
        assert torch.equal(out[:n, b : b + 1], alone)
        assert torch.equal(state.out[..., b : b + 1, :], last.out)
        assert torch.equal(state.neuron.v[b : b + 1], last.neuron.v)


def test_any_neuron_any_layer() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    recurrent, x = Recurrent(Synaptic(0.5, 0.5), conv), eighths(6, 2, 3, 5, 5)
    out, state = recurrent(x)
    neuron, now, last, loop = Synaptic(0.5, 0.5), None, torch.zeros(2, 3, 5, 5), []
    for x_t in x.unbind(0):
        last, now = neuron.step(x_t + conv(last), now)
        loop.append(last)
    assert torch.equal(out, torch.stack(loop))
    assert torch.equal(state.out, loop[-1])
    with pytest.raises(ValueError, match=r"keeps the shape \(2, 3, 5, 5\), got \(2, 3, 3, 3\)"):
        Recurrent(Leaky(0.5), nn.Conv2d(3, 3, 3))(x)
    with pytest.raises(ValueError, match="from N to N channels, got 3 -> 4"):
        Recurrent(Leaky(0.5), nn.Conv2d(3, 4, 3))
