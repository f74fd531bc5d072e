"""A simulated event camera (dynamic vision sensor)."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tbnn.data.events import Events
from tbnn.data.video import read_video

FloatArray = npt.NDArray[np.float64]

_LOWEST_THRESHOLD = 0.01
_BRIGHT_NOISE = 0.25
_DARK_SPEED = 20 / 255  # keeps the dark photoreceptor from standing still: v2e's 20 of 255


@dataclass(frozen=True)
class EventCamera:
    """An event camera after the model of the DVS pixel: each pixel watches the logarithm of its own intensity.

    A pixel remembers the log intensity ``L`` of its last event. When the present one is higher by ``theta_on`` it sends
    an ON event, when lower by ``theta_off`` an OFF event, and remembers the new level::

        L(I) = ln I                       for I >= log_floor
        L(I) = ln f + I / f - 1           below the floor f, the tangent there: photoreceptors are linear in the dark

    After an event a pixel is held in reset for ``refractory`` microseconds: what changes meanwhile is lost. Shot noise
    sends events of either polarity at random times, up to ``shot_noise`` a second in the dark and a quarter of that at
    full intensity, ``shot_noise * (1 - 0.75 I)``; such an event resets its pixel as any other. Leakage through the
    reset switch lowers the remembered level by ``leak * threshold_on`` a second, so that a pixel of threshold
    ``theta_on`` in a still scene sends ``leak * threshold_on / theta_on`` ON events a second, evenly spaced; how far
    each pixel has leaked when the video begins is drawn evenly. The photoreceptor is a first-order low-pass that is
    faster in the light::

        tau dy/dt = L - y,   1 / (2 pi tau) = bandwidth * (I + d) / (1 + d)   with d = 20/255

    It starts settled. ``y`` is exact at each frame for an ``L`` that is linear in time between frames and the
    intensity ``I`` of the frame that ends the interval; between frames ``y``, too, is taken as linear.

    The parts are those of v2e (and of its program, ``emulator.py``), which differs in this: every quantity is updated
    once a frame, the low-pass by an explicit step ``dt / tau`` cut at 1; ``L`` is ``I ln(f) / f`` below the floor, with
    8-bit intensities and f = 20; a shot noise event changes the remembered level by one threshold, its rate also goes
    as the inverse of the pixel's threshold and never sees darkness below 20 / 275; an event within the refractory time
    is put off, not lost; leakage starts at zero, and its rate has a log-normal spread of 0.1 decades over the pixels
    and a Gaussian jitter of 10 % a frame, where here only the thresholds' mismatch spreads it.

    Papers: P. Lichtsteiner, C. Posch, T. Delbruck, "A 128x128 120 dB 15 us latency asynchronous temporal contrast
    vision sensor", IEEE J. Solid-State Circuits 43(2), 2008; Y. Hu, S.-C. Liu, T. Delbruck, "v2e: From video frames to
    realistic DVS events", CVPR Workshops 2021 (mismatch, linear-to-log mapping, bandwidth, leak and shot noise).

    Attributes:
        threshold_on, threshold_off: mean log contrast of an ON and of an OFF event.
        mismatch: standard deviation of both thresholds from pixel to pixel, in log units.
        refractory: microseconds.
        shot_noise: events a second and pixel in the dark.
        log_floor: the intensity, in (0, 1], below which the pixel is linear.
        leak: spontaneous ON events a second and pixel of mean threshold.
        bandwidth: the photoreceptor's -3 dB frequency at full intensity in Hz; 0: it follows at once.

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
    leak: float = 0.0
    bandwidth: float = 0.0

    def __post_init__(self) -> None:
        values = dataclasses.asdict(self)
        for name, value in values.items():
            if not np.isfinite(value):
                raise ValueError(f"{name}: expected a finite number, got {value}")
        for name in ("threshold_on", "threshold_off"):
            if values[name] < _LOWEST_THRESHOLD:
                raise ValueError(f"{name}: expected at least {_LOWEST_THRESHOLD}, got {values[name]}")
        for name in ("mismatch", "refractory", "shot_noise", "leak", "bandwidth"):
            if values[name] < 0:
                raise ValueError(f"{name}: expected 0 or more, got {values[name]}")
        if not 0 < self.log_floor <= 1:
            raise ValueError(f"log_floor: expected a value in (0, 1], got {self.log_floor}")

    def log_intensity(self, intensity: npt.NDArray[np.floating]) -> FloatArray:
        """``L(I)`` of the class docstring, element by element."""
        floor = self.log_floor
        intensity = intensity.astype(np.float64)
        return np.log(np.maximum(intensity, floor)) + np.minimum(intensity / floor - 1.0, 0.0)

    def low_pass(
        self, levels: FloatArray, video: npt.NDArray[np.floating], times: npt.NDArray[np.number]
    ) -> FloatArray:
        """What the photoreceptor makes of log intensities ``levels``: ``y`` of the class docstring.

        Args:
            levels: (T, ...).
            video: the intensities, (T, ...).
            times: (T,), microseconds.
        """
        if self.bandwidth == 0:
            return levels
        out = levels.copy()
        rate = 2e-6 * np.pi * self.bandwidth / (1 + _DARK_SPEED)  # 1 / tau at full intensity, per microsecond
        for k in range(1, len(levels)):
            steps = rate * (video[k] + _DARK_SPEED) * (times[k] - times[k - 1])  # dt / tau
            left = np.exp(-steps)
            lag = -np.expm1(-steps) / steps
            out[k] = levels[k] - (levels[k] - levels[k - 1]) * lag + (out[k - 1] - levels[k - 1]) * left
        return out

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
            rng: the source of mismatch, noise and leakage; the same state gives the same events.
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
        levels = self.low_pass(self.log_intensity(video), video, times)
        levels = np.ascontiguousarray(levels.reshape(len(video), -1).T)
        noise = self._noise(video, times, rng)
        memory = levels[:, 0].copy()
        if self.leak:
            memory -= rng.random(height * width) * on.ravel()
            # Only the difference counts: a falling memory is a rising level.
            levels += self.leak * self.threshold_on * 1e-6 * (times - times[0])
        pixel, t, p = _watch(levels, times, memory, on.ravel(), off.ravel(), self.refractory, noise)
        t = np.clip(t, np.ceil(times[0]), np.ceil(times[-1]) - 1).astype(np.int64)
        order = np.lexsort((pixel, t))
        y, x = np.divmod(pixel[order], width)
        return Events(x=x, y=y, t=t[order], p=p[order])

    def watch(
        self,
        source: str | Path | npt.NDArray[np.generic],
        *,
        fps: float | None = None,
        size: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> Events:
        """Watch a GIF, a folder of images, a ``.npy`` file or an array, as :func:`tbnn.data.video.read_video` reads it.

        Args:
            source: a path, or intensities (T, H, W), uint8 or floats in [0, 1].
            fps: frames a second; a GIF knows its own.
            size: (height, width) of the sensor; default: that of the images.
            seed: of the sensor and its noise.

        Raises:
            ValueError, FileNotFoundError: as :func:`~tbnn.data.video.read_video`.

        >>> video = np.zeros((3, 4, 4), np.uint8)
        >>> video[1:, 1, 2] = 255  # a lamp goes on
        >>> events = EventCamera(threshold_on=0.5, mismatch=0).watch(video, fps=100)
        >>> sorted({(int(x), int(y), int(p)) for x, y, p in zip(events.x, events.y, events.p)}), len(events)
        ([(2, 1, 1)], 7)
        """
        video, frame_times = read_video(source, fps=fps, size=size)
        return self(video, frame_times, np.random.default_rng(seed))

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
    memory: FloatArray,
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
        count = watch_pixels(levels, times, memory, on, off, refractory, *noise, pixel, t, p)
        if count <= room:
            return pixel[:count], np.floor(t[:count]), p[:count]
        room = count
