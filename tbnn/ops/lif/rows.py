"""The neuron's equation on the CPU, a row of neurons at a time.

Arrays are (T, B, F), parameters (F,). Loops write one array and read few: more than eight, and the compiler gives up
proving that they do not overlap.
"""

from typing import Any, NamedTuple

import numpy as np

from tbnn.ops.kernels import device_function

TILE = 1024  # neurons of a row worked on at once
LINE = 64  # bytes of a cache line
SUBTRACT, ZERO, NONE = 0, 1, 2
RESETS = {"subtract": SUBTRACT, "zero": ZERO, "none": NONE}

# Rows of ``Layer.coefficients``; those from RHO on are ``Second``'s, in its order.
BETA, THRESHOLD, GAIN, RHO, FROM_V, FROM_CURRENT, FROM_SPIKE, CURRENT_GAIN, TO_V, TO_THRESHOLD = range(10)
COEFFICIENTS, WITHOUT_SECOND = TO_THRESHOLD + 1, RHO

Array = np.ndarray[Any, Any]


class Layer(NamedTuple):
    """What a kernel knows of a layer of neurons."""

    coefficients: Array
    """(3 or 10, F): β, θ, ``trace_gain``, and the second state's where there is one."""
    reset: int
    refractory: int
    winners: int
    """0: as many as there are."""
    lengths: Array
    """(B,) int64: steps of each sequence; what lies beyond is neither read nor, but for the output, written."""


class Course(NamedTuple):
    """States through a sequence: v and, where there is a second state, w."""

    start: Array
    """(1 or 2, 1, B, F)"""
    steps: Array
    """(1 or 2, T, B, F); (1, 0, B, F) where there is no such course."""


@device_function
def scratch(count, n, like):  # pyright: ignore
    """(count, >= n) uninitialised, in the dtype of ``like``; every row begins on a line, which vectors then never straddle."""
    per_line = LINE // like.itemsize
    n = (n + per_line - 1) // per_line * per_line
    room = np.empty(count * n + per_line, like.dtype)
    first = (-room.ctypes.data) % LINE // like.itemsize
    return room[first : first + count * n].reshape(count, n)


@device_function
def membrane_row(before, current, beta, threshold, reset, v):  # pyright: ignore
    """One step of a row of plain membranes: ``v = β·before + current − θ·1[before > θ]``, or another reset."""
    zero = before.dtype.type(0)
    if reset == SUBTRACT:
        for f in range(v.size):
            drop = threshold[f] if before[f] > threshold[f] else zero
            v[f] = beta[f] * before[f] + current[f] - drop
    elif reset == ZERO:
        for f in range(v.size):
            kept = zero if before[f] > threshold[f] else before[f]
            v[f] = beta[f] * kept + current[f]
    else:
        for f in range(v.size):
            v[f] = beta[f] * before[f] + current[f]


@device_function
def advance_row(v_before, w_before, fired, current, coefficients, lo, reset, kept, v, w):  # pyright: ignore
    """``cell.advance`` for a row, given the last step's spikes; without a second state w is not touched."""
    hi = lo + v.size
    beta, threshold = coefficients[BETA, lo:hi], coefficients[THRESHOLD, lo:hi]
    if reset == ZERO:
        one = v.dtype.type(1)
        for f in range(v.size):
            kept[f] = (one - fired[f]) * v_before[f]
    else:
        kept = v_before
    if coefficients.shape[0] == WITHOUT_SECOND:
        for f in range(v.size):
            v[f] = beta[f] * kept[f] + current[f]
    else:
        rho, from_v, from_current = (
            coefficients[RHO, lo:hi],
            coefficients[FROM_V, lo:hi],
            coefficients[FROM_CURRENT, lo:hi],
        )
        from_spike, gain, to_v = (
            coefficients[FROM_SPIKE, lo:hi],
            coefficients[CURRENT_GAIN, lo:hi],
            coefficients[TO_V, lo:hi],
        )
        for f in range(v.size):
            w[f] = rho[f] * w_before[f] + from_v[f] * kept[f] + from_current[f] * current[f] + from_spike[f] * fired[f]
        for f in range(v.size):
            v[f] = beta[f] * kept[f] + to_v[f] * w[f] + gain[f] * current[f]
    if reset == SUBTRACT:
        for f in range(v.size):
            v[f] -= threshold[f] * fired[f]


@device_function
def state_row(course, i, t, b, lo, hi):  # pyright: ignore
    """State i after step t; −1 is the start."""
    return course.start[i, 0, b, lo:hi] if t < 0 else course.steps[i, t, b, lo:hi]


@device_function
def level_row(course, coefficients, t, b, lo, hi, buffer):  # pyright: ignore
    """What is compared with θ: v itself, or v − ``to_threshold``·w, laid into ``buffer``."""
    v = state_row(course, 0, t, b, lo, hi)
    if coefficients.shape[0] == WITHOUT_SECOND:
        return v
    w, share = state_row(course, 1, t, b, lo, hi), coefficients[TO_THRESHOLD, lo:hi]
    for f in range(hi - lo):
        buffer[f] = v[f] - share[f] * w[f]
    return buffer


@device_function
def above_row(level, threshold, fired):  # pyright: ignore
    """fired = 1 where level > θ."""
    one, zero = level.dtype.type(1), level.dtype.type(0)
    for f in range(level.size):
        fired[f] = one if level[f] > threshold[f] else zero


@device_function
def winners_row(level, threshold, winners, margins, fired):  # pyright: ignore
    """Of the neurons that fired only the ``winners`` furthest above their threshold stay; of equals, the first."""
    zero = level.dtype.type(0)
    count = 0
    for f in range(level.size):
        if fired[f] > zero:
            margins[count] = level[f] - threshold[f]
            count += 1
    if count <= winners:
        return
    last = np.partition(margins[:count], count - winners)[count - winners]
    equals = winners
    for f in range(count):
        if margins[f] > last:
            equals -= 1
    for f in range(level.size):
        if fired[f] > zero:
            margin = level[f] - threshold[f]
            if margin == last and equals > 0:
                equals -= 1
            elif margin <= last:
                fired[f] = zero


@device_function
def rest_row(refractory, waiting, fired):  # pyright: ignore
    """Count the refractory steps that are left."""
    one, zero = waiting.dtype.type(1), waiting.dtype.type(0)
    steps = waiting.dtype.type(refractory)
    for f in range(waiting.size):
        waiting[f] = steps if fired[f] > zero else max(zero, waiting[f] - one)


@device_function
def spike_row(level, threshold, waiting, layer, margins, fired):  # pyright: ignore
    """fired = ``cell.spikes_of``; waiting goes one step on."""
    above_row(level, threshold, fired)
    if layer.refractory > 0:
        one, zero = level.dtype.type(1), level.dtype.type(0)
        for f in range(level.size):
            fired[f] *= one if waiting[f] == zero else zero
    if layer.winners > 0:
        winners_row(level, threshold, layer.winners, margins, fired)
    if layer.refractory > 0:
        rest_row(layer.refractory, waiting, fired)
