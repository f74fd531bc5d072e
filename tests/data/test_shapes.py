"""Moving shapes: single frames say nothing of the class, frames without order half, their order all."""

import dataclasses
import re

import numpy as np
import pytest
from scipy.stats import binom, kstest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import RidgeClassifier

from tbnn.data import EventCamera, events_to_frames
from tbnn.data.events import Sensor
from tbnn.data.shapes import (
    CLASSES,
    KINDS,
    MovingShapes,
    ShapePath,
    draw_path,
    draw_shapes,
    render_shapes,
    shape_recordings,
)

SENSOR = Sensor(2, 32, 32)
SHAPES = MovingShapes(recordings=90)
CAMERA = EventCamera(threshold_on=0.4, threshold_off=0.2, mismatch=0.03, refractory=2000, shot_noise=1.0)
TRAIN = 600


def label(name):
    return CLASSES.index(name)


def rng(*seed):
    return np.random.default_rng(seed)


def frames_of(recordings, which, shapes=SHAPES):
    return np.stack([events_to_frames(recordings.read(i), SENSOR, shapes.interval, shapes.flashes) for i in which])


@pytest.fixture(scope="module")
def recorded():
    """(N, T, 2, H, W) frames and labels."""
    recordings = shape_recordings(SHAPES, CAMERA, SENSOR, seed=3)
    return frames_of(recordings, range(len(recordings))), recordings.labels


def forest_accuracy(features, labels):
    forest = RandomForestClassifier(100, random_state=0).fit(features[:TRAIN], labels[:TRAIN])
    return forest.score(features[TRAIN:], labels[TRAIN:])


def order_features(frames):
    """Medians over time of what changes from frame to frame: place on the torus, its turning, number of pixels."""
    on = frames[:, :, 1].astype(float)
    wave = np.exp(2j * np.pi * np.arange(32) / 32)
    across, along = on.sum(2) @ wave, on.sum(3) @ wave
    dx, dy = (np.angle(z[:, 1:] * z[:, :-1].conj()) for z in (across, along))
    growth = np.diff(np.log(on.sum((2, 3)) + 1))
    turn = dx[:, :-1] * dy[:, 1:] - dy[:, :-1] * dx[:, 1:]
    medians = [np.median(f, axis=1) for f in (dx, dy, growth, turn)]
    return np.stack([*medians, (np.abs(dx) + np.abs(dy)).mean(1), turn.std(1)], axis=1)


@pytest.mark.parametrize("k", [0, 13])
def test_single_frames_are_at_chance(recorded, k):
    """Pixels by a linear model; size, coarse place and counts by a forest: correct in 1 of 11, as guesses are."""
    frames, labels = recorded
    frame = frames[:, k]
    pixels = frame.reshape(len(frame), -1)
    linear = RidgeClassifier(alpha=300.0).fit(pixels[:TRAIN], labels[:TRAIN])
    blocks = frame.reshape(-1, 2, 4, 8, 4, 8).sum((3, 5)).reshape(len(frame), -1)
    features = np.concatenate([blocks, frame.sum((2, 3)), frame[:, 1].sum(1), frame[:, 1].sum(2)], axis=1)
    tested = len(labels) - TRAIN
    highest = binom.ppf(0.9999, tested, 1 / 11) / tested
    assert linear.score(pixels[TRAIN:], labels[TRAIN:]) <= highest
    assert forest_accuracy(features, labels) <= highest
    assert highest < 0.16


def test_order_tells_the_class_and_shuffling_takes_the_sense_away(recorded):
    frames, labels = recorded
    assert forest_accuracy(order_features(frames), labels) > 0.9
    draw, tested = rng(0), len(labels) - TRAIN
    shuffled = np.stack([recording[draw.permutation(SHAPES.flashes)] for recording in frames])
    accuracy = forest_accuracy(order_features(shuffled), labels)
    assert 0.3 < accuracy <= binom.ppf(0.9999, tested, 6 / 11) / tested


@pytest.mark.parametrize("name", CLASSES)
def test_place_size_kind_and_brightness_are_distributed_alike(name):
    """At the first, a middle and the last flash: uniform on the torus, log-uniform in size, and uncorrelated."""
    sensor = Sensor(2, 20, 30)
    paths = [draw_path(SHAPES, label(name), sensor, rng(1, i)) for i in range(1500)]
    kinds = np.bincount([path.kind for path in paths], minlength=len(KINDS))
    assert ((kinds - 300) ** 2 / 300).sum() < 23.5  # chi-squared, 4 degrees of freedom, p = 1e-4
    brightness = np.array([path.brightness for path in paths])
    for k in (0, 7, 19):
        x, y = np.array([path.at[k] for path in paths]).T
        size = np.array([path.size[k] for path in paths])
        zoom = np.log(size / 2.5) / np.log(6.0 / 2.5)
        state = np.stack([x / 30, y / 20, zoom, (brightness - 0.4) / 0.6])
        for values in state:
            assert kstest(values, "uniform").pvalue > 1e-4
        assert np.abs(np.corrcoef(state) - np.eye(4)).max() < 4 / np.sqrt(1500)


def show(shapes, path, camera):
    """Frames of a given path, by one sensor without noise."""
    thresholds = camera.thresholds(32, 32, rng(7))
    events = camera(render_shapes(shapes, path, SENSOR), shapes.frame_times(), rng(0), thresholds)
    return events_to_frames(events, SENSOR, shapes.interval, shapes.flashes)


def remembers(shapes, camera, paths):
    """How many pixels of the frames differ from those of recordings of each flash alone."""
    single, differing = dataclasses.replace(shapes, flashes=1), 0
    for path in paths:
        alone = [
            show(single, ShapePath(path.kind, path.brightness, path.at[k : k + 1], path.size[k : k + 1]), camera)[0]
            for k in range(shapes.flashes)
        ]
        differing += int((show(shapes, path, camera) != np.stack(alone)).sum())
    return differing


def test_camera_forgets_each_flash():
    """Without noise the events of a flash are those of this flash alone; other cameras, which are refused, remember."""
    shapes = dataclasses.replace(SHAPES, slowest=0.5, fastest=0.6, flashes=10)
    paths = [draw_path(shapes, i, SENSOR, rng(2, i)) for i in range(len(CLASSES))]
    quiet = dataclasses.replace(CAMERA, shot_noise=0.0)
    assert remembers(shapes, quiet, paths) == 0
    for change in ({"refractory": 0.0}, {"refractory": 9990.0}, {"threshold_on": 0.2, "threshold_off": 0.4}):
        assert remembers(shapes, dataclasses.replace(quiet, **change), paths) > 0


def test_each_flash_appears_and_vanishes_in_its_own_frame():
    quiet = dataclasses.replace(CAMERA, shot_noise=0.0, mismatch=0.0)
    recordings = shape_recordings(SHAPES, quiet, SENSOR, seed=0)
    frames = frames_of(recordings, range(22))
    np.testing.assert_array_equal(frames[:, :, 0], frames[:, :, 1])
    events = recordings.read(5)
    within = events.t % SHAPES.interval
    lit = SHAPES.dark // 2
    assert np.all((within[events.p == 1] >= lit) & (within[events.p == 1] < lit + SHAPES.ramp))
    assert np.all(within[events.p == 0] >= lit + SHAPES.ramp + SHAPES.flash)
    path = draw_path(SHAPES, 5, SENSOR, rng(0, 6))
    covered = draw_shapes(path, SENSOR)
    contrast = np.log((0.1 + (path.brightness - 0.1) * covered) / 0.1)
    np.testing.assert_array_equal(frames[5, :, 1], contrast >= 0.4)


OPPOSITES = {"left": "right", "up": "down", "up-right": "down-left", "clockwise": "anticlockwise", "approach": "recede"}


@pytest.mark.parametrize("name", OPPOSITES)
def test_played_backward_a_class_is_its_opposite(name):
    """The same random numbers: the opposite class takes the opposite steps."""
    for i in range(5):
        forward = draw_path(SHAPES, label(name), SENSOR, rng(4, i))
        backward = draw_path(SHAPES, label(OPPOSITES[name]), SENSOR, rng(4, i))
        assert (forward.kind, forward.brightness) == (backward.kind, backward.brightness)
        steps, opposite = (np.diff(p.at, axis=0) for p in (forward, backward))
        if name == "clockwise":
            np.testing.assert_allclose(turning(steps), -turning(opposite), atol=1e-9)
        else:
            np.testing.assert_allclose((steps + opposite + 16) % 32, 16, atol=1e-9)
        zoom, opposite = (np.diff(np.log(p.size)) for p in (forward, backward))
        span = np.log(6.0 / 2.5)
        np.testing.assert_allclose((zoom + opposite + span / 2) % span, span / 2, atol=1e-9)


def turning(steps):
    x, y = ((steps + 16) % 32 - 16).T
    return np.angle((x + 1j * y)[1:] / (x + 1j * y)[:-1])


def test_directions_on_the_screen():
    """Rows count downward; up is toward row 0, and clockwise goes right, down, left, up."""
    straight = dataclasses.replace(SHAPES, aim=0.0)
    for name, sign in {
        "left": (-1, 0),
        "right": (1, 0),
        "up": (0, -1),
        "up-right": (1, -1),
        "down-left": (-1, 1),
    }.items():
        step = np.diff(draw_path(straight, label(name), SENSOR, rng(5)).at, axis=0)
        step = (step + 16) % 32 - 16
        np.testing.assert_array_equal(np.sign(np.round(step, 9)), np.broadcast_to(sign, step.shape))
    steps = np.diff(draw_path(straight, label("clockwise"), SENSOR, rng(5)).at, axis=0)
    assert np.all(turning(steps) > 0)  # from right (1, 0) toward down (0, 1)
    speed = np.linalg.norm((step + 16) % 32 - 16, axis=1)[0]
    scattered = np.diff(draw_path(straight, label("scatter"), SENSOR, rng(5)).at, axis=0)
    np.testing.assert_allclose(np.linalg.norm((scattered + 16) % 32 - 16, axis=1), speed)
    chords = np.linalg.norm((steps + 16) % 32 - 16, axis=1)
    assert np.all((chords > 0.95 * speed) & (chords < speed))
    zoom = np.diff(draw_path(straight, label("approach"), SENSOR, rng(5)).size)
    assert (zoom > 0).mean() > 0.8


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_drawings_wrap_and_move_with_the_place(kind):
    at = np.array([[3.3, 1.2], [13.3, 1.2], [3.3, 15.2], [1.3, 30.2]])
    drawn = draw_shapes(ShapePath(kind, 1.0, at, np.full(4, 5.0)), SENSOR)
    np.testing.assert_allclose(drawn[1], np.roll(drawn[0], 10, axis=1), atol=1e-12)
    np.testing.assert_allclose(drawn[2], np.roll(drawn[0], 14, axis=0), atol=1e-12)
    np.testing.assert_allclose(drawn[3], np.roll(drawn[0], (-3, -2), axis=(0, 1)), atol=1e-12)
    area = {
        "disc": np.pi * 25,
        "square": 8.5**2,
        "triangle": 3 * np.sqrt(3) * 2.75**2,
        "cross": 4 * 5 * 3.5 - 3.5**2,
        "ring": np.pi * (25 - 6.25),
    }
    np.testing.assert_allclose(drawn.sum((1, 2)), area[KINDS[kind]], rtol=0.05)


def test_recordings_depend_on_seed_and_number_only():
    few = shape_recordings(dataclasses.replace(SHAPES, recordings=1), CAMERA, SENSOR, seed=3)
    many = shape_recordings(SHAPES, CAMERA, SENSOR, seed=3)
    other = shape_recordings(SHAPES, CAMERA, SENSOR, seed=4)
    assert few.labels.tolist() == list(range(11)) == many.labels[:11].tolist()
    assert len(many) == 990
    assert len(set(many.names)) == 990
    for name in "xytp":
        np.testing.assert_array_equal(getattr(few.read(7), name), getattr(many.read(7), name))
    assert not np.array_equal(many.read(7).t, other.read(7).t)
    assert not np.array_equal(many.read(7).t, many.read(18).t)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"recordings": 0}, "recordings: expected at least 1, got 0"),
        ({"interval": 5_000}, "interval: expected more than flash + 2 ramps, 5000, got 5000"),
        ({"background": 0.0}, "background: expected a value in (0, 1), got 0.0"),
        ({"dimmest": 0.1}, "dimmest: expected a value in (0.1, 1], got 0.1"),
        ({"smallest": 7.0}, "smallest, largest: expected 0 < smallest <= largest < inf, got (7.0, 6.0)"),
        ({"zoom_fastest": 0.6}, "expected 0 < zoom_slowest <= zoom_fastest < 0.5, got (0.08, 0.6)"),
        ({"fastest": float("nan")}, "slowest, fastest: expected 0 < slowest"),
        ({"aim": 30.0}, "aim: expected a value in [0, 22.5) degrees, got 30.0"),
    ],
)
def test_impossible_shapes(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MovingShapes(**fields)


@pytest.mark.parametrize(
    ("camera", "sensor", "message"),
    [
        ({"leak": 0.1}, SENSOR, "camera.leak: expected 0, a pixel must forget a flash, got 0.1"),
        ({"bandwidth": 99.0}, SENSOR, "camera.bandwidth: expected 0"),
        ({"refractory": 100.0}, SENSOR, "camera.refractory: expected 500 to 4000 us"),
        ({"refractory": 4500.0}, SENSOR, "camera.refractory: expected 500 to 4000 us"),
        ({"threshold_off": 0.4}, SENSOR, "camera.threshold_off: expected it below threshold_on, 0.4, got 0.4"),
        ({}, Sensor(1, 32, 32), "sensor.channels: expected 2 (OFF and ON), got 1"),
        ({}, Sensor(2, 32, 14), "sensor: expected a height and a width of 15 or more, got (32, 14)"),
    ],
)
def test_impossible_recordings(camera, sensor, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        shape_recordings(SHAPES, dataclasses.replace(CAMERA, **camera), sensor, seed=0)
