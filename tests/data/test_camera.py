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


def brute_force(levels, times, memory, on, off, refractory, noise, dt):
    """One pixel in steps of ``dt``: the sentence of the docstring, nothing clever."""
    out, remembered, ready = [], memory, -np.inf
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
    memory = levels[:, 0] - draw.random(pixels) * on
    noise = [
        sorted(zip(draw.uniform(times[0], times[-1], 3), draw.integers(0, 2, 3), strict=True)) for _ in range(pixels)
    ]
    flat = [n for row in noise for n in row]
    start = np.arange(pixels + 1) * 3
    out = np.empty(500, np.int64), np.empty(500), np.empty(500, np.int8)
    noise_t, noise_p = np.array([n[0] for n in flat]), np.array([n[1] for n in flat], np.int8)
    count = watch_pixels(levels, times, memory, on, off, refractory, start, noise_t, noise_p, *out)
    pixel, t, p = (column[:count] for column in out)
    for i in range(pixels):
        expected = brute_force(levels[i], times, memory[i], on[i], off[i], refractory, noise[i], dt=0.01)
        assert p[pixel == i].tolist() == [e[1] for e in expected]
        np.testing.assert_allclose(t[pixel == i], [e[0] for e in expected], atol=0.15)
        assert len(expected) > 3


def still(seconds, intensity=0.3, shape=(8, 9)):
    return np.full((3, *shape), intensity), np.array([0, 0.4, 1]) * seconds * 1e6


def test_leak_events_come_at_their_rate_from_evenly_spread_phases():
    """In a still scene a pixel sends an ON event each 1 / leak seconds: rate * time of them, to within one."""
    camera = EventCamera(threshold_on=0.25, mismatch=0, leak=4.0)
    events = camera(*still(10.1, shape=(40, 40)), rng(8))
    assert set(events.p.tolist()) == {1}
    counts = per_pixel(events, (40, 40), 1)
    assert set(np.unique(counts)) == {40, 41}
    assert abs(counts.sum() - 40.4 * 1600) < 5 * np.sqrt(1600 * 0.4 * 0.6)
    pixel = events.y * 40 + events.x
    gaps = np.concatenate([np.diff(events.t[pixel == i]) for i in range(1600)])
    assert set(np.unique(gaps)) <= {249_999, 250_000, 250_001}
    first = np.array([events.t[pixel == i][0] for i in range(1600)])
    deciles = np.histogram(first, 10, (0, 250_000))[0]
    assert ((deciles - 160) ** 2 / 160).sum() < 27.9  # chi-squared, 9 degrees of freedom, p = 0.001


def test_leak_rate_goes_as_the_inverse_threshold():
    camera = EventCamera(threshold_on=0.2, mismatch=0.05, leak=5.0)
    thresholds = camera.thresholds(8, 9, rng(1))
    counts = per_pixel(camera(*still(20), rng(), thresholds), (8, 9), 1)
    assert np.abs(counts - 100 * 0.2 / thresholds[0]).max() <= 1
    assert np.ptp(counts) > 30


@pytest.mark.parametrize("slope", [0.5, -0.5, -2.0])
def test_leak_adds_to_the_slope(slope):
    """Log intensity rises by ``slope`` a second, memory falls by leak * threshold_on = 1."""
    camera = EventCamera(threshold_on=0.2, threshold_off=0.1, mismatch=0, leak=5.0)
    video = np.exp(np.array([-1.2, -1.2 + slope])).reshape(2, 1, 1) * np.ones((1, 8, 9))
    events = camera(video, np.array([0, 1_000_000]), rng())
    up, down = per_pixel(events, (8, 9), 1), per_pixel(events, (8, 9), 0)
    assert np.abs(up - max(slope + 1, 0) / 0.2).max() <= 1
    assert np.abs(down - max(-slope - 1, 0) / 0.1).max() <= 3  # less what the memory had leaked at the start
    assert (up.sum() > 0) == (slope > -1)
    assert (down.sum() > 0) == (slope < -1)


def test_leak_waits_for_the_refractory_time():
    camera = EventCamera(mismatch=0, leak=10.0, refractory=25_000)
    events = camera(*still(5, shape=(1, 1)), rng())
    assert set(np.diff(events.t).tolist()) <= {124_999, 125_000, 125_001}


def filtered_by_euler(levels, video, times, bandwidth, parts):
    """v2e's explicit update, in steps so small that they are as good as exact; intensity as at the interval's end."""
    y, out = levels[0], [levels[0]]
    for k in range(1, len(times)):
        rate = 2 * np.pi * bandwidth * (video[k] * 255 + 20) / 275
        dt = (times[k] - times[k - 1]) * 1e-6 / parts
        for part in range(parts):
            x = levels[k - 1] + (levels[k] - levels[k - 1]) * (part + 0.5) / parts
            y = y + rate * dt * (x - y)
        out.append(y)
    return np.array(out)


def test_low_pass_solves_its_equation_at_any_frame_rate():
    draw = rng(11)
    levels, video = draw.normal(0, 1, (12, 5)), draw.random((12, 5))
    times = np.cumsum(10 ** draw.uniform(1, 4, 12))
    got = EventCamera(bandwidth=200.0).low_pass(levels, video, times)
    np.testing.assert_allclose(got, filtered_by_euler(levels, video, times, 200.0, 5000), atol=5e-3)
    assert np.abs(got - levels).max() > 0.3


@pytest.mark.parametrize("bright", [0.0, 0.2, 1.0])
def test_step_response_has_the_time_constant_of_the_new_intensity(bright):
    """``y = L1 + (L0 - L1) exp(-t / tau)``, whatever frames repeat the new scene; v2e: rate * (I + 20) / 275."""
    camera = EventCamera(bandwidth=50.0, log_floor=0.05)
    times = np.concatenate([[0, 1e-9], np.cumsum(rng(2).uniform(10, 9000, 20))])
    video = np.array([0.5] + [bright] * 21)
    levels = camera.log_intensity(video)
    tau = 1e6 / (2 * np.pi * 50 * (bright * 255 + 20) / 275)
    expected = levels[1] + (levels[0] - levels[1]) * np.exp(-(times[1:] - 1e-9) / tau)
    np.testing.assert_allclose(camera.low_pass(levels, video, times)[1:], expected, atol=1e-9)


def test_events_follow_the_step_response():
    camera = EventCamera(threshold_on=0.1, mismatch=0, bandwidth=50.0)
    times = np.concatenate([[0, 0.001], np.arange(1, 20_000, 20)])
    events = camera(np.where(times > 0, 0.9, 0.3).reshape(-1, 1, 1), times, rng())
    tau = 1e6 / (2 * np.pi * 50 * (0.9 * 255 + 20) / 275)
    k = np.arange(1, 11)  # ln 3 = 1.0986
    np.testing.assert_allclose(events.t, -tau * np.log(1 - k * 0.1 / np.log(3)), atol=2)


@pytest.mark.parametrize(
    ("times_cutoff", "gain"), [(0.1, 1 / np.sqrt(1.01)), (1, 1 / np.sqrt(2)), (10, 1 / np.sqrt(101))]
)
def test_sinusoid_is_damped_as_by_a_first_order_filter(times_cutoff, gain):
    """A small sinusoid of log intensity round I = 0.5, its amplitude counted in events of a tiny threshold."""
    camera = EventCamera(bandwidth=40.0)
    frequency = times_cutoff * 40.0 * (0.5 * 255 + 20) / 275
    cycles, frames = (3, 8000) if times_cutoff < 10 else (30, 16_000)
    times = np.linspace(0, cycles / frequency * 1e6, frames)
    video = 0.5 * np.exp(0.01 * np.sin(2 * np.pi * frequency * times * 1e-6)).reshape(-1, 1, 1)
    tiny = np.full((1, 1), 2e-6)
    events = camera(video, times, rng(), (tiny, tiny))
    last = events.t > times[-1] * (1 - 1 / cycles)
    amplitude = (events.p[last] == 1).sum() * 2e-6 / 2
    assert amplitude == pytest.approx(0.01 * gain, rel=0.005)


def test_fast_photoreceptor_is_no_photoreceptor_and_slow_one_sees_nothing():
    video, times = rng(3).random((10, 6, 6)), np.arange(10) * 1000
    plain, fast, slow = (EventCamera(mismatch=0, bandwidth=b)(video, times, rng()) for b in (0.0, 1e13, 1e-3))
    np.testing.assert_array_equal(plain.t, fast.t)
    np.testing.assert_array_equal(plain.p, fast.p)
    assert len(plain) > 0 == len(slow)


def test_watch_is_a_call_with_a_seed():
    camera = EventCamera(shot_noise=50, refractory=100)
    video = rng(5).integers(0, 256, (6, 4, 5), np.uint8)
    watched = camera.watch(video, fps=200, seed=9)
    called = camera(video / 255.0, np.arange(6) * 5000, rng(9))
    for name in "xytp":
        np.testing.assert_array_equal(getattr(watched, name), getattr(called, name))
    assert camera.watch(video, fps=200, size=(2, 3)).x.max() == 2


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
        ("leak", -1.0, "leak: expected 0 or more, got -1.0"),
        ("bandwidth", -3.0, "bandwidth: expected 0 or more, got -3.0"),
        ("bandwidth", float("inf"), "bandwidth: expected a finite number, got inf"),
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
