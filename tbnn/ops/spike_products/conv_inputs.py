# pyright: reportCallIssue=false
"""The gradient of a convolution's inputs from tables of sums (see :mod:`tbnn.ops.spike_products.tables`), 16 frames at a time.

For every window the tables hold the sums of four outputs' dy; a run of taps and their channels looks up what it adds to
pixels that lie side by side. So the tables of a window serve all of its taps, and nothing is unfolded.
"""

import numpy as np
from numba import prange

from tbnn.ops.kernels import device_function, kernel
from tbnn.ops.spike_products.conv_weights import LINE
from tbnn.ops.spike_products.tables import (
    LANES,
    ROWS,
    TABLE_REALS,
    TOGETHER,
    build_tables,
    look_up,
    look_up_16,
    look_up_32,
)
from tbnn.ops.spike_products.turn import add_vector, turn_16, vectors

BAND = 32  # windows turned together, at least


@device_function
def _turn_band(dy, m0, first, count, tile):  # pyright: ignore
    """tile (windows, rows, 16) = dy (M, n, OH·OW) of 16 frames, windows first ... first + count − 1; count >= 16."""
    frame, rows = dy.strides[0], tile.shape[1]
    for n in range(dy.shape[1]):
        for block in range(0, count, LANES):
            p0 = min(block, count - LANES)
            turn_16(dy[m0, n].ctypes.data + 4 * (first + p0), frame, tile[p0, n].ctypes.data, rows * LINE)


@device_function
def _scale_rows(tile, scale, rest, total):  # pyright: ignore
    """Σ rest·row to total (16), then each row of the tile (rows, 16) times its scale."""
    for lane in range(LANES):
        total[lane] = 0
    for n in range(scale.size):
        row, factor = tile[n], scale[n]
        if rest.size > 0:
            add_vector(row.ctypes.data, rest[n], total.ctypes.data)
        for lane in range(LANES):
            row[lane] *= factor


@device_function
def _look_up_window(tables, height, columns, factors, k, first, shape, channels, y, x, sums):  # pyright: ignore
    """Add what the window at y, x (of the frame) hands to the pixels under it; ``first``: the group's columns."""
    together = shape.taps_x if shape.dilation_x == 1 else 1  # taps whose pixels lie side by side
    for i in range(shape.taps_y):
        row = y + i * shape.dilation_y
        if row < 0 or row >= shape.height:
            continue
        for j in range(0, shape.taps_x, together):
            at = x + j * shape.dilation_x
            lo, hi = max(0, -at), min(together, shape.width - at)
            if hi <= lo:
                continue
            column, count = first + ((i * shape.taps_x) + j + lo) * channels, (hi - lo) * channels
            out = sums.ctypes.data + (row * shape.width + at + lo) * channels * LINE
            for p in range(columns.shape[0]):
                words = columns[p, k].ctypes.data + 8 * column
                if height == 16:
                    look_up_16(words, count, tables.ctypes.data, factors[p], out)
                elif height == 32:
                    look_up_32(words, count, tables.ctypes.data, factors[p], out)
                else:
                    look_up(words, count, tables.ctypes.data, factors[p], out)


@device_function
def _add_rest(total, shape, y, x, more):  # pyright: ignore
    """Add a window's ``total`` (16) to the pixels under it, more (H·W, 16)."""
    for i in range(shape.taps_y):
        row = y + i * shape.dilation_y
        for j in range(shape.taps_x):
            at = x + j * shape.dilation_x
            if 0 <= row < shape.height and 0 <= at < shape.width:
                add_vector(total.ctypes.data, np.float32(1), more[row * shape.width + at].ctypes.data)


@kernel
def conv_inputs_cpu(dy, columns, factors, scale, rest, shape, out):  # pyright: ignore
    """out (M, C, H·W) = the gradient of the inputs: dy (M, N, OH·OW) float32, M, OH·OW and H·W >= 16.

    The weight of output n and a column is ``scale[n]·Σ_p factor_p·(±1)_p + rest[n]``: columns (P, ⌈n/64⌉, groups·kh·kw·c),
    n = N/groups, c = C/groups, of uint64: bit n % 64 of word n // 64; factors (P,), scale and rest (N,), an empty one for none.
    """
    frames, per_group, channels = dy.shape[0], dy.shape[1] // shape.groups, shape.channels // shape.groups
    pixels = shape.height * shape.width
    band = min(shape.rows, (BAND + shape.columns - 1) // shape.columns)
    rows = columns.shape[1] * ROWS
    for task in prange((frames + LANES - 1) // LANES):
        m0 = min(task * LANES, frames - LANES)
        tile = vectors(band * shape.columns * rows).reshape(band * shape.columns, rows, LANES)
        tables, total = vectors(TABLE_REALS // LANES), vectors(1)[0]
        sums, more = vectors(pixels * channels), vectors(pixels)
        for g in range(shape.groups):
            sums[:] = 0
            more[:] = 0
            here = slice(g * per_group, (g + 1) * per_group)
            scales, rests = scale[here], rest[here] if rest.size > 0 else rest
            for first in range(0, shape.rows, band):
                top = min(first, shape.rows - band)
                _turn_band(dy[:, here], m0, top * shape.columns, band * shape.columns, tile)
                for w in range((first - top) * shape.columns, band * shape.columns):
                    y = (top + w // shape.columns) * shape.stride_y - shape.above
                    x = w % shape.columns * shape.stride_x - shape.left
                    _scale_rows(tile[w], scales, rests, total)
                    if rest.size > 0:
                        _add_rest(total, shape, y, x, more)
                    for k in range(columns.shape[1]):
                        height = min(ROWS, per_group - k * ROWS)
                        height = 16 if height <= 16 else 32 if height <= 32 else ROWS
                        build_tables(tile[w, k * ROWS].ctypes.data, tables.ctypes.data, height // TOGETHER, 1)
                        _look_up_window(
                            tables, height, columns, factors, k, g * shape.taps_y * shape.taps_x * channels, shape,
                            channels, y, x, sums,
                        )  # fmt: skip
            for p in range(pixels if rest.size > 0 else 0):
                for c in range(channels):
                    add_vector(more[p].ctypes.data, np.float32(1), sums[p * channels + c].ctypes.data)
            for c in range(channels):
                for block in range(0, pixels, LANES):
                    p0 = min(block, pixels - LANES)
                    turn_16(
                        sums[p0 * channels + c].ctypes.data, channels * LINE,
                        out[m0, g * channels + c].ctypes.data + 4 * p0, out.strides[0],
                    )  # fmt: skip
