"""Presynaptic traces: how a neuron's membrane would answer each of its inputs alone."""

from functools import lru_cache
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


class Response(NamedTuple):
    """What a filter makes of several steps at once: its equation written out, as matrices of few numbers."""

    level: Tensor
    """(T, T): what the level at step t holds of the input at step s."""
    carried: Tensor
    """(T, S): what it holds of each state before the first step; S is 1, or 2 with a second state."""
    inputs: Tensor
    """(S, T): what the states after the last step hold of the inputs."""
    states: Tensor
    """(S, S): and of the states before."""

    def levels(self, x: Tensor, before: Trace | None) -> Tensor:
        """:meth:`Filter.level` after each of the inputs x (T, ...), from a trace of shape (...); None is rest."""
        found = _times(self.level, x)
        return found if before is None else found + _times(self.carried, torch.stack(before))

    def after(self, x: Tensor, before: Trace | None) -> Trace:
        """The trace after the last of the inputs."""
        found = _times(self.inputs, x)
        found = found if before is None else found + _times(self.states, torch.stack(before))
        return found.unbind(0)

    def later(self, delta: Tensor) -> Tensor:
        """How much each input counts (T, ...), if ``Σ_t delta[t]·level[t]`` is what counts."""
        return _times(self.level.T, delta)

    def earlier(self, delta: Tensor) -> Trace:
        """And how much each state before the first step does."""
        return _times(self.carried.T, delta).unbind(0)


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    """A matrix (M, T) times x (T, ...) along its first axis."""
    return (matrix @ x.reshape(len(x), -1)).reshape(len(matrix), *x.shape[1:])


def response(filter_: Filter, steps: int, like: Tensor) -> Response:
    """The response of a filter to so many steps, of the dtype and on the device of a tensor."""
    return Response(*(part.to(like) for part in _response(filter_, steps)))


@lru_cache(maxsize=64)
def _response(filter_: Filter, steps: int) -> Response:
    def run(trace: Trace | None, first: float) -> tuple[list[Tensor], list[Trace]]:
        traces = []
        for step in range(steps):
            trace = filter_.advance(trace, torch.tensor(first if step == 0 else 0.0, dtype=torch.float64))
            traces.append(trace)
        return [filter_.level(one) for one in traces], traces

    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    impulse, traces = run(None, 1.0)
    level = torch.zeros(steps, steps, dtype=torch.float64)
    for lag, value in enumerate(impulse):
        level.diagonal(-lag).fill_(value)
    alone: list[Trace] = [(one,)] if filter_.rho is None else [(one, zero), (zero, one)]
    runs = [run(start, 0.0) for start in alone]
    carried = torch.stack([torch.stack(levels) for levels, _ in runs], 1)
    states = torch.stack([torch.stack(ends[-1]) for _, ends in runs], 1)
    inputs = torch.stack([torch.stack(trace) for trace in reversed(traces)], 1)
    return Response(level, carried, inputs, states)


def filter_of(neuron: Neuron | LeakyIntegrator, place: str) -> Filter:
    """The filter of a layer of neurons.

    Raises:
        ValueError: coefficients that differ from neuron to neuron: the trace would be one a synapse.
    """
    if isinstance(neuron, LeakyIntegrator):
        return Filter(one_value(neuron.beta, "beta", place))
    beta, second = neuron.coefficients()
    if second is None:
        return Filter(one_value(beta, "beta", place))
    names = ("rho", "from_v", "from_current", "current_gain", "to_v", "to_threshold")
    return Filter(one_value(beta, "beta", place), *(one_value(getattr(second, name), name, place) for name in names))


def one_value(value: Tensor, name: str, place: str) -> float:
    """The one value of a layer's coefficient; ``ValueError`` if its neurons differ."""
    flat = value.detach().flatten()
    if not bool((flat == flat[0]).all()):
        raise ValueError(
            f"{place}: {name}: a presynaptic trace needs one value for the layer, got values from {flat.min().item():g} "
            f"to {flat.max().item():g}"
        )
    return float(flat[0])
