"""Dale's law: what a neuron sends has one sign, whatever training does."""

import pytest
import torch
from torch import nn

from tbnn.nn import BinaryConv2d, BinaryLinear, Dale, FixedWiring, Leaky, LeakyIntegrator, Network, Recurrent, calibrate
from tbnn.nn.health import firing_rate


@pytest.mark.parametrize("inhibitory", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("bits", [1, 1.58, 3, None])
def test_a_column_has_one_sign_and_its_share_inhibits(inhibitory: float, bits: float | None) -> None:
    law = Dale(inhibitory, seed=1)
    layer = BinaryLinear(60, 50, bits=bits, form="linear", wiring=law)
    signs = law.neurons(60)
    assert int((signs < 0).sum()) == round(60 * inhibitory)
    values = layer.codes().values
    assert bool((values * signs >= 0).all())
    if bits == 1:
        assert set(values.abs().unique().tolist()) == {0, 1}
        assert torch.equal(values != 0, layer.weight * signs > 0)
    torch.testing.assert_close(layer.quantized_weight() * signs, layer.quantized_weight().abs())


def test_layers_that_hear_the_same_neurons_agree() -> None:
    law = Dale(0.25, seed=7)
    back, ahead = (BinaryLinear(40, m, form="linear", wiring=law) for m in (40, 11))
    assert back.signs is not None
    assert ahead.signs is not None
    assert torch.equal(back.signs[0], ahead.signs[0])
    assert torch.equal(law.neurons(40), back.signs[0])


@pytest.mark.parametrize("groups", [1, 2])
def test_a_channel_is_the_neuron_of_a_convolution(groups: int) -> None:
    law = Dale(0.5, seed=3)
    conv = BinaryConv2d(4, 6, 3, padding=1, groups=groups, bias=False, form="linear", wiring=law)
    signs = law.neurons(4)
    for channel in range(4):
        frames = torch.zeros(1, 4, 5, 5)
        frames[:, channel] = 1
        y = conv(frames)
        assert bool((y * signs[channel] >= 0).all())
        assert y.any()


@pytest.mark.parametrize("balance", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("inhibitory", [0.2, 0.5, 0.7])
def test_inhibition_balances_excitation_at_the_start(balance: float, inhibitory: float) -> None:
    values = BinaryLinear(200, 300, form="linear", wiring=Dale(inhibitory, balance=balance)).codes().values
    excitation, inhibition = (values > 0).sum().item(), (values < 0).sum().item()
    assert inhibition / excitation == pytest.approx(balance, rel=0.05)


def test_of_neurons_all_alike_half_the_synapses_are_present() -> None:
    for inhibitory in (0.0, 1.0):
        values = BinaryLinear(200, 100, form="linear", wiring=Dale(inhibitory)).codes().values
        assert values.abs().mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("estimator", ["ddt", "ste"])
def test_steps_of_any_size_never_turn_a_sign_and_silent_synapses_come_back(estimator: str) -> None:
    layer = BinaryLinear(30, 20, form="linear", estimator=estimator, wiring=(Dale(0.3), FixedWiring(0.5)))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.2)
    signs, states = layer.signs, []
    x = (torch.rand(60, 50, 30) < 0.3).float()
    assert signs is not None
    for x_t in x:
        optimizer.zero_grad()
        (layer(x_t) - x_t @ torch.linspace(-1, 1, 600).reshape(20, 30).T).square().mean(0).sum().backward()
        optimizer.step()
        values = layer.codes().values
        assert bool((values * signs >= 0).all())
        assert bool((values[~layer.mask] == 0).all())  # type: ignore[index]
        states.append(values != 0)
    was, now = torch.stack(states[:-1]), torch.stack(states[1:])
    assert (~was & now).any()
    assert (was & ~now).any()


def test_a_row_that_is_silent_altogether_can_come_back() -> None:
    layer = BinaryLinear(5, 1, bias=False, form="linear", wiring=Dale(0.4))
    assert layer.signs is not None
    with torch.no_grad():
        layer.weight.copy_(-0.5 * layer.signs)
    assert not layer.quantized_weight().any()
    (layer.quantized_weight() * layer.signs).sum().neg().backward()
    grad = layer.weight.grad
    assert grad is not None
    assert torch.equal(grad, -layer.signs.float())


def test_layers_start_alive_once_calibrated() -> None:
    law = Dale(0.2)
    net = Network([
        BinaryLinear(80, 100, form="linear", wiring=law), Leaky(0.9),
        BinaryLinear(100, 100, form="linear", wiring=(law, FixedWiring(0.3))),
        Recurrent(Leaky(0.9), BinaryLinear(100, 100, form="linear", wiring=law)),
        BinaryLinear(100, 10, form="linear", wiring=law), LeakyIntegrator(0.9),
    ])  # fmt: skip
    x = (torch.rand(20, 16, 80) < 0.1).float()
    rates = calibrate(net, x)
    assert all(0.05 < rate < 0.2 for rate in rates.values())
    hidden, _ = Network(net.layers[:4])(x)
    recurrent = net.layers[3]
    assert isinstance(recurrent, Recurrent)
    assert firing_rate(recurrent, hidden) == pytest.approx(rates["layers.3"])
    assert (hidden.mean((0, 1)) > 0).double().mean() > 0.5  # neurons, not a few of them
    readout = net(x)[0]
    assert readout.mean(0).std().item() == pytest.approx(1, rel=1e-3)
    assert bool((net.layers[4].codes().values * law.neurons(100) >= 0).all())  # type: ignore[operator]


def test_feedback_is_calibrated_over_the_synapses_that_exist() -> None:
    layer = BinaryLinear(100, 100, form="linear", wiring=FixedWiring(0.1))
    net = Network([nn.Linear(10, 100), Recurrent(Leaky(0.9), layer)])
    calibrate(net, (torch.rand(5, 4, 10) < 0.5).float(), feedback_gain=0.5)
    assert layer.mask is not None
    assert layer.weight[layer.mask].abs().mean().item() * 10**0.5 == pytest.approx(0.5, rel=1e-5)
