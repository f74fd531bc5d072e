"""arctan and exp as plain arithmetic, so that the compiler makes vectors of a loop over them; calls it leaves scalar.

arctan is within 2 ulp of float32 everywhere; exp(x), x <= 0, within 1 ulp down to x = −87 and 0 below. float64 keeps NumPy's
own: it is for checking, not for speed. The polynomials are minimax fits of
(arctan(√z)/√z − 1)/z on [0, 1] (relative error of arctan 2.6e-9) and of (e^r − 1 − r)/r² on |r| <= ln 2/2 (3.1e-9).
"""

import numpy as np

from tbnn.ops.kernels import device_function

A0, A1, A2, A3, A4 = (
    np.float32(c)
    for c in (-0.33333299089146506, 0.19998548284937365, -0.1426424168681532, 0.10952185806053219, -0.08403450406212157)
)
A5, A6, A7, A8 = (
    np.float32(c) for c in (0.05795759468992037, -0.031177846771112558, 0.010914606147447678, -0.001793621778808554)
)
HALF_PI, HALF_PI_REST = np.float32(1.5707964), np.float32(-4.371139e-08)

E0, E1, E2, E3, E4 = (
    np.float32(c)
    for c in (
        0.49999993451691654,
        0.16666520689751088,
        0.04166838736465021,
        0.008368709831751702,
        0.0013814613095569411,
    )
)
LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.1219444e-4)  # the first times an integer is exact
LOWEST = np.float32(-87.0)
TO_INTEGER = np.float32(3 << 22)  # added, it leaves an integer in a float's low bits
EXPONENT, BIAS = 23, 127


@device_function
def arctan_single(a):  # pyright: ignore
    """arctan of a float32, infinities included; NaN stays NaN."""
    one = np.float32(1)
    size = abs(a)
    large = size > one
    t = (one if large else size) / (size if large else one)
    z = t * t
    zz = z * z
    low = (A0 + z * A1) + zz * (A2 + z * A3)
    high = (A4 + z * A5) + zz * (A6 + z * A7)
    near = low + (zz * zz) * (high + (zz * zz) * A8)
    y = t + t * (z * near)
    y = HALF_PI - (y - HALF_PI_REST) if large else y
    return y if a >= np.float32(0) else -y


@device_function
def exp_single(a):  # pyright: ignore
    """exp of a float32 <= 0; NaN stays NaN."""
    one = np.float32(1)
    low = a < LOWEST
    x = LOWEST if low else a
    k = (x * LOG2_E + TO_INTEGER) - TO_INTEGER
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    y = one + (r + r * r * (E0 + r * (E1 + r * (E2 + r * (E3 + r * E4)))))
    power = np.int32((np.int32(k) + np.int32(BIAS)) << np.int32(EXPONENT)).view(np.float32)
    return np.float32(0) if low else y * power
