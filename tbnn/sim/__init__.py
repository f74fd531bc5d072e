"""Trained networks as packed bits: pack, save, load, simulate, and check against the model they came from."""

from tbnn.sim.counts import Counts, LayerCounts
from tbnn.sim.gpu.device import DeviceMemoryError
from tbnn.sim.layers import PackedConv, PackedIntegrator, PackedLeaky, PackedLinear, PackedPool
from tbnn.sim.network import PackedNetwork, SimulationResult
from tbnn.sim.pack import pack, unpack
from tbnn.sim.parity import LayerParity, Parity, check_parity
from tbnn.sim.run import NeuronState
from tbnn.sim.stream import Pushed, Stream

__all__ = [
    "Counts",
    "DeviceMemoryError",
    "LayerCounts",
    "LayerParity",
    "NeuronState",
    "PackedConv",
    "PackedIntegrator",
    "PackedLeaky",
    "PackedLinear",
    "PackedNetwork",
    "PackedPool",
    "Parity",
    "Pushed",
    "SimulationResult",
    "Stream",
    "check_parity",
    "pack",
    "unpack",
]
