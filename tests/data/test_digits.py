"""The digits scene and its recordings."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tbnn.bits import unpack_bits_numpy
from tbnn.data import EventCamera, PackedFrames, make
from tbnn.data.digits import Scene, digit_images, image_recordings
from tbnn.data.events import Sensor

SENSOR = Sensor(2, 20, 20)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return make("digits", cache=tmp_path_factory.mktemp("cache"))


def test_path_runs_round_a_triangle():
    scene = Scene(sweep=4, saccade=100_000, frame_interval=50_000)
    assert scene.frame_times().tolist() == [0, 50_000, 100_000, 150_000, 200_000, 250_000, 300_000]
    assert scene.path().tolist() == [[0, 0], [1, 2], [2, 4], [3, 2], [4, 0], [2, 0], [0, 0]]


def test_rendered_ink_keeps_its_mass_and_follows_the_path():
    """Linear interpolation at half the pitch of the image: sums and centres of mass are kept exactly."""
    scene = Scene(background=0.2, sweep=3.0)
    image = np.zeros((8, 8))
    image[3, 5] = 1.0
    ink = (scene.render(image, 24, 26) - 0.2) / 0.8
    mass = ink.sum((1, 2))
    np.testing.assert_allclose(mass, 4.0)
    middle_y, middle_x = (ink.sum(2) @ np.arange(24)) / mass, (ink.sum(1) @ np.arange(26)) / mass
    np.testing.assert_allclose(middle_x, 12.5 + 2 * (5 - 3.5) + scene.path()[:, 0] - 1.5)
    np.testing.assert_allclose(middle_y, 11.5 + 2 * (3 - 3.5) + scene.path()[:, 1] - 1.5)


def test_blank_image_is_the_background_and_full_ink_is_white():
    assert np.all(Scene(background=0.3).render(np.zeros((8, 8)), 20, 20) == 0.3)
    assert Scene(background=0.3).render(np.ones((8, 8)), 20, 20).max() == 1.0


def test_recordings_depend_on_seed_and_place_only():
    camera, scene = EventCamera(mismatch=0.03, shot_noise=20, refractory=500), Scene()
    images = digit_images()[0][:3]

    def record(images, seed):
        recordings = image_recordings(images, np.zeros(3, np.int64), camera, scene, SENSOR, seed)
        return [recordings.read(i) for i in range(3)]

    first, other = record(images, 5), record(images, 6)
    changed = record(np.stack([images[2], images[1], images[1]]), 5)
    np.testing.assert_array_equal(first[1].t, changed[1].t)
    np.testing.assert_array_equal(first[1].x, changed[1].x)
    assert not np.array_equal(first[1].t, changed[2].t)  # the same digit, another noise
    assert not np.array_equal(first[1].t, other[1].t)
    assert first[1].t.max() < scene.duration


def test_splits_are_stratified_disjoint_and_whole(packed):
    splits = [PackedFrames(packed, name) for name in ("train", "validation", "test")]
    assert [len(s) for s in splits] == [1198, 299, 300]
    assert sorted(np.concatenate([s.index for s in splits]).tolist()) == list(range(1797))
    labels = digit_images()[1]
    for s in splits:
        np.testing.assert_array_equal(s.labels, labels[s.index])
        share = np.bincount(s.labels) / np.bincount(labels)
        assert np.ptp(share) < 0.02


def test_task_is_real_but_learnable(packed):
    """A linear model on event counts is good but not perfect; one on nothing but their sum is near chance."""
    counts, labels = {}, {}
    for name in ("train", "test"):
        split = PackedFrames(packed, name)
        bits = unpack_bits_numpy(split.frames, split.info.bits)
        counts[name], labels[name] = bits.sum(1, dtype=np.float64), split.labels
        assert 0.05 < bits.mean() < 0.25

    def accuracy(features):
        mean, scale = features["train"].mean(0), features["train"].std(0) + 1.0
        train, test = ((features[name] - mean) / scale for name in ("train", "test"))
        model = LogisticRegression(C=0.1, max_iter=1000).fit(train, labels["train"])
        return model.score(test, labels["test"])

    assert 0.92 < accuracy(counts) < 0.98
    assert accuracy({name: c.sum(1, keepdims=True) for name, c in counts.items()}) < 0.35


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"background": 0.0}, r"background: expected a value in \(0, 1\), got 0.0"),
        ({"sweep": -1.0}, "sweep: expected a positive number of pixels, got -1.0"),
        ({"saccade": 0}, "saccade: expected at least 1, got 0"),
        ({"frame_interval": 3000}, "frame_interval: expected a divisor of 100000, got 3000"),
    ],
)
def test_impossible_scenes(values, message):
    with pytest.raises(ValueError, match=message):
        Scene(**values)
