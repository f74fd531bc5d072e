"""The neuron's equation: a membrane, and a second state where there is one; written once."""

from typing import NamedTuple

import torch
from torch import Tensor

RESETS = ("subtract", "zero", "none")


class Second(NamedTuple):
    """The coefficients of a second state w beside the membrane v, each (F,); see :func:`advance`.

    A synaptic current (ρ = α, ``from_current`` = ``to_v`` = 1, ``current_gain`` = 0), an adaptive threshold (``from_spike``,
    ``to_threshold``) and a subthreshold adaptation (``from_v``, ``from_spike``, ``to_v`` < 0) are such states.
    """

    rho: Tensor
    from_v: Tensor
    from_current: Tensor
    from_spike: Tensor
    current_gain: Tensor
    to_v: Tensor
    to_threshold: Tensor


class Cell(NamedTuple):
    """The coefficients of a layer of neurons, each (F,)."""

    beta: Tensor
    threshold: Tensor
    second: Second | None = None

    def detach(self) -> "Cell":
        """The same numbers, as constants."""
        second = None if self.second is None else Second(*(c.detach() for c in self.second))
        return Cell(self.beta.detach(), self.threshold.detach(), second)


class Rule(NamedTuple):
    """What decides about spikes besides the threshold."""

    reset: str = "subtract"
    refractory: int = 0
    """Steps after a spike in which the neuron cannot spike; its membrane goes on."""
    winners: int | None = None
    """At most this many neurons of a sample spike in a step: those furthest above their threshold."""

    @property
    def gated(self) -> bool:
        """Whether a neuron above its threshold may stay silent."""
        return self.refractory > 0 or self.winners is not None


def advance(
    v: Tensor, w: Tensor | None, fired: Tensor, current: Tensor, cell: Cell, reset: str
) -> tuple[Tensor, Tensor | None]:
    """One step of the states, all (B, F), from the last step's states and spikes (0 or 1, constants).

    Alone, ``v ← β·v + I − θ·q``. With a second state, in this order,

        w ← ρ·w + from_v·v + from_current·I + from_spike·q
        v ← β·v + to_v·w + current_gain·I − θ·q

    with the new w in the second line. Reset "zero" sets v to 0 where q = 1 before both lines and drops θ·q; "none"
    drops θ·q alone.
    """
    beta, threshold, second = cell
    if reset == "zero":
        v = (1 - fired) * v
    if second is None or w is None:
        v_new = beta * v + current
    else:
        w = second.rho * w + second.from_v * v + second.from_current * current + second.from_spike * fired
        v_new = beta * v + second.to_v * w + second.current_gain * current
    return (v_new - threshold * fired if reset == "subtract" else v_new), w


def effective(v: Tensor, w: Tensor | None, cell: Cell) -> Tensor:
    """What is compared with θ: v, less the second state's share ``to_threshold``·w of an adaptive threshold."""
    return v if cell.second is None or w is None else v - cell.second.to_threshold * w


def spikes_of(level: Tensor, threshold: Tensor, waiting: Tensor | None, winners: int | None) -> Tensor:
    """1 where ``level`` (B, F) is above the threshold, no refractory steps are left and the neuron is among the winners."""
    bits = level > threshold
    if waiting is not None:
        bits = bits & (waiting == 0)
    if winners is not None and winners < level.shape[1]:
        above = torch.where(bits, level - threshold, -torch.inf)
        order = above.sort(dim=1, descending=True, stable=True).indices  # ties: the first neuron wins
        first = torch.zeros_like(bits).scatter_(1, order[:, :winners], torch.ones_like(bits))
        bits = bits & first
    return bits.to(level.dtype)


def trace_gain(cell: Cell) -> Tensor:
    """1/K, (F,): what turns the trace into a rate; K is the trace that one spike in every step balances.

    Spikes pull the states down along the same linear system that the current drives, so v − ``to_threshold``·w is the
    trace of the current less that of the spikes. In a steady state of one spike a step, the latter is

        K = K_v − to_threshold·K_w,   K_v = θ + β·K_v + to_v·K_w,   K_w = ρ·K_w + from_v·K_v − from_spike

    which is θ/(1 − β) for a membrane alone.
    """
    beta, threshold, second = cell
    if second is None:
        return (1 - beta) / threshold
    rest = 1 - second.rho
    k_v = (threshold * rest - second.to_v * second.from_spike) / ((1 - beta) * rest - second.to_v * second.from_v)
    k_w = (second.from_v * k_v - second.from_spike) / rest
    return 1 / (k_v - second.to_threshold * k_w)


def check_trace(cell: Cell, reset: str) -> None:
    """Raise ``ValueError`` unless the trace target holds: spikes act linearly, states decay, a spike inhibits.

    v = (trace of the current) − (trace of the spikes) needs the reset "subtract"; a rate needs traces that stay finite
    (β < 1, ρ < 1, and the two coupled states stable: |β + ρ + to_v·from_v| < 1 + β·ρ) and K > 0 of :func:`trace_gain`.
    """
    if reset != "subtract":
        raise ValueError(f"target='trace' holds for reset 'subtract' only (v = L − θ·Q needs it), got {reset!r}")
    beta, threshold, second = cell.detach()
    if bool((beta >= 1).any()):
        raise ValueError(f"target='trace' needs beta < 1 (its rate is (1 − beta)·L/θ), got {float(beta.max()):g}")
    if bool((threshold <= 0).any()):
        raise ValueError(f"target='trace' needs threshold > 0, got {float(threshold.min()):g}")
    if second is None:
        return
    if bool((second.rho >= 1).any()):
        raise ValueError(f"target='trace' needs a second state that decays, rho < 1, got {float(second.rho.max()):g}")
    coupled = (beta + second.rho + second.to_v * second.from_v).abs()
    if bool((coupled >= 1 + beta * second.rho).any()):
        raise ValueError(
            "target='trace' needs states that decay: |β + ρ + to_v·from_v| < 1 + β·ρ, "
            f"got {float((coupled - beta * second.rho).max()):g} >= 1"
        )
    gain = trace_gain(cell.detach())
    if not bool((gain > 0).all()):
        raise ValueError(
            f"target='trace' needs spikes that inhibit in the long run, K > 0, got 1/K = {float(gain.min()):g}"
        )
