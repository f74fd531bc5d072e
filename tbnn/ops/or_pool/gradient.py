# pyright: reportCallIssue=false
"""The gradient of max-pooling packed frames on the CPU: shared among a window's spikes, or among all of a silent one."""

import numpy as np
from numba import prange

from tbnn.ops.kernels import device_function, kernel
from tbnn.ops.or_pool.cpu import every_second
from tbnn.ops.patches.cpu import piece_of

PIECE = 64


@device_function
def _unpack_row(words, m, start, width, row):  # pyright: ignore
    """row (width,) float = the bits from ``start`` of frame m."""
    one = np.uint64(1)
    for x0 in range(0, width, PIECE):
        piece, part = piece_of(words, m, start, width, x0), row[x0 : min(x0 + PIECE, width)]
        for x in range(part.size):
            part[x] = (piece >> np.uint64(x)) & one


@device_function
def _pairs(above, below, dy, dx_above, dx_below):  # pyright: ignore
    """Windows of 2x2, side by side: 2n bits of two rows, dy (n,), two rows of dx (2n,) filled."""
    one, zero = np.uint32(1), dy.dtype.type(0)
    a, b = every_second(above), every_second(above >> np.uint64(1))
    c, d = every_second(below), every_second(below >> np.uint64(1))
    silent = ~(a | b | c | d)
    a, b, c, d = np.uint32(a | silent), np.uint32(b | silent), np.uint32(c | silent), np.uint32(d | silent)
    for j in range(dy.size):
        at = np.uint32(j)
        p, q, r, s = (a >> at) & one, (b >> at) & one, (c >> at) & one, (d >> at) & one
        share = dy[j] / dy.dtype.type(np.int32(p + q + r + s))
        dx_above[2 * j] = share if p else zero
        dx_above[2 * j + 1] = share if q else zero
        dx_below[2 * j] = share if r else zero
        dx_below[2 * j + 1] = share if s else zero


@device_function
def _quarters(words, m, shape, c, dy, dx):  # pyright: ignore
    """dx (H, W) of channel c, filled, under windows of 2x2 side by side, from dy (OH, OW)."""
    _, height, width = shape
    rows, columns = dy.shape
    for i in range(rows):
        y = (c * height + 2 * i) * width
        for j in range(0, columns, PIECE // 2):
            x, end = 2 * j, min(j + PIECE // 2, columns)
            above, below = piece_of(words, m, y, width, x), piece_of(words, m, y + width, width, x)
            _pairs(above, below, dy[i, j:end], dx[2 * i, x : 2 * end], dx[2 * i + 1, x : 2 * end])
        dx[2 * i : 2 * i + 2, 2 * columns :] = 0
    dx[2 * rows :] = 0


@device_function
def _add_window(bits, top, bottom, left, right, step, share_of, dx):  # pyright: ignore
    """Add a window's gradient ``share_of`` to dx: rows top, top + step[0], … below bottom, columns likewise."""
    count = taps = 0
    for y in range(top, bottom, step[0]):
        for x in range(left, right, step[1]):
            count += bits[y, x] != 0
            taps += 1
    if taps == 0:
        return
    share = share_of / dx.dtype.type(count if count else taps)
    for y in range(top, bottom, step[0]):
        for x in range(left, right, step[1]):
            if count == 0 or bits[y, x] != 0:
                dx[y, x] += share


@kernel
def or_pool2d_backward_cpu(words, size, window, stride, dilation, before, dy, dx):  # pyright: ignore
    """Fill dx (M, C, H, W) from dy (M, C, OH, OW) and the frames' words (M, ...) uint64, ``size`` = (C, H, W)."""
    channels, height, width = size
    rows, columns = dy.shape[2], dy.shape[3]
    halved = window[0] == 2 and window[1] == 2 and stride[0] == 2 and stride[1] == 2
    side_by_side = halved and before[0] == 0 and before[1] == 0 and dilation[0] == 1 and dilation[1] == 1
    inside = 2 * rows <= height and 2 * columns <= width
    for m in prange(words.shape[0]):
        bits = np.empty((height, width), dx.dtype)
        for c in range(channels):
            g, out = dy[m, c], dx[m, c]
            if side_by_side and inside:
                _quarters(words, m, size, c, g, out)
                continue
            for y in range(height):
                _unpack_row(words, m, (c * height + y) * width, width, bits[y])
            out[:] = 0
            for i in range(rows):
                top = i * stride[0] - before[0]
                bottom = min(top + (window[0] - 1) * dilation[0] + 1, height)
                top = top if top >= 0 else top + (dilation[0] - 1 - top) // dilation[0] * dilation[0]
                for j in range(columns):
                    left = j * stride[1] - before[1]
                    right = min(left + (window[1] - 1) * dilation[1] + 1, width)
                    left = left if left >= 0 else left + (dilation[1] - 1 - left) // dilation[1] * dilation[1]
                    _add_window(bits, top, bottom, left, right, dilation, g[i, j], out)
