"""Presynaptic traces: how a neuron's membrane would answer each of its inputs alone."""

from typing import NamedTuple

import torch
from torch import Tensor

from tbnn.nn import LeakyIntegrator, Neuron

Trace = tuple[Tensor, ...]
"""(v̄,), or (v̄, w̄) of a neuron with a second state, each of the input's shape."""


class Filter(NamedTuple):
    """The linear part of a neuron's equation, one number for all neurons of a layer (:class:`tbnn.ops.lif.cell.Second`).

    Between spikes v and w are linear in the current, and the current in the weights: ∂(v − ``to_threshold``·w)/∂W[j, i] is
    the trace of input i. What spikes do to the states is held constant, as everywhere in this library.
    """

    beta: float
    rho: float | None = None
    from_v: float = 0.0
    from_current: float = 0.0
    current_gain: float = 1.0
    to_v: float = 0.0
    to_threshold: float = 0.0

    def advance(self, trace: Trace | None, x: Tensor) -> Trace:
        """One step: the input x (B, ...) joins the trace; None is rest."""
        if self.rho is None:
            return (x.clone() if trace is None else trace[0].mul(self.beta).add_(x),)
        v, w = (torch.zeros_like(x), torch.zeros_like(x)) if trace is None else trace
        w = self.rho * w + self.from_v * v + self.from_current * x
        return self.beta * v + self.to_v * w + self.current_gain * x, w

    def level(self, trace: Trace) -> Tensor:
        """What of the trace is compared with the threshold."""
        return trace[0] if self.rho is None or self.to_threshold == 0 else trace[0] - self.to_threshold * trace[1]


def filter_of(neuron: Neuron | LeakyIntegrator, place: str) -> Filter:
    """The filter of a layer of neurons.

    Raises:
        ValueError: coefficients that differ from neuron to neuron: the trace would be one a synapse.
    """
    if isinstance(neuron, LeakyIntegrator):
        return Filter(_one(neuron.beta, "beta", place))
    beta, second = neuron.coefficients()
    if second is None:
        return Filter(_one(beta, "beta", place))
    names = ("rho", "from_v", "from_current", "current_gain", "to_v", "to_threshold")
    return Filter(_one(beta, "beta", place), *(_one(getattr(second, name), name, place) for name in names))


def _one(value: Tensor, name: str, place: str) -> float:
    flat = value.detach().flatten()
    if not bool((flat == flat[0]).all()):
        raise ValueError(
            f"{place}: {name}: a presynaptic trace needs one value for the layer, got values from {flat.min().item():g} "
            f"to {flat.max().item():g}"
        )
    return float(flat[0])
