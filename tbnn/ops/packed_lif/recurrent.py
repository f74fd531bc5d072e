# pyright: reportCallIssue=false
"""Packed neurons whose spikes return one step later: every step of a sample in one call.

The feedback is the event-driven product of :mod:`tbnn.ops.binary_linear.events`: a single row at a time is where popcounts
over all weights lose to it whatever the density.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from numba import prange

from tbnn.bits import WORD_BITS
from tbnn.ops.binary_linear.cpu import popcount64
from tbnn.ops.binary_linear.events import PLACES, WeightColumns, count_rows
from tbnn.ops.kernels import kernel
from tbnn.ops.lif.cpu import membrane_row
from tbnn.ops.packed_lif.cpu import GROUP, TILE, Drive, Floats, Ints, current_row, pack_row


class Feedback(NamedTuple):
    """The weights through which spikes return, laid out for :func:`packed_recurrent`."""

    columns: npt.NDArray[np.uint64]
    """(planes, strips, inputs + 1, words): see :class:`tbnn.ops.binary_linear.WeightColumns`."""
    totals: Ints
    """(planes, N)"""
    factors: Ints
    """(planes,): the product is ``Σ_j factors_j·popcount(s ∧ P_j) + constant·popcount(s)``."""
    constant: int
    scale: Floats
    offset: Floats
    bias: Floats
    places: npt.NDArray[np.uint8]


def feedback_of(
    columns: list[WeightColumns], factors: tuple[int, ...], constant: int, scale: Floats, offset: Floats, bias: Floats
) -> Feedback:
    """Bit planes of one block as a :class:`Feedback`; scale (N,), offset and bias (N,) or (0,)."""
    # torch's memory begins at a cache line; a column across two would be read twice.
    words = torch.empty((len(columns), *columns[0].words.shape), dtype=torch.int64).numpy().view(np.uint64)
    for plane, turned in enumerate(columns):
        words[plane] = turned.words
    totals = np.stack([turned.totals for turned in columns])
    return Feedback(words, totals, np.array(factors, np.int32), constant, scale, offset, bias, PLACES)


@kernel
def packed_recurrent(drive, neurons, feedback, v, last, watched, seen, words):  # pyright: ignore
    """As :func:`tbnn.ops.packed_lif.cpu.packed_scan`, the feedback's currents added; ``last`` (B, W) int32: spikes before."""
    steps, batch, width = words.shape
    features = v.shape[1]
    groups = (features + GROUP - 1) // GROUP
    tiles = (features + TILE - 1) // TILE
    for b in prange(batch):
        spikes = np.zeros((1, 2 * groups), np.uint32)
        for j in range(width):
            spikes[0, j] = np.uint32(last[b, j])
        wide = spikes.view(np.uint64)
        ones, shift = np.empty((1, 1), np.int32), np.empty(1, np.int32)
        product = np.empty((1, 1, features), np.int32)
        current, added, before = (
            np.empty(TILE, np.float32),
            np.empty((1, 1, TILE), np.float32),
            np.empty(TILE, np.float32),
        )
        after = np.zeros(TILE, np.float32)
        returned = Drive(
            product, ones.reshape(1, 1, 1), feedback.scale, feedback.offset, feedback.bias, added[:0, :0, :0]
        )
        for t in range(steps):
            count = np.int32(0)
            for k in range(groups):
                count += np.int32(popcount64(wide[0, k]))
            ones[0, 0] = count
            shift[0] = np.int32(feedback.constant) * count
            for plane in range(feedback.factors.size):
                count_rows(
                    wide, ones[0], feedback.columns[plane], feedback.totals[plane], feedback.places, 0, 1,
                    feedback.factors[plane], shift, plane > 0, product[0],
                )  # fmt: skip
                shift[0] = 0
            k0 = 0
            for tile in range(tiles):
                lo = tile * TILE
                size = min(TILE, features - lo)
                row, more = current[:size], added[0, 0, :size]
                current_row(returned, 0, 0, lo, row)
                current_row(drive, t, b, lo, more)
                for i in range(size):
                    row[i] += more[i]
                beta, theta = neurons.beta[lo * neurons.own_beta :], neurons.threshold[lo * neurons.own_threshold :]
                before[:size] = v[b, lo : lo + size]
                membrane_row(before[:size], row, beta[:size], theta[:size], neurons.reset, after[:size])
                v[b, lo : lo + size] = after[:size]
                pack_row(after, theta, size, spikes[0, lo // WORD_BITS :])
                while k0 < watched.size and watched[k0] < lo + size:
                    seen[t, b, k0] = after[watched[k0] - lo]
                    k0 += 1
            for j in range(width):
                words[t, b, j] = spikes[0, j]
        for j in range(width):
            last[b, j] = np.int32(spikes[0, j])
