"""Variation of recordings in address-event form: always valid recordings, with the distribution promised."""

import doctest
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tbnn.data.augment import Augment, augment_events, events, sample_rng, spec, streams, words
from tbnn.data.events import Events, check_events

SENSOR = (2, 6, 9)
ALL: dict[str, Any] = {
    "shift": 3,
    "flip": True,
    "crop": 2,
    "time_shift": 2,
    "time_jitter": 1,
    "drop": 0.4,
    "drop_time": 0.5,
    "drop_area": 0.5,
    "polarity_flip": True,
}
OPERATIONS: dict[str, Callable[[Events, np.random.Generator], Events]] = {
    "drop_events": lambda e, rng: events.drop_events(e, 0.8, rng),
    "drop_time": lambda e, rng: events.drop_time(e, 0.9, rng),
    "drop_area": lambda e, rng: events.drop_area(e, SENSOR, 0.9, rng),
    "crop": lambda e, rng: events.crop(e, SENSOR, 5, rng),
    "time_jitter": lambda e, rng: events.time_jitter(e, 300.0, rng),
    "time_shift": lambda e, rng: events.time_shift(e, 900, rng),
    "flip": lambda e, rng: events.flip(e, SENSOR, rng),
    "shift": lambda e, rng: events.shift(e, SENSOR, 5, rng),
    "polarity_flip": events.polarity_flip,
    "cut_mix": lambda e, rng: events.cut_mix(e, recording(7, 20), SENSOR, rng)[0],
}


def recording(seed: int, count: int, until: int = 1000, dtype: type = np.uint8) -> Events:
    rng = np.random.default_rng(seed)
    return Events(
        x=rng.integers(0, SENSOR[2], count).astype(dtype),
        y=rng.integers(0, SENSOR[1], count).astype(dtype),
        t=np.sort(rng.integers(0, until, count)).astype(np.uint32),
        p=rng.integers(0, 2, count).astype(np.int8),
    )


def columns(e: Events) -> list[list[int]]:
    return [column.tolist() for column in (e.x, e.y, e.t, e.p)]


@pytest.mark.parametrize("name", OPERATIONS)
@given(st.integers(0, 10**6), st.integers(1, 30), st.sampled_from((1, 1000)))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_every_operation_gives_a_valid_recording(name: str, seed: int, count: int, until: int) -> None:
    original = recording(seed, count, until)
    before = columns(original)
    varied = OPERATIONS[name](original, np.random.default_rng(seed))
    check_events(varied, SENSOR, name)
    assert varied.t[-1] <= 1000
    assert columns(original) == before
    if name != "cut_mix":
        assert len(varied) <= len(original)
        assert varied.t[-1] <= original.t[-1]
        assert varied.x.dtype == np.uint8
        assert varied.p.dtype == np.int8
    again = OPERATIONS[name](original, np.random.default_rng(seed))
    assert columns(again) == columns(varied)


@given(st.integers(0, 10**6), st.integers(1, 30))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_all_operations_together_give_a_valid_recording(seed: int, count: int) -> None:
    original, partner = recording(seed, count), recording(seed + 1, 10, 1500)
    augment = Augment(**ALL, cut_mix=0.5)
    varied, mix = augment_events(original, SENSOR, augment, sample_rng(seed, 0, 0), frame_us=100, partner=partner)
    check_events(varied, SENSOR, "varied")
    assert 0 <= mix <= 1
    again, _ = augment_events(original, SENSOR, augment, sample_rng(seed, 0, 0), frame_us=100, partner=partner)
    assert columns(again) == columns(varied)


def test_what_would_erase_a_recording_leaves_it_as_it_is() -> None:
    lone = Events(x=np.array([4]), y=np.array([3]), t=np.array([0]), p=np.array([1]))
    for seed in range(50):
        for name in ("drop_events", "drop_time", "drop_area", "crop", "time_jitter", "time_shift"):
            assert columns(OPERATIONS[name](lone, np.random.default_rng(seed))) == [[4], [3], [0], [1]]
    corner = Events(x=np.array([0]), y=np.array([0]), t=np.array([0]), p=np.array([1]))
    ends = {tuple(map(tuple, columns(OPERATIONS["shift"](corner, np.random.default_rng(s))))) for s in range(2000)}
    assert len(ends) == 36  # (dy, dx) of 0..5 each; every other move leaves it at (0, 0)


def test_mirror_images_are_exact_and_half_of_all() -> None:
    e = recording(1, 40)
    flips = {"flip": 0, "polarity_flip": 0}
    for seed in range(400):
        rng = np.random.default_rng(seed)
        mirrored = events.flip(e, SENSOR, rng)
        assert columns(mirrored)[1:] == columns(e)[1:]
        if columns(mirrored) != columns(e):
            flips["flip"] += 1
            assert columns(mirrored)[0] == [8 - x for x in e.x.tolist()]
        swapped = events.polarity_flip(e, rng)
        if columns(swapped) != columns(e):
            flips["polarity_flip"] += 1
            assert columns(swapped) == [*columns(e)[:3], [1 - p for p in e.p.tolist()]]
    assert all(abs(count - 200) < 5 * 10 for count in flips.values())


def test_moves_and_losses_have_the_distribution_they_should() -> None:
    count = 20000
    at_once = Events(*(np.full(count + 1, v) for v in (4, 3, 500, 1)))
    at_once.t[-1] = 1000  # the recording's end
    moved = events.time_jitter(at_once, 40.0, np.random.default_rng(0)).t
    moved = moved[moved < 800]
    assert len(moved) == count
    assert stats.kstest((moved - 500 + np.random.default_rng(1).random(count) - 0.5) / 40, "norm").pvalue > 0.001
    kept = len(events.drop_events(at_once, 0.3, np.random.default_rng(2)))
    assert abs(kept - 0.7 * count) < 5 * np.sqrt(0.21 * count)

    lone = Events(*(column[:1] for column in (at_once.x, at_once.y, at_once.t, at_once.p)))
    moves = [columns(events.shift(lone, SENSOR, 2, np.random.default_rng(s)))[:2] for s in range(2000)]
    places = np.bincount([(y[0] - 1) * 5 + x[0] - 2 for x, y in moves], minlength=25)
    assert stats.chisquare(places).pvalue > 0.001
    short = Events(*(column[-2:] for column in (at_once.x, at_once.y, at_once.t, at_once.p)))
    shifts = [events.time_shift(short, 300, np.random.default_rng(s)).t[0] - 500 for s in range(2000)]
    assert stats.kstest((np.array(shifts) + 300) / 600, "uniform").pvalue > 0.001


def test_regions_are_erased_whole() -> None:
    t, y, x = (a.ravel() for a in np.meshgrid(np.arange(20), np.arange(6), np.arange(9), indexing="ij"))
    grid = Events(x=x, y=y, t=t, p=np.zeros_like(x))
    lost_time, lost_area = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        times = np.bincount(events.drop_time(grid, 0.5, rng).t, minlength=20)
        assert set(times.tolist()) <= {0, 54}
        lost_time.append(np.sum(times == 0))
        gap = np.flatnonzero(times == 0)
        assert len(gap) == 0 or gap[-1] - gap[0] + 1 == len(gap)
        left = events.drop_area(grid, SENSOR, 0.5, rng)
        hole = np.bincount(left.y * 9 + left.x, minlength=54).reshape(6, 9) == 0
        assert hole.sum() == hole.any(0).sum() * hole.any(1).sum()
        lost_area.append(hole.sum())
        left = events.crop(grid, SENSOR, 2, rng)
        window = np.bincount(left.y * 9 + left.x, minlength=54).reshape(6, 9) == 20
        assert 20 * window.sum() == len(left) == 20 * window.any(0).sum() * window.any(1).sum()
        assert window.any(1).sum() in (4, 5, 6)
        assert window.any(0).sum() in (7, 8, 9)
    assert stats.chisquare(np.bincount(lost_time, minlength=11)).pvalue > 0.001
    assert max(lost_area) <= 27


def test_cut_mix_takes_a_box_from_the_partner_and_counts_events_for_the_label() -> None:
    t, y, x = (a.ravel() for a in np.meshgrid(np.arange(10), np.arange(6), np.arange(9), indexing="ij"))
    first = Events(x=x, y=y, t=t, p=np.zeros_like(x))
    second = Events(x=x, y=y, t=t, p=np.ones_like(x))
    shares = []
    for seed in range(300):
        mixed, mix = events.cut_mix(first, second, SENSOR, np.random.default_rng(seed))
        assert len(mixed) == len(first)  # each place and time once, from one of the two
        assert len(np.unique((mixed.t * 6 + mixed.y) * 9 + mixed.x)) == len(first)
        assert mix == np.mean(mixed.p == 0)
        inside = mixed.p == 1
        sides = [len(np.unique(column[inside])) for column in (mixed.t, mixed.y, mixed.x)]
        assert inside.sum() == np.prod(sides)
        shares.append(1 - mix)
    assert abs(np.mean(shares) - 0.5) < 5 * np.sqrt(1 / 12 / 300)
    nothing, mix = events.cut_mix(first, recording(1, 1), SENSOR, np.random.default_rng(3))
    assert len(nothing) <= len(first)
    assert mix > 0


def test_bits_and_events_agree_where_nothing_is_left_to_chance() -> None:
    e = recording(3, 30)
    same, mix = augment_events(e, SENSOR, Augment(), sample_rng(0, 0, 0), frame_us=100)
    assert columns(same) == columns(e)
    assert mix == 1.0
    flat = Events(x=np.zeros(5, int), y=np.zeros(5, int), t=np.arange(5), p=np.zeros(5, int))
    varied, _ = augment_events(flat, (1, 1, 1), Augment(shift=3, crop=2), sample_rng(0, 0, 0), frame_us=100)
    assert columns(varied) == columns(flat)  # an axis of one pixel


def test_samples_epochs_and_seeds_have_their_own_generator() -> None:
    numbers = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**32, 0, 0), (0, 2**32, 0)]
    drawn = [sample_rng(*n).integers(1 << 63) for n in numbers]
    assert len(set(drawn)) == len(numbers)
    assert [sample_rng(*n).integers(1 << 63) for n in numbers] == drawn


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": Augment(shift=6)}, "shift: expected less than 6 pixels, got 6"),
        ({"frame_us": 0}, "frame_us: expected at least 1 microsecond, got 0"),
        ({"augment": Augment(cut_mix=0.5)}, "partner: expected a recording with cut_mix and only then, got none"),
        ({"partner": recording(1, 3)}, "partner: expected a recording with cut_mix and only then, got one"),
        ({"sensor": (2, 9, 9), "events": recording(1, 0)}, "events: expected at least one event"),
        ({"sensor": (2, 2, 9)}, "events: event 0: expected y in 0..1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    full = Events(x=np.array([8]), y=np.array([5]), t=np.array([1]), p=np.array([1]))
    arguments: dict[str, Any] = {"events": full, "sensor": SENSOR, "augment": Augment(), "rng": sample_rng(0, 0, 0)}
    with pytest.raises(ValueError, match=message):
        augment_events(**{"frame_us": 100, **arguments, **changes})


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"epoch: expected a whole number in 0 \.\. 2"):
        sample_rng(0, -1, 0)


@pytest.mark.parametrize("module", [events, spec, streams, words])
def test_examples_run(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
