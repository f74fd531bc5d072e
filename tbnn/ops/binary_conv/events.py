# pyright: reportCallIssue=false
"""The binary convolution where few inputs spike: each adds its weights to the windows that see it, all outputs side by side.

A tile holds 16-bit sums, the outputs of a group together, for every place where a window may lie, with margins: so every
spike adds all of its taps, those of a row at once, and only what lies under a window leaves the tile.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from tbnn.ops.binary_linear.cpu import popcount64
from tbnn.ops.binary_linear.vectors import INDEX, WORD, address, number
from tbnn.ops.kernels import device_function, kernel

LANES = 16  # outputs of a vector
LINE = 2 * LANES  # its bytes

_SHORTS = ir.VectorType(ir.IntType(16), LANES)


class EventKernel(NamedTuple):
    """Weights and geometry as the kernel sees them."""

    weights: npt.NDArray[np.int16]
    """(groups, C/groups, kh, kw, N/groups), the last tap of a row first and the outputs filled up to whole vectors by 0."""
    bits: npt.NDArray[np.int32]
    """(C·H·W,): how many weight bits a spike there meets."""
    height: int
    width: int
    rows: int
    """Of windows, OH; ``columns``: of a row, OW."""
    columns: int
    stride_y: int
    stride_x: int
    dilation_y: int
    dilation_x: int
    above: int
    left: int


@intrinsic
def add_shorts(_context, _from, _count, _to):  # pyright: ignore
    """``count`` > 0 vectors of 16 int16 at ``to`` += those at ``from``, both addresses."""

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        b, (source, count, target) = builder, arguments
        before, loop, done = b.block, b.append_basic_block("vector"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        i = b.phi(WORD)
        place = b.mul(i, number(LINE))
        there = address(b, target, place, _SHORTS)
        b.store(b.add(b.load(there, align=2), b.load(address(b, source, place, _SHORTS), align=2)), there, align=2)
        following = b.add(i, number(1))
        i.add_incoming(number(0), before)
        i.add_incoming(following, loop)
        b.cbranch(b.icmp_signed("<", following, count), loop, done)
        b.position_at_end(done)
        return context.get_dummy_value()

    return types.void(types.uintp, types.intp, types.uintp), codegen


@intrinsic
def turn_shorts(_context, _source, _places, _target):  # pyright: ignore
    """A square of 16 by 16 int16 at ``target`` = the columns of the 16 rows that lie ``places`` (int64, bytes) after ``source``."""

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        b, (source, places, target) = builder, arguments
        rows = []
        for i in range(LANES):
            place = b.load(address(b, places, number(8 * i), WORD), align=8)
            rows.append(b.load(address(b, source, place, _SHORTS), align=2))
        size = LANES // 2
        while size:  # exchange the squares of this size beside the diagonal
            for i in [i for i in range(LANES) if not i & size]:
                one, other = rows[i], rows[i + size]
                upper = [k if not k & size else LANES + k - size for k in range(LANES)]
                lower = [k + size if not k & size else LANES + k for k in range(LANES)]
                for row, lanes in ((i, upper), (i + size, lower)):
                    order = ir.Constant(ir.VectorType(INDEX, LANES), lanes)
                    rows[row] = b.shuffle_vector(one, other, order)
            size //= 2
        for i, row in enumerate(rows):
            b.store(row, address(b, target, number(LINE * i), _SHORTS), align=2)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.uintp), codegen


@device_function
def _add_spike(tile, spot, weights, across, dilation_y, dilation_x):  # pyright: ignore
    """Add a channel's weights (kh, kw, lanes) to the tile, whose address is given, for a spike at ``spot`` of it."""
    taps_y, taps_x, lanes = weights.shape
    vectors = lanes // LANES
    for i in range(taps_y):
        place = tile + (spot + (taps_y - 1 - i) * dilation_y * across) * lanes * 2
        here = weights[i].ctypes.data
        if dilation_x == 1:
            add_shorts(here, taps_x * vectors, place)
            continue
        for j in range(taps_x):
            add_shorts(here + j * lanes * 2, vectors, place + j * dilation_x * lanes * 2)


@device_function
def _add_spikes(row, first, event, g, across, tile, counts):  # pyright: ignore
    """Add a group's spikes to the tile and to counts (H·W) over its channels; ``first``: its first bit. The bits they met."""
    weights, pixels, met = event.weights[g], event.height * event.width, np.int64(0)
    for c in range(weights.shape[0]):
        start = first + c * pixels
        for k in range(start >> 6, (start + pixels + 63) >> 6):
            word, lo = row[k], 64 * k - start
            if lo < 0:
                word &= ~np.uint64(0) << np.uint64(-lo)
            if lo + 64 > pixels:
                word &= ~np.uint64(0) >> np.uint64(lo + 64 - pixels)
            while word:
                p = lo + np.int64(popcount64(~word & (word - np.uint64(1))))
                word &= word - np.uint64(1)
                y = np.uint32(p) // np.uint32(event.width)
                spot = np.int64(y) * (across - event.width) + p
                counts[p] += 1
                met += event.bits[start + p]
                _add_spike(tile.ctypes.data, spot, weights[c], across, event.dilation_y, event.dilation_x)
    return met


@device_function
def _write_totals(counts, event, taps_y, taps_x, sums, totals):  # pyright: ignore
    """totals (OH·OW) = the counts (H·W) under each window; sums (W,) is overwritten."""
    for oy in range(event.rows):
        sums[:] = 0
        for i in range(taps_y):
            y = oy * event.stride_y + i * event.dilation_y - event.above
            if 0 <= y < event.height:
                row = counts[y * event.width : (y + 1) * event.width]
                for x in range(event.width):
                    sums[x] += row[x]
        for ox in range(event.columns):
            total = np.int32(0)
            for j in range(taps_x):
                x = ox * event.stride_x + j * event.dilation_x - event.left
                if 0 <= x < event.width:
                    total += sums[x]
            totals[oy * event.columns + ox] = total


@device_function
def _write_sums(tile, spots, square, out):  # pyright: ignore
    """out (n, OH·OW) = what lies at the windows' spots (bytes) in the tile (places, lanes)."""
    outputs, windows = out.shape
    for strip in range(0, outputs, LANES):
        used = min(LANES, outputs - strip)
        for block in range(0, windows, LANES):
            p0 = min(block, max(windows - LANES, 0))
            turn_shorts(tile.ctypes.data + 2 * strip, spots.ctypes.data + 8 * p0, square.ctypes.data)
            for n in range(used):
                there, here = out[strip + n, p0 : p0 + LANES], square[n]
                for lane in range(there.size):
                    there[lane] = here[lane]


@device_function
def _spots_of(event, across, down, lanes):  # pyright: ignore
    """Where in the tile (bytes) each window lies; those that see nothing of the frame look at the zeros behind it."""
    taps_y, taps_x = event.weights.shape[2], event.weights.shape[3]
    spots = np.zeros(event.rows * event.columns + LANES, np.int64)
    for p in range(event.rows * event.columns):
        y = p // event.columns * event.stride_y + (taps_y - 1) * event.dilation_y - event.above
        x = p % event.columns * event.stride_x + (taps_x - 1) * event.dilation_x - event.left
        inside = 0 <= y < down and 0 <= x < across
        spots[p] = (y * across + x if inside else down * across) * lanes * 2
    return spots


@kernel
def conv2d_events_cpu(words, event, together, out, totals, met):  # pyright: ignore
    """:func:`tbnn.ops.binary_conv.cpu.binary_conv2d_cpu` spike by spike: out, totals int32 or int16; met (M,) int64.

    ``together`` frames are a task.
    """
    groups, channels, taps_y, taps_x, lanes = event.weights.shape
    across = event.width + (taps_x - 1) * event.dilation_x
    down = event.height + (taps_y - 1) * event.dilation_y
    pixels, per_group, frames = event.height * event.width, out.shape[1] // groups, out.shape[0]
    for task in prange((frames + together - 1) // together):
        spots = _spots_of(event, across, down, lanes)
        tile, square = np.empty((down * across + 1, lanes), np.int16), np.empty((LANES, LANES), np.int16)
        counts, sums = np.empty(pixels, np.int32), np.empty(event.width, np.int32)
        for m in range(task * together, min((task + 1) * together, frames)):
            met[m] = 0
            for g in range(groups):
                tile[:] = 0
                counts[:] = 0
                met[m] += _add_spikes(words[m], g * channels * pixels, event, g, across, tile, counts)
                _write_totals(counts, event, taps_y, taps_x, sums, totals[m, g])
                _write_sums(tile, spots, square, out[m, g * per_group : (g + 1) * per_group])
