"""A simulation in the terms of NeuroBench: its names for what a network stores and does."""

import operator
from functools import reduce
from typing import TYPE_CHECKING, Any

from tbnn.bits import popcount
from tbnn.sim.counts import Counts, specs_of, synapses
from tbnn.sim.layers import PackedLinear, PackedSparse

if TYPE_CHECKING:
    from tbnn.sim.network import PackedNetwork


def neurobench(packed: "PackedNetwork", counts: Counts) -> dict[str, Any]:
    """NeuroBench's metrics of a network and of a simulation of it; operations and updates are averages a sample.

    =======================  ==================================================================================================
    Footprint                bytes of every stored tensor: packed weights with their padding, scales, offsets, biases, and the
                             neurons' constants; no membranes, no spikes.
    ConnectionSparsity       share of the weights that are 0; a convolution's kernel counts once.
    ActivationSparsity       share of 0 in what spiking layers emit, over all layers, steps and samples; None if none spikes.
    SynapticOperations       Dense: every synapse at every step, taps of a convolution that lie outside the frame left out.
                             Effective_ACs: those that met a spike and a weight other than 0.
                             Effective_MACs: 0, because what enters a layer is always bits. NeuroBench decides by the input
                             (0 and ±1 make accumulations) whatever the weights are, and counts neither biases nor what a
                             neuron does. The first layer's input too is bits here, where others feed it real values.
    MembraneUpdates          every neuron and readout at every step. NeuroBench counts those of the first step, and later
                             those that changed the stored value: fewer where a membrane rests at 0 or at a fixed point.
    =======================  ==================================================================================================

    The multiplications by scales and offsets, which no metric of NeuroBench covers, are
    :attr:`tbnn.sim.LayerCounts.scale_multiplies`.

    Raises:
        ValueError: counts of another network.

    Source: Yik et al., "The neurobench framework for benchmarking neuromorphic computing algorithms and systems", Nature
    Communications 16 (2025), arXiv 2304.04640; definitions as in the package ``neurobench`` 2.3.0.
    """
    specs, total = specs_of(packed.layers, counts), counts.total
    dense = counts.steps * sum(synapses(specs[row.name]) for row in counts.layers)
    zeros = sum(zero_weights(layer) for layer in packed.linear_layers)
    return {
        "Footprint": packed.packed_bytes,
        "ConnectionSparsity": zeros / packed.weights if packed.weights else 0.0,
        "ActivationSparsity": None if total.firing_rate is None else 1 - total.firing_rate,
        "SynapticOperations": {
            "Dense": float(dense),
            "Effective_MACs": 0.0,
            "Effective_ACs": total.effective_synops / counts.batch,
        },
        "MembraneUpdates": total.neuron_updates / counts.batch,
    }


def zero_weights(layer: PackedLinear | PackedSparse) -> int:
    """How many weights of a layer are 0."""
    spec = layer.spec
    if isinstance(layer, PackedSparse):
        return spec.in_features * spec.out_features - layer.spec.connections
    if not layer.spec.zeros:
        return 0
    # With one bit a plane for +1 and one for −1; with more the last plane says which weights are not 0.
    kept = reduce(operator.or_, layer.planes.unbind(0)) if spec.bits == 1 else layer.planes[-1]
    return spec.in_features * spec.out_features - int(popcount(kept).sum())
