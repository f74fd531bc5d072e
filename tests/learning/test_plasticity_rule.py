"""STDP as a rule: what it changes and what it leaves, the readout's gradient, packing, and that features are learnt."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tbnn
from tbnn.bits import pack_bits
from tbnn.learning.plasticity import Pairs, Stdp, StochasticSynapses, Updates, learn_pairs_
from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network, TargetRate, Winners

INPUTS, HIDDEN, CLASSES = 70, 12, 3


def network(hidden: nn.Module | None = None, readout: nn.Module | None = None, **neuron: Any) -> Network:
    torch.manual_seed(3)
    hidden = BinaryLinear(INPUTS, HIDDEN, bias=False) if hidden is None else hidden
    readout = BinaryLinear(HIDDEN, CLASSES, bits=4) if readout is None else readout
    return Network([hidden, Leaky(0.5, 1.0, **neuron), readout, LeakyIntegrator(0.75)])


def frames(steps: int = 9, batch: int = 4) -> Tensor:
    return (torch.rand(steps, batch, INPUTS, generator=torch.Generator().manual_seed(5)) < 0.2).float()


TARGET = torch.tensor([0, 2, 1, 2])


@pytest.mark.parametrize("readout", [nn.Linear(HIDDEN, CLASSES), BinaryLinear(HIDDEN, CLASSES, bits=4)])
def test_the_readout_gets_the_exact_gradient(readout: nn.Module) -> None:
    """With the hidden layer still: what back-propagation through the readout's integrator gives."""
    net = network(readout=copy.deepcopy(readout))
    rule = Stdp(net, p_plus=0.0, p_minus=0.0)
    outcome = rule.sequence(frames(), TARGET)
    got = [p.grad for p in net.layers[2].parameters()]
    net.zero_grad()
    y, _ = net(frames())
    loss = sum(nn.functional.cross_entropy(y_t, TARGET) for y_t in y) / len(y)
    loss.backward()  # type: ignore[union-attr]
    torch.testing.assert_close(outcome.readout, y.detach())
    assert outcome.loss == pytest.approx(loss.item())  # type: ignore[union-attr]
    for ours, parameter in zip(got, net.layers[2].parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad)
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("form", ["affine", "linear"])
@pytest.mark.parametrize("window", ["post", "pre", "pair", "triplet"])
@pytest.mark.parametrize("bits", [1, 3])
def test_what_was_learnt_packs_and_simulates_with_the_same_spikes(form: str, window: str, bits: int) -> None:
    net = network(BinaryLinear(INPUTS, HIDDEN, bias=False, bits=bits, form=form), activity=Winners(4))
    rule = Stdp(net, window=window, p_plus=0.3, p_minus=0.1, rate=20.0, theta_plus=2.0**-5)
    before = net.layers[0].codes().values.clone()
    rule.sequence(frames(), TARGET)
    values = net.layers[0].codes().values
    moved = int(((values - before) / 2).abs().sum())
    assert 0 < moved <= sum(rule.updates)
    assert values.abs().max() <= 2**bits - 1
    assert values.remainder(2).eq(1).all()
    codes = net.layers[0].codes()
    assert torch.equal(net.layers[0].weight, codes.scale * codes.values + codes.offset)
    assert net.layers[1].threshold.shape == (HIDDEN,)
    assert net.layers[1].threshold.unique().numel() > 1
    net.eval()
    expected, _ = net(frames())
    spikes, _ = Network(list(net.layers)[:2])(frames())
    out = tbnn.pack(net).simulate(pack_bits(frames()), record=("spikes",))
    assert torch.equal(out.spikes["layers.1"], pack_bits(spikes))
    assert spikes.any()
    assert out.readout is not None
    torch.testing.assert_close(out.readout, expected)


def test_a_level_weighs_what_the_form_says() -> None:
    for form, lowest in (("affine", 0.0), ("linear", -1.0)):
        net = network(BinaryLinear(INPUTS, HIDDEN, bias=False, form=form))
        synapses = Stdp(net).synapses
        assert isinstance(synapses, StochasticSynapses)
        weight, levels = net.layers[0].weight, synapses.levels.bool()
        assert weight[levels].unique().numel() == 1
        torch.testing.assert_close(weight[~levels].unique() / weight[levels].unique(), torch.tensor([lowest]))


def test_real_synapses_move_at_once_and_get_no_gradient() -> None:
    net = network(nn.Linear(INPUTS, HIDDEN, bias=False))
    window = {"a_plus": 0.1, "a_minus": 0.04, "tau_plus": 4.0, "tau_minus": 6.0}
    rule = Stdp(net, synapses="real", window="pair", low=-0.5, high=0.5, rate=0.5, **window)
    expected, state, traces = net.layers[0].weight.detach().clone().clamp(-0.5, 0.5), None, None
    for x in frames():
        current = torch.nn.functional.linear(x, expected)
        post, state = net.layers[1].step(current, state)
        traces, _ = learn_pairs_(
            expected,
            x[None],
            post[None],
            traces,
            Pairs(**window),
            rate=0.5 / 4,
            low=-0.5,
            high=0.5,
            backend="reference",
        )
    rule.sequence(pack_bits(frames()), TARGET)
    torch.testing.assert_close(net.layers[0].weight.detach(), expected)
    assert net.layers[0].weight.grad is None
    assert rule.samples == 4
    assert min(rule.updates) > 0


def test_stepping_is_the_sequence_and_a_seed_repeats() -> None:
    found = []
    for _ in range(2):
        net = network(activity=Winners(2))
        rule = Stdp(net, p_plus=0.2, p_minus=0.1, every=4, seed=7)
        outcome = rule.sequence(frames(), TARGET)
        found.append((net.layers[0].weight.clone(), net.layers[2].weight.grad, outcome.readout))
    other = network(activity=Winners(2))
    rule, state, readouts = Stdp(other, p_plus=0.2, p_minus=0.1, winners=2, seed=7), None, []
    for t, x in enumerate(frames(), 1):
        state = rule.step(x, state)
        readouts.append(state.readout)
        if t in (4, 8, 9):
            rule.update(TARGET, {4: 4, 8: 4, 9: 1}[t] / 9)
    found.append((other.layers[0].weight, other.layers[2].weight.grad, torch.stack(readouts)))
    for again in found[1:]:
        for a, b in zip(found[0], again, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_thresholds_rise_by_the_spikes_and_decay_back() -> None:
    net = network()
    rule = Stdp(net, p_plus=0.0, p_minus=0.0, theta_plus=0.25, theta_tau=3.0)
    expected, state = torch.ones(HIDDEN), None
    for x in frames():
        before = expected.clone()
        state = rule.step(x, state)
        spikes = state.network[0].v > before  # of a plain neuron the membrane tells them
        expected = 1 + (expected - 1) * torch.exp(torch.tensor(-1 / 3)) + 0.25 * spikes.float().mean(0)
    torch.testing.assert_close(net.layers[1].threshold, expected)
    assert expected.max() > 1.1


def test_a_target_rate_follows_once_a_sequence() -> None:
    net = network(activity=TargetRate(0.01))
    Stdp(net, p_plus=0.0, p_minus=0.0).sequence(frames(), TARGET)
    assert net.layers[1].homeostasis.offset.item() == pytest.approx(0.05)  # far too many spikes: a whole step


def test_the_sum_of_real_weights_is_kept() -> None:
    net = network(nn.Linear(INPUTS, HIDDEN, bias=False))
    Stdp(net, synapses="real", window="pair", norm=5.0).sequence(frames(), TARGET)
    torch.testing.assert_close(net.layers[0].weight.sum(1), torch.full((HIDDEN,), 5.0))


def test_competing_neurons_learn_the_patterns_they_see() -> None:
    """Three patterns of a third of the inputs each: after learning some neuron's weights are each pattern, and others' none."""
    torch.manual_seed(1)
    net = Network([
        BinaryLinear(60, 12, bias=False), Leaky(0.0, 1.0, activity=Winners(1)), nn.Linear(12, 3), LeakyIntegrator(0.75)
    ])  # fmt: skip
    rule = Stdp(net, p_plus=0.1, p_minus=0.1, reach=1, theta_plus=1 / 16)
    patterns = torch.eye(3).repeat_interleave(20, 1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        label = torch.randint(0, 3, (1,), generator=generator)
        noise = torch.rand(1, 60, generator=generator) < 0.05
        rule.step((patterns[label].bool() ^ noise).float())
    assert isinstance(rule.synapses, StochasticSynapses)
    levels = rule.synapses.levels.float()
    match = (2 * levels - 1) @ (2 * patterns - 1).T / 60
    assert match.amax(0).min() > 0.8  # every pattern is somebody's
    assert rule.updates.potentiations > 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p_plus": 1.5}, r"p_plus: expected a probability in \[0, 1\], got 1.5"),
        ({"p_minus": -0.1}, "p_minus"),
        ({"reach": 0}, "reach"),
        ({"synapses": "soft"}, "synapses: expected 'stochastic' or 'real', got 'soft'"),
        ({"window": "gauss"}, "window: expected 'post', 'pre', 'pair' or 'triplet'"),
        (
            {"window": "post", "synapses": "real"},
            "window: expected 'pair' or 'triplet' for synapses='real', got 'post'",
        ),
        ({"window": "pair", "tau_plus": 0.0}, "tau_plus"),
        ({"window": "triplet", "tau_y": -1.0}, "tau_y"),
        ({"theta_plus": -1.0}, "theta_plus"),
        ({"theta_plus": 1.0, "theta_tau": 0.0}, "theta_tau"),
        ({"norm": 1.0}, "norm"),
        ({"every": 0}, "every"),
        ({"winners": 0}, "Winners"),
        ({"window": "pair", "synapses": "real", "low": 1.0, "high": 0.0}, "low, high: expected low < high"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stdp(network(), **options)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Stdp(nn.Linear(2, 3)), "network: expected a Network of .*, got Linear"),
        (lambda: Stdp(Network(list(network().layers)[:3])), "network: expected a Network of .*, got .*'BinaryLinear'"),
        (lambda: Stdp(network(nn.Linear(INPUTS, HIDDEN))), "layers.0: expected a BinaryLinear of 1 to 8 bits"),
        (lambda: Stdp(network(BinaryLinear(INPUTS, HIDDEN, bits=1.58))), "layers.0: expected a BinaryLinear of 1 to 8"),
        (lambda: Stdp(network(BinaryLinear(INPUTS, HIDDEN, sparsity=0.5))), "without sparsity"),
        (lambda: Stdp(network(emit="denoised")), "layers.1: expected emit='bits'"),
        (lambda: Stdp(network(learn_threshold=True), theta_plus=0.1), "layers.1: expected a threshold that is not learnt"),
        (lambda: Stdp(network(activity=TargetRate(0.1)), winners=1), "winners: expected None for a neuron"),
        (lambda: Stdp(network()).update(TARGET), "stdp: update: expected a step before"),
        (lambda: Stdp(network()).sequence(frames(), torch.zeros(3)), "target: expected classes"),
    ],
)  # fmt: skip
def test_what_is_refused(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()


def test_updates_add_up() -> None:
    assert Updates(1, 2) + Updates(3, 4) == (4, 6)
