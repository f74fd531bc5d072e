"""Recurrence: against a hand-written loop and snntorch's RLeaky, step by step and in halves."""

from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from tbnn.nn import (
    Adaptive,
    AdLIF,
    BinaryLinear,
    Leaky,
    LifState,
    Network,
    Recurrent,
    RecurrentState,
    Synaptic,
    TargetRate,
    Winners,
)
from tbnn.nn.fused import Group, weighted_spikes
from tbnn.nn.neuron import Neuron
from tbnn.ops.layer_lif import plan


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
    state: Any = None
    bias: Any = layer.bias
    quantised, back, loop = layer.quantized_weight(), torch.zeros(3, 9, dtype=torch.float64), []
    for x_t in other.unbind(0):
        back, state = neuron.step(x_t + back @ quantised.T + bias, state)
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
    state: Any = None
    steps = []
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


NEURONS: dict[str, Callable[[], Neuron]] = {
    "leaky": lambda: Leaky(torch.linspace(0.5, 0.95, 37), learn_beta=True, learn_threshold=True),
    "refractory": lambda: Leaky(0.9, 0.7, refractory=2, gradient="surrogate", reset_mechanism="zero"),
    "synaptic": lambda: Synaptic(0.6, 0.8, learn_alpha=True, learn_beta=True, reset_mechanism="zero"),
    "adaptive": lambda: Adaptive(0.9, 0.95, 0.2, learn_beta=True, learn_rho=True, learn_strength=True, refractory=1),
    "adlif": lambda: AdLIF(0.7, 0.9, 0.5, 0.5, 0.3, learn_beta=True, learn_rho=True, learn_a=True, learn_b=True),
    "trace": lambda: Synaptic(0.6, 0.8, target="trace", learn_alpha=True, learn_beta=True, learn_threshold=True),
    "adaptive trace": lambda: Adaptive(0.8, 0.9, 0.1, target="trace", learn_rho=True, learn_strength=True),
    "winners": lambda: Leaky(0.9, activity=Winners(4)),
    "target rate": lambda: Leaky(0.9, activity=TargetRate(0.1)),
}


def results_of(
    recurrent: Recurrent, x: Tensor, mask: Tensor | None, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, RecurrentState, list[Tensor]]:
    """Output, state and gradients of x and all parameters: a run from rest and one on from its state."""
    with monkeypatch.context() as patch:
        if fused:
            patch.setattr(Recurrent, "_run", _refused)
            patch.setattr(Recurrent, "fusible", True)
        else:
            patch.setattr(Recurrent, "fuses", lambda *_: False)
        leaf = x.clone().requires_grad_()
        first, state = recurrent(leaf[:4], None, None if mask is None else mask[:4])
        second, state = recurrent(leaf[4:], state, None if mask is None else mask[4:])
        out, parameters = torch.cat([first, second]), [p for p in recurrent.parameters() if p.requires_grad]
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out)
        return out, state, list(torch.autograd.grad((weights * out).sum(), [leaf, *parameters]))


def _refused(*_: Any) -> None:
    raise RuntimeError("the loop over time")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", NEURONS)
def test_the_fused_call_is_the_loop(kind: str, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every neuron, with a mask and in halves: spikes, states and the gradients of all that is learned."""
    torch.manual_seed(4)
    lengths = torch.tensor([11, 3, 8, 4])
    mask = torch.arange(11).unsqueeze(1) < lengths if masked else None
    delay = 2 if masked else 1
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        x = (0.8 * torch.randn(11, 4, 37, generator=torch.Generator().manual_seed(1)) + 0.4).to(dtype)
        x = x if mask is None else torch.where(mask.unsqueeze(2), x, torch.nan)
        layer = BinaryLinear(37, 37)
        results = []
        for fused in (True, False):
            recurrent = Recurrent(NEURONS[kind](), layer, delay=delay).to(dtype)
            recurrent.memory = "minimal"
            results.append(results_of(recurrent, x, mask, fused, monkeypatch))
        (out, state, grads), (want, want_state, want_grads) = results
        assert torch.equal(out, want)
        assert 0 < out.mean() < 0.9
        assert torch.equal(state.out, want_state.out)
        for a, b in zip(state.neuron, want_state.neuron, strict=True):
            assert (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(grads, want_grads, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1.0, b.abs().max().item()))


def test_what_stays_a_loop() -> None:
    layer = BinaryLinear(6, 6)
    assert Recurrent(Leaky(0.5), layer).fusible
    for other in (
        Recurrent(Leaky(0.5, emit="denoised"), layer),
        Recurrent(Leaky(0.5), BinaryLinear(6, 6, bits=None)),
        Recurrent(Leaky(0.5), BinaryLinear(6, 6, block=2)),
        Recurrent(Leaky(0.5), nn.Linear(6, 6)),
    ):
        assert not other.fusible
        other(torch.rand(3, 2, 6))


@pytest.mark.parametrize("memory", ["speed", "balanced", "minimal"])
def test_spikes_and_weights_before_it(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the current that a binary layer makes of them: the same, in every memory mode."""
    monkeypatch.setattr(plan, "CHUNK", 200)
    monkeypatch.setattr(plan, "SPACING", 2)
    torch.manual_seed(5)
    before, recurrent = (
        BinaryLinear(20, 33).double(),
        Recurrent(Leaky(0.8, stats="step"), BinaryLinear(33, 33)).double(),
    )
    x = (torch.rand(9, 3, 20, dtype=torch.float64) < 0.4).double()
    mask = torch.arange(9).unsqueeze(1) < torch.tensor([9, 5, 2])
    parameters = [*before.parameters(), *recurrent.parameters()]
    results = []
    for fused in (True, False):
        leaf = x.clone().requires_grad_()
        given = weighted_spikes(Group(before, None, recurrent), leaf, memory) if fused else before(leaf)
        out, state = recurrent(given, None, mask)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        results.append((out, state, torch.autograd.grad((weights * out).sum(), [leaf, *parameters])))
    (out, state, grads), (want, want_state, want_grads) = results
    assert torch.equal(out, want)
    assert_same_state(state, want_state)
    torch.testing.assert_close(grads, want_grads, rtol=1e-9, atol=1e-9)


def test_a_state_that_no_spikes_left_takes_the_loop() -> None:
    recurrent, x = Recurrent(Leaky(0.5), BinaryLinear(6, 6)), torch.rand(3, 2, 6)
    past = torch.rand(2, 6)
    out, _ = recurrent(x, RecurrentState(None, past))
    want, _ = Leaky(0.5)((x[0] + recurrent.recurrent_layer(past)).unsqueeze(0))
    assert torch.equal(out[:1], want)


def test_within_a_network() -> None:
    """Two recurrent layers, a mask, and bits that the first one's kernel leaves."""
    torch.manual_seed(6)
    network = Network([BinaryLinear(12, 40), Recurrent(Adaptive(0.9), BinaryLinear(40, 40)), BinaryLinear(40, 5)])
    x, mask = (torch.rand(8, 3, 12) < 0.4).float(), torch.arange(8).unsqueeze(1) < torch.tensor([8, 3, 5])
    y, _ = network(x, mask=mask)
    for b, n in enumerate((8, 3, 5)):
        assert torch.equal(network(x[:n, b : b + 1])[0], y[:n, b : b + 1])
