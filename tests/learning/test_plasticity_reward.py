"""Reward-modulated STDP: closed forms, and what a reward per sample means."""

import math

import pytest
import torch
from torch import Tensor

from tbnn.learning.plasticity import Pairs, RewardState, mstdp_step, mstdpet_step, pair_step

WINDOW = Pairs(0.7, 0.3, 9.0, 21.0, coincidence="both")


def at(times: list[int], steps: int = 40) -> Tensor:
    spikes = torch.zeros(steps, 1, 1, dtype=torch.float64)
    spikes[times] = 1
    return spikes


def course(step, pre: Tensor, post: Tensor, rewards: list[float], **options: float) -> list[float]:
    state, changes = None, []
    for pre_t, post_t, r in zip(pre, post, rewards, strict=True):
        state, dw = step(pre_t, post_t, r, state, WINDOW, **options)
        changes.append(dw.item())
    return changes


def test_mstdp_pays_for_the_step_before() -> None:
    """A pair of spikes at 3 and 8, rewards 1, 2, 3, ...: dW is r(t)·ζ(t−1) and nothing else."""
    got = course(mstdp_step, at([3]), at([8]), [t + 1.0 for t in range(40)])
    expected = [0.0] * 40
    expected[9] = 10 * 0.7 * math.exp(-5 / 9)
    assert got == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(("post", "zeta"), [(8, 0.7 * math.exp(-5 / 9)), (1, -0.3 * math.exp(-2 / 21))])
def test_mstdpet_remembers_for_tau_z(post: int, zeta: float) -> None:
    """z(t) = ζ·exp(−(t − s − 1)/τz)/τz after the one change ζ at step s."""
    tau_z, s = 6.0, max(3, post)
    got = course(mstdpet_step, at([3]), at([post]), [0.5] * 40, tau_z=tau_z)
    expected = [0.5 * zeta * math.exp(-(t - s - 1) / tau_z) / tau_z if t > s else 0.0 for t in range(40)]
    assert got == pytest.approx(expected, rel=1e-12)


def test_a_constant_reward_gives_pair_stdp_a_step_late() -> None:
    generator = torch.Generator().manual_seed(0)
    pre = (torch.rand(15, 4, 6, generator=generator) < 0.3).double()
    post = (torch.rand(15, 4, 3, generator=generator) < 0.3).double()
    state, traces, before = None, None, torch.zeros(3, 6, dtype=torch.float64)
    for pre_t, post_t in zip(pre, post, strict=True):
        state, dw = mstdp_step(pre_t, post_t, torch.ones(4), state, WINDOW)
        torch.testing.assert_close(dw, before)
        traces, before = pair_step(pre_t, post_t, traces, WINDOW)
    assert before.abs().sum() > 0


@pytest.mark.parametrize("step", [mstdp_step, mstdpet_step])
def test_each_sample_has_its_own_reward(step) -> None:
    generator = torch.Generator().manual_seed(0)
    pre = (torch.rand(9, 2, 6, generator=generator) < 0.5).double()
    post = (torch.rand(9, 2, 3, generator=generator) < 0.5).double()
    rewards = torch.tensor([1.0, -0.5])
    both, alone = None, [None, None]
    for pre_t, post_t in zip(pre, post, strict=True):
        both, dw = step(pre_t, post_t, rewards, both, WINDOW)
        parts = []
        for b in (0, 1):
            alone[b], part = step(pre_t[b : b + 1], post_t[b : b + 1], rewards[b].item(), alone[b], WINDOW)
            parts.append(part)
        torch.testing.assert_close(dw, parts[0] + parts[1])
    assert dw.abs().sum() > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda one, state: mstdp_step(one, one, torch.ones(3), None, WINDOW), r"reward: expected a number or \(1,\), got \(3,\)"),
        (lambda one, state: mstdp_step(one, one, math.nan, None, WINDOW), "reward: expected finite"),
        (lambda one, state: mstdpet_step(one, one, 1.0, None, WINDOW, tau_z=0.0), "tau_z"),
        (lambda one, state: mstdpet_step(one, one, 1.0, state, WINDOW), "state: expected that of mstdpet_step"),
        (
            lambda one, state: mstdp_step(one, one, 1.0, RewardState(state.traces._replace(pre=one * math.inf), *state[1:]), WINDOW),
            "traces: expected finite",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(wrong, message: str) -> None:
    one = torch.ones(1, 1)
    state, _ = mstdp_step(one, one, 1.0, None, WINDOW)
    with pytest.raises(ValueError, match=message):
        wrong(one, state)
