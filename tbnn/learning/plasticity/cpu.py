# pyright: reportCallIssue=false
"""Pair STDP on the CPU, event by event: the work grows with spikes times the synapses that each of them reaches.

Columns of the weight go to threads in tiles. A post spike adds the tile's part of the pre traces to its row, which lies in
a line; a pre spike adds the post traces to its column, which does not. Where many inputs spike their columns are therefore
summed the other way round, in a scratch of the tile, and turned once.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import prange

from tbnn.ops.kernels import kernel

TILE = 256  # columns of the weight that a thread works on at once; whole words
TURNED_FROM = 0.25  # pre spikes an input from which their columns are summed turned
CAUSAL, BOTH, NEITHER = 0, 1, 2
COINCIDENCES = {"causal": CAUSAL, "both": BOTH, "neither": NEITHER}

Array = npt.NDArray[Any]


@kernel
def _post_events(post, y, decay, nearest, both, seen, starts, events):  # pyright: ignore
    """Post traces and spikes of a sequence, sample by sample.

    ``post`` (T, B, M); ``y`` (B, M), left at its end; ``seen`` (T, B, M): what pre spikes see of it; ``starts`` (T, B):
    how many outputs spike in each step, ``events`` (T, B, M): which, in order.
    """
    steps, batch, outputs = post.shape
    for b in prange(batch):
        for t in range(steps):
            count = 0
            for m in range(outputs):
                trace = y[b, m] * decay
                fired = post[t, b, m] > 0
                after = trace
                if fired:
                    after = post.dtype.type(1) if nearest else trace + post.dtype.type(1)
                    events[t, b, count] = m
                    count += 1
                seen[t, b, m] = after if both else trace
                y[b, m] = after
            starts[t, b] = count


@kernel
def _learn(words, x, seen, counts, events, decay, up, down, nearest, how, low, high, turned, weight, updates):  # pyright: ignore
    """Add a sequence's dW to ``weight`` (M, N), then its bounds; ``updates`` (tiles, 2): potentiations and depressions.

    ``words`` uint32 (T, B, W): pre spikes; ``x`` (B, N): their traces, left at their end; ``seen``, ``counts``,
    ``events``: of :func:`_post_events`.
    """
    steps, batch, _ = words.shape
    outputs, inputs = weight.shape
    zero, one = weight.dtype.type(0), weight.dtype.type(1)
    for tile in prange((inputs + TILE - 1) // TILE):
        lo = tile * TILE
        hi = min(lo + TILE, inputs)
        width = hi - lo
        scratch = np.zeros((width if turned else 1, outputs), weight.dtype)
        rows, columns = np.zeros(outputs, np.bool_), np.zeros(width, np.bool_)
        old = np.empty(width, weight.dtype)
        spiked = np.empty(width, np.int32)
        potentiated, depressed = 0, 0
        for b in range(batch):
            trace = x[b, lo:hi]
            for t in range(steps):
                for n in range(width):
                    trace[n] *= decay
                if how == NEITHER:
                    old[:] = trace
                number = 0
                for k in range(lo // 32, (hi + 31) // 32):
                    word, n = words[t, b, k], 32 * k - lo
                    while word:
                        if word & np.uint32(1):
                            trace[n] = one if nearest else trace[n] + one
                            spiked[number] = n
                            number += 1
                        word >>= np.uint32(1)
                        n += 1
                read = old if how == NEITHER else trace
                if counts[t, b] > 0:
                    active = 0
                    for n in range(width):
                        active += read[n] > zero
                    potentiated += active * counts[t, b]
                for e in range(counts[t, b]):
                    m = events[t, b, e]
                    rows[m] = True
                    row = weight[m, lo:hi]
                    for n in range(width):
                        row[n] += up * read[n]
                if number == 0:
                    continue
                there = seen[t, b]
                remembered = 0
                for m in range(outputs):
                    remembered += there[m] > zero
                if remembered == 0:
                    continue
                depressed += remembered * number
                for j in range(number):
                    n = spiked[j]
                    columns[n] = True
                    if turned:
                        column = scratch[n]
                        for m in range(outputs):
                            column[m] += down * there[m]
                    else:
                        for m in range(outputs):
                            weight[m, lo + n] -= down * there[m]
        number = 0
        for n in range(width):
            if columns[n]:
                spiked[number] = n
                number += 1
        for m in range(outputs):
            row = weight[m, lo:hi]
            if turned or rows[m]:
                for n in range(width):
                    total = row[n] - scratch[n, m] if turned else row[n]
                    row[n] = min(max(total, low), high)
            else:
                for j in range(number):
                    row[spiked[j]] = min(max(row[spiked[j]], low), high)
        updates[tile, 0], updates[tile, 1] = potentiated, depressed


def learn_pairs_cpu(
    weight: Array, words: Array, post: Array, x: Array, y: Array, up: float, down: float, decays: tuple[float, float],
    nearest: bool, coincidence: str, bounds: tuple[float, float],
) -> tuple[int, int]:  # fmt: skip
    """Learn from a sequence in place: weight (M, N), words uint32 (T, B, W), post (T, B, M), traces x (B, N), y (B, M).

    ``up`` and ``down`` are the amplitudes, times a rate. Returns how many potentiations and depressions it made.
    """
    number, how = weight.dtype.type, COINCIDENCES[coincidence]
    steps, batch, outputs = post.shape
    inputs = weight.shape[1]
    seen, counts = np.empty_like(post), np.empty((steps, batch), np.int32)
    events = np.empty((steps, batch, outputs), np.int32)
    _post_events(post, y, number(decays[1]), nearest, how == BOTH, seen, counts, events, work=post.size)
    spikes = int(np.bitwise_count(words).sum())
    updates = np.zeros((-(-inputs // TILE), 2), np.int64)
    _learn(
        words, x, seen, counts, events, number(decays[0]), number(up), number(down), nearest, how, number(bounds[0]),
        number(bounds[1]), spikes > TURNED_FROM * inputs, weight, updates,
        work=words.size * 32 + int(counts.sum()) * inputs + spikes * outputs,
    )  # fmt: skip
    potentiated, depressed = updates.sum(0).tolist()
    return potentiated, depressed
