"""STDP that a reward modulates: what a synapse did is remembered, and a later reward says whether it was good."""

from typing import NamedTuple

import torch
from torch import Tensor

from tbnn.learning.plasticity.traces import Traces, decay_of
from tbnn.learning.plasticity.windows import Pairs, pair_seen


class RewardState(NamedTuple):
    """What reward-modulated STDP carries from step to step; eligibilities are B·M·N numbers, one a sample and synapse."""

    traces: Traces
    zeta: Tensor
    """ζ (B, M, N): what pair STDP would have changed at the last step, sample by sample."""
    eligibility: Tensor | None
    """z (B, M, N) of :func:`mstdpet_step`, else None."""


def mstdp_step(
    pre: Tensor, post: Tensor, reward: Tensor | float, state: RewardState | None, window: Pairs
) -> tuple[RewardState, Tensor]:
    """One step of MSTDP: ``dW(t) = Σ_b r_b(t)·ζ_b(t−1)``, ζ the change of pair STDP.

    The paper's ζ pairs spikes of one step both ways, ``Pairs(coincidence="both")``, and its A− is the negative of ours.

    Args:
        pre, post: (B, N) and (B, M) of 0/1.
        reward: a number, or (B,); it judges the step before.
        state: that of the step before; None: at rest, so that dW is 0.

    Returns:
        The state, and dW (M, N), summed over the batch.

    Raises:
        ValueError: other shapes or dtypes; a reward or traces that are not finite.

    Source: Florian, "Reinforcement Learning Through Modulation of Spike-Timing-Dependent Synaptic Plasticity", Neural
    Computation 19 (2007).
    """
    traces, zeta = _zeta(pre, post, None if state is None else state.traces, window)
    before = torch.zeros_like(zeta) if state is None else state.zeta
    return RewardState(traces, zeta, None), _rewarded(reward, before)


def mstdpet_step(
    pre: Tensor, post: Tensor, reward: Tensor | float, state: RewardState | None, window: Pairs, tau_z: float = 25.0
) -> tuple[RewardState, Tensor]:
    """One step of MSTDPET, MSTDP with an eligibility trace: ``z(t) = e^(−1/τz)·z(t−1) + ζ(t−1)/τz``, ``dW = Σ_b r_b·z_b``.

    Arguments, returns and errors as of :func:`mstdp_step`; ``tau_z`` in steps, > 0.

    Source: Florian 2007.
    """
    decay = decay_of("tau_z", tau_z)
    traces, zeta = _zeta(pre, post, None if state is None else state.traces, window)
    if state is None:
        z = torch.zeros_like(zeta)
    elif state.eligibility is None:
        raise ValueError("state: expected that of mstdpet_step, got one without an eligibility trace")
    else:
        z = decay * state.eligibility + state.zeta / tau_z
    return RewardState(traces, zeta, z), _rewarded(reward, z)


def _zeta(pre: Tensor, post: Tensor, traces: Traces | None, window: Pairs) -> tuple[Traces, Tensor]:
    after, seen = pair_seen(pre, post, traces, window)
    up, down = post.unsqueeze(2) * seen.pre.unsqueeze(1), seen.post.unsqueeze(2) * pre.unsqueeze(1)
    return after, window.a_plus * up - window.a_minus * down


def _rewarded(reward: Tensor | float, eligibility: Tensor) -> Tensor:
    """Σ_b r_b·e_b, (M, N)."""
    r = torch.as_tensor(reward, dtype=eligibility.dtype, device=eligibility.device)
    if r.shape not in (torch.Size([]), eligibility.shape[:1]):
        raise ValueError(f"reward: expected a number or ({eligibility.shape[0]},), got {tuple(r.shape)}")
    if not bool(r.isfinite().all()):
        raise ValueError("reward: expected finite values, got some that are not")
    return torch.einsum("b,bmn->mn", r.expand(eligibility.shape[0]), eligibility)
