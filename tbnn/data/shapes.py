"""Moving shapes under a stroboscope: a generated dataset whose single frames say nothing about the class."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tbnn.data.camera import EventCamera
from tbnn.data.events import Events, Sensor
from tbnn.data.recordings import Recordings

FloatArray = npt.NDArray[np.floating]

CLASSES = (
    "left",
    "right",
    "up",
    "down",
    "up-right",
    "down-left",
    "clockwise",
    "anticlockwise",
    "approach",
    "recede",
    "scatter",
)
KINDS = ("disc", "square", "triangle", "cross", "ring")

_HEADINGS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "up-right": (1, -1), "down-left": (-1, 1)}


@dataclass(frozen=True)
class MovingShapes:
    """A bright shape moves in a dark room, seen in flashes: it appears (ON) and vanishes (OFF) within each flash.

    One flash falls into each ``interval``. Between flashes the shape steps on, by ``CLASSES``: in one of six
    directions (within ``aim`` degrees); round a centre; growing or shrinking in place, log size by a fixed step and
    from one end of its range to the other; or "scatter": a step of the same length in a new direction each time. The
    world is a torus: what leaves the sensor on one side enters on the other. A recording's kind of shape
    (``KINDS``), brightness, speed and start are drawn at random, in every class alike.

    A frame that holds one flash has the same distribution in every class and at every time, hence a single frame says
    nothing about the class. For it is a function of (kind, brightness, size, place) of that flash, and of noise:

    - place is uniform on the torus: a uniform start (of the orbits: centre) plus a shift that is independent of it;
    - log size is uniform: constant, or a uniform start plus a shift, modulo the range;
    - both are independent of each other, of kind and of brightness, which are drawn as they are for every class;
    - the camera has forgotten the flash before. An edge of brightness gives a pixel one event, the reset that follows
      outlasts the edge and is over before the next (``ramp <= refractory <= flash``, and also the dark time), so that
      the pixel remembers the level after the edge; and where the edge that brightens a pixel gave an event, so does the
      one that darkens it (``threshold_off < threshold_on``). This is not exact for a pixel whose own thresholds are the
      other way round by mismatch, or that had an event of shot noise within ``refractory`` of an edge.

    Left and right, up and down, both diagonals, both senses of rotation, approach and recede are each other's
    recordings played backward. Hence frames without their order give at most 6 of 11 recordings right, one frame 1 of
    11; the order gives all but a few.

    Attributes:
        recordings: number of recordings of each class.
        flashes: number of flashes of a recording.
        interval: microseconds from one flash to the next.
        flash: microseconds that the shape is fully lit.
        ramp: microseconds in which it lights up, and in which it fades.
        background: intensity of the room, in (0, 1).
        dimmest: intensity of the dimmest shape, from above ``background`` to 1; the brightest has 1.
        smallest, largest: half the width of a shape, pixels.
        slowest, fastest: step from one flash to the next, pixels; along the circle where it is an orbit.
        nearest, farthest: radius of the orbits, pixels.
        zoom_slowest, zoom_fastest: step of the log size, as a part of its range.
        aim: degrees by which a direction may miss the one its class is named for.

    Raises:
        ValueError: on a value outside its range.
    """

    recordings: int = 150
    flashes: int = 20
    interval: int = 10_000
    flash: int = 4_000
    ramp: int = 500
    background: float = 0.1
    dimmest: float = 0.4
    smallest: float = 2.5
    largest: float = 6.0
    slowest: float = 1.5
    fastest: float = 3.0
    nearest: float = 3.0
    farthest: float = 6.0
    zoom_slowest: float = 0.08
    zoom_fastest: float = 0.16
    aim: float = 10.0

    def __post_init__(self) -> None:
        for key in ("recordings", "flashes", "flash", "ramp"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: expected at least 1, got {getattr(self, key)}")
        if self.dark < 1:
            raise ValueError(f"interval: expected more than flash + 2 ramps, {self.lit}, got {self.interval}")
        if not 0 < self.background < 1:
            raise ValueError(f"background: expected a value in (0, 1), got {self.background}")
        if not self.background < self.dimmest <= 1:
            raise ValueError(f"dimmest: expected a value in ({self.background}, 1], got {self.dimmest}")
        for low, high, limit in (
            ("smallest", "largest", float("inf")),
            ("slowest", "fastest", float("inf")),
            ("nearest", "farthest", float("inf")),
            ("zoom_slowest", "zoom_fastest", 0.5),
        ):
            values = getattr(self, low), getattr(self, high)
            if not 0 < values[0] <= values[1] < limit:
                raise ValueError(f"{low}, {high}: expected 0 < {low} <= {high} < {limit}, got {values}")
        if not 0 <= self.aim < 22.5:  # half the angle between two classes
            raise ValueError(f"aim: expected a value in [0, 22.5) degrees, got {self.aim}")

    @property
    def lit(self) -> int:
        """Microseconds of a flash, ramps included."""
        return self.flash + 2 * self.ramp

    @property
    def dark(self) -> int:
        """Microseconds between two flashes."""
        return self.interval - self.lit

    @property
    def duration(self) -> int:
        """Microseconds."""
        return self.flashes * self.interval

    def frame_times(self) -> npt.NDArray[np.int64]:
        """Times of the rendered video's frames, (4 * flashes + 2,) microseconds: start, ends of ramps, end.

        A flash lies in the middle of its interval.
        """
        edges = np.array([0, self.ramp, self.ramp + self.flash, self.lit]) + self.dark // 2
        inside = np.arange(self.flashes)[:, None] * self.interval + edges
        return np.unique(np.concatenate([[0], inside.ravel(), [self.duration]]))


@dataclass(frozen=True, eq=False)
class ShapePath:
    """What one recording shows.

    Attributes:
        kind: index into ``KINDS``.
        brightness: intensity of the shape.
        at: (flashes, 2), column and row of its middle, pixels, in [0, W) x [0, H).
        size: (flashes,), half its width, pixels.
    """

    kind: int
    brightness: float
    at: FloatArray
    size: FloatArray


def draw_path(shapes: MovingShapes, label: int, sensor: Sensor, rng: np.random.Generator) -> ShapePath:
    """Draw one recording of class ``label``; each class uses up the same random numbers."""
    name = CLASSES[label]
    kind = int(rng.integers(len(KINDS)))
    brightness = rng.uniform(shapes.dimmest, 1.0)
    start = rng.random(2) * (sensor.width, sensor.height)
    zoom = rng.random()
    speed = rng.uniform(shapes.slowest, shapes.fastest)
    zoom_speed = rng.uniform(shapes.zoom_slowest, shapes.zoom_fastest)
    aim = np.radians(rng.uniform(-shapes.aim, shapes.aim))
    radius = rng.uniform(shapes.nearest, shapes.farthest)
    phase = rng.uniform(0, 2 * np.pi)
    anywhere = rng.uniform(0, 2 * np.pi, shapes.flashes)

    k = np.arange(shapes.flashes)
    if name in _HEADINGS:
        right, down = _HEADINGS[name]
        shift = speed * k[:, None] * _unit(np.arctan2(down, right) + aim)
    elif name in ("clockwise", "anticlockwise"):
        sense = 1 if name == "clockwise" else -1  # rows count downward
        shift = radius * _unit(phase + sense * speed / radius * k)
    elif name == "scatter":
        shift = speed * np.cumsum(_unit(anywhere), axis=0)
    else:
        shift = np.zeros((shapes.flashes, 2))
        zoom = zoom + {"approach": 1, "recede": -1}[name] * zoom_speed * k
    size = shapes.smallest * (shapes.largest / shapes.smallest) ** (zoom % 1.0)
    at = (start + shift) % (sensor.width, sensor.height)
    return ShapePath(kind, brightness, at, np.broadcast_to(size, (shapes.flashes,)))


def _unit(angle: float | FloatArray) -> FloatArray:
    """(..., 2): right and down."""
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def draw_shapes(path: ShapePath, sensor: Sensor) -> FloatArray:
    """Coverage of each pixel, in [0, 1], at each flash: (flashes, H, W).

    Coverage falls from 1 to 0 within half a pixel on either side of the outline, by the distance from it.
    """
    x, y = (
        (np.arange(n) + 0.5 - path.at[:, axis, None] + n / 2) % n - n / 2
        for axis, n in enumerate((sensor.width, sensor.height))
    )
    x, y, size = x[:, None, :], y[:, :, None], path.size[:, None, None]
    name = KINDS[path.kind]
    if name == "disc":
        outside = np.hypot(x, y) - size
    elif name == "square":
        outside = np.maximum(np.abs(x), np.abs(y)) - 0.85 * size
    elif name == "triangle":  # on its base, inradius half the circumradius
        outside = np.maximum(y, np.sqrt(0.75) * np.abs(x) - 0.5 * y) - 0.55 * size
    elif name == "cross":
        longer, shorter = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
        outside = np.maximum(longer - size, shorter - 0.35 * size)
    else:
        outside = np.abs(np.hypot(x, y) - 0.75 * size) - 0.25 * size
    return np.clip(0.5 - outside, 0.0, 1.0)


def render_shapes(shapes: MovingShapes, path: ShapePath, sensor: Sensor) -> FloatArray:
    """The video at :meth:`MovingShapes.frame_times`, (T, H, W) in [0, 1]: each flash is dark, lit, lit, dark."""
    lit = shapes.background + (path.brightness - shapes.background) * draw_shapes(path, sensor)
    room = np.full_like(lit, shapes.background)
    flashes = np.stack([room, lit, lit, room], axis=1).reshape(-1, sensor.height, sensor.width)
    ends = len(shapes.frame_times()) - len(flashes)
    return np.concatenate([room[: ends - 1], flashes, room[:1]])


def shape_recordings(shapes: MovingShapes, camera: EventCamera, sensor: Sensor, seed: int) -> Recordings:
    """All recordings, one after another from class to class, made when they are read.

    One camera sees them all: its mismatch is drawn from ``seed``, recording i from ``(seed, i)``, whatever the others.

    Raises:
        ValueError: a sensor too small for the shapes or without two channels, or a camera whose pixels remember the
            flash before (see :class:`MovingShapes`).
    """
    if sensor.channels != 2:
        raise ValueError(f"sensor.channels: expected 2 (OFF and ON), got {sensor.channels}")
    room = int(np.ceil(2.2 * shapes.largest + 1))  # the corners of a triangle lie outside its width
    if min(sensor.height, sensor.width) < room:
        raise ValueError(f"sensor: expected a height and a width of {room} or more, got {sensor[1:]}")
    _check_camera(shapes, camera)
    thresholds = camera.thresholds(sensor.height, sensor.width, np.random.default_rng(seed))
    times = shapes.frame_times()
    labels = np.arange(shapes.recordings * len(CLASSES)) % len(CLASSES)

    def read(i: int) -> Events:
        rng = np.random.default_rng((seed, i + 1))
        path = draw_path(shapes, int(labels[i]), sensor, rng)
        return camera(render_shapes(shapes, path, sensor), times, rng, thresholds)

    return Recordings(labels, np.arange(len(labels)), [f"shape {i}" for i in range(len(labels))], read)


def _check_camera(shapes: MovingShapes, camera: EventCamera) -> None:
    for key in ("leak", "bandwidth"):
        if getattr(camera, key) != 0:
            raise ValueError(f"camera.{key}: expected 0, a pixel must forget a flash, got {getattr(camera, key)}")
    longest = min(shapes.flash, shapes.dark)
    if not shapes.ramp <= camera.refractory <= longest:
        raise ValueError(
            f"camera.refractory: expected {shapes.ramp} to {longest} us (shapes.ramp to the shorter of flash and dark),"
            f" got {camera.refractory}"
        )
    if camera.threshold_off >= camera.threshold_on:
        raise ValueError(
            f"camera.threshold_off: expected it below threshold_on, {camera.threshold_on}, got {camera.threshold_off}"
        )
