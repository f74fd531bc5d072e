"""Operations, spikes and bytes of small networks, counted by hand, and what holds for all networks."""

import json
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_networks import Shape, rough, shapes, small_input, small_network

from tbnn.bits import pack_bits, popcount
from tbnn.nn import BinaryConv2d, BinaryLinear, Leaky, LeakyIntegrator, MaxPool2d, Network, Recurrent
from tbnn.sim import LayerCounts, pack
from tbnn.sim.counts import SUMS, completed, scale_multiplies, synapses
from tbnn.sim.layers import ConvSpec, LinearSpec


def always_and_never() -> Network:
    """Three inputs to two neurons, of which one always fires and one never, fed back, and read out by three."""
    first, feedback, last = BinaryLinear(3, 2), BinaryLinear(2, 2, bias=False), BinaryLinear(2, 3)
    first.weight.data.fill_(1.0)
    first.bias.data = torch.tensor([100.0, -100.0])
    return Network([first, Recurrent(Leaky(0.5, reset_mechanism="none"), feedback), last, LeakyIntegrator(0.5)])


def test_counts_by_hand() -> None:
    # T=4, B=2; 1, 2, 3 and 0 inputs in the first sample, none in the second.
    x = torch.zeros(4, 2, 3)
    x[0, 0, :1] = x[1, 0, :2] = x[2, 0, :3] = 1
    counts = pack(always_and_never()).simulate(x).counts
    assert (counts.steps, counts.batch, counts.input_spikes) == (4, 2, 6)
    word = 4
    assert counts.layers == (
        LayerCounts(
            "layers.0", "linear", dense_synops=8 * 6, effective_synops=6 * 2,
            scale_multiplies=8 * 2 * 2,  # a scale and an offset an output
            bytes_moved=8 * word + 4 * (2 + 2 + 2 + 2),  # signs, scales, offsets, bias
            path="dense",
        ),
        LayerCounts(
            "layers.1.recurrent_layer", "linear", dense_synops=8 * 4,
            effective_synops=6 * 2,  # the one that fires, in two samples; nothing returns before the first step
            scale_multiplies=8 * 2 * 2,
            bytes_moved=8 * word + 4 * (2 + 2 + 2),
            path="events",
        ),
        LayerCounts("layers.1", "leaky", spikes=8, neuron_updates=16, bytes_moved=8 * word, firing_rate=0.5),
        LayerCounts(
            "layers.2", "linear", dense_synops=8 * 6, effective_synops=8 * 3, scale_multiplies=8 * 3 * 2,
            bytes_moved=8 * word + 4 * (3 + 3 + 3 + 3),
            path="dense",
        ),
        LayerCounts("layers.3", "integrator", neuron_updates=24, bytes_moved=8 * 3 * 4),
    )  # fmt: skip
    total = counts.total
    assert (total.dense_synops, total.effective_synops, total.spikes, total.neuron_updates) == (128, 48, 8, 40)
    assert total.scale_multiplies == 112
    assert total.bytes_moved == sum(layer.bytes_moved for layer in counts.layers)
    assert total.firing_rate == 0.5  # of the 16 updates that could have been spikes


def test_spikes_are_those_recorded() -> None:
    packed, x = pack(small_network()), small_input()
    result = packed.simulate(x, record=("spikes",))
    rows = {row.name: row for row in result.counts.layers}
    assert result.counts.input_spikes == int(popcount(pack_bits(x)).sum()) > 0
    for name, words in result.spikes.items():
        assert rows[name].spikes == int(popcount(words).sum()) > 0
        assert rows[name].firing_rate == rows[name].spikes / rows[name].neuron_updates
    assert rows["layers.2"].effective_synops == rows["layers.1"].spikes * 40  # two blocks, each counted once


def test_the_table_and_the_dictionary_are_plain() -> None:
    counts = pack(small_network()).simulate(small_input()).counts
    table = counts.table()
    assert [row["name"] for row in table] == [row.name for row in counts.layers] + ["total"]
    assert table[-1]["spikes"] == sum(row["spikes"] for row in table[:-1])
    assert json.loads(json.dumps(counts.as_dict())) == counts.as_dict()
    assert counts.as_dict()["total"] == table[-1]


def test_without_neurons_there_is_no_firing_rate() -> None:
    assert pack(Network([BinaryLinear(7, 2)])).simulate(small_input()).counts.total.firing_rate is None


def test_a_convolution_by_hand() -> None:
    # A window of 3 × 3 over a padded frame of 2 × 3: of its rows 2 + 2 lie inside, of its columns 2 + 3 + 2.
    layer = BinaryConv2d(1, 2, 3, padding=1, form="linear")
    x = torch.zeros(2, 1, 1, 2, 3)
    x[0, 0, 0, 0, 0] = 1  # a corner: 2 × 2 windows see it
    x[1, 0, 0, 1, 1] = 1  # the middle of an edge: 2 × 3
    row = pack(Network([layer], (1, 2, 3))).simulate(x).counts.layers[0]
    assert row.dense_synops == 2 * 4 * 7 * 2
    assert row.effective_synops == (4 + 6) * 2
    assert row.scale_multiplies == 2 * 6 * 2  # steps, pixels, channels


@pytest.mark.parametrize(("bits", "effective"), [(1.58, 2), (3, 4)])
def test_weights_of_few_bits_by_hand(bits: float, effective: int) -> None:
    layer = BinaryLinear(2, 4, bits=bits, form="linear", bias=False)
    # With 3 values an input of four weights keeps the two large ones; with 3 bits none of the eight values is 0.
    layer.weight.data = torch.tensor([[1.0, 0.01], [-1.0, 0.01], [0.01, 1.0], [0.01, -1.0]])
    row = pack(Network([layer])).simulate(torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])).counts.layers[0]
    assert (row.dense_synops, row.effective_synops) == (2 * 8, effective)
    assert row.scale_multiplies == 2 * 4


def test_every_block_and_offset_has_its_multiplication() -> None:
    blocks = LinearSpec("a", 100, 7, 32, offset=True, bias=True)
    assert scale_multiplies(blocks) == 7 * 4 * 2
    assert scale_multiplies(replace(blocks, offset=False)) == 7 * 4
    assert synapses(blocks) == 700


@given(st.data())
@settings(max_examples=40, derandomize=True, deadline=None)
def test_synapses_of_a_convolution_are_the_taps_inside_the_frame(data: st.DataObject) -> None:
    def pair(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    groups, window, stride, dilation, padding = (
        data.draw(st.integers(1, 2)),
        pair(1, 3),
        pair(1, 3),
        pair(1, 2),
        pair(0, 3),
    )
    channels, outputs = 2 * groups, 3 * groups
    height, width = (
        n + data.draw(st.integers(0, 4)) for n in ((window[0] - 1) * dilation[0] + 1, (window[1] - 1) * dilation[1] + 1)
    )
    kernel = LinearSpec("k", 2 * window[0] * window[1], outputs, 2 * window[0] * window[1], offset=False, bias=False)
    margins = (padding[0], padding[0], padding[1], padding[1])
    spec = ConvSpec("k", channels, height, width, window, stride, dilation, margins, groups, kernel)
    frame, weights = torch.ones(1, channels, height, width), torch.ones(outputs, 2, *window)
    out = torch.nn.functional.conv2d(frame, weights, None, stride, padding, dilation, groups)
    assert synapses(spec) == out.sum()
    assert scale_multiplies(spec) == out.numel()


def test_where_every_input_spikes_every_synapse_counts() -> None:
    layers = [BinaryConv2d(2, 3, 3, stride=2, padding=1), Leaky(0.5, -1e6, reset_mechanism="none"), MaxPool2d(2)]
    network = Network([*layers, BinaryConv2d(3, 4, 2, padding=1)], (2, 9, 8))
    for row in pack(network).simulate(torch.ones(3, 2, 2, 9, 8)).counts.layers:
        assert row.effective_synops == row.dense_synops
        assert (row.dense_synops > 0) == (row.kind == "conv")


@given(shapes(max_steps=9))
@settings(max_examples=20, derandomize=True, deadline=None)
def test_parts_of_time_add_up_to_the_whole(shape: Shape) -> None:
    case = rough(shape)
    packed, cut = pack(case.network), len(case.x) // 2
    whole = packed.simulate(case.x).counts
    for row in (*whole.layers, whole.total):
        assert 0 <= row.effective_synops <= row.dense_synops
        assert 0 <= row.spikes <= row.neuron_updates
    if cut:
        first = packed.simulate(case.x[:cut])
        parts = (first.counts, packed.simulate(case.x[cut:], state=first.state).counts)
        assert sum(part.input_spikes for part in parts) == whole.input_spikes
        for row, one, two in zip(whole.layers, *(part.layers for part in parts), strict=True):
            for key in set(SUMS) - {"bytes_moved"}:  # weights are read once a call
                assert getattr(one, key) + getattr(two, key) == getattr(row, key), key


def test_the_total_adds_up_every_number_of_a_layer() -> None:
    numbers = {f.name for f in fields(LayerCounts) if f.type is int}
    assert numbers == set(SUMS)
    counts = pack(small_network()).simulate(small_input()).counts
    for key in SUMS:
        assert getattr(counts.total, key) == sum(getattr(row, key) for row in counts.layers) > 0


def test_completed_once_is_enough_and_of_this_network_only() -> None:
    packed = pack(small_network())
    counts = packed.simulate(small_input()).counts
    assert completed(packed.layers, counts) == counts
    with pytest.raises(
        ValueError, match=r"expected those of this network, layers\.0, layers\.1, got a linear called layers\.2"
    ):
        completed(packed.layers[:2], counts)
