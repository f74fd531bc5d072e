"""Variation of packed bits: the compiled walk against the reference, the reference against what the settings promise."""

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tbnn.bits import has_stray_bits, pack_bits_numpy, unpack_bits_numpy
from tbnn.data.augment import Augment, Augmented, augment_words, is_mixed, partner_of, streams
from tbnn.data.augment.reference import augment_reference

SENSOR = (2, 3, 7)
ON: dict[str, Any] = {
    "shift": 2,
    "flip": True,
    "crop": 2,
    "time_shift": 1,
    "time_jitter": 2,
    "drop": 0.25,
    "drop_time": 0.6,
    "drop_area": 0.5,
    "polarity_flip": True,
    "cut_mix": 0.75,
}


def random_frames(shape: tuple[int, ...], seed: int, share: float = 0.4) -> npt.NDArray[np.uint8]:
    """0/1 frames (B, T, C, H, W)."""
    return (np.random.default_rng(seed).random(shape) < share).astype(np.uint8)


def pack(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    return pack_bits_numpy(frames.reshape(*frames.shape[:2], int(np.prod(frames.shape[2:]))))


def vary(frames: npt.NDArray[np.uint8], augment: Augment, seed: int = 0, epoch: int = 0) -> npt.NDArray[np.uint8]:
    """The varied samples, numbered from 0, unpacked."""
    shape = frames.shape
    words = augment_words(pack(frames), shape[2:], augment, seed, epoch, np.arange(len(frames))).words
    return unpack_bits_numpy(words, int(np.prod(shape[2:]))).reshape(shape)


def same(a: Augmented, b: Augmented) -> bool:
    return np.array_equal(a.words, b.words) and np.array_equal(a.mix, b.mix)


def test_splitmix64_gives_its_published_numbers() -> None:
    # The first outputs for state 1234567 of Vigna's splitmix64.c.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [streams.draw(1234567, n) for n in range(4)] == published


@pytest.mark.parametrize(("sensor", "steps"), [(SENSOR, 4), (SENSOR, 1), ((2, 1, 9), 5), ((4, 5, 13), 3)])
def test_all_combinations_of_operations_equal_the_reference(sensor: tuple[int, int, int], steps: int) -> None:
    words = pack(random_frames((2, steps, *sensor), 1))
    partners = pack(random_frames((2, steps, *sensor), 2))
    for number, chosen in enumerate(product((False, True), repeat=len(ON))):
        augment = Augment(**{key: value for (key, value), on in zip(ON.items(), chosen, strict=True) if on})
        given = partners if augment.cut_mix else None
        index = np.array([number, 3 * number + 1])
        fast = augment_words(words, sensor, augment, 5, number, index, given)
        assert same(fast, augment_reference(words, sensor, augment, 5, number, index, given)), augment


@given(st.data())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_any_size_and_setting_equals_the_reference(data: st.DataObject) -> None:
    sensor = (2 * data.draw(st.integers(1, 2)), data.draw(st.integers(1, 6)), data.draw(st.integers(1, 40)))
    batch, steps = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 6))
    sides = [size for size in sensor[1:] if size > 1] or [9]
    share = st.floats(0, 0.999)
    augment = Augment(
        shift=data.draw(st.integers(0, min(sides) - 1)),
        flip=data.draw(st.booleans()),
        crop=data.draw(st.integers(0, min(sides) - 1)),
        time_shift=data.draw(st.integers(0, steps - 1)),
        time_jitter=data.draw(st.integers(0, 7)),
        drop=data.draw(share),
        drop_time=data.draw(share),
        drop_area=data.draw(share),
        polarity_flip=data.draw(st.booleans()),
        cut_mix=data.draw(st.sampled_from((0, 0.5, 1))),
    )
    seed, epoch = data.draw(st.integers(0, 2**63 - 1)), data.draw(st.integers(0, 2**63 - 1))
    index = np.array(data.draw(st.lists(st.integers(0, 2**63 - 1), min_size=batch, max_size=batch)), np.int64)
    density = data.draw(st.sampled_from((0.05, 0.5, 1.0)))
    words = pack(random_frames((batch, steps, *sensor), 3, density))
    partners = pack(random_frames((batch, steps, *sensor), 4, density)) if augment.cut_mix else None
    before = words.copy()
    fast = augment_words(words, sensor, augment, seed, epoch, index, partners)
    assert same(fast, augment_reference(words, sensor, augment, seed, epoch, index, partners))
    assert np.array_equal(words, before)
    assert not has_stray_bits(torch.from_numpy(fast.words), int(np.prod(sensor)))


def test_a_sample_does_not_depend_on_its_batch() -> None:
    words, partners = pack(random_frames((7, 4, *SENSOR), 1)), pack(random_frames((7, 4, *SENSOR), 2))
    index = np.array([4, 9, 2, 1000, 5, 0, 77])
    whole = augment_words(words, SENSOR, Augment(**ON), 3, 6, index, partners)
    for order in ([6, 0, 3], [2], [5, 4, 3, 2, 1, 0, 6]):
        part = augment_words(words[order], SENSOR, Augment(**ON), 3, 6, index[order], partners[order])
        assert same(part, Augmented(whole.words[order], whole.mix[order]))
    fortran = np.asfortranarray(words)
    assert same(augment_words(fortran, SENSOR, Augment(**ON), 3, 6, index, partners), whole)


def test_seed_epoch_and_sample_each_change_the_variation() -> None:
    words = pack(np.ones((1, 4, 2, 20, 20), np.uint8))
    runs = [
        augment_words(words, (2, 20, 20), Augment(drop=0.5), seed, epoch, np.array([index])).words
        for seed, epoch, index in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    shared = [
        np.bitwise_count((a & b).view(np.uint32)).sum(dtype=np.int64) for i, a in enumerate(runs) for b in runs[:i]
    ]
    # Independent halves of 3200 bits share a quarter, with standard deviation 24.5.
    assert np.all(np.abs(np.array(shared) - 800) < 5 * 24.5)


def test_nothing_on_is_the_identity_without_padding_bits() -> None:
    frames = random_frames((3, 4, *SENSOR), 1)
    dirty = pack(frames)
    dirty[..., -1] |= -1 << 10
    out = augment_words(dirty, SENSOR, Augment(), 0, 0, np.arange(3))
    assert np.array_equal(out.words, pack(frames))
    assert out.mix.tolist() == [1, 1, 1]
    assert out.mix.dtype == np.float32


def test_drop_erases_the_given_share_at_all_places() -> None:
    frames = np.ones((400, 2, 2, 3, 5), np.uint8)
    kept = vary(frames, Augment(drop=0.3), epoch=1)
    by_place = kept.reshape(400, -1).sum(0)
    # 60 binomial counts: a chi-square with 60 degrees of freedom.
    statistic = ((by_place - 280) ** 2 / (400 * 0.3 * 0.7)).sum()
    assert 0.001 < stats.chi2.cdf(statistic, 60) < 0.999


def test_shifts_are_uniform_and_move_all_frames_together() -> None:
    frames = np.zeros((5000, 2, 2, 9, 9), np.uint8)
    frames[:, :, 1, 4, 4] = 1
    moved = vary(frames, Augment(shift=2), seed=3)
    assert moved.sum() == frames.sum()
    assert np.array_equal(moved[:, 0], moved[:, 1])
    y, x = np.nonzero(moved[:, 0, 1])[1:]
    counts = np.histogram2d(y, x, bins=5, range=((1.5, 6.5), (1.5, 6.5)))[0]
    assert counts.sum() == 5000
    assert stats.chisquare(counts.ravel()).pvalue > 0.001


def test_what_is_shifted_out_is_lost() -> None:
    frames = np.ones((200, 1, 1, 3, 7), np.uint8)
    left = vary(frames, Augment(shift=2))[:, 0, 0]
    rows, columns = left.any(2).sum(1), left.any(1).sum(1)
    assert set(rows.tolist()) == {1, 2, 3}
    assert set(columns.tolist()) == {5, 6, 7}
    assert np.array_equal(left.sum((1, 2)), rows * columns)


@pytest.mark.parametrize("augment", [Augment(time_shift=3), Augment(time_jitter=3)])
def test_moves_in_time_are_uniform(augment: Augment) -> None:
    frames = np.zeros((700, 7, 2, 1, 1), np.uint8)
    frames[:, 3] = 1
    moved = vary(frames, augment, seed=2)
    assert moved.sum() == 1400
    counts = moved[:, :, :, 0, 0].sum(0)  # (T, C)
    assert stats.chisquare(counts[:, 0]).pvalue > 0.001
    together = np.array_equal(moved[:, :, 0], moved[:, :, 1])
    assert together == (augment.time_shift > 0)
    if augment.time_jitter:
        agree = (moved[:, :, 0] & moved[:, :, 1]).sum()
        assert abs(agree - 100) < 5 * np.sqrt(100 * 6 / 7)


def test_flips_happen_half_the_time_and_are_the_mirror_image() -> None:
    frames = random_frames((600, 2, 4, 2, 3), 5)
    mirrored = [(Augment(flip=True), frames[..., ::-1]), (Augment(polarity_flip=True), frames[:, :, [1, 0, 3, 2]])]
    for augment, image in mirrored:
        out = vary(frames, augment)
        flipped = (out == image).all((1, 2, 3, 4))
        assert np.all(flipped | (out == frames).all((1, 2, 3, 4)))
        assert abs(flipped.sum() - 300) < 5 * np.sqrt(150)


def test_erased_regions_are_of_the_shape_and_size_they_should_be() -> None:
    frames = np.ones((3000, 10, 1, 6, 8), np.uint8)
    by_time = vary(frames, Augment(drop_time=0.5))[:, :, 0]
    kept = by_time.all((2, 3))
    assert np.array_equal(kept, by_time.any((2, 3)))
    lost = 10 - kept.sum(1)
    assert stats.chisquare(np.bincount(lost, minlength=6)).pvalue > 0.001
    assert np.all(np.abs(np.diff(np.pad(~kept, ((0, 0), (1, 1))).astype(int), axis=1)).sum(1) <= 2)

    hole = 1 - vary(frames, Augment(drop_area=0.5))[:, :, 0]
    assert np.array_equal(hole, np.broadcast_to(hole[:, :1], hole.shape))
    rows, columns = hole[:, 0].any(2).sum(1), hole[:, 0].any(1).sum(1)
    assert np.array_equal(hole[:, 0].sum((1, 2)), rows * columns)
    assert (rows * columns).max() <= 24
    assert abs((rows * columns).mean() - 12) < 3  # pixels are uniform in 0..24; whole rows and columns round down

    window = vary(frames, Augment(crop=2))[:, 0, 0]
    rows, columns = window.any(2).sum(1), window.any(1).sum(1)
    assert np.array_equal(window.sum((1, 2)), rows * columns)
    assert stats.chisquare(np.unique(rows, return_counts=True)[1]).pvalue > 0.001
    assert stats.chisquare(np.unique(columns, return_counts=True)[1]).pvalue > 0.001
    assert set(rows.tolist()) == {4, 5, 6}


def test_cut_mix_pastes_a_box_and_counts_bits_for_the_label() -> None:
    sensor, samples = (2, 10, 12), 1500
    ones, zeros = np.ones((samples, 8, *sensor), np.uint8), np.zeros((samples, 8, *sensor), np.uint8)
    index, augment = np.arange(samples), Augment(cut_mix=0.6)
    mixed, mix = augment_words(pack(zeros), sensor, augment, 1, 0, index, pack(ones))
    box = unpack_bits_numpy(mixed, 240).reshape(samples, 8, *sensor)
    hit = is_mixed(augment, 1, 0, index)
    assert np.array_equal(box.any((1, 2, 3, 4)), hit)
    assert abs(hit.mean() - 0.6) < 5 * np.sqrt(0.24 / samples)
    sides = [box.any(axes).sum(1) for axes in ((2, 3, 4), (1, 2, 4), (1, 2, 3))]
    assert np.array_equal(box.sum((1, 2, 3, 4)), 2 * np.prod(sides, axis=0))
    volume = np.prod(sides, axis=0)[hit] / (8 * 10 * 12)
    assert abs(volume.mean() - 0.5) < 5 * np.sqrt(1 / 12 / len(volume))
    assert np.array_equal(mix, np.where(hit, 0, 1))  # all bits there are the partner's

    own = augment_words(pack(ones), sensor, augment, 1, 0, index, pack(ones))
    assert np.array_equal(own.words, pack(ones))
    assert np.allclose(own.mix[hit], 1 - volume)


def test_cut_mix_boxes_have_uniform_volumes() -> None:
    # Many pixels and frames, as the sides are whole.
    ones = pack(np.ones((400, 30, 1, 40, 50), np.uint8))
    mix = augment_words(ones, (1, 40, 50), Augment(cut_mix=1), 3, 0, np.arange(400), ones).mix
    assert stats.kstest(mix, "uniform").pvalue > 0.001


def test_partners_are_others_chosen_evenly() -> None:
    index = np.arange(5)
    partners = np.array([partner_of(7, epoch, index, 5) for epoch in range(2000)])
    assert not np.any(partners == index)
    for i in index:
        counts = np.bincount(partners[:, i], minlength=5)
        assert stats.chisquare(np.delete(counts, i)).pvalue > 0.001
    expected = [
        (i + 1 + streams.below(streams.fold(streams.sample_key(7, 3, i), streams.PARTNER), 0, 4)) % 5 for i in range(5)
    ]
    assert partners[3].tolist() == expected
    assert partner_of(0, 0, np.array([0]), 1).tolist() == [0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shift": -1}, "shift: expected a whole number of 0 or more, got -1"),
        ({"crop": 1.5}, "crop: expected a whole number of 0 or more, got 1.5"),
        ({"time_jitter": True}, "time_jitter: expected a whole number"),
        ({"flip": 1}, "flip: expected True or False, got 1"),
        ({"drop": 1}, r"drop: expected a value in \[0, 1\), as 1 leaves nothing, got 1"),
        ({"drop_area": float("nan")}, "drop_area: expected a value"),
        ({"drop_time": "much"}, "drop_time: expected a number, got 'much'"),
        ({"cut_mix": 1.5}, r"cut_mix: expected a value in \[0, 1\], got 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augment(**changes)


def test_augment_is_true_when_something_is_on() -> None:
    assert not Augment()
    assert all(Augment(**{key: value}) for key, value in ON.items())
    assert repr(Augment(drop=0.5, flip=True)) == "Augment(flip=True, drop=0.5)"
    assert Augment(cut_mix=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": Augment(shift=3)}, "shift: expected less than 3 pixels, got 3"),
        ({"augment": Augment(crop=3)}, "crop: expected less than 3 pixels, got 3"),
        ({"augment": Augment(time_shift=4)}, "time_shift: expected less than 4 frames, got 4"),
        ({"augment": Augment(cut_mix=0.1)}, "partners: expected them with cut_mix and only then, got none"),
        ({"partners": np.zeros((2, 4, 2), np.int32)}, "partners: expected them with cut_mix and only then, got some"),
        ({"sensor": (3, 3, 7), "augment": Augment(polarity_flip=True)}, "polarity_flip: expected channels in pairs"),
        ({"sensor": (2, 3, 11)}, r"words: expected int32 \(B, T, 3\) for sensor \(2, 3, 11\), got int32 \(2, 4, 2\)"),
        ({"words": np.zeros((2, 4, 2), np.int64)}, "words: expected int32"),
        ({"words": np.zeros((2, 0, 2), np.int32)}, "words: expected int32"),
        ({"index": np.arange(3)}, r"index: expected \(2,\), one number for each sample, got \(3,\)"),
        ({"index": np.array([0, -1])}, "index: expected a whole number in 0 .. 2"),
        ({"index": np.array([0.0, 1.0])}, "index: expected whole numbers"),
        ({"seed": -1}, "seed: expected a whole number in 0 .. 2"),
        ({"epoch": 1 << 63}, "epoch: expected a whole number in 0 .. 2"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "words": np.zeros((2, 4, 2), np.int32),
        "sensor": SENSOR,
        "augment": Augment(),
        "seed": 0,
        "epoch": 0,
        "index": np.arange(2),
    }
    arguments |= changes
    for function in (augment_words, augment_reference):
        with pytest.raises(ValueError, match=message):
            function(**arguments)


def test_a_partner_is_chosen_among_the_samples_there_are() -> None:
    with pytest.raises(ValueError, match="index: expected numbers below 4 samples, got 4"):
        partner_of(0, 0, np.array([1, 4]), 4)
    with pytest.raises(ValueError, match="index: expected numbers below 0 samples"):
        partner_of(0, 0, np.array([], np.int64), 0)
