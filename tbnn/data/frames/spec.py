"""How the events of a recording become bit frames: the settings, checked."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tbnn.data.events import LAST_TIME, Sensor


@dataclass(frozen=True)
class FrameSpec:
    """How events become T bit frames. Exactly one of ``bin_width``, ``bins`` and ``count`` cuts the recording::

        bin_width  frame k holds the events with k * hop <= t < k * hop + bin_width       (fixed time bins)
        bins       frame k holds t0 + k * w <= t < t0 + (k + 1) * w with w = max(1, (t1 - t0) // bins), t0 and t1 the
                   times of the first and the last event; the few later events are cut       (fixed number of bins)
        count      frame k holds the events number k * hop ... k * hop + count - 1         (fixed event count)

    Attributes:
        bin_width: duration of a frame in microseconds.
        bins: number of frames, whatever a recording's duration.
        count: events in a frame.
        steps: number of frames T; goes with ``bin_width`` and ``count``. Frames past the recording's end are zeros, but
            a time surface over time bins fades.
        hop: from one frame's start to the next one's, microseconds or events; default: no overlap, no gap.
        start: time bins count from "zero", the recording's start, or from its "first" event.
        late: what becomes of events past the last frame, with ``bin_width`` and ``count``: "error" or "cut".
        polarity: "channels", or "merge": ON and OFF in one channel.
        size: (height, width) of a frame; pixel (y, x) of the sensor falls on (y * height // H, x * width // W).
        at_least: a bit is set by this many events or more.
        planes: a pixel's count, no higher than 2^planes - 1, as that many bits; channel ``plane * C + c``, the lowest
            bit first.
        tau, level: a time surface instead of the frame's own events: exp(-(t_end - t_last) / tau) >= level sets the bit,
            t_last the time of the pixel's last event before the frame's end t_end; microseconds. With ``count`` t_end is
            the time of the frame's last event, which counts itself; a frame past the recording's end has none. The
            comparison is made as t_end - t_last <= floor(-tau * ln(level)), the ``horizon``.

    Raises:
        ValueError: for settings that contradict each other, are out of range or not whole numbers.
    """

    bin_width: int | None = None
    bins: int | None = None
    count: int | None = None
    steps: int | None = None
    hop: int | None = None
    start: str = "zero"
    late: str = "error"
    polarity: str = "channels"
    size: tuple[int, int] | None = None
    at_least: int = 1
    planes: int = 1
    tau: float | None = None
    level: float | None = None

    def __post_init__(self) -> None:
        cuts = {key: getattr(self, key) for key in ("bin_width", "bins", "count")}
        given = [key for key, value in cuts.items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"bin_width, bins, count: expected exactly one of them, got {', '.join(given) or 'none'}")
        for key in ("bin_width", "bins", "count", "steps", "hop", "at_least", "planes"):
            value = getattr(self, key)
            if value is not None and (not isinstance(value, int | np.integer) or isinstance(value, bool)):
                raise ValueError(f"{key}: expected a whole number, got {value!r}")
            if value is not None and value < 1:
                raise ValueError(f"{key}: expected at least 1, got {value}")
        if self.bins is None and self.steps is None:
            raise ValueError(f"steps: expected the number of frames with {given[0]}, got none")
        if self.bins is not None and (self.steps is not None or self.hop is not None):
            raise ValueError("steps, hop: expected neither with bins, which is the number of frames")
        for key, choices in (
            ("start", ("zero", "first")),
            ("late", ("error", "cut")),
            ("polarity", ("channels", "merge")),
        ):
            if getattr(self, key) not in choices:
                raise ValueError(f"{key}: expected {' or '.join(choices)}, got {getattr(self, key)!r}")
        if self.frames * self.stride + (self.bin_width or self.count or 0) >= LAST_TIME:
            raise ValueError(f"steps: expected frames that end before 2^62, got {self.frames} of {cuts[given[0]]}")
        self._check_size()
        if self.planes > 8:
            raise ValueError(f"planes: expected 1 to 8, got {self.planes}")
        self._check_surface()

    def _check_size(self) -> None:
        if self.size is None:
            return
        size = tuple(self.size)
        if len(size) != 2 or any(not isinstance(side, int | np.integer) or side < 1 for side in size):
            raise ValueError(f"size: expected a height and a width of at least 1, got {self.size}")
        object.__setattr__(self, "size", size)  # a list, as files hold it, has no hash

    def _check_surface(self) -> None:
        if (self.tau is None) != (self.level is None):
            raise ValueError(f"tau, level: expected both or neither, got tau {self.tau} and level {self.level}")
        if self.tau is not None and not 0 < self.tau < float("inf"):
            raise ValueError(f"tau: expected a positive number of microseconds, got {self.tau}")
        if self.level is not None and not 0 < self.level < 1:
            raise ValueError(f"level: expected a value in (0, 1), got {self.level}")
        if sum((self.planes > 1, self.at_least > 1, self.tau is not None)) > 1:
            raise ValueError("at_least, planes, tau: expected one of them at most, got several")
        if self.tau is not None and self.horizon < 1:
            raise ValueError(f"tau, level: expected -tau * ln(level) of at least 1 us, got {self.tau} and {self.level}")

    @property
    def frames(self) -> int:
        """T."""
        return self.bins if self.bins is not None else int(self.steps or 0)

    @property
    def stride(self) -> int:
        """From one frame's start to the next one's, microseconds or events; 0 with ``bins``."""
        return self.hop or self.bin_width or self.count or 0

    @property
    def horizon(self) -> int:
        """Time surfaces: an event sets its bit in frames that end up to this many microseconds later."""
        if self.tau is None or self.level is None:
            raise ValueError("horizon: expected a time surface (tau and level), got none")
        return min(int(-self.tau * np.log(self.level)), LAST_TIME)

    def shape(self, sensor: tuple[int, int, int]) -> Sensor:
        """The shape of a frame of a ``sensor`` (C, H, W)."""
        channels, height, width = sensor
        if self.size is not None:
            if self.size[0] > height or self.size[1] > width:
                raise ValueError(f"size: expected at most the sensor's {(height, width)}, got {self.size}")
            height, width = self.size
        return Sensor((1 if self.polarity == "merge" else channels) * self.planes, height, width)

    def covered(self, t: npt.NDArray[np.integer]) -> int:
        """How many frames begin before the recording with event times ``t`` (E,), in order, ends: 1 .. T."""
        if self.bins is not None:
            return self.bins
        last = len(t) - 1 if self.count is not None else int(t[-1]) - (int(t[0]) if self.start == "first" else 0)
        return min(last // self.stride + 1, self.frames)

    def replace(self, **changes: object) -> "FrameSpec":
        """Other settings; giving one way to cut drops the other and the hop.

        >>> FrameSpec(bin_width=1000, steps=20).replace(bins=10)
        FrameSpec(bins=10)
        """
        changes = {key: value for key, value in changes.items() if value is not None}
        new_cut = next((key for key in ("bin_width", "bins", "count") if key in changes), None)
        old = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if new_cut:
            keep_steps = new_cut != "bins" and self.frames
            old |= dict.fromkeys(("bin_width", "bins", "count", "hop"), None) | {"steps": keep_steps or None}
        return FrameSpec(**{**old, **changes})  # pyright: ignore[reportArgumentType]

    def __repr__(self) -> str:
        """The settings that differ from the defaults."""
        fields = ((f.name, getattr(self, f.name), f.default) for f in dataclasses.fields(self))
        return f"FrameSpec({', '.join(f'{name}={value!r}' for name, value, default in fields if value != default)})"
