"""Synapses of few bits that flip: frequencies and equilibria of the flips, and which events make them."""

import math

import pytest
import torch
from torch import Tensor

from tbnn.learning.plasticity import Moves, Pairs, flips, pair_step, post_moves, pre_moves, recent, window_moves

SIZE = 40_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def within(share: float, p: float, n: int) -> bool:
    """Whether a binomial share lies within 4.5 standard deviations: one run in 150,000 does not."""
    return abs(share - p) <= 4.5 * math.sqrt(p * (1 - p) / n) + 1e-12


def uniform(up: float, down: float, shape: tuple[int, int]) -> Moves:
    return Moves(None, None, torch.full(shape, up), torch.full(shape, down))


@pytest.mark.parametrize("p", [0.0, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("start", [0, 1])
def test_flips_are_as_frequent_as_their_probability(p: float, start: int) -> None:
    levels = torch.full((200, 200), start, dtype=torch.int16)
    up, down = (p, 0.9) if start == 0 else (0.9, p)
    step = flips(levels, uniform(up, down, (200, 200)), 1, seeded())
    assert set(step.unique().tolist()) <= {0, 1 - 2 * start}
    assert within(step.abs().double().mean().item(), p, SIZE)


@pytest.mark.parametrize(("up", "down"), [(0.2, 0.1), (0.05, 0.3)])
def test_one_bit_settles_at_the_share_of_its_probabilities(up: float, down: float) -> None:
    """Of synapses that see both events each step, p+/(p+ + p−) are on; they get there as (1 − p+ − p−)^t."""
    levels, generator = torch.zeros(200, 200, dtype=torch.int16), seeded(1)
    for t in range(1, 41):
        levels += flips(levels, uniform(up, down, (200, 200)), 1, generator)
        if t in (1, 3, 40):
            expected = up / (up + down) * (1 - (1 - up - down) ** t)
            assert within(levels.double().mean().item(), expected, SIZE)


def test_few_bits_settle_at_a_geometric_share() -> None:
    """A walk between 0 and 3: detailed balance makes level k as frequent as (p+/p−)^k."""
    levels, generator = torch.zeros(200, 200, dtype=torch.int16), seeded(2)
    for _ in range(200):
        levels += flips(levels, uniform(0.3, 0.2, (200, 200)), 3, generator)
    assert levels.min() >= 0
    assert levels.max() <= 3
    weights = [1.5**k for k in range(4)]
    for k in range(4):
        assert within((levels == k).double().mean().item(), weights[k] / sum(weights), SIZE)


def test_the_events_of_learning_settle_at_their_closed_form() -> None:
    """Inputs active with probability f when the output spikes: share p+·f/(p+·f + p−·(1 − f))."""
    f, generator = torch.tensor([0.1, 0.5, 0.8]).repeat_interleave(4000), seeded(3)
    levels = torch.zeros(1, 12_000, dtype=torch.int16)
    for _ in range(300):
        active = (torch.rand(1, 12_000, generator=generator) < f).float()
        levels += flips(levels, post_moves(torch.ones(1, 1), active, 0.04, 0.02), 1, generator)
    for k, own in enumerate((0.1, 0.5, 0.8)):
        expected = 0.04 * own / (0.04 * own + 0.02 * (1 - own))
        assert within(levels[0, 4000 * k : 4000 * (k + 1)].double().mean().item(), expected, 4000)


def test_post_events_concern_the_rows_of_outputs_that_spiked() -> None:
    post = torch.tensor([[0.0, 1, 0, 1], [0.0, 0, 0, 1]])
    active = torch.tensor([[1.0, 0, 1], [0.0, 0, 1]])
    moves = post_moves(post, active, 0.5, 0.25)
    assert moves.rows is not None
    assert moves.rows.tolist() == [1, 3]
    torch.testing.assert_close(moves.up, torch.tensor([[0.5, 0, 0.5], [0.5, 0, 0.75]]))  # twice: 1 − (1 − 0.5)²
    torch.testing.assert_close(moves.down, torch.tensor([[0, 0.25, 0], [0.25, 1 - 0.75**2, 0]]))


def test_pre_events_concern_the_columns_of_inputs_that_spiked() -> None:
    pre = torch.tensor([[0.0, 1, 0, 1], [0.0, 0, 0, 1]])
    post = torch.tensor([[1.0, 0, 1], [0.0, 0, 1]])
    moves = pre_moves(pre, post, 0.5, 0.25)
    assert moves.columns is not None
    assert moves.columns.tolist() == [1, 3]
    torch.testing.assert_close(moves.up, torch.tensor([[0.5, 0.5], [0, 0], [0.5, 0.75]]))
    torch.testing.assert_close(moves.down, torch.tensor([[0, 0.25], [0.25, 1 - 0.75**2], [0, 0]]))


def test_a_window_gives_sign_and_size() -> None:
    one, none = torch.ones(1, 1), torch.zeros(1, 1)
    traces, _ = pair_step(one, none, None, Pairs(0.4, 0.2))
    traces, dw = pair_step(none, one, traces, Pairs(0.4, 0.2))
    moves = window_moves(dw)
    assert (moves.up.item(), moves.down.item()) == (pytest.approx(0.4 * math.exp(-1 / 20)), 0)
    moves = window_moves(pair_step(one, none, traces, Pairs(0.4, 0.2))[1])
    assert (moves.up.item(), moves.down.item()) == (0, pytest.approx(0.2 * math.exp(-1 / 20)))
    assert window_moves(torch.tensor([[3.0, -3.0]])).up.tolist() == [[1, 0]]


def test_inputs_stay_active_for_reach_steps() -> None:
    left, seen = None, []
    for spike in (0, 1, 0, 0, 0, 1, 1, 0):
        left = recent(left, torch.full((1, 1), float(spike)), 3)
        seen.append(left.item() > 0)
    assert seen == [False, True, True, True, False, True, True, True]


def test_rows_or_columns_are_what_the_whole_would_be() -> None:
    """Only synapses that an event may move draw a number."""
    levels = (torch.rand(6, 5, generator=seeded(4)) < 0.5).to(torch.int16)
    rows, columns = torch.tensor([1, 4]), torch.tensor([0, 3, 4])

    def padded(part: Tensor, where: object) -> Tensor:
        whole = torch.zeros(6, 5)
        whole[where] = part  # type: ignore[index]
        return whole

    for shape, own, where in (((2, 5), (rows, None), rows), ((6, 3), (None, columns), (slice(None), columns))):
        up, down = torch.full(shape, 0.5), torch.full(shape, 0.4)
        part = flips(levels, Moves(*own, up, down), 1, seeded(5))
        whole = flips(levels, Moves(None, None, padded(up, where), padded(down, where)), 1, seeded(5))
        assert torch.equal(padded(part.float(), where), whole.float())
        assert whole.any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda one: flips(one.short(), uniform(1.5, 0.0, (2, 2)), 1, seeded()), r"up: expected probabilities in \[0, 1\]"),
        (lambda one: flips(one.short(), uniform(0.0, math.nan, (2, 2)), 1, seeded()), "down: expected probabilities"),
        (lambda one: post_moves(one, one, -0.1, 0.0), r"in \[0, 1\], got -0.1"),
        (lambda one: pre_moves(one, one, 0.1, 2.0), r"in \[0, 1\], got 2"),
        (lambda one: post_moves(one, one[:1], 0.1, 0.1), "pre, post: expected"),
        (lambda one: recent(None, one, 0), "reach: expected a number of steps >= 1, got 0"),
        (lambda one: recent(one[:1], one, 1), "last: expected"),
    ],
)  # fmt: skip
def test_what_is_refused(wrong, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong(torch.ones(2, 2))
