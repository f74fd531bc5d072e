"""Equilibrium propagation: a network that relaxes in an energy, and learns from how a nudge of its output moves it."""

from tbnn.learning.equilibrium.cost import COSTS, Cost
from tbnn.learning.equilibrium.dynamics import Dynamics
from tbnn.learning.equilibrium.network import EquilibriumNetwork, EquilibriumState
from tbnn.learning.equilibrium.rule import EquilibriumPropagation

__all__ = ["COSTS", "Cost", "Dynamics", "EquilibriumNetwork", "EquilibriumPropagation", "EquilibriumState"]
