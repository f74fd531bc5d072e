"""Delays a synapse, feedback over several steps and through convolutions, average pooling: as packed bits, bit for bit."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_everything_packs import GRIDS, Case, neuron_of, packed_in_a_file, settled
from torch import Tensor, nn

from tbnn.nn import (
    AvgPool2d,
    BinaryConv1d,
    BinaryConv2d,
    BinaryLinear,
    Delay,
    DelayedLinear,
    Flatten,
    Leaky,
    LeakyIntegrator,
    Network,
    Recurrent,
    Residual,
)  # fmt: skip
from tbnn.sim import check_parity, pack


def grid(draw: st.DrawFn, dyadic: bool, blocks: bool = False) -> dict[str, object]:
    """Options of a layer of weights; the dyadic ones are exact in float32."""
    bits, sparsity = (1, 0.0) if dyadic else draw(st.sampled_from(GRIDS[:8]))
    form = "linear" if dyadic else draw(st.sampled_from(["affine", "linear"]))
    block = draw(st.sampled_from([None, 32])) if blocks else None
    return {"bits": bits, "sparsity": sparsity, "form": form, "lam": 0.0 if dyadic else 0.01, "block": block}


@st.composite
def late_networks(draw: st.DrawFn, dyadic: bool) -> Case:
    """Flat networks with a delay a synapse and feedback after 1 to 4 steps."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    sizes = draw(st.lists(st.sampled_from([3, 31, 33, 70]), min_size=2, max_size=3))
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        if draw(st.booleans()):
            longest = draw(st.sampled_from([0, 1, 3, 8]))
            delay = torch.randint(0, longest + 1, (outputs, inputs), generator=generator)
            options = grid(draw, dyadic, blocks=True)
            first = DelayedLinear(inputs, outputs, longest, draw(st.booleans()), delay=delay, learn=False, **options)  # type: ignore[arg-type]
        else:
            first = BinaryLinear(inputs, outputs, **grid(draw, dyadic))  # type: ignore[arg-type]
        layers.append(settled(first, draw, generator, dyadic))
        neuron = neuron_of(draw, generator, dyadic)
        if draw(st.booleans()):
            back = settled(BinaryLinear(outputs, outputs, **grid(draw, dyadic)), draw, generator, dyadic)  # type: ignore[arg-type]
            layers.append(Recurrent(neuron, back, delay=draw(st.integers(1, 4))))
        else:
            layers.append(neuron)
    layers += [settled(BinaryLinear(sizes[-1], 4, **grid(draw, dyadic)), draw, generator, dyadic), LeakyIntegrator(0.5)]  # type: ignore[arg-type]
    x = (torch.rand(draw(st.integers(1, 9)), draw(st.integers(1, 3)), sizes[0], generator=generator) < 0.4).float()
    return Case(Network(layers).eval(), x)


@st.composite
def pooled_networks(draw: st.DrawFn, dyadic: bool) -> Case:
    """Frames averaged before a convolution and before a linear layer, with feedback through a convolution."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    window = draw(st.sampled_from([(2, 2), (1, 2), (4, 2)] if dyadic else [(2, 2), (3, 2), (1, 3)]))
    rest = draw(st.integers(0, 1))
    channels, size = draw(st.sampled_from([1, 2, 4])), (6 * window[0] + rest * (window[0] > 1), 5 * window[1])
    groups, stride = draw(st.sampled_from([1, channels])), draw(st.integers(1, 2))
    padding = 0 if rest else draw(st.sampled_from([0, 1, "same"] if stride == 1 else [0, 1]))
    kernel = draw(st.sampled_from([1, 2, 3]))
    first = BinaryConv2d(channels, 4, kernel, stride, padding, groups=groups, **grid(draw, dyadic))  # type: ignore[arg-type]
    layers: list[nn.Module] = [AvgPool2d(window), settled(first, draw, generator, dyadic)]
    neuron = neuron_of(draw, generator, dyadic)
    if draw(st.booleans()):
        back = BinaryConv2d(4, 4, 3, padding=1, **grid(draw, dyadic))  # type: ignore[arg-type]
        neuron = Recurrent(neuron, settled(back, draw, generator, dyadic), delay=draw(st.integers(1, 3)))
    layers.append(neuron)
    with torch.no_grad():
        shape = Network(layers, (channels, *size))(torch.zeros(1, 1, channels, *size))[0].shape[2:]
    if shape[1] % 2 == 0 and shape[2] % 2 == 0:
        layers.append(AvgPool2d(2))
        shape = torch.Size((4, shape[1] // 2, shape[2] // 2))
    last = settled(BinaryLinear(shape.numel(), 3, **grid(draw, dyadic)), draw, generator, dyadic)  # type: ignore[arg-type]
    layers += [Flatten(), last, LeakyIntegrator(0.5)]
    steps, batch = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    x = (torch.rand(steps, batch, channels, *size, generator=generator) < 0.4).float()
    return Case(Network(layers, (channels, *size)).eval(), x)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(case=st.one_of(late_networks(dyadic=True), pooled_networks(dyadic=True)))
def test_exact_networks_are_equal_bit_for_bit(case: Case) -> None:
    parity = check_parity(case.network, packed_in_a_file(case.network), case.x)
    assert parity.equal, parity.summary()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(case=st.one_of(late_networks(dyadic=False), pooled_networks(dyadic=False)))
def test_rounded_networks_keep_the_contract(case: Case) -> None:
    parity = check_parity(case.network, packed_in_a_file(case.network), case.x)
    assert parity.ok, parity.summary()


@settings(deadline=None, max_examples=40, derandomize=True)
@given(case=st.one_of(late_networks(dyadic=False), pooled_networks(dyadic=False)), data=st.data())
def test_a_simulation_in_pieces_is_the_whole(case: Case, data: st.DataObject) -> None:
    packed = pack(case.network)
    whole = packed.simulate(case.x, record=("spikes",))
    cut = data.draw(st.integers(0, len(case.x)))
    state, parts = None, []
    for piece in (case.x[:cut], case.x[cut:]):
        if len(piece):
            parts.append(packed.simulate(piece, record=("spikes",), state=state))
            state = parts[-1].state
    assert torch.equal(torch.cat([p.readout for p in parts]), whole.readout)  # type: ignore[arg-type]
    for name, spikes in whole.spikes.items():
        assert torch.equal(torch.cat([p.spikes[name] for p in parts]), spikes)


def test_rounding_of_delays_is_the_models_too() -> None:
    """Affine weights of several bits in blocks: not only the spikes, every bit of every current."""
    torch.manual_seed(0)
    layer = DelayedLinear(100, 37, 11, bits=3, block=32)
    x = (torch.rand(30, 4, 100) < 0.3).float()
    assert torch.equal(pack(Network([layer])).simulate(x).readout, layer.eval()(x)[0])  # type: ignore[arg-type]


def test_a_delayed_synapse_by_hand() -> None:
    layer = DelayedLinear(2, 1, 5, bias=False, delay=torch.tensor([[0, 5]]), learn=False, form="linear", lam=0.0)
    layer.weight.data = torch.tensor([[1.0, -1.0]])
    packed = pack(Network([layer]))
    assert packed.layers[0].delays().tolist() == [[0, 5]]  # type: ignore[union-attr]
    assert packed.layers[0].tensors()["delay"].shape == (3, 1, 1)
    x = torch.zeros(8, 1, 2)
    x[0], x[1, 0, 1] = 1, 1
    result = packed.simulate(x)
    assert result.readout[:, 0, 0].tolist() == [1, 0, 0, 0, 0, -1, -1, 0]  # type: ignore[index]
    assert result.counts.layers[0].effective_synops == 3


def test_a_spike_returns_after_its_delay() -> None:
    drive, back = (BinaryLinear(1, 1, False, form="linear", lam=0.0) for _ in range(2))
    drive.weight.data, back.weight.data = torch.ones(1, 1), torch.ones(1, 1)
    net = Network([drive, Recurrent(Leaky(0.0, 0.5, reset_mechanism="none"), back, delay=3)])
    x = torch.zeros(8, 1, 1)
    x[0] = 1
    packed = pack(net)
    assert packed.simulate(x).output_spikes[:, 0, 0].tolist() == [1, 0, 0, 1, 0, 0, 1, 0]  # type: ignore[index]
    first = packed.simulate(x[:2])
    assert packed.simulate(x[2:], state=first.state).output_spikes[:, 0, 0].tolist() == [0, 1, 0, 0, 1, 0]  # type: ignore[index]


def test_weights_under_a_window_stand_once_a_bit() -> None:
    layer = BinaryConv2d(1, 2, 2, bits=2)
    packed = pack(Network([AvgPool2d((2, 3)), layer], (1, 8, 9))).linear_layers[0]
    values, scale, _ = layer.codes()
    assert torch.equal(packed.values().reshape(2, 4, 6)[:, ::2, ::3], values.flatten(1).reshape(2, 2, 2).int())
    torch.testing.assert_close(packed.scale, scale / 6)


class TestStates:
    """Of feedback over several steps and of delayed synapses: another shape or dtype is named."""

    @pytest.mark.parametrize(
        ("spikes", "message"),
        [
            (None, r"layers\.1: spikes: expected torch.int32 \(3, 2, 1\), got None"),
            (
                torch.zeros(2, 1, dtype=torch.int32),
                r"spikes: expected torch.int32 \(3, 2, 1\), got torch.int32 \(2, 1\)",
            ),
            (torch.zeros(3, 2, 1), r"spikes: expected .*, got torch.float32"),
        ],
    )
    def test_feedback(self, spikes: Tensor | None, message: str) -> None:
        packed = pack(Network([BinaryLinear(7, 5), Recurrent(Leaky(0.9), BinaryLinear(5, 5), delay=3)]))
        x = torch.ones(4, 2, 7)
        before = packed.simulate(x).state
        with pytest.raises(ValueError, match=message):
            packed.simulate(x, state=(None, before[1]._replace(spikes=spikes)))  # type: ignore[union-attr]

    def test_delays(self) -> None:
        packed = pack(Network([DelayedLinear(7, 5, 3)]))
        state = packed.simulate(torch.ones(4, 2, 7)).state
        with pytest.raises(ValueError, match=r"layers\.0: past: expected torch.int32 \(3, 3, 1\), got .* \(3, 2, 1\)"):
            packed.simulate(torch.ones(4, 3, 7), state=state)


CONV = BinaryConv2d(2, 3, 3)


def trained_denoised(**options: object) -> Leaky:
    neuron = Leaky(0.9, emit="denoised", per_channel=False, **options)  # type: ignore[arg-type]
    neuron(torch.randn(5, 2, 3, 8, 8))
    return neuron


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([AvgPool2d(3, stride=2), CONV], r"layers\.0: .*side by side without padding.*stride=\(2, 2\)"),
        ([AvgPool2d(2, padding=1), CONV], r"layers\.0: .*padding=\(1, 1\)"),
        ([AvgPool2d(2), AvgPool2d(2), CONV], r"layers\.1: expected weights after an AvgPool2d.* got another one"),
        ([AvgPool2d(2), BinaryConv2d(2, 3, 2, dilation=2)], r"layers\.1: after an AvgPool2d: expected a dilation of 1"),
        ([AvgPool2d(3), BinaryConv2d(2, 3, 1, padding=1)], r"layers\.1: .*leaves a rest of 8 in windows of 3"),
        ([AvgPool2d(3), Flatten(), BinaryLinear(8, 3)], r"layers\.2: .* windows \(3, 3\) divide, got \[8, 8\]"),
        ([AvgPool2d(2), Flatten(), DelayedLinear(32, 3, 2)], r"layers\.2: expected bits to delay, got the means"),
        ([AvgPool2d(2), Delay(2, 1)], r"layers\.1: expected bits to delay, got the means of an AvgPool2d"),
        ([CONV, AvgPool2d(2), Leaky(0.9)], r"layers\.2: expected bits or currents before it, got the means"),
        ([CONV, Leaky(0.9), AvgPool2d(2)], "expected weights after an AvgPool2d.* got the end of the network"),
        ([CONV, Leaky(0.9), AvgPool2d(2), Residual([BinaryConv2d(3, 3, 1), Leaky(0.9)])], r"layers\.3: expected bits"),
        (
            [BinaryConv2d(2, 32, 1), Leaky(0.9), AvgPool2d(2), BinaryConv2d(32, 3, 3, block=32)],
            r"layers\.3\.kernel: block",
        ),
        ([CONV, Recurrent(trained_denoised(), BinaryConv2d(3, 3, 3, padding=1))], r"layers\.1: emit='denoised'"),
        ([CONV, trained_denoised(), Flatten(), DelayedLinear(108, 4, 2)], r"layers\.3: expected bits to delay"),
        (
            [CONV, Recurrent(Leaky(0.9), BinaryConv2d(3, 3, 3))],
            r"layers\.1: expected a convolution that keeps the frames",
        ),
    ],
)
def test_what_does_not_fold_is_named(layers: list[nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(Network(layers, (2, 8, 8)))


def test_a_denoised_feedback_of_more_than_one_step_is_named() -> None:
    neuron = Leaky(0.9, emit="denoised", per_channel=False)
    neuron(torch.randn(5, 2, 3))
    net = Network([BinaryLinear(7, 3), Recurrent(neuron, BinaryLinear(3, 3), delay=2)])
    with pytest.raises(ValueError, match=r"layers\.1: emit='denoised' does not fold into a feedback .* takes 2 steps"):
        pack(net)


def test_a_block_of_whole_rows_folds() -> None:
    torch.manual_seed(0)
    layers = [BinaryConv2d(1, 32, 1), Leaky(0.5), AvgPool2d(2), Flatten(), BinaryLinear(32 * 4 * 4, 3, block=64)]
    net = Network(layers, (1, 8, 8)).eval()
    x = (torch.rand(5, 2, 1, 8, 8) < 0.4).float()
    assert check_parity(net, pack(net), x).equal


def test_one_dimensional_feedback() -> None:
    torch.manual_seed(0)
    back = BinaryConv1d(4, 4, 3, padding="same")
    net = Network([BinaryConv1d(2, 4, 3), Recurrent(Leaky(0.5), back, delay=2)], (2, 21)).eval()
    x = (torch.rand(9, 2, 2, 21) < 0.4).float()
    packed = packed_in_a_file(net)
    assert check_parity(net, packed, x).equal
    assert math.prod(packed.layers[1].spec.feedback.out_shape) == packed.layers[1].spec.features  # type: ignore[union-attr]
