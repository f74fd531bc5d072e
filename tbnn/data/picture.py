"""Contact sheets: one recording of each class at a glance."""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tbnn.bits import unpack_bits_numpy
from tbnn.data.store import PackedFrames

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SLICES = 8


def contact_sheet(path: str | Path, out_png: str | Path, split: str = "train") -> None:
    """Draw a PNG with the first recording of each class in a split of a packed file.

    Image sensors: a row a class, up to eight slices of time, in which ON events are red, OFF events blue, both darker
    the more often a pixel fired. Other sensors (height or width 1): channel over time, a panel a class.

    Raises:
        FileNotFoundError, ValueError: as :class:`tbnn.data.PackedFrames`.
    """
    data = PackedFrames(path, split)
    first = [np.flatnonzero(data.labels == label)[:1] for label in range(len(data.info.classes))]
    samples = {
        name: unpack_bits_numpy(data.frames[i[0]], data.info.bits).reshape(data.info.steps, *data.info.sensor)
        for name, i in zip(data.info.classes, first, strict=True)
        if i.size
    }
    image_like = data.info.sensor.height > 1 and data.info.sensor.width > 1
    figure = _slices(data, samples) if image_like else _rasters(data, samples)
    figure.savefig(out_png, dpi=110, facecolor="white", bbox_inches="tight")


def _new_figure(width: float, height: float, data: PackedFrames) -> "Figure":
    # Without pyplot: no display, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    duration = data.info.steps * data.info.bin_width / 1000
    figure.suptitle(f"{data.info.title}\n{data.split}, {data.info.steps} steps in {duration:g} ms", fontsize=11)
    return figure


def _slices(data: PackedFrames, samples: dict[str, npt.NDArray[np.uint8]]) -> "Figure":
    """A row a class, a column a slice of time."""
    info = data.info
    edges = np.linspace(0, info.steps, min(SLICES, info.steps) + 1).round().astype(int)
    pieces = list(pairwise(edges))
    row_height = 1.1 * info.sensor.height / info.sensor.width
    figure = _new_figure(1.1 * len(pieces) + 0.6, row_height * len(samples) + 1.0, data)
    axes = figure.subplots(len(samples), len(pieces), squeeze=False)
    for row, (name, frames) in zip(axes, samples.items(), strict=True):
        for axis, (start, end) in zip(row, pieces, strict=True):
            axis.imshow(_colours(frames[start:end].mean(0)), interpolation="nearest")
            _bare(axis)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=12)
    for axis, (start, end) in zip(axes[0], pieces, strict=True):
        axis.set_title(f"{start * info.bin_width / 1000:g}–{end * info.bin_width / 1000:g} ms", fontsize=7)
    return figure


def _colours(rates: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Firing rates (C, H, W) in [0, 1] as RGB (H, W, 3): OFF takes red and green from white, ON green and blue."""
    off, on = np.sqrt(rates[0]), np.sqrt(rates[-1]) if len(rates) > 1 else np.zeros(rates.shape[1:])
    return np.clip(1 - np.stack([off, 0.8 * (on + off), on], axis=-1), 0, 1)


def _rasters(data: PackedFrames, samples: dict[str, npt.NDArray[np.uint8]]) -> "Figure":
    """A panel a class: channels from bottom to top, time to the right."""
    from matplotlib.ticker import AutoLocator

    info = data.info
    figure = _new_figure(8.0, 1.1 * len(samples) + 1.0, data)
    axes = figure.subplots(len(samples), 1, squeeze=False, sharex=True, sharey=True).ravel()
    for axis, (name, frames) in zip(axes, samples.items(), strict=True):
        raster = frames.reshape(info.steps, -1).T
        extent = (0, info.steps * info.bin_width / 1000, -0.5, len(raster) - 0.5)
        axis.imshow(raster, cmap="Greys", aspect="auto", origin="lower", extent=extent, interpolation="nearest")
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=12)
        _bare(axis)
    axes[-1].xaxis.set_major_locator(AutoLocator())
    axes[-1].set_xlabel("ms")
    figure.supylabel("channel", fontsize=9)
    return figure


def _bare(axis: "Axes") -> None:
    """No ticks, a light frame."""
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color("0.85")
