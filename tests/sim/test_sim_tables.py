"""Rows of text about packed networks and their simulation."""

import torch

from tbnn.nn import (
    BinaryConv2d,
    BinaryLinear,
    Flatten,
    Leaky,
    LeakyIntegrator,
    MaxPool2d,
    Network,
    Recurrent,
    Residual,
    Synaptic,
)
from tbnn.sim import Counts, LayerCounts, pack
from tbnn.sim.tables import counts_rows, network_rows, neurobench_lines


def test_a_row_a_layer_says_what_it_is() -> None:
    torch.manual_seed(0)
    beta = torch.tensor([0.25, 0.5, 0.75])
    layers = [
        BinaryConv2d(2, 4, 3, stride=2, padding=1, bits=1.58), Leaky(0.5, reset_mechanism="none"), MaxPool2d(2), Flatten(),
        BinaryLinear(16, 3, bits=4, sparsity=0.5), Recurrent(Leaky(beta, refractory=2), BinaryLinear(3, 3)),
        BinaryLinear(3, 40), Synaptic(0.5, 0.5), BinaryLinear(40, 2, block=32), LeakyIntegrator(0.25),
    ]  # fmt: skip
    packed = pack(Network(layers, (2, 8, 8)))
    rows = network_rows(packed)
    shown = [
        (row["layer"].removeprefix("layers."), row["kind"], row["shape"], row["details"].partition(";")[0])
        for row in rows
    ]
    assert shown == [
        ("0", "conv", "2x8x8 -> 4x4x4", "3x3 s2 p1, ternary"),
        ("1", "leaky", "64", "beta 0.5, theta 1, no reset"),
        ("2", "pool", "4x4x4 -> 4x2x2", "2x2 s2"),
        ("4", "linear", "16 -> 3", "4 bits and 0"),
        ("5.recurrent_layer", "linear", "3 -> 3", "1 bit"),
        ("5", "leaky", "3", "beta 0.25 to 0.75, theta 1, subtract, refractory 2"),
        ("6", "linear", "3 -> 40", "1 bit"),
        ("7", "leaky", "40", "beta 0.5, theta 1, subtract, two states"),
        ("8", "linear", "40 -> 2", "1 bit, 2 blocks"),
        ("9", "integrator", "2", "beta 0.25"),
        ("total", "network", "128 -> 2", ""),
    ]
    assert rows[0]["details"].endswith("; windows")
    assert rows[3]["details"].partition("; ")[2] in ("dense", "events")
    number = [int(row["bytes"].replace(",", "") or 0) for row in rows]
    assert sum(number[:-1]) == number[-1] == packed.packed_bytes
    values = packed.linear_layers[0].values()
    assert rows[0]["zeros"] == f"{(values == 0).float().mean().item():.1%}"
    weights = [int(row["weights"].replace(",", "") or 0) for row in rows]
    assert sum(weights[:-1]) == weights[-1] == packed.weights


def test_of_wires_only_joins_are_shown() -> None:
    body = Network([BinaryConv2d(2, 2, 3, padding=1), Leaky(0.5)])
    packed = pack(Network([Residual(body, join="or"), Flatten(), BinaryLinear(32, 2)], (2, 4, 4)))
    rows = network_rows(packed)
    assert len(rows) < len(packed.layers) + 1
    assert [row["details"] for row in rows if row["kind"] == "edge"] == ["or"]


def test_counts_are_averages_and_nothing_is_empty() -> None:
    layers = (
        LayerCounts("a", "linear", 1000, 400, 8, path="dense"),
        LayerCounts("b", "leaky", spikes=3, neuron_updates=12),
    )
    first, second, total = counts_rows(Counts(3, 2, 9, layers).table(), 2)
    assert list(first.values()) == ["a", "linear", "500", "200", "4", "", "", "", "", "dense"]
    assert list(second.values()) == ["b", "leaky", "", "", "", "2", "6", "", "", ""]
    assert total["effective"] == "200"


def test_neurobench_without_spikes() -> None:
    operations = {"Dense": 2000.4, "Effective_MACs": 0.0, "Effective_ACs": 12.0}
    metrics = {
        "Footprint": 1234, "ConnectionSparsity": 0.5, "ActivationSparsity": None, "SynapticOperations": operations,
        "MembraneUpdates": 0.0,
    }  # fmt: skip
    first, second = neurobench_lines(metrics)
    assert first == "Footprint 1,234 bytes, ConnectionSparsity 0.5000, ActivationSparsity none, MembraneUpdates 0"
    assert second == "SynapticOperations: Dense 2,000, Effective_MACs 0, Effective_ACs 12"
