"""The frames of a recording, pixel by pixel: the definition that the kernels are checked against."""

import math

import numpy as np
import numpy.typing as npt

from tbnn.data.events import Events
from tbnn.data.frames.spec import FrameSpec


def words_reference(
    events: Events, sensor: tuple[int, int, int], spec: FrameSpec
) -> npt.NDArray[np.bool_]:  # (T, C, H, W)
    """The bits that :func:`events_to_words` packs, as bool (T, C, H, W); the events are taken as checked.

    Frame k holds the events e with ::

        bin_width  start + k hop <= t_e < start + k hop + bin_width     start = 0 or t_0
        bins       t_0 + k w <= t_e < t_0 + (k + 1) w                   w = max(1, (t_last - t_0) // bins)
        count      k hop <= e < k hop + count

    and bit (c, y, x) is set where n, the number of them that fall on the pixel, is ``at_least`` or more; with ``planes``
    where bit ``c // C`` of min(n, 2^planes - 1) is set, of pixel (c % C, y, x); and with ``tau`` where
    exp(-(t_end - t_e) / tau) >= level for the pixel's last event before the frame's end.
    """
    shape = spec.shape(sensor)
    channels = shape.channels // spec.planes
    frames = np.zeros((spec.frames, *shape), np.bool_)
    t = [int(time) for time in events.t]
    for k in range(spec.frames):
        counts: dict[tuple[int, int, int], int] = {}
        last: dict[tuple[int, int, int], int] = {}
        if spec.count is not None:
            begin, end = k * spec.stride, k * spec.stride + spec.count
            t_end = t[min(end, len(t)) - 1] if begin < len(t) else None
        else:
            begin, end = _bin(k, t, spec)
            t_end = end
        for e in range(len(t)):
            at = e if spec.count is not None else t[e]
            pixel = _pixel(events, e, sensor, spec)
            if begin <= at < end:
                counts[pixel] = counts.get(pixel, 0) + 1
            if at < end:
                last[pixel] = t[e]
        if spec.tau is not None and spec.level is not None:
            for pixel, time in last.items():
                frames[k][pixel] = t_end is not None and math.exp(-(t_end - time) / spec.tau) >= spec.level
        elif spec.planes > 1:
            for (c, y, x), n in counts.items():
                for plane in range(spec.planes):
                    frames[k, plane * channels + c, y, x] = min(n, 2**spec.planes - 1) >> plane & 1
        else:
            for pixel, n in counts.items():
                frames[k][pixel] = n >= spec.at_least
    return frames


def _bin(k: int, t: list[int], spec: FrameSpec) -> tuple[int, int]:
    """Where time bin k begins and ends."""
    if spec.bins is not None:
        width = max(1, (t[-1] - t[0]) // spec.bins)
        return t[0] + k * width, t[0] + (k + 1) * width
    start = t[0] if spec.start == "first" else 0
    return start + k * spec.stride, start + k * spec.stride + (spec.bin_width or 0)


def _pixel(events: Events, e: int, sensor: tuple[int, int, int], spec: FrameSpec) -> tuple[int, int, int]:
    """The pixel (c, y, x) of a frame on which event number ``e`` falls."""
    _, height, width = sensor
    frame = spec.shape(sensor)
    c = 0 if spec.polarity == "merge" else int(events.p[e])
    return c, int(events.y[e]) * frame.height // height, int(events.x[e]) * frame.width // width
