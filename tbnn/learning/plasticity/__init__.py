"""Local plasticity of synapses: STDP of pairs and triplets, modulated by rewards, of real weights or of few bits that flip."""

from tbnn.learning.plasticity.learn import Updates, learn_pairs_
from tbnn.learning.plasticity.reward import RewardState, mstdp_step, mstdpet_step
from tbnn.learning.plasticity.stdp import Stdp, StdpTraces
from tbnn.learning.plasticity.stochastic import Moves, flips, post_moves, pre_moves, recent, window_moves
from tbnn.learning.plasticity.synapses import RealSynapses, StochasticSynapses
from tbnn.learning.plasticity.threshold import AdaptiveThreshold
from tbnn.learning.plasticity.traces import Traces
from tbnn.learning.plasticity.triplets import Triplets, TripletTraces, triplet_step
from tbnn.learning.plasticity.windows import Pairs, pair_step

__all__ = [
    "AdaptiveThreshold",
    "Moves",
    "Pairs",
    "RealSynapses",
    "RewardState",
    "Stdp",
    "StdpTraces",
    "StochasticSynapses",
    "Traces",
    "TripletTraces",
    "Triplets",
    "Updates",
    "flips",
    "learn_pairs_",
    "mstdp_step",
    "mstdpet_step",
    "pair_step",
    "post_moves",
    "pre_moves",
    "recent",
    "triplet_step",
    "window_moves",
]
