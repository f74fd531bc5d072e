"""Trained networks as packed bits: pack, save, load, simulate, and check against the model they came from."""

from tbnn.sim.counts import Counts, LayerCounts
from tbnn.sim.layers import PackedIntegrator, PackedLeaky, PackedLinear
from tbnn.sim.network import PackedNetwork, SimulationResult
from tbnn.sim.pack import pack
from tbnn.sim.parity import LayerParity, Parity, check_parity
from tbnn.sim.run import NeuronState

__all__ = [
    "Counts",
    "LayerCounts",
    "LayerParity",
    "NeuronState",
    "PackedIntegrator",
    "PackedLeaky",
    "PackedLinear",
    "PackedNetwork",
    "Parity",
    "SimulationResult",
    "check_parity",
    "pack",
]
