# pyright: reportCallIssue=false
"""Products of real rows with bits on the CPU, and the packing of spikes: see :mod:`tbnn.ops.spike_products.tables`."""

import numpy as np
from numba import prange

from tbnn.ops.binary_linear.cpu import popcount64
from tbnn.ops.kernels import device_function, kernel
from tbnn.ops.spike_products.tables import LANES, ROWS, TABLE_REALS, TOGETHER, build_tables, compare_32, look_up

VECTORS = 4  # of 16 columns, copied together: whole cache lines that follow each other
WIDTH = LANES * VECTORS
ROWS_PACKED = 64  # rows of a task


@device_function
def _copy_tile(a, turned, scale, m0, m1, n0, n1, tile):  # pyright: ignore
    """tile (VECTORS, ROWS, LANES) = a[m0:m1, n0:n1], or of a (N, M) if ``turned``, times scale[m]; zeros around it."""
    if m1 - m0 < ROWS or n1 - n0 < WIDTH:
        tile[:] = 0
    if turned:
        for n in range(n0, n1):
            row, v, lane = a[n, m0:m1], (n - n0) // LANES, (n - n0) % LANES
            for i in range(m1 - m0):
                tile[v, i, lane] = row[i] * scale[m0 + i]
        return
    for i in range(m1 - m0):
        for v in range(VECTORS):
            lo = n0 + v * LANES
            row, there, factor = a[m0 + i, lo : min(lo + LANES, n1)], tile[v, i], scale[m0 + i]
            if row.shape[0] == LANES:
                for lane in range(LANES):
                    there[lane] = row[lane] * factor
            else:
                for lane in range(row.shape[0]):
                    there[lane] = row[lane] * factor


@kernel
def bits_product_cpu(a, turned, scale, columns, factors, signs, start, parts, out):  # pyright: ignore
    """out[n, f] = start[n] + Σ_p factor_p·Σ_m scale[m]·a[m, n]·b_p[m, f], with b the bits, or ±1 where ``signs`` is 1.

    a (M, N) float32, or (N, M) if ``turned``; scale (M,), start (N,); columns (P, ⌈M/64⌉, F) uint64: bit m % 64 of word
    m // 64; factors (P,) float32; out (N, F). A task is WIDTH rows of out and one of ``parts`` of its columns.
    """
    rows, outputs = (a.shape[1], a.shape[0]) if turned else (a.shape[0], a.shape[1])
    inputs = out.shape[1]
    tiles = (outputs + WIDTH - 1) // WIDTH
    share = (inputs + parts - 1) // parts
    for task in prange(tiles * parts):
        n0, f0 = task // parts * WIDTH, task % parts * share
        n1, f1 = min(n0 + WIDTH, outputs), min(f0 + share, inputs)
        count = max(f1 - f0, 0)
        reals = TABLE_REALS + VECTORS * (ROWS + count) * LANES
        memory = np.empty(reals + LANES, np.float32)
        first = (-(memory.ctypes.data // 4)) % LANES  # a vector across two cache lines would be read twice
        tables = memory[first : first + TABLE_REALS]
        end = first + TABLE_REALS + VECTORS * ROWS * LANES
        tile = memory[first + TABLE_REALS : end].reshape(VECTORS, ROWS, LANES)
        sums = memory[end : end + VECTORS * count * LANES].reshape(VECTORS, count, LANES)
        sums[:] = 0
        for n in range(n0, n1):
            sums[(n - n0) // LANES, :, (n - n0) % LANES] = start[n]
        for group in range(columns.shape[1]):
            m0 = group * ROWS
            _copy_tile(a, turned, scale, m0, min(m0 + ROWS, rows), n0, n1, tile)
            for v in range((n1 - n0 + LANES - 1) // LANES):
                build_tables(tile[v].ctypes.data, tables.ctypes.data, ROWS // TOGETHER, signs)
                for p in range(columns.shape[0]):
                    words = columns[p, group].ctypes.data + 8 * f0
                    look_up(words, count, tables.ctypes.data, factors[p], sums[v].ctypes.data)
        for n in range(n0, n1):
            v, lane = (n - n0) // LANES, (n - n0) % LANES
            row = out[n, f0 : max(f1, f0)]
            for f in range(count):
                row[f] = sums[v, f, lane]


@kernel
def pack_spikes_cpu(x, words, ones):  # pyright: ignore
    """words (M, ⌈F/32⌉) uint32 of x (M, F) float32, ones (M,) int32 its spikes; whether a value was neither 0 nor 1."""
    rows, inputs = x.shape
    whole = inputs // 32
    bad = np.int64(0)
    for task in prange((rows + ROWS_PACKED - 1) // ROWS_PACKED):
        rest = np.zeros(32, np.float32)
        others = np.uint64(0)
        for m in range(task * ROWS_PACKED, min((task + 1) * ROWS_PACKED, rows)):
            row, count = x[m].ctypes.data, np.uint64(0)
            for k in range(whole):
                found = compare_32(row + 128 * k)
                others |= found >> np.uint64(32)
                words[m, k] = np.uint32(found & np.uint64(0xFFFFFFFF))
                count += popcount64(found & np.uint64(0xFFFFFFFF))
            if inputs % 32:
                for i in range(inputs % 32):
                    rest[i] = x[m, 32 * whole + i]
                found = compare_32(rest.ctypes.data)
                others |= found >> np.uint64(32)
                words[m, whole] = np.uint32(found & np.uint64(0xFFFFFFFF))
                count += popcount64(found & np.uint64(0xFFFFFFFF))
            ones[m] = np.int32(count)
        bad += np.int64(others != np.uint64(0))
    return bad > 0


@kernel
def scale_products_cpu(products, totals, scale, offset, add, out):  # pyright: ignore
    """out (M, N) = products·scale + totals·offset, each operation rounded by itself; on top of out if ``add``.

    products (M, N) and totals (M,) int32, scale and offset (N,) float32; no offset: an empty one.
    """
    affine = offset.shape[0] > 0
    for m in prange(out.shape[0]):
        row, counts, total = out[m], products[m], np.float32(totals[m])
        for n in range(out.shape[1]):
            y = np.float32(counts[n]) * scale[n]
            if affine:
                y += total * offset[n]
            row[n] = row[n] + y if add else y


@kernel
def scale_frames_cpu(products, totals, scale, offset, out):  # pyright: ignore
    """out (M, N, P) = products·scale + totals·offset, each operation rounded by itself.

    products (M, N, P), totals (M, groups, P) int32; scale and offset (N,) float32; no offset: an empty one.
    """
    outputs = out.shape[1]
    together = outputs // totals.shape[1]
    affine = offset.shape[0] > 0
    for task in prange(out.shape[0] * outputs):
        m, n = task // outputs, task % outputs
        row, counts, sums = out[m, n], products[m, n], totals[m, n // together]
        if affine:
            for i in range(row.shape[0]):
                row[i] = np.float32(counts[i]) * scale[n] + np.float32(sums[i]) * offset[n]
        else:
            for i in range(row.shape[0]):
                row[i] = np.float32(counts[i]) * scale[n]
