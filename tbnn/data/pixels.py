"""The pixels of the simulated event camera, compiled: see :class:`tbnn.data.camera.EventCamera` for the model."""

import numpy as np
import numpy.typing as npt
from numba import njit

FloatArray = npt.NDArray[np.float64]


@njit(cache=True)
def level_at(t: float, t0: float, t1: float, a: float, b: float) -> float:
    """The level at ``t``, on the line from ``a`` at ``t0`` to ``b`` at ``t1``."""
    if t >= t1:
        return b
    return a + (b - a) * ((t - t0) / (t1 - t0))


@njit(cache=True)
def watch_pixels(
    levels: FloatArray,  # (P, T) log intensity
    times: FloatArray,  # (T,)
    memory: FloatArray,  # (P,) the level remembered at the start
    on: FloatArray,  # (P,)
    off: FloatArray,  # (P,)
    refractory: float,
    noise_start: npt.NDArray[np.int64],  # (P + 1,)
    noise_t: FloatArray,  # by pixel, then time
    noise_p: npt.NDArray[np.int8],
    out_pixel: npt.NDArray[np.int64],
    out_t: FloatArray,
    out_p: npt.NDArray[np.int8],
) -> int:
    """Fill ``out_*`` with the events, pixel after pixel, and return their number, which may exceed the room there."""
    count = 0
    for pixel in range(levels.shape[0]):
        remembered = memory[pixel]
        held = False  # in reset until `ready`
        ready = times[0]
        noise = noise_start[pixel]
        for k in range(len(times) - 1):
            t0, t1 = times[k], times[k + 1]
            a, b = levels[pixel, k], levels[pixel, k + 1]
            now = t0
            while now < t1:
                # A piece of the interval up to the next noise event, if there is one.
                noisy = noise < noise_start[pixel + 1] and noise_t[noise] < t1
                stop = float(noise_t[noise] if noisy else t1)
                end = level_at(stop, t0, t1, a, b)
                while True:
                    if held:
                        if ready > stop:
                            break
                        held = False
                        now = max(now, ready)
                        remembered = level_at(now, t0, t1, a, b)
                    if b > a and end - remembered >= on[pixel]:
                        polarity = 1
                        remembered += on[pixel]
                    elif b < a and remembered - end >= off[pixel]:
                        polarity = 0
                        remembered -= off[pixel]
                    else:
                        break
                    now = min(max(t0 + (remembered - a) / (b - a) * (t1 - t0), now), stop)
                    if count < len(out_t):
                        out_pixel[count], out_t[count], out_p[count] = pixel, now, polarity
                    count += 1
                    held = refractory > 0
                    ready = now + refractory
                now = stop
                if noisy:
                    if not held:
                        if count < len(out_t):
                            out_pixel[count], out_t[count], out_p[count] = pixel, now, noise_p[noise]
                        count += 1
                        remembered = end
                        held = refractory > 0
                        ready = now + refractory
                    noise += 1
    return count
