"""Looking at a dataset: contact sheet, an animation of each class, statistics."""

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tbnn.data.packed import PackedFrames
from tbnn.data.picture import colours, contact_sheet, is_image, recording, statistics
from tbnn.files import replacing

ABREAST = 4  # recordings in one animation
_LEAST_SIDE = 160  # pixels of the picture
_LEAST_MS = 40  # a frame; faster ones are shown slower than life
_MOST_WIDTH = 1024
_GAP = 8
_MOST_COLUMNS = 256  # of time, in an animation of a sensor without image
_MOST_PICTURES = 64


def show(path: str | Path, folder: str | Path, split: str = "train") -> list[Path]:
    """Write pictures of a packed file into ``folder``, made if need be, and return their paths.

    ``contact_sheet.png`` (:func:`tbnn.data.contact_sheet`), ``statistics.png`` (event rates, durations, class balance and
    firing over time, of all splits), and for each class ``LABEL_NAME.gif``: its first four recordings in motion, ON red,
    OFF blue, a frame for 40 ms at least. Sensors without image (height or width 1) show channel over time, what is still to
    come in grey.

    Raises:
        FileNotFoundError, ValueError: as :class:`tbnn.data.PackedFrames`.
    """
    data, folder = PackedFrames(path, split), Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output: expected a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "contact_sheet.png", folder / "statistics.png"]
    contact_sheet(path, written[0], split)
    statistics(path, written[1])
    digits = len(str(len(data.info.classes) - 1))
    for label, name in enumerate(data.info.classes):
        found = np.flatnonzero(data.labels == label)[:ABREAST]
        if found.size:
            plain = re.sub(r"\W+", "_", name).strip("_")
            written.append(folder / f"{label:0{digits}}_{plain}.gif")
            _write_gif(written[-1], _animate(data, found), data.info.bin_width)
    return written


def _animate(data: PackedFrames, which: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    """RGB pictures (T, h, w, 3) of recordings: images side by side, others one above the other."""
    image = is_image(data)
    shots = [_moving(frames) if image else _growing(frames) for frames in (recording(data, i) for i in which)]
    height, width = shots[0].shape[1:3]
    scale = max(1, min(-(-_LEAST_SIDE // min(height, width)), _MOST_WIDTH // width))
    large = [shot.repeat(scale, 1).repeat(scale, 2) for shot in shots]
    gap_shape = list(large[0].shape)
    gap_shape[2 if image else 1] = _GAP
    gap = np.full(gap_shape, 200, np.uint8)
    return np.concatenate([part for shot in large for part in (shot, gap)][:-1], axis=2 if image else 1)


def _moving(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Frames (T, C, H, W) in colour, (T, H, W, 3)."""
    return np.stack([(255 * colours(frame.astype(float))).astype(np.uint8) for frame in frames])


def _growing(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Channel over time, (pictures, channels, columns, 3): black where it has fired, grey where it will; channel 0 lowest."""
    edges = np.linspace(0, len(frames), min(len(frames), _MOST_COLUMNS) + 1).astype(int)[:-1]
    raster = np.maximum.reduceat(frames.reshape(len(frames), -1), edges).T[::-1]
    columns = np.arange(len(edges))
    now = columns[:: -(-len(edges) // _MOST_PICTURES)]
    past = (columns <= now[:, None])[:, None, :]  # (pictures, 1, columns)
    grey = np.where(raster, np.where(past, 0, 190), np.where(past, 255, 240))
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)


def _write_gif(path: Path, pictures: npt.NDArray[np.uint8], bin_width: int) -> None:
    from PIL import Image

    images = [Image.fromarray(picture) for picture in pictures]
    duration = max(_LEAST_MS, bin_width // 1000)
    with replacing(path) as temporary:
        images[0].save(temporary, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
