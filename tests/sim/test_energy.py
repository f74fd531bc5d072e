"""The energy estimate: by hand, its sums, its constants, and what it refuses."""

import json
import math
from dataclasses import fields, replace

import pytest
import torch
from sim_networks import small_input, small_network

from tbnn.nn import BinaryConv2d, BinaryLinear, Flatten, Leaky, LeakyIntegrator, MaxPool2d, Network, Synaptic
from tbnn.sim import Counts, PackedNetwork, pack
from tbnn.sim.energy import TECHNOLOGIES, Energy, LayerEnergy, Memory, Technology, energy, joules

PICO = 1e-12
PARTS = [f.name for f in fields(LayerEnergy)[2:]]
ONES = Technology("ones", "made up", 1.0, 0.0, 0.0, (Memory(math.inf, 0.0),))


def simulated(network: Network, x: torch.Tensor) -> tuple[PackedNetwork, Counts]:
    packed = pack(network)
    return packed, packed.simulate(x).counts


def frames_network() -> tuple[PackedNetwork, Counts]:
    torch.manual_seed(0)
    layers = [BinaryConv2d(2, 4, 3, padding=1, bits=2), Leaky(0.5), MaxPool2d(2), Flatten(), BinaryLinear(64, 5)]
    return simulated(Network(layers, (2, 8, 8)), (torch.rand(4, 2, 2, 8, 8) < 0.3).float())


def test_the_constants_are_those_published() -> None:
    # Horowitz, ISSCC 2014, figure 1.1.9: pJ an operation, and for 64 bits of a cache; DRAM 1.3 to 2.6 nJ.
    known = TECHNOLOGIES["45nm"]
    assert (known.integer_add, known.float_add, known.float_multiply) == (0.1, 0.9, 3.7)
    kilo = {memory.size / 1024: memory.access for memory in known.memories}
    assert kilo == {8: 10, 32: 20, 1024: 100, math.inf: (1300 + 2600) / 2}
    assert all(word in known.source for word in ("Horowitz", "ISSCC 2014", "45 nm", "0.9 V"))


def test_by_hand() -> None:
    # T=3, B=2: 2 inputs at the first step to 4 neurons that always spike, then ±1 weights to 2 readouts.
    layers = [BinaryLinear(2, 4), Leaky(0.5, -1e6, reset_mechanism="none"), BinaryLinear(4, 2, form="linear")]
    x = torch.zeros(3, 2, 2)
    x[0] = 1
    first, neurons, last, readout = energy(*simulated(Network([*layers, LeakyIntegrator(0.5)]), x)).layers
    bit = 10 / 64  # everything fits in 8 kB
    assert _picojoules(first) == pytest.approx({
        "synapses": 8 * 0.1, "scales": 3 * 4 * 2 * 4.6, "neurons": 0, "weight_memory": (8 + 32 * 24) * bit,
        "spike_memory": 3 * 32 * bit, "membrane_memory": 0, "dense_float32": 3 * 8 * 4.6,
    })  # fmt: skip
    assert _picojoules(neurons) == pytest.approx({
        "synapses": 0, "scales": 0, "neurons": 3 * 4 * (3.7 + 0.9 + 0.9), "weight_memory": 0,
        "spike_memory": 3 * 32 * bit, "membrane_memory": 3 * 4 * 64 * bit, "dense_float32": 0,
    })  # fmt: skip
    assert _picojoules(last) == pytest.approx({
        "synapses": 24 * 0.1, "scales": 3 * 2 * 4.6, "neurons": 0, "weight_memory": (24 + 32 * 6) * bit,
        "spike_memory": 3 * 32 * bit, "membrane_memory": 0, "dense_float32": 3 * 8 * 4.6,
    })  # fmt: skip
    assert _picojoules(readout) == pytest.approx({
        "synapses": 0, "scales": 0, "neurons": 3 * 2 * 4.6, "weight_memory": 0,
        "spike_memory": 0, "membrane_memory": 3 * 2 * 64 * bit, "dense_float32": 0,
    })  # fmt: skip


def _picojoules(row: LayerEnergy) -> dict[str, float]:
    return {key: getattr(row, key) / PICO for key in PARTS}


def test_a_weight_of_more_bits_is_more_bits_to_read() -> None:
    reads = replace(ONES, integer_add=0.0, memories=(Memory(math.inf, 64.0),))  # 1 pJ a bit
    for bits, sparsity, planes in ((1, 0.0, 1), (1.58, 0.0, 2), (4, 0.0, 4), (4, 0.5, 5)):
        torch.manual_seed(0)
        packed, counts = simulated(Network([BinaryLinear(20, 6, bits=bits, sparsity=sparsity)]), torch.ones(1, 1, 20))
        effective = counts.total.effective_synops
        read = energy(packed, counts, reads).total.weight_memory
        assert read / PICO == pytest.approx(effective * planes + 32 * 2 * 6)


def test_two_states_cost_twice_but_compare_once() -> None:
    x = small_input()
    one, two = (
        energy(*simulated(Network([BinaryLinear(7, 4), neuron]), x)).layers[1]
        for neuron in (Leaky(0.5), Synaptic(0.5, 0.5))
    )
    assert two.membrane_memory == 2 * one.membrane_memory
    assert two.neurons / one.neurons == pytest.approx((2 * 4.6 + 0.9) / (4.6 + 0.9))


@pytest.mark.parametrize("make", [frames_network, lambda: simulated(small_network(), small_input())])
def test_sums(make) -> None:
    packed, counts = make()
    estimate = energy(packed, counts)
    total = estimate.total
    assert [row.name for row in estimate.layers] == [row.name for row in counts.layers]
    for key in PARTS:
        assert getattr(total, key) == pytest.approx(sum(getattr(row, key) for row in estimate.layers))
        assert getattr(total, key) > 0
    assert total.total == pytest.approx(sum(row.total for row in estimate.layers))
    assert total.total == pytest.approx(total.arithmetic + total.memory)
    assert estimate.table()[-1]["total"] == total.total
    # One pJ an addition and nothing else: the operations themselves.
    counted = energy(packed, counts, ONES).total
    assert counted.total / PICO == pytest.approx(counts.total.effective_synops / counts.batch)


def test_it_is_linear_in_its_constants() -> None:
    packed, counts = frames_network()
    known = TECHNOLOGIES["45nm"]
    memories = tuple(Memory(m.size, 3 * m.access) for m in known.memories)
    thrice = replace(known, integer_add=0.3, float_add=2.7, float_multiply=11.1, memories=memories)
    for key in PARTS:
        one, three = (getattr(energy(packed, counts, t).total, key) for t in (known, thrice))
        assert three == pytest.approx(3 * one)


def test_steps_add_up_and_samples_average() -> None:
    packed, x = pack(small_network()), small_input()
    whole, first = packed.simulate(x), packed.simulate(x[:4])
    second = packed.simulate(x[4:], state=first.state)
    parts = [energy(packed, part.counts).total for part in (first, second)]
    doubled = energy(packed, packed.simulate(x.repeat(1, 2, 1)).counts).total
    for key in PARTS:
        one = getattr(energy(packed, whole.counts).total, key)
        assert sum(getattr(part, key) for part in parts) == pytest.approx(one)
        assert getattr(doubled, key) == pytest.approx(one)


def test_data_lie_in_the_smallest_memory_that_holds_them() -> None:
    known = TECHNOLOGIES["45nm"]
    for size, access in ((1, 10), (8192, 10), (8193, 20), (32768, 20), (2**20, 100), (2**20 + 1, 1950)):
        assert known.access(size) == access / 64


def test_the_text_names_its_sources_and_what_it_is_not() -> None:
    estimate = energy(*frames_network())
    for part in (
        "Horowitz",
        "ISSCC 2014",
        "0.9 V",
        "hypothetical",
        "Not a measurement",
        "4.6 pJ",
        joules(estimate.total.total),
    ):
        assert part in estimate.text()
    own = energy(*frames_network(), replace(ONES, source="my own chip, 2031"))  # type: ignore[misc]
    assert "my own chip, 2031" in own.text()
    plain = estimate.as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["total"]["total"] == estimate.total.total


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0 pJ"), (4.6e-12, "4.6 pJ"), (0.9996e-9, "1 nJ"), (1.234e-6, "1.23 µJ"), (0.25, "250 mJ"), (12.0, "12 J")],
)
def test_joules(value: float, text: str) -> None:
    assert joules(value) == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": " "}, "expected a name and a source"),
        ({"float_add": -1.0}, "technology ones: float_add: expected an energy of 0 pJ or more, got -1.0"),
        ({"integer_add": math.nan}, "integer_add: .* got nan"),
        ({"memories": ()}, "memories: expected growing sizes up to math.inf, got none"),
        ({"memories": (Memory(8, 1.0),)}, r"memories: .* got \[8\]"),
        ({"memories": (Memory(8, 1.0), Memory(8, 2.0), Memory(math.inf, 3.0))}, "memories: expected growing"),
        ({"memories": (Memory(math.inf, math.inf),)}, r"memories\[0\]: expected an energy"),
    ],
)
def test_constants_that_make_no_sense(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ONES, **changes)


def test_what_is_not_known_is_refused() -> None:
    packed, counts = frames_network()
    with pytest.raises(ValueError, match="technology: expected one of 45nm, got '3nm'"):
        energy(packed, counts, "3nm")
    with pytest.raises(ValueError, match="counts: expected those of this network"):
        energy(pack(small_network()), counts)
    assert isinstance(energy(packed, counts), Energy)
