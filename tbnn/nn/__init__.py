"""Modules: parameters plus one call into :mod:`tbnn.ops`. Time is axis 0; state is passed in and returned."""

from tbnn.nn.calibrate import calibrate
from tbnn.nn.health import FiringRates, health_warnings
from tbnn.nn.leaky import Leaky, LeakyIntegrator
from tbnn.nn.linear import BinaryLinear
from tbnn.nn.network import Network, detach
from tbnn.nn.recurrent import Recurrent, RecurrentState
from tbnn.ops.lif import LifState

__all__ = [
    "BinaryLinear",
    "FiringRates",
    "Leaky",
    "LeakyIntegrator",
    "LifState",
    "Network",
    "Recurrent",
    "RecurrentState",
    "calibrate",
    "detach",
    "health_warnings",
]
