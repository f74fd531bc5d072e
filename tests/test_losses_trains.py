"""Regularisers of firing and the van Rossum distance; of every loss: its gradient, and that a mask cuts."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tbnn.losses import (
    READOUTS,
    count_lower_bound,
    count_mse,
    count_upper_bound,
    cross_entropy,
    logits,
    rate_target,
    temporal_efficient_training,
    van_rossum_distance,
)

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def masked_cross_entropy(how: str) -> Loss:
    return lambda x, y, mask: cross_entropy(x, y, how, 0.1, mask)


def distance_to_shifted(x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    """From the train that starts at the label's place and has every other spike."""
    other = torch.zeros_like(x)
    other[0, torch.arange(len(y)), y] = 1
    return van_rossum_distance(x, other, 3.0, mask=mask).mean()


AVERAGED: dict[str, Loss] = {  # over the sequences of a batch
    **{how: masked_cross_entropy(how) for how in READOUTS},
    "tet": lambda x, y, mask: temporal_efficient_training(x, y, 0.3, 0.7, 0.1, mask),
    "count_mse": lambda x, y, mask: count_mse(x, y, 0.77, 0.29, mask),
    "lower": lambda x, _, mask: count_lower_bound(x, 3.5, mask),
    "upper": lambda x, _, mask: count_upper_bound(x, 1.5, mask),
    "van Rossum": distance_to_shifted,
}
EVERY: dict[str, Loss] = {**AVERAGED, "rate": lambda x, _, mask: rate_target(x, 0.3, mask)}


def mask_of(lengths: list[int]) -> Tensor:
    return torch.arange(max(lengths) + 1).unsqueeze(1) < torch.tensor(lengths)


def batch_of(lengths: list[int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Soft spikes in float64 whose padding is NaN, labels, mask."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(max(lengths) + 1, len(lengths), 4, generator=generator, dtype=torch.float64)
    mask = mask_of(lengths)
    return x.masked_fill(~mask.unsqueeze(2), torch.nan), torch.arange(len(lengths)) % 4, mask


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@pytest.mark.parametrize("name", AVERAGED)
@given(lengths=LENGTHS, seed=st.integers(0, 999))
def test_a_masked_batch_is_the_mean_of_its_sequences_alone(name: str, lengths: list[int], seed: int) -> None:
    x, labels, mask = batch_of(lengths, seed)
    x.requires_grad_()
    together = AVERAGED[name](x, labels, mask)
    alone = [AVERAGED[name](x[:n, i : i + 1], labels[i : i + 1], None) for i, n in enumerate(lengths)]
    torch.testing.assert_close(together, torch.stack(alone).mean())
    (got,) = torch.autograd.grad(together, x)
    (expected,) = torch.autograd.grad(torch.stack(alone).mean(), x)
    torch.testing.assert_close(got, expected)
    assert not got[~mask].any()


@given(lengths=LENGTHS, seed=st.integers(0, 999))
def test_rates_under_a_mask_are_those_of_all_steps_in_one_row(lengths: list[int], seed: int) -> None:
    x, _, mask = batch_of(lengths, seed)
    one_row = torch.cat([x[:n, i] for i, n in enumerate(lengths)]).unsqueeze(1)
    torch.testing.assert_close(rate_target(x, 0.3, mask), rate_target(one_row, 0.3))


@pytest.mark.parametrize("how", READOUTS)
@given(lengths=LENGTHS, seed=st.integers(0, 999))
def test_masked_scores_of_bits_are_equal(how: str, lengths: list[int], seed: int) -> None:
    x, _, mask = batch_of(lengths, seed)
    x = x.round().float()
    alone = [logits(x[:n, i : i + 1], how)[0] for i, n in enumerate(lengths)]
    assert torch.equal(logits(x, how, mask), torch.stack(alone))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("lengths", [[7, 7], [1, 5]], ids=str)
def test_gradients(name: str, lengths: list[int], numeric_gradient: Callable[..., Tensor]) -> None:
    x, labels, mask = batch_of(lengths, 1)
    x = x.nan_to_num(0.5)
    leaf = x.clone().requires_grad_()
    EVERY[name](leaf, labels, mask).backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().max() > 1e-3
    torch.testing.assert_close(
        leaf.grad, numeric_gradient(lambda v: EVERY[name](v, labels, mask), x), atol=1e-8, rtol=1e-6
    )


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("mask", "complaint"),
    [
        (torch.ones(3, 2), r"mask: expected torch.bool \(3, 2\), got torch.float32 \(3, 2\)"),
        (torch.ones(2, 3).bool(), r"mask: expected torch.bool \(3, 2\), got torch.bool \(2, 3\)"),
        (torch.tensor([[1, 0], [1, 0], [1, 0]]).bool(), r"at least one step in every sequence, got none in sequences \[1\]"),
        (torch.tensor([[1, 1], [1, 0], [1, 1]]).bool(), r"got gaps in sequences \[1\]"),
    ],
    ids=["dtype", "shape", "empty", "gap"],
)  # fmt: skip
def test_masks_that_are_refused(name: str, mask: Tensor, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        EVERY[name](torch.zeros(3, 2, 4), torch.tensor([0, 3]), mask)


SPIKES = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])  # (T=2, B=2, N=3)


def test_regularisers_by_hand() -> None:  # counts 2 0 1 and 0 1 0
    assert count_lower_bound(SPIKES, 1.5).item() == pytest.approx((0 + 2.25 + 0.25 + 2.25 + 0.25 + 2.25) / 6)
    assert count_upper_bound(SPIKES, 0.5).item() == pytest.approx((0.25 + 0) / 2)
    assert rate_target(SPIKES, 0.25).item() == pytest.approx((0.0625 + 0 + 0) / 3)  # rates 1/2, 1/4, 1/4


def test_regularisers_flatten_feature_maps() -> None:
    maps = SPIKES.reshape(2, 2, 3, 1, 1)
    for loss in (count_lower_bound, count_upper_bound, rate_target):
        assert torch.equal(loss(maps, 0.2), loss(SPIKES, 0.2))


@pytest.mark.parametrize(
    ("loss", "value", "complaint"),
    [
        (count_lower_bound, -1, "least: expected a finite number >= 0, got -1"),
        (count_upper_bound, math.inf, "most: expected a finite number >= 0, got inf"),
        (rate_target, 1.5, r"rate: expected a number in \[0, 1\], got 1.5"),
        (rate_target, math.nan, "rate: expected a number in"),
    ],
)
def test_bounds_that_are_refused(loss: Callable[..., Tensor], value: float, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        loss(SPIKES, value)
    with pytest.raises(ValueError, match=r"expected floats \(T, B, features...\) .* got torch.float32 \(2, 3\)"):
        loss(SPIKES[:, 0], 0.5)


def trains(*spikes: int, steps: int = 60, dtype: torch.dtype = torch.float64) -> Tensor:
    """One train with spikes at the given steps, (T, 1, 1)."""
    x = torch.zeros(steps, 1, 1, dtype=dtype)
    for step in spikes:
        x[step] += 1
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [1e-3, 0.5, 7.0, 1e4, 1e9])
@pytest.mark.parametrize("at", [0, 30, 59])
def test_one_spike_too_many_costs_a_half(dtype: torch.dtype, tau: float, at: int) -> None:
    one, none = trains(at, dtype=dtype), trains(dtype=dtype)
    expected = torch.full((1, 1), 0.5, dtype=dtype)
    torch.testing.assert_close(van_rossum_distance(one, none, tau), expected)
    torch.testing.assert_close(van_rossum_distance(one, none, tau, dt=1e-3), expected)


def test_the_half_survives_a_long_train_in_float32() -> None:
    one, none = (trains(*at, steps=20000, dtype=torch.float32) for at in ((0,), ()))
    assert van_rossum_distance(one, none, 7e3).item() == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("gap", [0, 1, 5, 40])
def test_a_moved_spike(gap: int) -> None:
    got = van_rossum_distance(trains(10), trains(10 + gap), 8.0, dt=0.5)
    assert got.item() == pytest.approx(1 - math.exp(-gap * 0.5 / 8.0), abs=1e-14)


def test_both_limits() -> None:
    a, b = trains(3, 10, 20, 41), trains(3, 15)  # 3 and 1 that do not coincide; counts 4 and 2
    assert van_rossum_distance(a, b, 1e-3).item() == pytest.approx(4 / 2)
    assert van_rossum_distance(a, b, 1e9).item() == pytest.approx(2**2 / 2, rel=1e-6)


def double_sum(a: Tensor, b: Tensor, tau: float) -> float:
    """The kernel form, ½·Σᵢⱼ (aᵢ−bᵢ)(aⱼ−bⱼ)·exp(−|i−j|/τ)."""
    difference, t = (a - b).flatten(), torch.arange(len(a), dtype=a.dtype)
    return 0.5 * (difference @ torch.exp(-(t - t[:, None]).abs() / tau) @ difference).item()


@given(seed=st.integers(0, 999), steps=st.integers(1, 30), tau=st.floats(0.1, 100))
def test_distance_is_a_squared_metric(seed: int, steps: int, tau: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b, c = (torch.rand(3, steps, 2, 3, 2, generator=generator) < 0.3).double()
    ab, bc, ac = (van_rossum_distance(x, y, tau) for x, y in ((a, b), (b, c), (a, c)))
    assert ab.shape == (2, 3, 2)
    assert ab[1, 2, 0].item() == pytest.approx(double_sum(a[:, 1, 2, 0], b[:, 1, 2, 0], tau), abs=1e-12)
    torch.testing.assert_close(ab, van_rossum_distance(b, a, tau))
    assert not van_rossum_distance(a, a, tau).any()
    assert bool((ac.sqrt() <= ab.sqrt() + bc.sqrt() + 1e-9).all())
    later = [torch.cat([torch.zeros(4, 2, 3, 2, dtype=torch.float64), x]) for x in (a, b)]
    torch.testing.assert_close(van_rossum_distance(later[0], later[1], tau), ab)
    torch.testing.assert_close(van_rossum_distance(a, b, tau * 1e-3, dt=1e-3), ab)


def test_trains_that_are_refused() -> None:
    a = trains(3)
    with pytest.raises(ValueError, match="tau: expected a finite number > 0, got 0"):
        van_rossum_distance(a, a, 0)
    with pytest.raises(ValueError, match="dt: expected a finite number > 0, got -1"):
        van_rossum_distance(a, a, 1, dt=-1)
    with pytest.raises(
        ValueError, match=r"got \(60, 1, 1\) torch.float64 on cpu and \(59, 1, 1\) torch.float64 on cpu"
    ):
        van_rossum_distance(a, a[1:], 1)
    with pytest.raises(ValueError, match=r"van_rossum_distance: expected floats .* got torch.float64 \(60, 1\)"):
        van_rossum_distance(a[:, 0], a[:, 0], 1)
