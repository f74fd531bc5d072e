"""Maxima over windows on the CPU: one pass forward, one backward, parallel over planes."""

from numba import prange

from tbnn.ops.kernels import kernel


@kernel
def forward(x, size_h, size_w, step_h, step_w, pad_h, pad_w, y):  # pyright: ignore
    """Fill y (M, H', W') with the maxima of x (M, H, W)."""
    planes, height, width = x.shape
    for m in prange(planes):
        for i in range(y.shape[1]):
            top, bottom = max(i * step_h - pad_h, 0), min(i * step_h - pad_h + size_h, height)
            for j in range(y.shape[2]):
                left, right = max(j * step_w - pad_w, 0), min(j * step_w - pad_w + size_w, width)
                best = x[m, top, left]
                for a in range(top, bottom):
                    for b in range(left, right):
                        best = max(best, x[m, a, b])
                y[m, i, j] = best


@kernel
def backward(x, y, dy, size_h, size_w, step_h, step_w, pad_h, pad_w, dx):  # pyright: ignore
    """Fill dx (M, H, W): each dy goes in equal shares to the places of its window that hold the maximum."""
    planes, height, width = x.shape
    zero = x.dtype.type(0)
    for m in prange(planes):
        dx[m] = 0
        for i in range(y.shape[1]):
            top, bottom = max(i * step_h - pad_h, 0), min(i * step_h - pad_h + size_h, height)
            for j in range(y.shape[2]):
                left, right = max(j * step_w - pad_w, 0), min(j * step_w - pad_w + size_w, width)
                best, equal = y[m, i, j], 0
                for a in range(top, bottom):
                    for b in range(left, right):
                        equal += x[m, a, b] == best
                share = dy[m, i, j] / x.dtype.type(max(equal, 1))  # none is equal where the maximum is NaN
                for a in range(top, bottom):
                    for b in range(left, right):
                        dx[m, a, b] += share if x[m, a, b] == best else zero
