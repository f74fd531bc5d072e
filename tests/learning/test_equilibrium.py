"""A network that relaxes: its energy, its states of rest, the contract of everything that takes a sequence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tbnn import pack_bits
from tbnn.learning.equilibrium import EquilibriumNetwork, EquilibriumState
from tbnn.nn import detach, progress
from tbnn.train.evaluate import evaluate

SIZES = (6, 7, 5, 3)


def network(seed: int = 0, sizes: tuple[int, ...] = SIZES, **options: Any) -> EquilibriumNetwork:
    torch.manual_seed(seed)
    return EquilibriumNetwork(sizes, **options).double()


def inputs(steps: int = 1, batch: int = 4, features: int = SIZES[0]) -> Tensor:
    return torch.rand(1, batch, features, dtype=torch.float64).expand(steps, -1, -1)


def state_of(net: EquilibriumNetwork, batch: int = 4) -> EquilibriumState:
    """Units anywhere between their ends, far enough from both for one small step."""
    units = tuple(
        0.4 + 0.2 * torch.rand(batch, layer.out_features).double() for layer in net.linears[: net.prepare().layers]
    )
    return EquilibriumState(units, inputs(batch=batch)[0], torch.ones((), dtype=torch.int64))


def test_rest_between_the_ends_solves_the_linear_system() -> None:
    net = network(gain=0.1, rest_bias=0.4)
    torch.nn.init.constant_(net.linears[-1].bias, 0.4)  # pyright: ignore[reportArgumentType]
    x = inputs(200)
    y, state = net(x)
    first, second, third = (layer.quantized_weight().detach() for layer in net.linears)
    eye = torch.eye(7 + 5 + 3, dtype=torch.float64)
    eye[:7, 7:12], eye[7:12, :7] = -second.T, -second
    eye[7:12, 12:], eye[12:, 7:12] = -third.T, -third
    bias = torch.cat([layer.bias for layer in net.linears]).detach()  # pyright: ignore[reportArgumentType, reportCallIssue]
    clamped = torch.cat([x[0] @ first.T, x.new_zeros(4, 8)], 1)
    expected = torch.linalg.solve(eye, (clamped + bias).T).T
    assert bool(((expected > 0.05) & (expected < 0.95)).all())
    torch.testing.assert_close(torch.cat(state.units, 1), expected, rtol=0, atol=1e-12)
    assert torch.equal(y[-1], state.units[-1])


@pytest.mark.parametrize("readout", ["units", "linear"])
@pytest.mark.parametrize("bits", [1, None])
def test_a_step_goes_down_the_energy(readout: str, bits: int | None, numeric_gradient: Callable[..., Tensor]) -> None:
    net = network(readout=readout, bits=bits, dt=0.01, input_scale=1.7)
    state = state_of(net)
    _, after = net.step(state.clamped, state)
    for index, u in enumerate(state.units):

        def energy(moved: Tensor, index: int = index) -> Tensor:
            units = (*state.units[:index], moved, *state.units[index + 1 :])
            return net.energy(state._replace(units=units)).sum()

        slope = numeric_gradient(energy, u)
        torch.testing.assert_close(after.units[index] - u, -0.01 * slope, rtol=1e-6, atol=1e-9)


def test_the_energy_is_the_closed_form() -> None:
    net = network(sizes=(2, 1, 1), bits=None, form="linear", lam=1e-12)
    with torch.no_grad():
        for layer, weight, bias in zip(net.linears, ([[2.0, -1.0]], [[3.0]]), (0.5, -0.25), strict=True):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.fill_(bias)  # pyright: ignore[reportOptionalMemberAccess]
    units = (torch.tensor([[0.25]]).double(), torch.tensor([[0.75]]).double())
    state = EquilibriumState(units, torch.tensor([[1.0, 0.5]]).double(), torch.ones((), dtype=torch.int64))
    # ½(0.0625 + 0.5625) − 0.25·(2 − 0.5 + 0.5) − 0.75·(3·0.25 − 0.25)
    assert net.energy(state).item() == pytest.approx(0.3125 - 0.5 - 0.375, rel=1e-9)
    net.neurons = "binary"  # bits 0 and 1
    assert net.energy(state).item() == pytest.approx(0.3125 + 0.25, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_energy_falls_to_rest(seed: int) -> None:
    net = network(seed, gain=1.0)  # far from the ends' reach: units saturate
    dynamics = net.prepare()
    total = torch.zeros(15, 15, dtype=torch.float64)
    total[7:12, :7], total[12:, 7:12] = dynamics.weights[1].detach(), dynamics.weights[2].detach()
    net.dt = min(1.0, 1.9 / (1 + torch.linalg.matrix_norm(total + total.T, 2).item()))
    x, state, before, moved = inputs()[0], None, torch.full((4,), torch.inf), torch.tensor(1.0)
    for _ in range(100):
        last = state
        _, state = net.step(x, state)
        energy = net.energy(state)
        assert bool((energy <= before + 1e-12).all())
        before = energy
        if last is not None:
            moved = max((a - b).abs().max() for a, b in zip(state.units, last.units, strict=True))
    assert moved < 1e-2
    assert bool((torch.cat(state.units, 1) == 0).any())  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("options", [{}, {"neurons": "binary", "copies": 2}, {"readout": "linear"}, {"relaxations": 3}])
def test_steps_sequences_pieces_and_words_agree(options: dict[str, Any]) -> None:
    net = network(sizes=(37, 8, 3), **options)
    bits = (torch.rand(6, 5, 37) < 0.3).double()
    y, state = net(bits)
    assert y.shape == (6, 5, 3)
    first, between = net(bits[:2])
    second, after = net(bits[2:], detach(between))
    torch.testing.assert_close(torch.cat([first, second]), y)
    stepped, outputs = None, []
    for x_t in pack_bits(bits).unbind(0):
        y_t, stepped = net.step(x_t, stepped)
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs), y)
    assert isinstance(stepped, EquilibriumState)
    torch.testing.assert_close(net(pack_bits(bits))[0], y)
    for other in (after, stepped):
        for u, v in zip(other.units, state.units, strict=True):
            torch.testing.assert_close(u, v)
    torch.testing.assert_close(state.clamped, bits.mean(0))
    assert int(state.seen) == 6


def test_what_is_clamped_is_the_mean_of_the_inputs() -> None:
    """A recording ends where its rates, shown from the start, would."""
    net = network()
    spikes = (torch.rand(40, 4, 6) < 0.5).double()
    rates = spikes.mean(0)
    _, seen = net(torch.cat([spikes, rates.expand(400, -1, -1)]))
    _, still = net(rates.expand(400, -1, -1))
    torch.testing.assert_close(seen.units[-1], still.units[-1])


def test_binary_units_send_bits_and_copies_average_them() -> None:
    net = network(neurons="binary", copies=4, gain=1.0)
    y, state = net(inputs(10, batch=20))
    expected = (state.units[-1] > 0.5).double().reshape(20, 3, 4).mean(2)
    assert torch.equal(y[-1], expected)
    assert 0 < y[-1].mean() < 1
    hidden = (state.units[0] > 0.5).double()
    assert torch.equal(net.prepare().output(state.units[0]), hidden)


def test_it_is_evaluated_as_any_network_is() -> None:
    net = network(sizes=(37, 8, 3), readout="linear").float()
    words = pack_bits((torch.rand(6, 5, 37) < 0.3).float())
    result = evaluate(net, [(words, torch.tensor([0, 1, 2, 0, 1]))], 3, "last")
    assert result.samples == 5
    assert result.accuracy == (net(words)[0][-1].argmax(1) == torch.tensor([0, 1, 2, 0, 1])).double().mean().item()


def test_an_estimator_that_mixes_weights_moves_with_training() -> None:
    net = network(estimator="pege")
    progress(net, 0.0)
    assert len(net.prepare().weights[1][0].unique()) > 2
    progress(net, 1.0)
    assert len(net.prepare().weights[1][0].unique()) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (4,)}, "sizes: expected 2 or more"),
        ({"sizes": (4, 2), "readout": "linear"}, "sizes: expected 3 or more"),
        ({"sizes": (4, 0, 2)}, "sizes: expected 2 or more sizes >= 1"),
        ({"neurons": "ternary"}, "neurons: expected one of 'real', 'binary', got 'ternary'"),
        ({"readout": "spikes"}, "readout: expected one of"),
        ({"copies": 0}, "copies: expected a whole number >= 1, got 0"),
        ({"copies": 2, "readout": "linear"}, "copies: expected 1"),
        ({"relaxations": 1.5}, "relaxations: expected a whole number >= 1"),
        ({"dt": 0.0}, r"dt: expected a number in \(0, 1\], got 0"),
        ({"dt": float("nan")}, "dt: expected"),
        ({"gain": 0.0}, "gain: expected a finite number > 0"),
        ({"input_scale": float("inf")}, "input_scale: expected a finite number > 0"),
        ({"rest_bias": float("nan")}, "rest_bias: expected a finite number"),
        ({"bits": 9}, "bits"),
    ],
)
def test_what_it_refuses_to_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EquilibriumNetwork(**{"sizes": (4, 3, 2), **options})


def test_inputs_and_states_of_other_shapes_are_refused() -> None:
    net = network()
    x = inputs(2)
    _, state = net(x)
    for wrong in (x[0], x[:0], x[..., :5], torch.zeros(2, 4, 2, dtype=torch.int32)):
        with pytest.raises(ValueError, match="EquilibriumNetwork: expected"):
            net(wrong)
    for other in ((None,), state._replace(units=state.units[:2]), state._replace(clamped=x[0, :3])):
        with pytest.raises(ValueError, match="state: expected an EquilibriumState"):
            net(x, other)
    with pytest.raises(ValueError, match="state: expected"):
        net(x[:, :3], state)
