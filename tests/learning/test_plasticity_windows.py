"""STDP of pairs and triplets: the window, published and closed-form values, the order of events."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tbnn.learning.plasticity import Pairs, Traces, Triplets, pair_step, triplet_step


def train(times: list[int], steps: int) -> Tensor:
    """Spikes of one neuron, (T, 1, 1) float64."""
    spikes = torch.zeros(steps, 1, 1, dtype=torch.float64)
    spikes[times] = 1
    return spikes


def change(pre: Tensor, post: Tensor, window: Pairs | Triplets) -> float:
    """What a sequence of steps changes the one synapse by."""
    step = triplet_step if isinstance(window, Triplets) else pair_step
    traces, total = None, 0.0
    for pre_t, post_t in zip(pre, post, strict=True):
        traces, dw = step(pre_t, post_t, traces, window)  # type: ignore[arg-type]
        total += dw.item()
    return total


@pytest.mark.parametrize("interaction", ["all", "nearest"])
def test_the_window_at_every_lag(interaction: str) -> None:
    window, lags = Pairs(0.7, 0.3, tau_plus=9.0, tau_minus=21.0, interaction=interaction), range(-60, 61)
    traces, total = None, torch.zeros(121, 1, dtype=torch.float64)
    for pre, post in zip(train([60], 121), torch.eye(121, dtype=torch.float64), strict=True):
        traces, dw = pair_step(pre, post.unsqueeze(0), traces, window)  # an output a lag
        total += dw
    expected = [0.7 * math.exp(-lag / 9) if lag >= 0 else -0.3 * math.exp(lag / 21) for lag in lags]
    np.testing.assert_allclose(total[:, 0], expected, rtol=1e-13)


@pytest.mark.parametrize(("coincidence", "expected"), [("causal", 0.7), ("both", 0.7 - 0.3), ("neither", 0.0)])
@pytest.mark.parametrize("interaction", ["all", "nearest"])
def test_two_spikes_in_one_step(coincidence: str, expected: float, interaction: str) -> None:
    window = Pairs(0.7, 0.3, 9.0, 21.0, interaction, coincidence)
    assert change(train([3], 9), train([3], 9), window) == pytest.approx(expected, rel=1e-13, abs=1e-13)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30), st.booleans())
def test_all_pairs_or_the_nearest_count(spikes: list[tuple[bool, bool]], nearest: bool) -> None:
    pre = [t for t, (s, _) in enumerate(spikes) if s]
    post = [t for t, (_, s) in enumerate(spikes) if s]
    window = Pairs(0.7, 0.3, 4.0, 6.0, "nearest" if nearest else "all")
    last = slice(-1, None) if nearest else slice(None)
    up = [math.exp(-(s - r) / 4) for s in post for r in [r for r in pre if r <= s][last]]
    down = [math.exp(-(r - s) / 6) for r in pre for s in [s for s in post if s < r][last]]
    measured = change(train(pre, len(spikes)), train(post, len(spikes)), window)
    assert measured == pytest.approx(0.7 * sum(up) - 0.3 * sum(down), abs=1e-12)


def test_a_batch_and_a_layer_are_the_sum_of_their_synapses() -> None:
    generator = torch.Generator().manual_seed(1)
    pre = (torch.rand(12, 3, 5, generator=generator) < 0.4).double()
    post = (torch.rand(12, 3, 2, generator=generator) < 0.4).double()
    for window in (Pairs(0.7, 0.3, 4.0, 6.0), Triplets(0.1, 0.2, 0.3, 0.4, 4.0, 6.0, 9.0, 7.0)):
        step, traces, total = triplet_step if isinstance(window, Triplets) else pair_step, None, torch.zeros(2, 5)
        for pre_t, post_t in zip(pre, post, strict=True):
            traces, dw = step(pre_t, post_t, traces, window)  # type: ignore[arg-type]
            total = total + dw
        alone = [
            [sum(change(pre[:, b, n].view(-1, 1, 1), post[:, b, m].view(-1, 1, 1), window) for b in range(3)) for n in range(5)]
            for m in range(2)
        ]  # fmt: skip
        np.testing.assert_allclose(total, alone, rtol=1e-12, atol=1e-14)


def periodic(window: Triplets, lag: int, period: int, pairs: int) -> float:
    """Closed form of ``pairs`` pre spikes at k·period with a post spike ``lag`` steps after each (before, if negative)."""

    def past(tau: float, first: float, count: int) -> float:
        """Σ_{j<count} exp(−(first + j·period)/τ): what ``count`` earlier spikes have left."""
        ratio = math.exp(-period / tau)
        return math.exp(-first / tau) * (1 - ratio**count) / (1 - ratio)

    w, total = window, 0.0
    for k in range(pairs):
        if lag >= 0:
            r1, o1 = past(w.tau_plus, lag, k + 1), past(w.tau_minus, period - lag, k)
        else:
            r1, o1 = past(w.tau_plus, period + lag, k), past(w.tau_minus, -lag, k + 1)
        r2, o2 = past(w.tau_x, period, k), past(w.tau_y, period, k)
        total += r1 * (w.a2_plus + w.a3_plus * o2) - o1 * (w.a2_minus + w.a3_minus * r2)
    return total


def pairing(window: Triplets, lag: int, period: int, pairs: int) -> float:
    """The same, step by step."""
    steps, start = period * pairs + 2 * abs(lag) + 1, max(0, -lag)
    pre = train([start + k * period for k in range(pairs)], steps)
    return change(pre, train([start + k * period + lag for k in range(pairs)], steps), window)


FULL = Triplets(5e-10, 7e-3, 6.2e-3, 2.3e-4, 16.8, 33.7, 101.0, 125.0)  # visual cortex, all-to-all, full


@pytest.mark.parametrize("window", [Triplets(), FULL], ids=["minimal", "full"])
@pytest.mark.parametrize("lag", [-10, 0, 10])
@pytest.mark.parametrize("period", [25, 60])
def test_triplets_of_periodic_pairs(window: Triplets, lag: int, period: int) -> None:
    assert pairing(window, lag, period, 8) == pytest.approx(periodic(window, lag, period, 8), rel=1e-10)


def test_triplets_depend_on_frequency_as_published() -> None:
    """Pfister & Gerstner 2006 for the protocol of Sjöström et al. 2001: 60 pairs, ±10 ms, of 0.1 to 50 Hz."""
    causal = [periodic(Triplets(), 10, period, 60) for period in (10_000, 100, 50, 20)]
    acausal = [periodic(Triplets(), -10, period, 60) for period in (10_000, 100, 50, 20)]
    assert abs(causal[0]) < 0.01  # no potentiation at 0.1 Hz, where pairs alone would give the most
    assert causal == sorted(causal)
    assert causal[-1] > 0.3
    assert acausal[0] < -0.2
    assert acausal[-1] > 0.3  # depression turns into potentiation between 20 and 50 Hz
    assert acausal[1] < 0
    pairs_alone = Triplets(a2_plus=5e-3, a3_plus=0.0)
    rise = [periodic(pairs_alone, 10, period, 60) for period in (1000, 20)]
    assert rise[1] < rise[0]  # of pairs alone potentiation falls with frequency


def test_nearest_triplets_count_one_spike_of_each_trace() -> None:
    window = Triplets(0.5, 0.25, 2.0, 3.0, 4.0, 6.0, 9.0, 7.0, interaction="nearest")
    pre, post = [0, 2, 9], [3, 5]
    by = lambda d, tau: math.exp(-d / tau)  # noqa: E731
    up = by(1, 4) * 0.5 + by(3, 4) * (0.5 + 2.0 * by(2, 7))
    down = by(4, 6) * (0.25 + 3.0 * by(7, 9))
    assert change(train(pre, 10), train(post, 10), window) == pytest.approx(up - down, rel=1e-12)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Pairs(tau_plus=0.0), "tau_plus: expected a finite number of steps > 0, got 0"),
        (lambda: Pairs(tau_minus=-1.0), "tau_minus"),
        (lambda: Pairs(tau_minus=math.inf), "tau_minus"),
        (lambda: Pairs(a_plus=math.nan), "a_plus: expected a finite number, got nan"),
        (lambda: Pairs(interaction="some"), "interaction: expected 'all' or 'nearest', got 'some'"),
        (lambda: Pairs(coincidence="no"), "coincidence: expected 'causal', 'both' or 'neither', got 'no'"),
        (lambda: Triplets(tau_x=0.0), "tau_x"),
        (lambda: Triplets(a3_minus=math.inf), "a3_minus"),
        (lambda: pair_step(torch.ones(1, 2), torch.ones(2, 3), None, Pairs()), r"pre, post: .*\(1, 2\) and \(2, 3\)"),
        (lambda: pair_step(torch.ones(1, 2), torch.ones(1, 3).double(), None, Pairs()), "of one dtype"),
        (lambda: pair_step(torch.ones(1, 2), torch.ones(1, 3), Traces(torch.ones(1, 3), torch.ones(1, 3)), Pairs()), "traces: expected"),
        (
            lambda: pair_step(torch.ones(1, 2), torch.ones(1, 3), Traces(torch.full((1, 2), math.inf), torch.ones(1, 3)), Pairs()),
            "traces: expected finite values",
        ),
        (lambda: triplet_step(torch.ones(1, 2), torch.ones(1, 2), Traces(torch.ones(1, 2), torch.ones(1, 2)), Triplets()), "expected 4 of them, got 2"),
    ],
)  # fmt: skip
def test_what_is_refused(wrong, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()
