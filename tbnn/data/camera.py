"""A simulated event camera (dynamic vision sensor)."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tbnn.data.events import Events

FloatArray = npt.NDArray[np.float64]

_LOWEST_THRESHOLD = 0.01
_BRIGHT_NOISE = 0.25


@dataclass(frozen=True)
class EventCamera:
    """An event camera after the model of the DVS pixel: each pixel watches the logarithm of its own intensity.

    A pixel remembers the log intensity ``L`` of its last event. When the present one is higher by ``theta_on`` it sends
    an ON event, when lower by ``theta_off`` an OFF event, and remembers the new level::

        L(I) = ln I                       for I >= log_floor
        L(I) = ln f + I / f - 1           below the floor f, the tangent there: photoreceptors are linear in the dark

    After an event a pixel is held in reset for ``refractory`` microseconds: what changes meanwhile is lost. Shot noise
    sends events of either polarity at random times, up to ``shot_noise`` a second in the dark and a quarter of that at
    full intensity; such an event resets its pixel as any other.

    Papers: P. Lichtsteiner, C. Posch, T. Delbruck, "A 128x128 120 dB 15 us latency asynchronous temporal contrast
    vision sensor", IEEE J. Solid-State Circuits 43(2), 2008; Y. Hu, S.-C. Liu, T. Delbruck, "v2e: From video frames to
    realistic DVS events", CVPR Workshops 2021 (mismatch, linear-to-log mapping, noise that falls with intensity).

    Attributes:
        threshold_on, threshold_off: mean log contrast of an ON and of an OFF event.
        mismatch: standard deviation of both thresholds from pixel to pixel, in log units.
        refractory: microseconds.
        shot_noise: events a second and pixel in the dark.
        log_floor: the intensity, in (0, 1], below which the pixel is linear.

    Raises:
        ValueError: on a value outside its range.

    >>> camera = EventCamera(threshold_on=0.3, mismatch=0, shot_noise=0)
    >>> video = np.array([0.5, 1.0]).reshape(2, 1, 1)  # twice as bright: log contrast 0.69
    >>> events = camera(video, np.array([0, 1000]), np.random.default_rng(0))
    >>> events.t.tolist(), events.p.tolist()
    ([432, 865], [1, 1])
    """

    threshold_on: float = 0.2
    threshold_off: float = 0.2
    mismatch: float = 0.03
    refractory: float = 0.0
    shot_noise: float = 0.0
    log_floor: float = 0.05

    def __post_init__(self) -> None:
        values = dataclasses.asdict(self)
        for name, value in values.items():
            if not np.isfinite(value):
                raise ValueError(f"{name}: expected a finite number, got {value}")
        for name in ("threshold_on", "threshold_off"):
            if values[name] < _LOWEST_THRESHOLD:
                raise ValueError(f"{name}: expected at least {_LOWEST_THRESHOLD}, got {values[name]}")
        for name in ("mismatch", "refractory", "shot_noise"):
            if values[name] < 0:
                raise ValueError(f"{name}: expected 0 or more, got {values[name]}")
        if not 0 < self.log_floor <= 1:
            raise ValueError(f"log_floor: expected a value in (0, 1], got {self.log_floor}")

    def log_intensity(self, intensity: npt.NDArray[np.floating]) -> FloatArray:
        """``L(I)`` of the class docstring, element by element."""
        floor = self.log_floor
        intensity = intensity.astype(np.float64)
        return np.log(np.maximum(intensity, floor)) + np.minimum(intensity / floor - 1.0, 0.0)

    def thresholds(self, height: int, width: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Draw one sensor: its ON and OFF thresholds (H, W), Gaussian, no lower than 0.01."""
        on, off = rng.normal(0.0, self.mismatch, (2, height, width)) if self.mismatch else np.zeros((2, height, width))
        return (
            np.maximum(self.threshold_on + on, _LOWEST_THRESHOLD),
            np.maximum(self.threshold_off + off, _LOWEST_THRESHOLD),
        )

    def __call__(
        self,
        video: npt.NDArray[np.floating],
        frame_times: npt.NDArray[np.number],
        rng: np.random.Generator,
        thresholds: tuple[FloatArray, FloatArray] | None = None,
    ) -> Events:
        """Watch a video and return the events.

        Args:
            video: intensities in [0, 1], (T, H, W), T >= 2; the log intensity is linear in time between frames.
            frame_times: (T,), microseconds, 0 or later, each later than the one before.
            rng: the source of mismatch and noise; the same state gives the same events.
            thresholds: ON and OFF thresholds (H, W) of one sensor that sees many videos; default: drawn from ``rng``.

        Returns:
            Events in order of time, at whole microseconds in ``[frame_times[0], frame_times[-1])``; ties in order of
            pixel. No events at all is a valid answer.

        Raises:
            ValueError: for shapes, values or times other than these.
        """
        _check_video(video, frame_times)
        height, width = video.shape[1:]
        on, off = thresholds if thresholds is not None else self.thresholds(height, width, rng)
        if on.shape != (height, width) or off.shape != (height, width):
            raise ValueError(f"thresholds: expected two of shape {(height, width)}, got {on.shape} and {off.shape}")
        if not (on.min() > 0 and off.min() > 0):
            raise ValueError(f"thresholds: expected positive values, got a least of {min(on.min(), off.min())}")
        times = np.ascontiguousarray(frame_times, np.float64)
        levels = np.ascontiguousarray(self.log_intensity(video).reshape(len(video), -1).T)
        noise = self._noise(video, times, rng)
        pixel, t, p = _watch(levels, times, on.ravel(), off.ravel(), self.refractory, noise)
        t = np.clip(t, np.ceil(times[0]), np.ceil(times[-1]) - 1).astype(np.int64)
        order = np.lexsort((pixel, t))
        y, x = np.divmod(pixel[order], width)
        return Events(x=x, y=y, t=t[order], p=p[order])

    def _noise(
        self, video: npt.NDArray[np.floating], times: FloatArray, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.int64], FloatArray, npt.NDArray[np.int8]]:
        """Shot noise by pixel, then time: where each pixel's events start (P + 1,), their times and polarities.

        A Poisson process at the dark rate, thinned to the rate at the intensity of the frame before.
        """
        pixels = video.shape[1] * video.shape[2]
        count = rng.poisson(self.shot_noise * 1e-6 * (times[-1] - times[0]) * pixels)
        pixel = rng.integers(0, pixels, count)
        t = rng.uniform(times[0], times[-1], count)
        p = rng.integers(0, 2, count, np.int8)
        frame = np.searchsorted(times, t, side="right") - 1
        intensity = video.reshape(len(video), pixels)[np.minimum(frame, len(video) - 1), pixel]
        kept = rng.random(count) < 1.0 - (1.0 - _BRIGHT_NOISE) * intensity
        pixel, t, p = pixel[kept], t[kept], p[kept]
        order = np.lexsort((t, pixel))
        start = np.searchsorted(pixel[order], np.arange(pixels + 1))
        return start.astype(np.int64), t[order], p[order]


def _check_video(video: npt.NDArray[np.floating], frame_times: npt.NDArray[np.number]) -> None:
    if video.ndim != 3 or video.shape[0] < 2 or video.size == 0 or video.dtype.kind != "f":
        raise ValueError(f"video: expected floats (T, H, W) with T >= 2, got {video.dtype} {video.shape}")
    if not (video.min() >= 0 and video.max() <= 1):
        raise ValueError(f"video: expected intensities in [0, 1], got {video.min()} to {video.max()}")
    if frame_times.shape != video.shape[:1]:
        raise ValueError(f"frame_times: expected one a frame, ({len(video)},), got {frame_times.shape}")
    if not np.all(np.isfinite(frame_times)) or frame_times[0] < 0 or not np.all(np.diff(frame_times) > 0):
        raise ValueError("frame_times: expected times of 0 or later, each later than the one before, got others")
    if np.ceil(frame_times[-1]) - 1 < np.ceil(frame_times[0]):
        raise ValueError(
            f"frame_times: expected a video of 1 us or longer, got {frame_times[0]} to {frame_times[-1]} us"
        )


def _watch(
    levels: FloatArray,
    times: FloatArray,
    on: FloatArray,
    off: FloatArray,
    refractory: float,
    noise: tuple[npt.NDArray[np.int64], FloatArray, npt.NDArray[np.int8]],
) -> tuple[npt.NDArray[np.int64], FloatArray, npt.NDArray[np.int8]]:
    """Run the compiled pixels; once more with more room when the events did not fit."""
    from tbnn.data.pixels import watch_pixels  # numba is slow to import

    room = 2 * levels.shape[0] * 16
    while True:
        pixel, t, p = np.empty(room, np.int64), np.empty(room), np.empty(room, np.int8)
        count = watch_pixels(levels, times, on, off, refractory, *noise, pixel, t, p)
        if count <= room:
            return pixel[:count], np.floor(t[:count]), p[:count]
        room = count
