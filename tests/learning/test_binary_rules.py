"""The rules that flip signs, against values computed by hand and chances in closed form."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tbnn.learning.binary import Bop, Bop2ndOrder, DiscreteStates, Metaplastic, SignOptimizer
from tbnn.learning.binary.states import chances


def weight(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def step(optimizer: SignOptimizer, *grad: float) -> list[float]:
    """One step of its only parameter; the weights after it."""
    (w,) = optimizer.param_groups[0]["params"]
    w.grad = torch.tensor(grad)
    optimizer.step()
    return w.tolist()


def test_bop_by_hand() -> None:
    w = weight(0.5, 0.5, -0.5, -0.5, 0.5)
    bop = Bop([w], gamma=0.25, threshold=0.3)
    # m = 0.25·g: only 0.5 is above the threshold; flips the weight of its own sign alone.
    assert step(bop, 2.0, -2.0, 2.0, -2.0, 1.2) == [-0.5, 0.5, -0.5, 0.5, 0.5]
    torch.testing.assert_close(bop.state[w]["m"], torch.tensor([0.5, -0.5, 0.5, -0.5, 0.3]))
    # m = 0.75·m + 0.25·g
    assert step(bop, 0.0, 0.0, 0.0, 2.0, 1.2) == [-0.5, 0.5, -0.5, 0.5, -0.5]
    torch.testing.assert_close(bop.state[w]["m"], torch.tensor([0.375, -0.375, 0.375, 0.125, 0.525]))


def test_bop_of_a_threshold_of_0_is_the_sign_of_the_gradient() -> None:
    w = weight(1.0, 1.0, 1.0, -1.0)
    assert step(Bop([w], gamma=1.0, threshold=0.0), 1e-9, -1e-9, 0.0, 1e-9) == [-1.0, 1.0, 1.0, -1.0]


def test_a_schedule_divides_bops_threshold() -> None:
    w = weight(1.0, 1.0)
    bop = Bop([w], gamma=1.0, threshold=0.5, lr=0.2)
    bop.param_groups[0]["lr"] = 0.1
    assert step(bop, 0.9, 1.1) == [1.0, -1.0]  # the threshold is 1
    bop.param_groups[0]["lr"] = 0.0
    assert step(bop, 1e30, 1.1) == [1.0, -1.0]


@pytest.mark.parametrize("corrected", [False, True])
def test_second_order_bop_by_hand(corrected: bool) -> None:
    w = weight(1.0, 1.0)
    options = {"gamma": 0.1, "sigma": 0.19, "eps": 0.0, "corrected": corrected}
    bop = Bop2ndOrder([w], threshold=1e9, **options)
    step(bop, 3.0, 0.0)
    step(bop, 1.0, 0.0)
    m, v = 0.9 * 0.3 + 0.1 * 1, 0.81 * 0.19 * 9 + 0.19 * 1
    if corrected:
        m, v = m / (1 - 0.9**2), v / (1 - 0.81**2)
    torch.testing.assert_close(bop.state[w]["v"][0].item(), 0.81 * 0.19 * 9 + 0.19 * 1)
    fraction = m / math.sqrt(v)
    for threshold, flipped in ((fraction * 0.999, -1.0), (fraction * 1.001, 1.0)):
        again = Bop2ndOrder([weight(1.0, 1.0)], threshold=threshold, **options)
        again.param_groups[0]["threshold"] = 1e9
        step(again, 3.0, 0.0)
        again.param_groups[0]["threshold"] = threshold
        assert step(again, 1.0, 0.0) == [flipped, 1.0]


def test_second_order_bop_does_not_see_the_gradients_scale() -> None:
    gradients = torch.randn(20, 50)
    ends = []
    for scale in (1.0, 1024.0):
        w = nn.Parameter(torch.ones(50))
        bop = Bop2ndOrder([w], gamma=0.1, sigma=0.1, threshold=0.3, eps=0.0)
        for g in gradients:
            step(bop, *(scale * g).tolist())
        ends.append(w.detach())
    assert torch.equal(*ends)
    assert 0 < (ends[0] < 0).sum() < 50


def test_metaplastic_sgd_by_hand() -> None:
    w = weight(0.5, 0.5, -0.5)
    optimizer = Metaplastic([w], rate=0.5, meta=2.0, update="sgd", start=0.1)
    hidden = optimizer.state[w]["hidden"]
    assert step(optimizer, 0.1, -0.1, 0.4) == [0.5, 0.5, -0.5]
    damped = 1 - math.tanh(0.2) ** 2
    # Towards 0, damped; away from it, whole; away from it.
    torch.testing.assert_close(hidden, torch.tensor([0.1 - 0.05 * damped, 0.15, -0.3]))
    deep = 1 - math.tanh(2 * 0.3) ** 2
    assert step(optimizer, 0.4, 0.0, -0.7) == [-0.5, 0.5, -0.5]  # undamped, the last would have flipped
    torch.testing.assert_close(hidden[2].item(), -0.3 + 0.35 * deep)


def test_metaplastic_momentum_damps_what_is_applied_not_what_is_kept() -> None:
    w = weight(1.0)
    optimizer = Metaplastic([w], rate=0.01, meta=3.0, update="sgd", momentum=0.5, start=0.5)
    step(optimizer, 1.0)
    step(optimizer, 1.0)
    first = 0.5 - 0.01 * (1 - math.tanh(1.5) ** 2)
    expected = first - 0.01 * 1.5 * (1 - math.tanh(3 * first) ** 2)
    torch.testing.assert_close(optimizer.state[w]["hidden"].item(), expected)
    assert optimizer.state[w]["first"].item() == 1.5


def test_metaplastic_without_meta_is_adam_on_the_hidden_weight() -> None:
    start = torch.randn(40)
    w = nn.Parameter(torch.where(start > 0, 0.25, -0.25))
    optimizer = Metaplastic([w], rate=0.05, meta=0.0, start=1.0, latent={w: start}, betas=(0.8, 0.95))
    twin = nn.Parameter(start.clone())
    adam = torch.optim.Adam([twin], lr=0.05, betas=(0.8, 0.95))
    for g in torch.randn(30, 40):
        w.grad, twin.grad = g, g.clone()
        optimizer.step()
        adam.step()
        torch.testing.assert_close(optimizer.state[w]["hidden"], twin.data, rtol=1e-5, atol=1e-6)
        assert torch.equal(w.data, torch.copysign(torch.full((40,), 0.25), optimizer.state[w]["hidden"]))


OPTIONS = {"depth": 2, "rate": 0.1, "relative": False, "rule": "walk", "x": 0.5}


def test_the_chances_of_a_walk() -> None:
    hidden = torch.tensor([1, 1, -1, 5, 5, -5, 3], dtype=torch.int8)
    grad = torch.tensor([2.0, -2.0, -3.0, -1.0, 1.0, 1.0, 100.0])
    chance, moved = chances(hidden, grad, OPTIONS)
    torch.testing.assert_close(
        chance, torch.tensor([0.2, 0.2, 0.3, 0.0, 0.1, 0.0, 1.0])
    )  # clipped, nothing beyond the ends
    assert moved.tolist() == [-1, 3, 1, 5, 3, -5, 1]
    relative, _ = chances(hidden, grad, OPTIONS | {"relative": True}, strength=0.5)
    expected = 0.05 * grad.abs() / grad.abs().mean()
    expected[[3, 5]] = 0
    torch.testing.assert_close(relative, expected)
    assert chances(hidden, torch.zeros(7), OPTIONS | {"relative": True})[0].tolist() == [0.0] * 7


def test_how_often_a_walk_flips_is_binomial() -> None:
    many, steps, p = 20_000, 12, 0.2
    for deep in (0, 2):
        w = nn.Parameter(torch.full((many,), 0.5))
        optimizer = DiscreteStates([w], depth=5, rate=p, relative=False, seed=3)
        optimizer.state[w]["hidden"].fill_(2 * deep + 1)
        flipped = []
        for _ in range(steps):
            w.grad = torch.ones(many)
            optimizer.step()
            flipped.append((w < 0).float().mean().item())
        for n, share in enumerate(flipped, 1):  # more than ``deep`` of n events
            expected = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(deep + 1, n + 1))
            assert abs(share - expected) < 4.5 * math.sqrt(expected * (1 - expected) / many) + 1e-9, (deep, n)


def transitions(depth: int, x: float) -> Tensor:
    """Of the cascade where both kinds of events come equally often: (states, states), rows the state before."""
    states = torch.arange(-(2 * depth + 1), 2 * depth + 2, 2, dtype=torch.int8)
    matrix = torch.zeros(len(states), len(states), dtype=torch.float64)
    for sign in (-1.0, 1.0):
        options = {"depth": depth, "rate": 1.0, "relative": False, "rule": "cascade", "x": x}
        chance, moved = chances(states, torch.full((len(states),), sign, dtype=torch.float64), options)
        to = (moved.long() + 2 * depth + 1) // 2
        rows = torch.arange(len(states))
        matrix[rows, rows] += (1 - chance) / 2
        matrix.index_put_((rows, to), chance / 2, accumulate=True)
    return matrix


@pytest.mark.parametrize(("depth", "x"), [(1, 0.5), (3, 0.5), (4, 0.3)])
def test_the_cascades_states_are_equally_full(depth: int, x: float) -> None:
    matrix = transitions(depth, x)
    assert matrix.min() >= 0
    even = torch.full((2 * depth + 2,), 1 / (2 * depth + 2), dtype=torch.float64)
    torch.testing.assert_close(even @ matrix, even)
    last = torch.zeros_like(even)
    last[-1] = 1
    flips = x**depth / (1 - x) / 2  # half of the events are against it
    torch.testing.assert_close(last @ matrix, (1 - flips) * last + flips * last.roll(-depth - 1))


def test_states_draw_the_same_for_the_same_seed_and_not_for_another() -> None:
    ends = []
    for seed in (1, 1, 2):
        torch.rand(seed)  # the global generator has no part in it
        pair = [nn.Parameter(torch.ones(300)), nn.Parameter(torch.ones(300))]
        optimizer = DiscreteStates(pair, depth=0, rate=0.5, seed=seed)
        for w in pair:
            w.grad = torch.ones(300)
        optimizer.step()
        assert not torch.equal(*pair)
        ends.append(torch.cat([w.detach() for w in pair]))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
    assert np.isclose((ends[0] < 0).float().mean().item(), 0.5, atol=0.1)


BAD = [
    (Bop, {"gamma": 1.1}, r"gamma in \[0, 1\], got 1.1"),
    (Bop, {"gamma": float("nan")}, "gamma"),
    (Bop, {"threshold": -1e-9}, "threshold >= 0"),
    (Bop, {"lr": 0.0}, "lr > 0"),
    (Bop2ndOrder, {"sigma": -0.1}, "sigma"),
    (Bop2ndOrder, {"eps": -1.0}, "eps"),
    (Metaplastic, {"rate": -1.0}, "rate"),
    (Metaplastic, {"meta": float("inf")}, "meta"),
    (Metaplastic, {"update": "lion"}, "'adam' or 'sgd', got 'lion'"),
    (Metaplastic, {"betas": (0.9, 1.0)}, "betas"),
    (Metaplastic, {"momentum": 1.0}, "momentum"),
    (Metaplastic, {"start": 0.0}, "start > 0"),
    (DiscreteStates, {"rate": 1.5}, r"rate in \[0, 1\]"),
    (DiscreteStates, {"depth": -1}, "depth"),
    (DiscreteStates, {"depth": 63}, "depth"),
    (DiscreteStates, {"depth": 1.5}, "depth"),
    (DiscreteStates, {"rule": "run"}, "'walk' or 'cascade', got 'run'"),
    (DiscreteStates, {"x": 0.6}, "x in"),
    (DiscreteStates, {"seed": -1}, "seed"),
    (DiscreteStates, {"seed": 0.5}, "seed"),
]


@pytest.mark.parametrize(("rule", "options", "told"), BAD)
def test_options_that_make_no_sense(rule: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"{rule.__name__}: .*{told}"):
        rule([weight(1.0)], **options)


def test_weights_that_have_no_sign() -> None:
    with pytest.raises(ValueError, match=r"Bop: expected real weights of ±c, got .* with zeros"):
        Bop([weight(1.0, 0.0)])


def test_the_deepest_states_do_not_overflow() -> None:
    w = weight(1.0, -1.0)
    optimizer = DiscreteStates([w], depth=62, rate=1.0, relative=False)
    for _ in range(70):
        assert step(optimizer, -1.0, 1.0) == [1.0, -1.0]
    assert optimizer.state[w]["hidden"].tolist() == [125, -125]
