"""NeuroBench's metrics, by hand and from their definitions in plain torch."""

import json

import pytest
import torch
from sim_networks import small_input, small_network
from torch import nn

from tbnn.nn import BinaryConv2d, BinaryLinear, DelayedLinear, Flatten, Leaky, LeakyIntegrator, Network
from tbnn.sim import PackedNetwork, pack
from tbnn.sim.layers import PackedSparse
from tbnn.sim.neurobench import neurobench, zero_weights


def mixed_network() -> Network:
    """A convolution whose windows leave the frame, ternary and 4-bit weights."""
    torch.manual_seed(0)
    layers = [
        BinaryConv2d(2, 4, 3, stride=2, padding=1), Leaky(0.5), Flatten(), BinaryLinear(100, 20, bits=1.58), Leaky(0.5),
        BinaryLinear(20, 10, bits=4, sparsity=0.5), LeakyIntegrator(0.5),
    ]  # fmt: skip
    return Network(layers, (2, 9, 9)).eval()


def test_by_hand() -> None:
    # T=3, B=2: 2 inputs to 4 neurons of which all spike at every step, then ternary weights to 2 readouts.
    last = BinaryLinear(4, 2, bits=1.58, bias=False, form="linear")
    last.weight.data = torch.tensor([[1.0, 0.01, 0.01, -1.0], [0.01, 1.0, 0.01, 0.01]])
    network = Network([BinaryLinear(2, 4), Leaky(0.5, -1e6, reset_mechanism="none"), last, LeakyIntegrator(0.5)])
    packed = pack(network)
    x = torch.zeros(3, 2, 2)
    x[0] = 1
    kept = 8 - zero_weights(packed.linear_layers[1])
    assert kept == int((packed.linear_layers[1].values() != 0).sum()) < 8
    first, second, readout = 4 * (4 + 4 + 4 + 4), 4 * 2 * 2 + 4 * 2, 4
    assert neurobench(packed, packed.simulate(x).counts) == {
        "Footprint": first + 8 + second + readout,
        "ConnectionSparsity": (8 - kept) / 16,
        "ActivationSparsity": 0.0,
        "SynapticOperations": {"Dense": 3 * (8 + 8), "Effective_MACs": 0.0, "Effective_ACs": 1 * 2 * 4 + 3 * kept},
        "MembraneUpdates": 3 * (4 + 2),
    }


def test_definitions_in_torch() -> None:
    network = mixed_network()
    x = (torch.rand(6, 3, 2, 9, 9, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    packed = pack(network)
    found = neurobench(packed, packed.simulate(x).counts)
    values = [m.codes().values for m in network.modules() if isinstance(m, (BinaryLinear, BinaryConv2d))]
    dense = effective = 0.0
    spikes, here = [], x
    for layer in network.get_submodule("layers").children():
        if isinstance(layer, (BinaryLinear, BinaryConv2d)):
            kept = (values[len(spikes)] != 0).float()
            product = nn.functional.linear if isinstance(layer, BinaryLinear) else _strided
            effective += product(here.flatten(0, 1), kept).sum().item()
            dense += product(torch.ones_like(here.flatten(0, 1)), torch.ones_like(kept)).sum().item()
        here = layer(here)
        if isinstance(here, tuple):
            here = here[0]
            spikes.append(here)
    emitted = torch.cat([s.flatten() for s in spikes[:2]])
    zeros = sum(int((v == 0).sum()) for v in values)
    assert found["ConnectionSparsity"] == zeros / sum(v.numel() for v in values) > 0.2
    assert found["ActivationSparsity"] == pytest.approx(1 - emitted.mean().item(), abs=1e-7)
    operations = found["SynapticOperations"]
    assert operations == {"Dense": dense / 3, "Effective_MACs": 0.0, "Effective_ACs": effective / 3}
    assert 0 < operations["Effective_ACs"] < operations["Dense"]
    assert found["MembraneUpdates"] == 6 * (100 + 20 + 10)


def _strided(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return nn.functional.conv2d(x, weight, stride=2, padding=1)


def test_the_footprint_is_what_a_file_holds(tmp_path) -> None:
    packed = pack(mixed_network())
    packed.save(tmp_path / "a.tbnn")
    again = PackedNetwork.load(tmp_path / "a.tbnn")
    x = torch.zeros(1, 1, 2, 9, 9)
    found = neurobench(again, again.simulate(x).counts)
    assert found["Footprint"] == again.packed_bytes < (tmp_path / "a.tbnn").stat().st_size
    assert json.loads(json.dumps(found)) == found


def test_averages_a_sample_do_not_depend_on_the_batch() -> None:
    packed, x = pack(small_network()), small_input()
    one = neurobench(packed, packed.simulate(x).counts)
    twice = neurobench(packed, packed.simulate(x.repeat(1, 2, 1)).counts)
    assert one == twice
    assert (
        neurobench(packed, packed.simulate(x.repeat(2, 1, 1)).counts)["MembraneUpdates"] == 2 * one["MembraneUpdates"]
    )


def test_without_spikes_there_is_no_activation() -> None:
    packed = pack(Network([BinaryLinear(7, 2)]))
    assert neurobench(packed, packed.simulate(small_input()).counts)["ActivationSparsity"] is None


def test_lists_of_connections_say_what_planes_say() -> None:
    torch.manual_seed(0)
    planes = pack(Network([BinaryLinear(70, 9, bits=2, sparsity=0.9), Leaky(0.5), BinaryLinear(9, 4)]))
    first, *others = planes.layers
    lists = PackedNetwork((PackedSparse.from_linear(first), *others), 70)  # pyright: ignore[reportArgumentType]
    x = (torch.rand(5, 2, 70) < 0.4).float()
    one, two = (neurobench(packed, packed.simulate(x).counts) for packed in (planes, lists))
    assert one.pop("Footprint") == planes.packed_bytes
    assert two.pop("Footprint") == lists.packed_bytes
    assert one == two
    assert one["ConnectionSparsity"] > 0.8
    rows = [packed.simulate(x).counts.layers[0] for packed in (planes, lists)]
    assert rows[0].scale_multiplies == rows[1].scale_multiplies == 10 * 9 * 2


def test_delays_change_no_count() -> None:
    torch.manual_seed(0)
    layer = DelayedLinear(20, 6, max_delay=3, bits=1.58)
    packed, x = pack(Network([layer])), torch.zeros(9, 2, 20)
    x[:5] = (torch.rand(5, 2, 20) < 0.4).float()  # all have arrived at the end
    counts = packed.simulate(x).counts
    kept = (packed.linear_layers[0].values() != 0).float()
    assert counts.total.effective_synops == (x.flatten(0, 1) @ kept.T).sum()
    assert counts.total.dense_synops == 18 * 120
    assert counts.total.scale_multiplies == 18 * 6 * (1 + packed.linear_layers[0].spec.offset)
    assert neurobench(packed, counts)["ConnectionSparsity"] == pytest.approx(1 - kept.mean().item())


def test_counts_of_another_network_are_refused() -> None:
    counts = pack(small_network()).simulate(small_input()).counts
    with pytest.raises(ValueError, match="counts: expected those of this network"):
        neurobench(pack(Network([BinaryLinear(7, 2)])), counts)
