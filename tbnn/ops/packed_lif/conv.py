# pyright: reportCallIssue=false
"""A packed convolution and its neurons in one pass: a band of rows goes through all steps before the next one.

The products of a band, its membranes and its weights stay in L2; only packed bits go in and out.
"""

import numpy as np
from numba import prange

from tbnn.bits import WORD_BITS
from tbnn.ops.binary_conv.cpu import convolve, scratch_for
from tbnn.ops.kernels import device_function, kernel
from tbnn.ops.lif.cpu import membrane_row
from tbnn.ops.packed_lif.cpu import TILE, pack_row

BAND = 512  # pixels of a channel, at least


def band_of(rows: int, width: int) -> int:
    """Rows of a band whose pixels fill whole words in every channel; 0 where a frame's do not."""
    if rows * width % WORD_BITS:
        return 0
    fitting = (n for n in range(1, rows) if n * width >= BAND and n * width % WORD_BITS == 0)
    return next(fitting, rows)


@device_function
def _channel_current(product, ones, scale, offset, bias, n, groups, lo, out):  # pyright: ignore
    """The currents of a channel's pixels lo … lo + out.size of a band."""
    p, factor = product[n, lo : lo + out.size], scale[n]
    for i in range(out.size):
        out[i] = np.float32(p[i]) * factor
    if offset.size > 0:
        spikes, addend = ones[n * groups // scale.size, lo : lo + out.size], offset[n]
        for i in range(out.size):
            out[i] += np.float32(spikes[i]) * addend
    if bias.size > 0:
        constant = bias[n]
        for i in range(out.size):
            out[i] += constant


@kernel
def packed_conv_scan(frames, weights, scale, offset, bias, neurons, v, words, met):  # pyright: ignore
    """Packed frames (T, B, ...) uint64 through a ``ConvKernel`` and plain neurons: v (B, N) in place, words (T, B, ...) filled.

    scale, offset and bias are (C,), the latter two (0,) for none. met (B, bands, 2) int64: the sums of what :func:`convolve`
    returns and of the windows' spikes.
    """
    steps, batch, _ = words.shape
    rows, width, band = weights.rows, weights.width, weights.band
    bands, channels, pixels = (rows + band - 1) // band, scale.size, rows * width
    for task in prange(batch * bands):
        b, first = task // bands, task % bands * band
        size = min(band, rows - first) * width
        scratch = scratch_for(weights)
        product, ones = np.empty((channels, size), np.int32), np.empty((weights.groups, size), np.int32)
        current, after = np.empty(TILE, np.float32), np.zeros(TILE, np.float32)
        kept, spikes = np.int64(0), np.int64(0)
        for t in range(steps):
            kept += convolve(frames[t], b, weights, first, size // width, scratch, product, ones)
            for g in range(weights.groups):
                for i in range(size):
                    spikes += ones[g, i]
            for n in range(channels):
                for start in range(0, size, TILE):
                    lo, count = n * pixels + first * width + start, min(TILE, size - start)
                    row, before, v_new = current[:count], v[b, lo : lo + count], after[:count]
                    _channel_current(product, ones, scale, offset, bias, n, weights.groups, start, row)
                    beta, theta = neurons.beta[lo * neurons.own_beta :], neurons.threshold[lo * neurons.own_threshold :]
                    membrane_row(before, row, beta[:count], theta[:count], neurons.reset, v_new)
                    before[:] = v_new
                    pack_row(after, theta, count, words[t, b, lo // WORD_BITS :])
        met[b, first // band, 0], met[b, first // band, 1] = kept, spikes
