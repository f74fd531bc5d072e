"""Modules: parameters plus one call into :mod:`tbnn.ops`. Time is axis 0; state is passed in and returned."""

from tbnn.nn.activity import TargetRate, Winners
from tbnn.nn.adaptive import Adaptive, AdLIF
from tbnn.nn.calibrate import calibrate
from tbnn.nn.custom import CustomNeuron, CustomState
from tbnn.nn.health import FiringRates, health_warnings
from tbnn.nn.leaky import Leaky, LeakyIntegrator
from tbnn.nn.linear import BinaryLinear
from tbnn.nn.network import Network
from tbnn.nn.neuron import Neuron
from tbnn.nn.recurrent import Recurrent, RecurrentState
from tbnn.nn.stateful import Stateful, detach
from tbnn.nn.synaptic import Synaptic
from tbnn.ops.lif import LifState

__all__ = [
    "AdLIF",
    "Adaptive",
    "BinaryLinear",
    "CustomNeuron",
    "CustomState",
    "FiringRates",
    "Leaky",
    "LeakyIntegrator",
    "LifState",
    "Network",
    "Neuron",
    "Recurrent",
    "RecurrentState",
    "Stateful",
    "Synaptic",
    "TargetRate",
    "Winners",
    "calibrate",
    "detach",
    "health_warnings",
]
