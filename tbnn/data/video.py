"""Videos for the simulated event camera: GIF files, folders of images, arrays."""

import re
import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import Image

FloatArray = npt.NDArray[np.float64]

_IMAGES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_MOST_PIXELS = 2**27  # of all frames together: 1 GiB as float64
_NO_DURATION = 100  # ms that viewers show a GIF frame whose duration is 0


def read_video(
    source: str | Path | npt.NDArray[np.generic],
    *,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
) -> tuple[FloatArray, npt.NDArray[np.floating]]:
    """Read grey frames and their times.

    Colours become luma by ITU-R BT.601, ``0.299 R + 0.587 G + 0.114 B``; transparent pixels are black. Pixel values
    are taken as linear intensity, without undoing a gamma curve, as v2e does. Frame k is what the scene looks like
    at its time, so that the duration of a GIF's last frame has no effect.

    Args:
        source: a GIF; a folder of images, all of one size, in natural order (``2.png`` before ``10.png``), other files
            in it ignored; a ``.npy`` file, or an array, of (T, H, W) uint8 or floats in [0, 1].
        size: (height, width) to resize to, by area-weighted linear interpolation; default: as it is.
        fps: frames a second; needed but for a GIF, whose own durations it replaces (a duration of 0 counts as 100 ms).

    Returns:
        float64 intensities (T, H, W) in [0, 1] and times (T,) in microseconds, from 0.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: no images, fewer than two frames, sizes that differ, a damaged file, other arrays, or more than
            2^27 pixels in all (or more in one image than Pillow takes for a decompression bomb).

    >>> video, times = read_video(np.full((3, 4, 4), 51, np.uint8), fps=50, size=(2, 2))
    >>> video.shape, round(float(video.max()), 6), times.tolist()
    ((3, 2, 2), 0.2, [0.0, 20000.0, 40000.0])
    """
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"size: expected a height and a width of at least 1, got {size}")
    if fps is not None and not 0 < fps < float("inf"):
        raise ValueError(f"fps: expected a positive number of frames a second, got {fps}")
    durations = None
    if isinstance(source, np.ndarray):
        where = "video"
        video = _from_array(source, size, where)
    else:
        path, where = Path(source), str(source)
        if not path.exists():
            raise FileNotFoundError(f"{path}: expected a GIF, a .npy file or a folder of images, found nothing there")
        if path.is_dir():
            video = _from_folder(path, size)
        elif path.suffix.lower() == ".npy":
            video = _from_npy(path, size)
        elif path.suffix.lower() == ".gif":
            video, durations = _from_gif(path, size)
        else:
            raise ValueError(
                f"{path}: expected a GIF, a .npy file or a folder of images; other videos become one by"
                " ffmpeg -i VIDEO FOLDER/%05d.png"
            )
    if len(video) < 2:
        raise ValueError(f"{where}: expected two frames or more, got {len(video)}")
    if fps is not None:
        return video, np.arange(len(video)) * 1e6 / fps
    if durations is None:
        raise ValueError(f"{where}: expected fps, the frames a second; only a GIF knows its own")
    return video, np.concatenate([[0.0], np.cumsum(durations[:-1])]) * 1000.0


def _from_array(array: npt.NDArray[np.generic], size: tuple[int, int] | None, where: str) -> FloatArray:
    if array.ndim != 3 or array.size == 0 or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        raise ValueError(f"{where}: expected uint8 or floats (T, H, W), got {array.dtype} {array.shape}")
    _check_room(array.shape if size is None else (len(array), *size), f"{where}: ")
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{where}: expected intensities in [0, 1], got {low} to {high}")
    scale = 255.0 if array.dtype == np.uint8 else 1.0
    if size is None:
        return array.astype(np.float64) / scale
    return np.stack([_resized(np.asarray(frame, np.float64) / scale, size) for frame in array])


def _from_npy(path: Path, size: tuple[int, int] | None) -> FloatArray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError, SyntaxError) as error:
        raise ValueError(f"{path}: expected a .npy file of numbers, got {error}") from error
    return _from_array(array, size, str(path))


def _from_folder(path: Path, size: tuple[int, int] | None) -> FloatArray:
    files = sorted((f for f in path.iterdir() if f.suffix.lower() in _IMAGES and f.is_file()), key=_natural)
    if not files:
        raise ValueError(f"{path}: expected images ({', '.join(_IMAGES)}), found none")
    frames: list[FloatArray] = []
    first: tuple[int, int] | None = None
    for file in files:
        opened = _open(file)
        try:
            with opened as image:
                height_width = (image.height, image.width)
                first = first or height_width
                if height_width != first:
                    raise ValueError(f"expected the {first} pixels of {files[0].name}, got {height_width}")
                _check_room((len(files), *(size or first)))
                frames.append(_grey(image, size))
        except _damage() as error:
            raise _refusal(file, error) from error
    return np.stack(frames)


def _from_gif(path: Path, size: tuple[int, int] | None) -> tuple[FloatArray, FloatArray]:
    """Frames, and their durations in milliseconds."""
    opened = _open(path)
    try:
        with opened as image:
            count = int(getattr(image, "n_frames", 1))
            _check_room((count, *(size or (image.height, image.width))))
            frames: list[FloatArray] = []
            durations: list[float] = []
            for k in range(count):
                image.seek(k)
                frames.append(_grey(image, size))
                durations.append(image.info.get("duration", 0) or _NO_DURATION)
            return np.stack(frames), np.array(durations, np.float64)
    except _damage() as error:
        raise _refusal(path, error) from error


def _open(path: Path) -> "Image.Image":
    from PIL import Image  # optional

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path)
    except (Image.DecompressionBombWarning, *_damage()) as error:
        raise ValueError(f"{path}: expected an image, got: {error}") from error


def _damage() -> tuple[type[Exception], ...]:
    """What Pillow raises for images that are broken, or too large."""
    from PIL import Image

    return (OSError, EOFError, SyntaxError, ValueError, IndexError, struct.error, Image.DecompressionBombError)


def _refusal(path: Path, error: Exception) -> ValueError:
    """An error of reading ``path`` that names it; a ``ValueError`` already says what was expected."""
    expected = "" if isinstance(error, ValueError) else "expected a whole image, got: "
    return ValueError(f"{path}: {expected}{error}")


def _grey(image: "Image.Image", size: tuple[int, int] | None) -> FloatArray:
    """(H, W) in [0, 1]."""
    if image.mode == "F":
        raise ValueError("expected 8 or 16 bits a pixel, got floats")
    if image.mode.startswith("I"):  # 16 bits
        grey = np.asarray(image, np.float64) / 65535.0
        if not (grey.min() >= 0 and grey.max() <= 1):
            raise ValueError("expected 8 or 16 bits a pixel, got more")
    else:
        red, green, blue, alpha = (np.asarray(band, np.float64) for band in image.convert("RGBA").split())
        grey = (299.0 * red + 587.0 * green + 114.0 * blue) / 255_000.0 * (alpha / 255.0)
    return grey if size is None else _resized(grey, size)


def _resized(grey: FloatArray, size: tuple[int, int]) -> FloatArray:
    from PIL import Image

    height, width = size
    image = Image.fromarray(grey.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.clip(np.asarray(image, np.float64), 0.0, 1.0)


def _check_room(shape: tuple[int, ...], where: str = "") -> None:
    count = int(np.prod(shape, dtype=np.float64))
    if count > _MOST_PIXELS:
        raise ValueError(f"{where}expected at most {_MOST_PIXELS} pixels in all, got {count}; give a smaller size")


def _natural(path: Path) -> list[str | int]:
    """A sort key: runs of digits count as numbers."""
    parts = re.split(r"(\d+)", path.name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]
