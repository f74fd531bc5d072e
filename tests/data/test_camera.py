"""The simulated event camera, against closed forms and a brute-force simulation."""

import re

import numpy as np
import pytest

from tbnn.data import EventCamera
from tbnn.data.pixels import watch_pixels

QUIET = EventCamera(threshold_on=0.2, threshold_off=0.3, mismatch=0, refractory=0, shot_noise=0)


def rng(seed=0):
    return np.random.default_rng(seed)


def per_pixel(events, shape, polarity):
    counts = np.zeros(shape, int)
    chosen = events.p == polarity
    np.add.at(counts, (events.y[chosen], events.x[chosen]), 1)
    return counts


def test_static_scene_without_noise_is_silent():
    video = np.repeat(rng().random((1, 5, 6)), 10, axis=0)
    assert len(EventCamera(refractory=10)(video, np.arange(10) * 1000, rng())) == 0


def test_step_gives_floor_of_contrast_over_threshold():
    before, after = rng(1).uniform(0.1, 1, (2, 9, 11))
    events = QUIET(np.stack([before, before, after, after]), np.array([0, 100, 200, 300]), rng())
    contrast = np.log(after / before)
    np.testing.assert_array_equal(per_pixel(events, (9, 11), 1), np.floor(np.maximum(contrast, 0) / 0.2))
    np.testing.assert_array_equal(per_pixel(events, (9, 11), 0), np.floor(np.maximum(-contrast, 0) / 0.3))
    assert events.t.min() >= 100
    assert events.t.max() <= 200
    assert np.all(np.diff(events.t) >= 0)


def test_event_times_are_interpolated():
    """From 0.2 to 0.9 in 10 ms, the k-th event is where the line of log intensity has risen by k thresholds."""
    video = np.array([0.2, 0.9]).reshape(2, 1, 1)
    events = QUIET(video, np.array([5_000, 15_000]), rng())
    k = np.arange(1, 8)
    np.testing.assert_array_equal(events.t, np.floor(5_000 + 10_000 * k * 0.2 / np.log(0.9 / 0.2)))
    assert events.p.tolist() == [1] * 7


def test_mismatched_thresholds_act_pixel_by_pixel():
    camera = EventCamera(threshold_on=0.2, threshold_off=0.2, mismatch=0.05)
    thresholds = camera.thresholds(20, 20, rng(2))
    video = np.stack([np.full((20, 20), 0.2), np.full((20, 20), 0.8)])
    events = camera(video, np.array([0, 1000]), rng(), thresholds)
    np.testing.assert_array_equal(per_pixel(events, (20, 20), 1), np.floor(np.log(4) / thresholds[0]))
    back = camera(video[::-1], np.array([0, 1000]), rng(), thresholds)
    np.testing.assert_array_equal(per_pixel(back, (20, 20), 0), np.floor(np.log(4) / thresholds[1]))


def test_mismatch_is_gaussian_with_a_floor():
    on, off = EventCamera(threshold_on=0.3, threshold_off=0.2, mismatch=0.04).thresholds(200, 200, rng())
    error = 5 * 0.04 / 200  # 40,000 draws
    assert abs(on.mean() - 0.3) < error
    assert abs(off.mean() - 0.2) < error
    assert abs(on.std() - 0.04) < error
    assert abs(np.corrcoef(on.ravel(), off.ravel())[0, 1]) < 5 / 200
    assert EventCamera(threshold_on=0.05, mismatch=0.5).thresholds(50, 50, rng())[0].min() == 0.01


def test_refractory_time_spaces_a_ramp():
    """On a ramp of slope s, the pixel waits `refractory`, forgets what it missed, then needs theta / s more."""
    camera = EventCamera(threshold_on=0.1, mismatch=0, refractory=700)
    slope = np.log(10) / 10_000
    times = np.array([0, 10_000])
    events = camera(np.array([0.1, 1.0]).reshape(2, 1, 1), times, rng())
    wait = 0.1 / slope
    expected = wait + np.arange(20) * (700 + wait)
    np.testing.assert_array_equal(events.t, np.floor(expected[expected < 10_000]))


def test_refractory_time_spans_frames_and_bounds_the_rate():
    camera = EventCamera(threshold_on=0.05, threshold_off=0.05, refractory=2500, shot_noise=300)
    video = rng(3).random((60, 6, 6))
    events = camera(video, np.arange(60) * 1000, rng())
    pixel = events.y * 6 + events.x
    gaps = np.concatenate([np.diff(events.t[pixel == i]) for i in range(36)])
    assert gaps.min() >= 2500
    assert len(gaps) > 36 * 10


@pytest.mark.parametrize(("intensity", "factor"), [(0.0, 1.0), (1.0, 0.25), (0.4, 0.7)])
def test_shot_noise_rate(intensity, factor):
    camera = EventCamera(mismatch=0, shot_noise=50)
    video = np.full((3, 30, 30), intensity)
    events = camera(video, np.array([0, 300_000, 1_000_000]), rng(4))
    expected = 50 * 900 * 1.0 * factor
    assert abs(len(events) - expected) < 5 * np.sqrt(expected)
    assert abs((events.p == 1).sum() - expected / 2) < 5 * np.sqrt(expected / 2)
    early = (events.t < 300_000).sum()
    assert abs(early - 0.3 * expected) < 5 * np.sqrt(0.3 * expected)
    top = (events.y < 15).sum()
    assert abs(top - expected / 2) < 5 * np.sqrt(expected / 2)


def brute_force(levels, times, on, off, refractory, noise, dt):
    """One pixel in steps of ``dt``: the sentence of the docstring, nothing clever."""
    out, remembered, ready = [], levels[0], -np.inf
    noise = list(noise)
    for t in np.arange(times[0] + dt, times[-1], dt):
        level = np.interp(t, times, levels)
        due = bool(noise) and noise[0][0] <= t
        polarity = noise.pop(0)[1] if due else None
        if t < ready:
            remembered = level
            continue
        while level - remembered >= on or remembered - level >= off:
            up = level > remembered
            out.append((t, int(up)))
            remembered += on if up else -off
            if refractory:
                remembered, ready = level, t + refractory
                break
        if due and t >= ready:
            out.append((t, polarity))
            remembered, ready = level, t + refractory
    return out


@pytest.mark.parametrize("refractory", [0.0, 7.3])
@pytest.mark.parametrize("seed", range(4))
def test_compiled_pixels_equal_brute_force(seed, refractory):
    draw = rng(seed)
    pixels, times = 5, np.cumsum(draw.uniform(10, 40, 7))
    levels = draw.normal(0, 0.6, (pixels, 7))
    on, off = draw.uniform(0.15, 0.4, (2, pixels))
    noise = [
        sorted(zip(draw.uniform(times[0], times[-1], 3), draw.integers(0, 2, 3), strict=True)) for _ in range(pixels)
    ]
    flat = [n for row in noise for n in row]
    start = np.arange(pixels + 1) * 3
    out = np.empty(500, np.int64), np.empty(500), np.empty(500, np.int8)
    noise_t, noise_p = np.array([n[0] for n in flat]), np.array([n[1] for n in flat], np.int8)
    count = watch_pixels(levels, times, on, off, refractory, start, noise_t, noise_p, *out)
    pixel, t, p = (column[:count] for column in out)
    for i in range(pixels):
        expected = brute_force(levels[i], times, on[i], off[i], refractory, noise[i], dt=0.01)
        assert p[pixel == i].tolist() == [e[1] for e in expected]
        np.testing.assert_allclose(t[pixel == i], [e[0] for e in expected], atol=0.15)
        assert len(expected) > 3


def test_more_events_than_first_room():
    camera = EventCamera(threshold_on=0.01, threshold_off=0.01, mismatch=0)
    video = np.tile(np.array([0.1, 1.0]), 10).reshape(20, 1, 1)
    each = int(np.log(10) / 0.01)
    events = camera(video, np.arange(20) * 1000, rng())
    assert (events.p == 1).sum() == pytest.approx(10 * each, abs=10)
    assert (events.p == 0).sum() == pytest.approx(9 * each, abs=10)


def test_same_seed_same_events():
    camera = EventCamera(mismatch=0.03, shot_noise=100, refractory=200)
    video, times = rng(5).random((10, 8, 8)), np.arange(10) * 1000
    first, again, other = (camera(video, times, rng(seed)) for seed in (6, 6, 7))
    for name in "xytp":
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert len(first) != len(other) or not np.array_equal(first.t, other.t)


def test_log_intensity_closed_form():
    camera = EventCamera(log_floor=0.25)
    got = camera.log_intensity(np.array([0.0, 0.125, 0.25, 0.5, 1.0]))
    np.testing.assert_allclose(got, [np.log(0.25) - 1, np.log(0.25) - 0.5, np.log(0.25), np.log(0.5), 0], atol=1e-15)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("threshold_on", 0.0, "threshold_on: expected at least 0.01, got 0.0"),
        ("threshold_off", -1.0, "threshold_off: expected at least 0.01, got -1.0"),
        ("mismatch", -0.1, "mismatch: expected 0 or more, got -0.1"),
        ("refractory", -1.0, "refractory: expected 0 or more, got -1.0"),
        ("shot_noise", float("nan"), "shot_noise: expected a finite number, got nan"),
        ("log_floor", 0.0, "log_floor: expected a value in (0, 1], got 0.0"),
    ],
)
def test_impossible_cameras(field, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EventCamera(**{field: value})


VIDEO, TIMES = np.full((3, 2, 2), 0.5), np.array([0, 10, 20])


@pytest.mark.parametrize(
    ("video", "times", "message"),
    [
        (VIDEO[:1], TIMES[:1], "expected floats (T, H, W) with T >= 2, got float64 (1, 2, 2)"),
        (VIDEO[0], TIMES, "with T >= 2, got float64 (2, 2)"),
        (VIDEO.astype(int), TIMES, "expected floats (T, H, W) with T >= 2, got int64"),
        (VIDEO * 3, TIMES, "expected intensities in [0, 1], got 1.5 to 1.5"),
        (VIDEO * np.nan, TIMES, "expected intensities in [0, 1], got nan"),
        (VIDEO, TIMES[:2], "expected one a frame, (3,), got (2,)"),
        (VIDEO, np.array([0, 10, 10]), "each later than the one before"),
        (VIDEO, np.array([-1, 10, 20]), "times of 0 or later"),
        (VIDEO, np.array([0.1, 0.2, 0.3]), "a video of 1 us or longer, got 0.1 to 0.3 us"),
    ],
)
def test_impossible_videos(video, times, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EventCamera()(video, times, rng())


def test_foreign_thresholds_are_refused():
    with pytest.raises(ValueError, match=re.escape("expected two of shape (2, 2), got (3, 3) and (3, 3)")):
        EventCamera()(VIDEO, TIMES, rng(), EventCamera().thresholds(3, 3, rng()))
