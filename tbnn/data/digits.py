"""The embedded dataset: handwritten digits seen by the simulated event camera."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tbnn.data.camera import EventCamera
from tbnn.data.events import Events, Sensor
from tbnn.data.recordings import Recordings

SACCADES = 3
_SCALE = 2  # sensor pixels a pixel of the 8 x 8 image


@dataclass(frozen=True)
class Scene:
    """What the camera looks at: a bright digit on a dark ground, moved along the three sides of a triangle.

    The three saccades follow G. Orchard et al., "Converting static image datasets to spiking neuromorphic datasets
    using saccades", Frontiers in Neuroscience 9:437, 2015.

    Attributes:
        background: intensity of the ground, in (0, 1); ink goes from there to 1.
        sweep: width and height of the triangle in sensor pixels.
        saccade: duration of one saccade in microseconds.
        frame_interval: microseconds between two frames of the rendered video; it must divide ``saccade``.

    Raises:
        ValueError: on a value outside its range.
    """

    background: float = 0.1
    sweep: float = 4.0
    saccade: int = 100_000
    frame_interval: int = 5_000

    def __post_init__(self) -> None:
        if not 0 < self.background < 1:
            raise ValueError(f"background: expected a value in (0, 1), got {self.background}")
        if not 0 < self.sweep < float("inf"):
            raise ValueError(f"sweep: expected a positive number of pixels, got {self.sweep}")
        if self.saccade < 1:
            raise ValueError(f"saccade: expected at least 1, got {self.saccade}")
        if self.frame_interval < 1 or self.saccade % self.frame_interval:
            raise ValueError(f"frame_interval: expected a divisor of {self.saccade}, got {self.frame_interval}")

    @property
    def duration(self) -> int:
        """Microseconds."""
        return SACCADES * self.saccade

    def frame_times(self) -> npt.NDArray[np.int64]:
        """(T,) microseconds."""
        return np.arange(0, self.duration + 1, self.frame_interval)

    def path(self) -> npt.NDArray[np.float64]:
        """Where the digit is at each frame: (T, 2), right and down from its first place, sensor pixels."""
        corners = self.sweep * np.array([[0.0, 0.0], [0.5, 1.0], [1.0, 0.0], [0.0, 0.0]])
        at = self.frame_times() / self.saccade
        return np.stack([np.interp(at, np.arange(len(corners)), corners[:, axis]) for axis in (0, 1)], axis=1)

    def render(self, image: npt.NDArray[np.floating], height: int, width: int) -> npt.NDArray[np.float64]:
        """Draw the moving image: (h, w) ink in [0, 1] -> video (T, height, width), interpolated linearly.

        The image is doubled in size; the triangle's middle is the sensor's middle.
        """
        path = self.path()
        down = _interpolation(height, image.shape[0], path[:, 1] - self.sweep / 2)
        right = _interpolation(width, image.shape[1], path[:, 0] - self.sweep / 2)
        ink = down @ image @ right.transpose(0, 2, 1)
        return np.clip(self.background + (1 - self.background) * ink, 0, 1)


def _interpolation(size: int, image_size: int, shift: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Weights (T, size, image_size) of linear interpolation from an image's axis to the sensor's, image centred."""
    centre = (np.arange(size) + 0.5 - size / 2 - shift[:, None]) / _SCALE + image_size / 2 - 0.5
    return np.maximum(0.0, 1.0 - np.abs(centre[..., None] - np.arange(image_size)))


def digit_images() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """scikit-learn's 1,797 handwritten digits: ink (N, 8, 8) in [0, 1] and labels (N,)."""
    from sklearn.datasets import load_digits  # slow to import

    ink, labels = load_digits(return_X_y=True)
    return np.asarray(ink).reshape(-1, 8, 8) / 16.0, np.asarray(labels, np.int64)


def digit_recordings(camera: EventCamera, scene: Scene, sensor: Sensor, seed: int) -> Recordings:
    """All digits, shown one after another to one and the same camera.

    The sensor's mismatch is drawn once from ``seed``; the noise of image i from ``(seed, i)``, whatever came before.
    """
    images, labels = digit_images()
    return image_recordings(images, labels, camera, scene, sensor, seed)


def image_recordings(
    images: npt.NDArray[np.floating],
    labels: npt.NDArray[np.int64],
    camera: EventCamera,
    scene: Scene,
    sensor: Sensor,
    seed: int,
) -> Recordings:
    """As :func:`digit_recordings`, of images (N, h, w) with labels (N,)."""
    thresholds = camera.thresholds(sensor.height, sensor.width, np.random.default_rng(seed))
    times = scene.frame_times()

    def read(i: int) -> Events:
        video = scene.render(images[i], sensor.height, sensor.width)
        return camera(video, times, np.random.default_rng((seed, i + 1)), thresholds)

    return Recordings(labels, np.arange(len(labels)), [f"digit {i}" for i in range(len(labels))], read)
