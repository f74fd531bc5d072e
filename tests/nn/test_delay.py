"""Delays: shifts by hand, kernels around learned positions, the inputs that the state carries."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tbnn.nn.delay import Delay, DelayedLinear, Delays, sigma_at
from tbnn.nn.linear import BinaryLinear


def bits(*shape: int) -> Tensor:
    return (torch.rand(*shape) < 0.4).double()


def shifted(x: Tensor, delay: int) -> Tensor:
    return torch.cat([torch.zeros_like(x[:delay]), x[: len(x) - delay]])


def test_shifts_by_hand() -> None:
    delay = Delay(3, 3, delay=torch.tensor([0, 1, 3]), learn=False)
    x = torch.zeros(5, 1, 3)
    x[0] = 1
    y, state = delay(x)
    assert y[:, 0].T.tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 1, 0]]
    assert torch.equal(state, x[2:])


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_each_channel_of_an_image_is_shifted_whole(steps: int) -> None:
    delay, x = Delay(4, 5).double().eval(), bits(steps, 2, 4, 3, 2)
    expected = torch.stack([shifted(x[:, :, c], min(d, steps)) for c, d in enumerate(delay.rounded().tolist())], 2)
    assert torch.equal(delay(x)[0], expected)


LAYERS: dict[str, Callable[[], Delays]] = {
    "axonal": lambda: Delay(6, 4),
    "axonal, fixed": lambda: Delay(6, 4, learn=False),
    "axonal, blurred": lambda: Delay(6, 4, straight_through=False),
    "synaptic": lambda: DelayedLinear(6, 5, 4),
    "synaptic, fixed": lambda: DelayedLinear(6, 5, 4, learn=False, block=4),
    "none": lambda: DelayedLinear(6, 5, 0),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_steps_and_halves_equal_the_sequence(kind: str, training: bool) -> None:
    layer, x = LAYERS[kind]().double().train(training), bits(11, 3, 6)
    y, last = layer(x)
    state, steps = None, []
    for x_t in x:
        y_t, state = layer.step(x_t, state)
        steps.append(y_t)
    first, middle = layer(x[:3])
    second, end = layer(x[3:], middle)
    for other, other_state in ((torch.stack(steps), state), (torch.cat([first, second]), end)):
        torch.testing.assert_close(other, y, rtol=1e-12, atol=1e-12)
        assert torch.equal(other_state, last)


@pytest.mark.parametrize("kind", LAYERS)
def test_padding_leaves_an_ended_sequence_alone(kind: str) -> None:
    """Output 0 past the end, the state that of the sequence alone, in one call and in two."""
    layer, x = LAYERS[kind]().double().eval(), bits(9, 3, 6)
    lengths = torch.tensor([9, 2, 5])
    mask = torch.arange(9)[:, None] < lengths
    y, state = layer(x, None, mask)
    first, middle = layer(x[:4], None, mask[:4])
    second, end = layer(x[4:], middle, mask[4:])
    assert torch.equal(torch.cat([first, second]), y)
    assert torch.equal(end, state)
    for b, length in enumerate(lengths.tolist()):
        alone, own = layer(x[:length, b : b + 1])
        torch.testing.assert_close(y[:length, b : b + 1], alone)
        assert torch.equal(state[:, b : b + 1], own)
        assert not y[length:, b].any()
    now = layer.step(x[0], state, torch.tensor([False, True, False]))[1]
    assert torch.equal(now[:, 0], state[:, 0])
    assert layer.max_delay == 0 or torch.equal(now[-1, 1], x[0, 1])


@pytest.mark.parametrize("block", [None, 4])
def test_synapses_are_shifts_and_a_binary_layer(block: int | None) -> None:
    """In evaluation: for every synapse, its weight times its input some steps ago; without delays, BinaryLinear."""
    layer, x = DelayedLinear(6, 5, 4, block=block).double().eval(), bits(9, 2, 6)
    nn.init.normal_(layer.bias)
    weight, delays = layer.quantized_weight(), layer.rounded()
    expected = layer.bias.expand(9, 2, 5).clone()
    for o in range(5):
        for i in range(6):
            expected[:, :, o] += weight[o, i] * shifted(x, int(delays[o, i]))[:, :, i]
    torch.testing.assert_close(layer(x)[0], expected)
    plain = BinaryLinear(6, 5, block=block).double()
    plain.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    still = DelayedLinear(6, 5, 4, delay=0, block=block).double().eval()
    still.load_state_dict({**still.state_dict(), **plain.state_dict()})
    torch.testing.assert_close(still(x)[0], plain(x))


def test_in_training_every_synapse_has_its_kernel() -> None:
    layer, x = DelayedLinear(6, 5, 4, bias=False).double(), bits(9, 2, 6)
    taps = layer.quantized_weight()[..., None] * layer.kernel()
    expected = sum(torch.einsum("tbi,oi->tbo", shifted(x, d), taps[..., d]) for d in range(5))
    torch.testing.assert_close(layer(x)[0], expected)
    with torch.no_grad():
        layer.delay.round_()
    layer.set_sigma(0.05)  # then the kernel is the shift
    torch.testing.assert_close(layer(x)[0], layer.eval()(x)[0])


@pytest.mark.parametrize("form", ["affine", "linear"])
def test_in_evaluation_bits_give_whole_numbers_then_scale_and_offset(form: str) -> None:
    layer, x = DelayedLinear(60, 5, 4, form=form, bias=False).eval(), bits(9, 2, 60).float()
    values, scale, offset = layer.codes()
    counts, sums = torch.zeros(9, 2, 5, dtype=torch.int64), torch.zeros(9, 2, 5, dtype=torch.int64)
    for d in range(5):
        hit = layer.rounded() == d
        counts += torch.einsum("tbi,oi->tbo", shifted(x, d).long(), values.long() * hit)
        sums += torch.einsum("tbi,oi->tbo", shifted(x, d).long(), hit.long())
    expected = counts.float() * scale[:, 0]
    if form == "affine":
        expected = expected + sums.float() * offset[:, 0]
    assert torch.equal(layer(x)[0], expected)


@pytest.mark.parametrize("learn", [True, False])
def test_gradients_in_evaluation_are_those_of_the_quantised_weights(learn: bool) -> None:
    layer, x = DelayedLinear(6, 5, 3, learn=learn, block=4).double().eval(), bits(7, 2, 6).requires_grad_()
    weights = torch.randn(7, 2, 5, dtype=torch.float64)
    dense = layer.quantized_weight()
    shifts = torch.stack([shifted(x, d) for d in range(4)])
    chosen = torch.nn.functional.one_hot(layer.rounded(), 4).double()
    expected = torch.einsum("dtbi,oid,oi->tbo", shifts, chosen, dense) + layer.bias
    leaves = [x, layer.weight, layer.bias]
    got, want = (torch.autograd.grad(y, leaves, weights) for y in (layer(x)[0], expected))
    torch.testing.assert_close(got, want)


def test_the_kernel_by_hand() -> None:
    layer = Delay(1, 2, delay=torch.tensor([1.25]), sigma=0.5).double()
    parts = [math.exp(-0.5 * ((step - 1.25) / 0.5) ** 2) for step in range(3)]
    expected = torch.tensor(parts, dtype=torch.float64) / sum(parts)
    torch.testing.assert_close(layer.kernel()[0], expected)
    layer.straight_through = False
    x = torch.zeros(4, 1, 1, dtype=torch.float64)
    x[0] = 1
    torch.testing.assert_close(layer(x)[0].flatten(), torch.cat([expected, expected.new_zeros(1)]))


@pytest.mark.parametrize("kind", ["axonal, blurred", "synaptic"])
def test_gradients_of_positions_and_inputs_are_finite_differences(
    kind: str, numeric_gradient: Callable[..., Tensor]
) -> None:
    layer = LAYERS[kind]().double()
    layer.set_sigma(0.8)
    x, weights = torch.randn(7, 2, 6, dtype=torch.float64), torch.randn(7, 2, 6, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        y = layer(x)[0]
        return (y * weights[..., : y.shape[-1]]).sum() + y.square().sum()

    def at_positions(positions: Tensor) -> Tensor:
        kept = layer.delay.data
        layer.delay.data = positions
        value = loss(x)
        layer.delay.data = kept
        return value

    leaf = x.clone().requires_grad_()
    dx, ddelay = torch.autograd.grad(loss(leaf), [leaf, layer.delay])
    torch.testing.assert_close(dx, numeric_gradient(loss, x), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(ddelay, numeric_gradient(at_positions, layer.delay.data.clone()), rtol=1e-6, atol=1e-8)


def test_straight_through_lets_bits_out_with_the_kernel_s_gradient() -> None:
    bit, soft = Delay(6, 4).double(), Delay(6, 4, straight_through=False).double()
    soft.load_state_dict(bit.state_dict())
    x, weights = bits(8, 2, 6).requires_grad_(), torch.randn(8, 2, 6, dtype=torch.float64)
    y = bit(x)[0]
    torch.testing.assert_close(y, bit.eval()(x)[0])
    assert torch.equal(y.round(), bit(x)[0])
    got = torch.autograd.grad(bit.train()(x)[0], [x, bit.delay], weights)
    want = torch.autograd.grad(soft(x)[0], [x, soft.delay], weights)
    torch.testing.assert_close(got, want)


def test_a_position_outside_comes_back() -> None:
    layer = Delay(1, 3, delay=3).double()
    layer.set_sigma(1.0)
    with torch.no_grad():
        layer.delay.fill_(3.7)
    assert layer.rounded().item() == 3
    x = torch.zeros(6, 1, 1, dtype=torch.float64)
    x[0] = 1
    (grad,) = torch.autograd.grad(layer(x)[0][1].sum(), layer.delay)
    assert grad.item() < 0  # to have more of the spike one step later, the delay must shrink


def test_positions_are_learned() -> None:
    """One spike in, one wanted four steps later: the position travels there while σ shrinks."""
    layer = Delay(1, 8, delay=1, straight_through=False)
    x, want = torch.zeros(10, 1, 1), torch.zeros(10, 1, 1)
    x[0], want[5] = 1, 1
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for epoch in range(120):
        layer.set_sigma(sigma_at(epoch / 120, 8, over=0.5))
        optimizer.zero_grad()
        (layer(x)[0] - want).square().sum().backward()
        optimizer.step()
    assert torch.equal(layer.eval()(x)[0], want)


def test_the_schedule_ends_where_it_says() -> None:
    assert [sigma_at(p, 24) for p in (0.0, 0.25, 0.9)] == pytest.approx([12, 0.5, 0.5])
    assert sigma_at(0.125, 24) == pytest.approx(math.sqrt(12 * 0.5))
    with pytest.raises(ValueError, match=r"progress: expected a share in \[0, 1\], got 1.5"):
        sigma_at(1.5, 24)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": 0}, "features: expected an integer >= 1, got 0"),
        ({"max_delay": -1}, "max_delay: expected an integer >= 0, got -1"),
        ({"delay": 5}, r"delay: expected values in \[0, 4\], got 5"),
        ({"sigma": 0.0}, "sigma: expected a finite number > 0, got 0.0"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Delay(**({"features": 3, "max_delay": 4} | arguments))


def test_refused_inputs() -> None:
    with pytest.raises(ValueError, match=r"Delay: expected \(T, B, 3, ...\), got \(4, 2, 5\)"):
        Delay(3, 2)(torch.zeros(4, 2, 5))
    with pytest.raises(ValueError, match=r"DelayedLinear: expected \(T, B, 3\), got \(4, 2, 5\)"):
        DelayedLinear(3, 2, 2)(torch.zeros(4, 2, 5))
    with pytest.raises(ValueError, match=r"state: expected \(2, 2, 3\), got \(2, 1, 3\)"):
        Delay(3, 2)(torch.zeros(4, 2, 3), torch.zeros(2, 1, 3))
    with pytest.raises(ValueError, match="mask: expected each sequence's steps before its padding"):
        Delay(3, 2)(torch.zeros(3, 1, 3), None, torch.tensor([[True], [False], [True]]))
