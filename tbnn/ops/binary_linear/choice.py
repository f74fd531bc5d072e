"""Which of the two packed products a call takes: a model of their times, so that equal inputs always go the same way.

The constants are ns on one Zen 4 core at 3.6 GHz, fitted by ``experiments/speed/density.py --fit``, which prints them
for the machine at hand. Only their ratios matter, and both products live on the same vector units.
"""

import bisect
import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tbnn.ops.binary_linear.counters import BLOCK
from tbnn.ops.binary_linear.cpu import FEW_ROWS, binary_counts_cpu
from tbnn.ops.binary_linear.events import WeightColumns, binary_events_cpu, strip_width, weight_columns
from tbnn.ops.binary_linear.tile import STRIP
from tbnn.ops.binary_linear.vectors import LANES
from tbnn.ops.kernels import device_function

Words = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int32]

# Dense: a row's strip of STRIP outputs and each word of it; below FEW_ROWS rows an output and each word of it.
ROW_STRIP, ROW_STRIP_WORD = 5.2, 0.935
OUTPUT, OUTPUT_WORD = 1.9, 0.082
# Events: a row, its words and strips, a vector of a column, listing an input, 64 outputs and each plane of theirs.
ROW, ROW_WORD, ROW_COLUMNS = 65.0, 1.03, 24.0
COLUMN_VECTOR, ACTIVE = 0.65, 0.2
OUTPUTS_64, OUTPUTS_64_PLANE = 6.0, 0.68
TURN_CALL, TURN_WORD = 14000.0, 4.3  # turning weights into columns


class Costs(NamedTuple):
    """Modelled times of the two products, ns on one thread."""

    dense: float
    events: float


def costs(rows: int, words: int, outputs: int, active: float) -> Costs:
    """What both take for spikes (rows, words) of 64 bits, whose rows have ``active`` columns to add in all."""
    if rows < FEW_ROWS:
        dense = rows * outputs * (OUTPUT + OUTPUT_WORD * words)
    else:
        dense = rows * -(-outputs // STRIP) * (ROW_STRIP + ROW_STRIP_WORD * words)
    width = strip_width(outputs)
    strips = -(-outputs // (64 * width))
    mean = active / max(rows, 1)
    padded = mean + min(mean, 0.5 * BLOCK)  # a row's last block is filled up with zeros
    row = ROW + ROW_WORD * words + ACTIVE * mean
    row += strips * (ROW_COLUMNS + COLUMN_VECTOR * padded * (width // LANES))
    row += -(-outputs // 64) * (OUTPUTS_64 + OUTPUTS_64_PLANE * int(mean).bit_length())
    return Costs(dense, rows * row)


@device_function
def active_columns(ones, words):  # pyright: ignore
    """How many columns the event-driven product adds for rows with ``ones`` (M,) spikes: those of the rarer bit."""
    count = 0
    for m in range(ones.shape[0]):
        count += min(np.int64(ones[m]), 64 * words - ones[m])
    return count


@functools.lru_cache(maxsize=4096)
def _most_events(rows: int, words: int, outputs: int, turned: bool) -> tuple[int, Costs]:
    """Up to how many columns to add the event-driven product is the cheaper (−1: never), and what both take at half."""
    turn = 0.0 if turned else TURN_CALL + TURN_WORD * words * outputs

    def dense(active: int) -> bool:
        cost = costs(rows, words, outputs, active)
        return cost.dense <= cost.events + turn

    most = rows * words * 32
    return bisect.bisect_left(range(most + 1), True, key=dense) - 1, costs(rows, words, outputs, most / 2)


def choose(ones: Ints, words: int, outputs: int, *, turned: bool = True) -> str:
    """``"dense"`` or ``"events"``, whichever should take less time.

    Args:
        ones: spikes of each row, int32 (M,).
        words: 64-bit words of a row.
        outputs: N.
        turned: whether the weights' columns are there already.
    """
    rows = len(ones)
    most, _ = _most_events(rows, words, outputs, turned)
    # Where the answer is the same for all spikes they are not counted: that would take longer than one row's product.
    if most < 0 or (most < rows * words * 32 and active_columns(ones, words) > most):
        return "dense"
    return "events"


def binary_product_cpu(
    s: Words, w: Words, columns: WeightColumns | None, ones: Ints, factor: int, shift: Ints, add: bool, out: Ints
) -> str:
    """out (M, N) = factor·popcount(s_m ∧ w_n) + shift_m, plus what was there if ``add``, by the faster product.

    Spike words s (M, K), weight words w (N, K); ``ones`` (M,) is the popcount of s's rows. ``columns`` are w's; without
    them they are made here where that pays. Returns the way it went, as :func:`choose`.
    """
    words, outputs = s.shape[1], w.shape[0]
    _, cost = _most_events(len(ones), words, outputs, columns is not None)
    way = choose(ones, words, outputs, turned=columns is not None)
    if way == "dense":
        binary_counts_cpu(s, w, np.int32(factor), shift, add, out, work=int(cost.dense))
    else:
        there = weight_columns(w) if columns is None else columns
        binary_events_cpu(s, ones, there, factor, shift, add, out, work=int(cost.events))
    return way
