"""The definition of a packed sample's variation, on unpacked frames; :func:`tbnn.data.augment.augment_words` is equal bit for bit."""

import numpy as np
import numpy.typing as npt

from tbnn.bits import pack_bits_numpy, unpack_bits_numpy
from tbnn.data.augment import streams
from tbnn.data.augment.spec import Augment
from tbnn.data.augment.streams import below, fold, sample_key, unit
from tbnn.data.augment.words import Augmented, Index, Words, check_batch

Frames = npt.NDArray[np.uint8]  # (T, C, H, W)


def augment_reference(
    words: Words,
    sensor: tuple[int, int, int],
    augment: Augment,
    seed: int,
    epoch: int,
    index: Index,
    partners: Words | None = None,
) -> Augmented:
    """:func:`tbnn.data.augment.augment_words`, sample after sample and operation after operation."""
    checked = check_batch(words, sensor, augment, seed, epoch, index, partners)
    bits = int(np.prod(sensor))
    out, mix = np.empty_like(words), np.ones(len(words), np.float32)
    for b, number in enumerate(checked.tolist()):
        key = sample_key(seed, epoch, number)
        frames = _varied(unpack_bits_numpy(words[b], bits).reshape(-1, *sensor), augment, key)
        if partners is not None and unit(fold(key, streams.CUT_MIX), 0) < augment.cut_mix:
            other = unpack_bits_numpy(partners[b], bits).reshape(-1, *sensor)
            other = _varied(other, augment, fold(key, streams.PARTNER_SAMPLE))
            box = _box(frames.shape, fold(key, streams.BOX))
            own = int(frames.sum()) - int(frames[box].sum())
            pasted = int(other[box].sum())
            frames[box] = other[box]
            if own + pasted:
                mix[b] = own / (own + pasted)
        out[b] = pack_bits_numpy(frames.reshape(len(frames), bits))
    return Augmented(out, mix)


def _varied(frames: Frames, augment: Augment, key: int) -> Frames:
    """All operations but cut_mix, in the order of :class:`Augment`."""
    frames = frames.copy()
    _drop(frames, augment.drop, fold(key, streams.DROP))
    _drop_time(frames, augment.drop_time, fold(key, streams.DROP_TIME))
    _drop_area(frames, augment.drop_area, fold(key, streams.DROP_AREA))
    frames = _crop(frames, augment.crop, fold(key, streams.CROP))
    frames = _move_in_time(frames, augment, fold(key, streams.TIME_JITTER), fold(key, streams.TIME_SHIFT))
    if augment.flip and below(fold(key, streams.FLIP), 0, 2):
        frames = frames[..., ::-1]
    frames = _shift(frames, augment.shift, fold(key, streams.SHIFT))
    if augment.polarity_flip and below(fold(key, streams.POLARITY_FLIP), 0, 2):
        steps, channels, height, width = frames.shape
        frames = frames.reshape(steps, channels // 2, 2, height, width)[:, :, ::-1].reshape(frames.shape)
    return frames


def _drop(frames: Frames, share: float, key: int) -> None:
    flat = frames.reshape(-1)
    for n in np.flatnonzero(flat).tolist():
        if unit(key, n) < share:
            flat[n] = 0


def _drop_time(frames: Frames, share: float, key: int) -> None:
    length = below(key, 0, int(share * len(frames)) + 1)
    start = below(key, 1, len(frames) - length + 1)
    frames[start : start + length] = 0


def _drop_area(frames: Frames, share: float, key: int) -> None:
    height, width = frames.shape[2:]
    pixels = below(key, 0, int(share * (height * width)) + 1)
    if pixels == 0:
        return
    least = -(-pixels // width)
    rows = least + below(key, 1, min(height, pixels) - least + 1)
    columns = pixels // rows
    y, x = below(key, 2, height - rows + 1), below(key, 3, width - columns + 1)
    frames[:, :, y : y + rows, x : x + columns] = 0


def _crop(frames: Frames, most: int, key: int) -> Frames:
    window = [slice(None), slice(None)]
    for n, size in enumerate(frames.shape[2:]):
        margin = below(key, 2 * n, most + 1) if size > 1 else 0
        start = below(key, 2 * n + 1, margin + 1)
        window.append(slice(start, start + size - margin))
    kept = np.zeros_like(frames)
    kept[tuple(window)] = frames[tuple(window)]
    return kept


def _move_in_time(frames: Frames, augment: Augment, jitter_key: int, shift_key: int) -> Frames:
    steps = len(frames)
    if steps == 1:
        return frames
    shift = below(shift_key, 0, 2 * augment.time_shift + 1) - augment.time_shift
    moved = np.zeros_like(frames)
    for n in np.flatnonzero(frames).tolist():
        k, place = divmod(n, frames[0].size)
        k += below(jitter_key, n, 2 * augment.time_jitter + 1) - augment.time_jitter + shift
        if 0 <= k < steps:
            moved[k].reshape(-1)[place] = 1
    return moved


def _shift(frames: Frames, most: int, key: int) -> Frames:
    for n, axis in enumerate((2, 3)):
        if frames.shape[axis] > 1:
            move = below(key, n, 2 * most + 1) - most
            frames = np.roll(frames, move, axis)
            lost = slice(0, move) if move >= 0 else slice(move, None)
            np.moveaxis(frames, axis, 0)[lost] = 0
    return frames


def _box(shape: tuple[int, ...], key: int) -> tuple[slice, slice, slice, slice]:
    """The box over all channels of frames (T, C, H, W); the largest of three uniform numbers is the cube root of one."""
    share = max(unit(key, n) for n in range(3))
    sides = []
    for n, size in zip((3, 5, 7), (shape[0], shape[2], shape[3]), strict=True):
        length = min(size, max(1, int(share * size + unit(key, n))))
        start = below(key, n + 1, size - length + 1)
        sides.append(slice(start, start + length))
    return sides[0], slice(None), sides[1], sides[2]
