"""Variation of packed samples: what the compiled walk over set bits is called by."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tbnn.bits import words_for
from tbnn.data.augment.spec import Augment
from tbnn.data.augment.streams import check_sample

Index = npt.NDArray[np.integer]
Words = npt.NDArray[np.int32]


class Augmented(NamedTuple):
    """A varied batch.

    ``words`` int32 (B, T, W); ``mix`` float32 (B,): the share of the label that stays with the sample, 1 where it was not
    mixed; the rest, 1 - mix, is the partner's: ``loss = mix * loss(y) + (1 - mix) * loss(y_partner)``.
    """

    words: Words
    mix: npt.NDArray[np.float32]


def augment_words(
    words: Words,
    sensor: tuple[int, int, int],
    augment: Augment,
    seed: int,
    epoch: int,
    index: Index,
    partners: Words | None = None,
) -> Augmented:
    """Vary packed samples, each by its own random numbers; the time it takes is in proportion to the set bits.

    A sample's variation depends on ``seed``, ``epoch`` and its number, not on the batch, its place there, the order of
    the calls, workers or threads. :class:`Augment` has the operations and their order; the definition, equal bit for bit,
    is :func:`tbnn.data.augment.reference.augment_reference`.

    Args:
        words: int32 (B, T, W), bit c*H*W + y*W + x of a frame, as :mod:`tbnn.bits` packs; not changed. Bits past C*H*W
            are taken for zeros.
        sensor: (C, H, W) of a frame.
        augment: what is varied.
        seed: of the whole training.
        epoch: number of the pass over the data.
        index: int (B,), the samples' numbers in the data set.
        partners: int32 (B, T, W), with ``cut_mix``: the samples :func:`partner_of`; only those rows are looked at that
            :func:`is_mixed` tells.

    Raises:
        ValueError: shapes or dtypes that do not fit, settings that do not suit the sensor, negative numbers, partners
            missing or not needed.

    >>> words = np.array([[[0b010]]], np.int32)  # one sample, one frame, the middle one of three pixels
    >>> augment_words(words, (1, 1, 3), Augment(shift=1), seed=0, epoch=0, index=np.array([7])).words.shape
    (1, 1, 1)
    """
    checked = check_batch(words, sensor, augment, seed, epoch, index, partners)
    from tbnn.data.augment.bits import Settings, augment_batch  # imports numba

    out, mix = np.zeros(words.shape, np.int32), np.ones(len(words), np.float32)
    words = np.ascontiguousarray(words)
    partners = words if partners is None else np.ascontiguousarray(partners)
    settings = Settings(
        augment.shift,
        augment.flip,
        augment.crop,
        augment.time_shift,
        augment.time_jitter,
        float(augment.drop),
        float(augment.drop_time),
        float(augment.drop_area),
        augment.polarity_flip,
        float(augment.cut_mix),
        *(int(size) for size in sensor),
    )
    augment_batch(words, partners, checked, seed, epoch, settings, out, mix)
    return Augmented(out, mix)


def partner_of(seed: int, epoch: int, index: Index, samples: int) -> npt.NDArray[np.int64]:
    """The samples that those number ``index`` are mixed with in this epoch: int64 (B,), any other one, equally likely.

    Args:
        seed: of the whole training.
        epoch: number of the pass over the data.
        index: int (B,), in 0 .. samples - 1.
        samples: how many there are, N; the only one is its own partner.

    Raises:
        ValueError: a number out of range.
    """
    checked = _check_index(seed, epoch, index)
    if samples < 1 or (checked.size and checked.max() >= samples):
        raise ValueError(f"index: expected numbers below {samples} samples, got {checked.max(initial=0)}")
    from tbnn.data.augment.bits import choose_partners  # imports numba

    return choose_partners(checked, seed, epoch, samples)


def is_mixed(augment: Augment, seed: int, epoch: int, index: Index) -> npt.NDArray[np.bool_]:
    """Which of the samples number ``index`` (B,) :func:`augment_words` mixes with their partner: bool (B,)."""
    checked = _check_index(seed, epoch, index)
    from tbnn.data.augment.bits import choose_mixed  # imports numba

    return choose_mixed(checked, seed, epoch, float(augment.cut_mix))


def check_batch(
    words: Words,
    sensor: tuple[int, int, int],
    augment: Augment,
    seed: int,
    epoch: int,
    index: Index,
    partners: Words | None,
) -> npt.NDArray[np.int64]:
    """Raise ``ValueError`` unless the arguments of :func:`augment_words` fit each other; ``index`` as int64."""
    channels, height, width = sensor
    expected = words_for(channels * height * width)
    if words.dtype != np.int32 or words.ndim != 3 or words.shape[2] != expected or words.shape[1] == 0:
        raise ValueError(
            f"words: expected int32 (B, T, {expected}) for sensor {tuple(sensor)}, got {words.dtype} {words.shape}"
        )
    augment.check(sensor, words.shape[1])
    checked = _check_index(seed, epoch, index)
    if checked.shape != words.shape[:1]:
        raise ValueError(f"index: expected {words.shape[:1]}, one number for each sample, got {checked.shape}")
    if (partners is None) == (augment.cut_mix > 0):
        got = "none" if partners is None else "some"
        raise ValueError(f"partners: expected them with cut_mix and only then, got {got} with {augment}")
    if partners is not None and (partners.shape != words.shape or partners.dtype != np.int32):
        raise ValueError(f"partners: expected int32 {words.shape} like words, got {partners.dtype} {partners.shape}")
    return checked


def _check_index(seed: int, epoch: int, index: Index) -> npt.NDArray[np.int64]:
    index = np.asarray(index)
    if index.ndim != 1 or index.dtype.kind not in "iu":
        raise ValueError(f"index: expected whole numbers (B,), got {index.dtype} {index.shape}")
    check_sample(seed, epoch, int(index.min(initial=0)))
    return np.ascontiguousarray(index, np.int64)
