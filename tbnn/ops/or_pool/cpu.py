# pyright: reportCallIssue=false
"""Max-pooling of packed frames on the CPU: 64-bit pieces of rows are ORed, then the bits at the stride are picked."""

import numpy as np
from numba import prange

from tbnn.ops.kernels import device_function, kernel
from tbnn.ops.patches.cpu import piece_of

MOST = 32  # windows served by one piece: what is left of a word and one more piece fit 64 bits


@device_function
def every_second(v):  # pyright: ignore
    """Bits 0, 2, 4, ... of v next to each other."""
    v &= np.uint64(0x5555555555555555)
    v = (v | (v >> np.uint64(1))) & np.uint64(0x3333333333333333)
    v = (v | (v >> np.uint64(2))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    v = (v | (v >> np.uint64(4))) & np.uint64(0x00FF00FF00FF00FF)
    v = (v | (v >> np.uint64(8))) & np.uint64(0x0000FFFF0000FFFF)
    return (v | (v >> np.uint64(16))) & np.uint64(0x00000000FFFFFFFF)


@device_function
def _pick(v, step, count):  # pyright: ignore
    """Bits 0, step, 2·step, ... of v, ``count`` <= 32 of them, next to each other."""
    while step % 2 == 0:
        v = every_second(v)
        step //= 2
    if step > 1:
        spread, v = v, np.uint64(0)
        for i in range(count):
            v |= ((spread >> np.uint64(i * step)) & np.uint64(1)) << np.uint64(i)
    return v & ((np.uint64(1) << np.uint64(count)) - np.uint64(1))


@device_function
def _any_of_run(words, m, channel, size, y, x, rows, row_step, taps, step):  # pyright: ignore
    """Bit b: whether a bit is set in columns x+b, x+b+step, ... (``taps`` of them) of rows y, y+row_step, ..."""
    height, width = size[1], size[2]
    v = np.uint64(0)
    for i in range(rows):
        row = y + i * row_step
        if 0 <= row < height:
            v |= piece_of(words, m, (channel * height + row) * width, width, x)
    done = 1
    while done < taps and v != 0:
        more = min(done, taps - done)
        v |= v >> np.uint64(more * step)
        done += more
    return v


@kernel
def or_pool2d_cpu(words, size, window, stride, dilation, before, count, lanes, runs, out):  # pyright: ignore
    """Fill out (M, ...) uint32 from words (M, ...) uint64 of frames ``size`` = (C, H, W); runs (R, 2): first tap, taps."""
    for m in prange(words.shape[0]):
        full, fill, place = np.uint64(0), 0, 0  # bits that wait for a whole word, their number, the next word
        for c in range(size[0]):
            for i in range(count[0]):
                y = i * stride[0] - before[0]
                for first in range(0, count[1], lanes):
                    used = min(lanes, count[1] - first)
                    v = np.uint64(0)
                    for run in range(runs.shape[0]):
                        x = first * stride[1] - before[1] + runs[run, 0] * dilation[1]
                        v |= _any_of_run(words, m, c, size, y, x, window[0], dilation[0], runs[run, 1], dilation[1])
                    if v != 0:
                        full |= _pick(v, stride[1], used) << np.uint64(fill)
                    fill += used
                    if fill >= 32:
                        out[m, place] = np.uint32(full)
                        full >>= np.uint64(32)
                        fill, place = fill - 32, place + 1
        if fill > 0:
            out[m, place] = np.uint32(full)
