"""Synapses of one bit or a few that learn without latent weights: an event moves a synapse by a level, with a probability."""

from typing import NamedTuple

import torch
from torch import Tensor

from tbnn.learning.plasticity.traces import check_spikes


class Moves(NamedTuple):
    """Which synapses of a layer may move at a step, and how likely."""

    rows: Tensor | None
    """Outputs concerned, int64 (R,); None: all."""
    columns: Tensor | None
    """Inputs concerned, int64 (C,); None: all."""
    up: Tensor
    """Probability (R or M, C or N) of a level more."""
    down: Tensor
    """Of a level less."""


def post_moves(post: Tensor, active: Tensor, p_plus: float, p_minus: float) -> Moves:
    """An output that spikes: its inputs that were active move up with ``p_plus``, its others down with ``p_minus``.

    Args:
        post: (B, M) of 0/1.
        active: (B, N) of 0/1, inputs that spiked not long ago: see :func:`recent`.

    A batch's events are as many tries, on the levels at the beginning of the step: n of them succeed at least once with
    probability 1 − (1−p)^n.

    Source: Suri et al., "Bio-inspired stochastic computing using binary CBRAM synapses", IEEE TED 60 (2013); Yousefzadeh et
    al., "On practical issues for stochastic STDP hardware with 1-bit synaptic weights", Frontiers in Neuroscience 12 (2018).
    """
    check_spikes(active, post)
    rows = post.any(0).nonzero().flatten()
    fired = post[:, rows].T
    return Moves(rows, None, _once(p_plus, fired @ active), _once(p_minus, fired @ (1 - active)))


def pre_moves(pre: Tensor, post: Tensor, p_plus: float, p_minus: float) -> Moves:
    """An input that spikes: up with ``p_plus`` where the output spikes in the same step, else down with ``p_minus``.

    Arguments and batches as in :func:`post_moves`.

    Source: Senn & Fusi, "Learning only when necessary: better memories of correlated patterns in networks with bounded
    synapses", Neural Computation 17 (2005), for the events and the two probabilities.
    """
    check_spikes(pre, post)
    columns = pre.any(0).nonzero().flatten()
    spiked = pre[:, columns]
    return Moves(None, columns, _once(p_plus, post.T @ spiked), _once(p_minus, (1 - post).T @ spiked))


def window_moves(change: Tensor) -> Moves:
    """The sign and size of an STDP window: up with probability dW where it is positive, down with −dW, both at most 1."""
    return Moves(None, None, change.clamp(0, 1), (-change).clamp(0, 1))


def recent(last: Tensor | None, pre: Tensor, reach: int) -> Tensor:
    """Steps, this one included, for which each input still counts as active: ``reach`` after a spike, one less each step.

    ``last`` and what is returned are (B, N); inputs with more than 0 are active. ``ValueError`` for a reach below 1.
    """
    if reach < 1:
        raise ValueError(f"reach: expected a number of steps >= 1, got {reach}")
    before = torch.zeros_like(pre) if last is None else (last - 1).clamp(min=0)
    if before.shape != pre.shape:
        raise ValueError(f"last: expected {tuple(pre.shape)}, got {tuple(before.shape)}")
    return torch.where(pre > 0, float(reach), before)


def flips(levels: Tensor, moves: Moves, top: int, generator: torch.Generator) -> Tensor:
    """Draw the moves: +1, 0 or −1 for each synapse of ``moves``, none beyond 0 and ``top``, int16 like ``moves.up``.

    Args:
        levels: integers (M, N) in 0..top; one bit a synapse is top = 1.
        generator: on the CPU; one number is drawn for each synapse that an event may move, in row-major order.

    Raises:
        ValueError: probabilities outside [0, 1].
    """
    up, down = moves.up, moves.down
    for name, p in (("up", up), ("down", down)):
        if p.numel() and not bool(((p >= 0) & (p <= 1)).all()):
            raise ValueError(f"{name}: expected probabilities in [0, 1], got some outside")
    own = levels if moves.rows is None else levels[moves.rows]
    own = own if moves.columns is None else own[:, moves.columns]
    up, down = torch.where(own < top, up, 0.0), torch.where(own > 0, down, 0.0)
    where = (up + down > 0).flatten().nonzero().flatten()
    drawn = torch.rand(len(where), generator=generator).to(up)
    up, down = up.flatten()[where], down.flatten()[where]
    move = (drawn < up).to(torch.int16) - (drawn >= 1 - down).to(torch.int16)
    out = torch.zeros(own.numel(), dtype=torch.int16, device=own.device)
    out[where] = move
    return out.reshape(own.shape)


def check_probability(name: str, p: float) -> None:
    """Raise ``ValueError`` unless p is in [0, 1]."""
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: expected a probability in [0, 1], got {p}")


def _once(p: float, tries: Tensor) -> Tensor:
    """The probability that one of so many tries succeeds."""
    check_probability("p", p)
    return 1 - (1 - p) ** tries
