"""Operations, spikes and bytes of a small network, counted by hand."""

import json

import torch
from sim_networks import small_input, small_network

from tbnn.bits import pack_bits, popcount
from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network, Recurrent
from tbnn.sim import LayerCounts, pack


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
            bytes_moved=8 * word + 4 * (2 + 2 + 2 + 2),  # signs, scales, offsets, bias
            path="dense",
        ),
        LayerCounts(
            "layers.1.recurrent_layer", "linear", dense_synops=8 * 4,
            effective_synops=6 * 2,  # the one that fires, in two samples; nothing returns before the first step
            bytes_moved=8 * word + 4 * (2 + 2 + 2),
            path="dense",
        ),
        LayerCounts("layers.1", "leaky", spikes=8, neuron_updates=16, bytes_moved=8 * word, firing_rate=0.5),
        LayerCounts(
            "layers.2", "linear", dense_synops=8 * 6, effective_synops=8 * 3, bytes_moved=8 * word + 4 * (3 + 3 + 3 + 3),
            path="dense",
        ),
        LayerCounts("layers.3", "integrator", neuron_updates=24, bytes_moved=8 * 3 * 4),
    )  # fmt: skip
    total = counts.total
    assert (total.dense_synops, total.effective_synops, total.spikes, total.neuron_updates) == (128, 48, 8, 40)
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
