"""A convolution that takes its neurons along, band by band, against the model: where bands and words meet."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tbnn.nn import BinaryConv2d, Leaky, Network
from tbnn.ops.packed_lif.conv import band_of
from tbnn.sim import pack
from tbnn.sim.run import conv


def make_dyadic(network: Network) -> None:
    """Scales, offsets and biases that float32 holds exactly: equal bits whatever the order of the model's sums."""
    for layer in network.layers:
        if isinstance(layer, BinaryConv2d):
            values, scale, _ = layer.codes()
            blocks = torch.full_like(scale, 0.25)
            offset = torch.full_like(scale, -0.0625) if layer.form == "affine" else torch.zeros_like(scale)
            layer.freeze(type(layer.codes())(values, blocks, offset))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    frame=st.sampled_from([(8, 8), (4, 16), (16, 6), (24, 64), (33, 32), (2, 96), (40, 128)]),
    channels=st.sampled_from([(1, 3, 1), (2, 4, 1), (4, 6, 2), (3, 3, 3)]),
    window=st.sampled_from([(1, 0), (3, 1), (5, 2)]),
    stride=st.sampled_from([1, 2]),
    grid=st.sampled_from([(1, 0.0), (1.58, 0.0), (3, 0.5)]),
    form=st.sampled_from(["affine", "linear"]),
    own=st.booleans(),
    reset=st.sampled_from(["subtract", "zero", "none"]),
    batch=st.integers(1, 3),
    seed=st.integers(0, 2**31 - 1),
)
@torch.no_grad()
def test_spikes_are_the_models(frame, channels, window, stride, grid, form, own, reset, batch, seed):
    torch.manual_seed(seed)
    inputs, outputs, groups = channels
    size, padding = window
    layer = BinaryConv2d(
        inputs, outputs, size, padding=padding, stride=stride, groups=groups, bits=grid[0], sparsity=grid[1], form=form
    )
    beta = torch.randint(0, 5, (outputs, 1, 1)) / 4 if own else 0.5
    threshold = torch.randint(1, 5, (outputs, 1, 1)) / 4 if own else 0.5
    network = Network([layer, Leaky(beta, threshold, reset_mechanism=reset)], (inputs, *frame)).eval()
    make_dyadic(network)
    x = (torch.rand(4, batch, inputs, *frame) < 0.2).float()
    packed = pack(network)
    got, state = packed.simulate(x), network(x)[1]
    expected = pack_spikes(network, x)
    assert torch.equal(got.output_spikes, expected)
    assert torch.equal(got.state[1].v, state[1].v.flatten(1))
    by_pieces = packed.simulate(x, membranes={"layers.1": [0]})  # the other way
    assert torch.equal(by_pieces.output_spikes, expected)
    assert by_pieces.counts.as_dict() == got.counts.as_dict()


def pack_spikes(network: Network, x: torch.Tensor) -> torch.Tensor:
    from tbnn.bits import pack_bits

    return pack_bits(network(x)[0].flatten(2))


@pytest.mark.parametrize(
    ("rows", "width", "band"),
    [(128, 128, 4), (64, 64, 8), (8, 8, 8), (7, 7, 0), (34, 34, 0), (33, 32, 16), (1, 32, 1), (100, 48, 12)],
)
def test_bands_fill_whole_words(rows, width, band):
    assert band_of(rows, width) == band
    assert band == 0 or (band * width % 32 == 0 and rows * width % 32 == 0)


def test_the_fused_way_is_taken(monkeypatch):
    calls = []
    kernel = conv.packed_conv_scan
    monkeypatch.setattr(conv, "packed_conv_scan", lambda *a, **k: (calls.append(1), kernel(*a, **k))[1])
    network = Network([BinaryConv2d(1, 2, 3, padding=1), Leaky(0.5)], (1, 8, 8)).eval()
    packed, x = pack(network), torch.ones(3, 1, 1, 8, 8)
    packed.simulate(x)
    assert calls == [1]
    packed.simulate(x, membranes={"layers.1": [0]})
    assert calls == [1]
