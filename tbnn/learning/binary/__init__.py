"""Weights that are binary while they learn: optimizers that flip signs, with no real weight behind them or with a little."""

from tbnn.learning.binary.bop import Bop, Bop2ndOrder
from tbnn.learning.binary.cost import bits_per_synapse
from tbnn.learning.binary.facade import KINDS, BinaryOptimizer, optimizer_for
from tbnn.learning.binary.metaplastic import Metaplastic
from tbnn.learning.binary.signs import SignOptimizer
from tbnn.learning.binary.states import DiscreteStates
from tbnn.learning.binary.weights import binarize_, binary_layers, is_binary

__all__ = [
    "KINDS",
    "BinaryOptimizer",
    "Bop",
    "Bop2ndOrder",
    "DiscreteStates",
    "Metaplastic",
    "SignOptimizer",
    "binarize_",
    "binary_layers",
    "bits_per_synapse",
    "is_binary",
    "optimizer_for",
]
