# pyright: reportCallIssue=false
"""The gradient of a convolution's weights where few inputs spike: for each spike and tap the outputs' dy, added in registers.

A frame's dy stands in a tile, 16 outputs side by side, with zeros around it and, for a stride, between its pixels: so every
spike meets every tap, and all spikes of a channel find their dy at one distance for one tap.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from tbnn.ops.binary_linear.cpu import popcount64
from tbnn.ops.binary_linear.vectors import INDEX, WORD, address, number
from tbnn.ops.kernels import device_function, kernel
from tbnn.ops.spike_products.tables import LANES
from tbnn.ops.spike_products.turn import turn_16, vectors

LINE = 4 * LANES  # bytes of a vector

_REALS = ir.VectorType(ir.FloatType(), LANES)


class Shape(NamedTuple):
    """A convolution as the kernels of its gradients see it."""

    channels: int
    """Of a frame; ``height`` and ``width`` its size."""
    height: int
    width: int
    groups: int
    rows: int
    """Of windows, OH; ``columns``: of a row, OW."""
    columns: int
    taps_y: int
    taps_x: int
    stride_y: int
    stride_x: int
    dilation_y: int
    dilation_x: int
    above: int
    """Zeros above the frame; ``left``: left of it."""
    left: int


def add_taps(taps: int) -> Any:
    """An intrinsic (places, count, tile, step, out): for ``taps`` taps the sum of the vectors at ``places`` in the tile.

    All but count and step are addresses: places of uint32, bytes; the tap t looks ``t·step`` bytes further on; out: rows of
    16 float32, added to.
    """

    @intrinsic
    def add(_context, _places, _count, _tile, _step, _out):  # pyright: ignore
        def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            b, (places, count, tile, step, out) = builder, arguments
            bases = [b.add(tile, b.mul(step, number(t))) for t in range(taps)]
            zero = ir.Constant(_REALS, [0.0] * LANES)
            before, loop, done = b.block, b.append_basic_block("spike"), b.append_basic_block("done")
            b.branch(loop)
            b.position_at_end(loop)
            i, sums = b.phi(WORD), [b.phi(_REALS) for _ in bases]
            place = b.zext(b.load(address(b, places, b.mul(i, number(4)), INDEX), align=4), WORD)
            grown = [
                b.fadd(total, b.load(address(b, base, place, _REALS), align=4))
                for total, base in zip(sums, bases, strict=True)
            ]
            following = b.add(i, number(1))
            for phi, start, then in zip(
                (i, *sums), (number(0), *[zero for _ in sums]), (following, *grown), strict=True
            ):
                phi.add_incoming(start, before)
                phi.add_incoming(then, loop)
            b.cbranch(b.icmp_signed("<", following, count), loop, done)
            b.position_at_end(done)
            for t, total in enumerate(grown):
                there = address(b, out, number(LINE * t), _REALS)
                b.store(b.fadd(b.load(there, align=4), total), there, align=4)
            return context.get_dummy_value()

        return types.void(types.uintp, types.intp, types.uintp, types.intp, types.uintp), codegen

    return add


add_1, add_2, add_3, add_5 = (add_taps(taps) for taps in (1, 2, 3, 5))


@device_function
def _add_row(places, count, tile, step, taps, out):  # pyright: ignore
    """A row of taps for ``count`` > 0 spikes."""
    t = 0
    while t < taps:
        here, there, left = tile + t * step, out + LINE * t, taps - t
        if left >= 5:
            add_5(places, count, here, step, there)
            t += 5
        elif left >= 3:
            add_3(places, count, here, step, there)
            t += 3
        elif left == 2:
            add_2(places, count, here, step, there)
            t += 2
        else:
            add_1(places, count, here, step, there)
            t += 1


@device_function
def _list_spikes(row, first, pixels, spots, places):  # pyright: ignore
    """The spots of the bits first ... first + pixels − 1 of a row of words to places; how many."""
    count = 0
    for k in range(first >> 6, (first + pixels + 63) >> 6):
        word, lo = row[k], 64 * k - first
        if lo < 0:
            word &= ~np.uint64(0) << np.uint64(-lo)
        if lo + 64 > pixels:
            word &= ~np.uint64(0) >> np.uint64(lo + 64 - pixels)
        while word:
            places[count] = spots[lo + np.int64(popcount64(~word & (word - np.uint64(1))))]
            count += 1
            word &= word - np.uint64(1)
    return count


@device_function
def _fill_tile(dy, windows, square, tile):  # pyright: ignore
    """tile[windows[p]] = dy[:, p] of at most 16 outputs (n, OH·OW); windows are −1 where a window sees nothing of the frame."""
    outputs, pixels = dy.shape
    if outputs < LANES or pixels < LANES:
        for n in range(outputs):
            for p in range(pixels):
                if windows[p] >= 0:
                    tile[windows[p], n] = dy[n, p]
        return
    for first in range(0, pixels, LANES):
        p0 = min(first, pixels - LANES)
        at = windows[p0]
        if at >= 0 and windows[p0 + LANES - 1] == at + LANES - 1:  # windows lie in the tile in their order
            turn_16(dy.ctypes.data + 4 * p0, 4 * pixels, tile[at].ctypes.data, LINE)
            continue
        turn_16(dy.ctypes.data + 4 * p0, 4 * pixels, square.ctypes.data, LINE)
        for i in range(LANES):
            if windows[p0 + i] >= 0:
                there, here = tile[windows[p0 + i]], square[i]
                for lane in range(LANES):
                    there[lane] = here[lane]


@device_function
def _places_of(shape, across):  # pyright: ignore
    """Where a tile ``across`` wide holds each window, and where (bytes) each pixel of a frame finds its last tap's dy."""
    windows = np.full(shape.rows * shape.columns, -1, np.int64)
    spots = np.empty(shape.height * shape.width, np.uint32)
    down = shape.height + (shape.taps_y - 1) * shape.dilation_y
    for p in range(windows.size):
        y = p // shape.columns * shape.stride_y + (shape.taps_y - 1) * shape.dilation_y - shape.above
        x = p % shape.columns * shape.stride_x + (shape.taps_x - 1) * shape.dilation_x - shape.left
        if 0 <= y < down and 0 <= x < across:
            windows[p] = y * across + x
    for p in range(spots.size):
        spots[p] = np.uint32((p // shape.width * across + p % shape.width) * LINE)
    return windows, spots


@kernel
def conv_events_cpu(dy, words, shape, together, out):  # pyright: ignore
    """out (parts, N, C/groups·kh·kw) = the gradient of the weights, of ``together`` frames each part.

    dy (M, N, OH·OW) float32, words (M, ...) uint64 of frames of a :class:`Shape`.
    """
    per_group, channels = dy.shape[1] // shape.groups, shape.channels // shape.groups
    strips = (per_group + LANES - 1) // LANES
    tasks, pixels = shape.groups * strips, shape.height * shape.width
    across = shape.width + (shape.taps_x - 1) * shape.dilation_x
    down = shape.height + (shape.taps_y - 1) * shape.dilation_y
    for task in prange(out.shape[0] * tasks):
        part, g, strip = task // tasks, task % tasks // strips, task % strips
        n0 = g * per_group + strip * LANES
        n1 = min(n0 + LANES, (g + 1) * per_group)
        windows, spots = _places_of(shape, across)
        places, square = np.empty(pixels, np.uint32), vectors(LANES)
        tile, sums = vectors(down * across), vectors(out.shape[2])
        for m in range(part * together, min((part + 1) * together, dy.shape[0])):
            filled = False
            for c in range(channels):
                count = _list_spikes(words[m], (g * channels + c) * pixels, pixels, spots, places)
                if count == 0:
                    continue
                if not filled:
                    _fill_tile(dy[m, n0:n1], windows, square, tile)
                    filled = True
                for i in range(shape.taps_y):
                    last = (shape.taps_y - 1 - i) * shape.dilation_y * across + (shape.taps_x - 1) * shape.dilation_x
                    _add_row(
                        places.ctypes.data, count, tile.ctypes.data + LINE * last, -LINE * shape.dilation_x,
                        shape.taps_x, sums[(c * shape.taps_y + i) * shape.taps_x].ctypes.data,
                    )  # fmt: skip
        for n in range(n0, n1):
            row = out[part, n]
            for k in range(row.shape[0]):
                row[k] = sums[k, n - n0]
