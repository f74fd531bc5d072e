"""Modules: parameters plus one call into :mod:`tbnn.ops`. Time is axis 0; state is passed in and returned."""

from tbnn.nn import zoo
from tbnn.nn.activity import TargetRate, Winners
from tbnn.nn.adaptive import Adaptive, AdLIF
from tbnn.nn.calibrate import calibrate
from tbnn.nn.config import network_from_config, network_to_config
from tbnn.nn.conv import BinaryConv1d, BinaryConv2d
from tbnn.nn.custom import CustomNeuron, CustomState
from tbnn.nn.delay import Delay, DelayedLinear, sigma_at
from tbnn.nn.dropout import SpikeDropout
from tbnn.nn.fold import fold_batch_norms
from tbnn.nn.health import FiringRates, health_warnings
from tbnn.nn.leaky import Leaky, LeakyIntegrator
from tbnn.nn.linear import BinaryLinear
from tbnn.nn.network import Network
from tbnn.nn.neuron import Neuron
from tbnn.nn.nir import to_nir
from tbnn.nn.nir_import import from_nir
from tbnn.nn.nonfinite import detect_nonfinite
from tbnn.nn.norm import TemporalBatchNorm
from tbnn.nn.onnx import to_onnx
from tbnn.nn.pool import AvgPool2d, Flatten, MaxPool2d, Voting
from tbnn.nn.progress import progress
from tbnn.nn.recorded import record
from tbnn.nn.recurrent import Recurrent, RecurrentState
from tbnn.nn.residual import Residual, ResidualState
from tbnn.nn.rewiring import rewire
from tbnn.nn.snntorch import from_snntorch
from tbnn.nn.snntorch_export import to_snntorch
from tbnn.nn.stateful import Stateful, detach
from tbnn.nn.stochastic import StochasticLinear, by_flips
from tbnn.nn.summary import Summary, summary
from tbnn.nn.synaptic import Synaptic
from tbnn.nn.wiring import Dale, DeepR, Distance, FixedWiring, GivenWiring
from tbnn.ops.lif import LifState

__all__ = [
    "AdLIF",
    "Adaptive",
    "AvgPool2d",
    "BinaryConv1d",
    "BinaryConv2d",
    "BinaryLinear",
    "CustomNeuron",
    "CustomState",
    "Dale",
    "DeepR",
    "Delay",
    "DelayedLinear",
    "Distance",
    "FiringRates",
    "FixedWiring",
    "Flatten",
    "GivenWiring",
    "Leaky",
    "LeakyIntegrator",
    "LifState",
    "MaxPool2d",
    "Network",
    "Neuron",
    "Recurrent",
    "RecurrentState",
    "Residual",
    "ResidualState",
    "SpikeDropout",
    "Stateful",
    "StochasticLinear",
    "Summary",
    "Synaptic",
    "TargetRate",
    "TemporalBatchNorm",
    "Voting",
    "Winners",
    "by_flips",
    "calibrate",
    "detach",
    "detect_nonfinite",
    "fold_batch_norms",
    "from_nir",
    "from_snntorch",
    "health_warnings",
    "network_from_config",
    "network_to_config",
    "progress",
    "record",
    "rewire",
    "sigma_at",
    "summary",
    "to_nir",
    "to_onnx",
    "to_snntorch",
    "zoo",
]
