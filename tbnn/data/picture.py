"""Pictures of a packed file: one recording of each class at a glance, and what all recordings have in common."""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tbnn.bits import unpack_bits_numpy
from tbnn.data.packed import PackedFrames
from tbnn.data.recipe import SPLITS
from tbnn.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SLICES = 8
MOST_CLASSES = 32  # in one contact sheet


def contact_sheet(path: str | Path, out_png: str | Path, split: str = "train") -> None:
    """Draw a PNG with the first recording of each class in a split of a packed file, of the first 32 classes.

    Image sensors: a row a class, up to eight slices of time, in which ON events are red, OFF events blue, both darker
    the more often a pixel fired. Other sensors (height or width 1): channel over time, a panel a class.

    Raises:
        FileNotFoundError, ValueError: as :class:`tbnn.data.PackedFrames`.
    """
    data = PackedFrames(path, split)
    samples = {
        name: recording(data, int(found[0]))
        for label, name in enumerate(data.info.classes[:MOST_CLASSES])
        if (found := np.flatnonzero(data.labels == label)).size
    }
    save(_slices(data, samples) if is_image(data) else _rasters(data, samples), out_png)


def statistics(path: str | Path, out_png: str | Path) -> None:
    """Draw a PNG with histograms of event rate, duration and firing, and the class balance, of all splits.

    Raises:
        FileNotFoundError, ValueError: as :class:`tbnn.data.PackedFrames`.
    """
    splits = [PackedFrames(path, split) for split in SPLITS]
    figure = new_figure(9.0, 6.5, f"{splits[0].info.title}\n{', '.join(f'{len(s):,} {s.split}' for s in splits)}")
    rate, duration, balance, density = figure.subplots(2, 2).ravel()
    seconds = [np.maximum(s.durations, 1) / 1e6 for s in splits]
    labels = [s.split for s in splits]
    rate.hist([s.events / t / 1000 for s, t in zip(splits, seconds, strict=True)], bins=30, stacked=True, label=labels)
    rate.set_xlabel("thousand events a second")
    duration.hist([t * 1000 for t in seconds], bins=30, stacked=True, label=labels)
    duration.set_xlabel("duration, ms")
    for axis in (rate, duration):
        axis.set_ylabel("recordings")
    classes = np.arange(len(splits[0].info.classes))
    bottom = np.zeros(len(classes))
    for s in splits:
        count = np.bincount(s.labels, minlength=len(classes))
        balance.bar(classes, count, bottom=bottom, label=s.split)
        bottom += count
    balance.set_xlabel("class")
    if len(classes) <= 15:
        crowded = sum(map(len, splits[0].info.classes)) > 40
        style = {"rotation": 40, "ha": "right"} if crowded else {}
        balance.set_xticks(classes, splits[0].info.classes, fontsize=7, **style)
    balance.legend(fontsize=8)
    _draw_density(density, splits[0])
    save(figure, out_png)


def _draw_density(axis: "Axes", data: PackedFrames) -> None:
    """Share of the bits that are 1, over the steps: median and quartiles of up to 200 recordings."""
    from matplotlib.ticker import MaxNLocator

    some = data.batch(np.linspace(0, len(data) - 1, min(200, len(data))).astype(np.int64))
    density = 100 * np.bitwise_count(some.view(np.uint32)).sum(2) / data.info.bits
    low, middle, high = np.percentile(density, (25, 50, 75), axis=0)
    steps = np.arange(data.info.steps)
    axis.fill_between(steps, low, high, alpha=0.3, step="mid")
    axis.step(steps, middle, where="mid")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("step")
    axis.set_ylabel("% of the bits set")
    axis.set_ylim(bottom=0)


def is_image(data: PackedFrames) -> bool:
    """Whether the frames have two axes to look at."""
    return data.info.sensor.height > 1 and data.info.sensor.width > 1


def recording(data: PackedFrames, index: int) -> npt.NDArray[np.uint8]:
    """The frames of one recording, 0/1 (T, C, H, W)."""
    return unpack_bits_numpy(data.batch([index])[0], data.info.bits).reshape(data.info.steps, *data.info.sensor)


def new_figure(width: float, height: float, title: str) -> "Figure":
    """An empty figure of that many inches; without pyplot: no display, no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    return figure


def save(figure: "Figure", out_png: str | Path) -> None:
    """Write a PNG."""
    with replacing(out_png) as temporary:
        figure.savefig(temporary, dpi=110, facecolor="white", bbox_inches="tight", format="png")


def _title(data: PackedFrames) -> str:
    info = data.info
    duration = f" in {info.steps * info.bin_width / 1000:g} ms" if info.bin_width else ""
    cut = f", the first {MOST_CLASSES} of {len(info.classes)} classes" if len(info.classes) > MOST_CLASSES else ""
    return f"{info.title}\n{data.split}, {info.steps} steps{duration}{cut}"


def _when(data: PackedFrames, start: int, end: int) -> str:
    width = data.info.bin_width
    return f"{start * width / 1000:g}–{end * width / 1000:g} ms" if width else f"{start}–{end}"


def _slices(data: PackedFrames, samples: dict[str, npt.NDArray[np.uint8]]) -> "Figure":
    """A row a class, a column a slice of time."""
    info = data.info
    edges = np.linspace(0, info.steps, min(SLICES, info.steps) + 1).round().astype(int)
    pieces = list(pairwise(edges))
    row_height = 1.1 * info.sensor.height / info.sensor.width
    figure = new_figure(1.1 * len(pieces) + 0.6, row_height * len(samples) + 1.0, _title(data))
    axes = figure.subplots(len(samples), len(pieces), squeeze=False)
    for row, (name, frames) in zip(axes, samples.items(), strict=True):
        for axis, (start, end) in zip(row, pieces, strict=True):
            axis.imshow(colours(frames[start:end].mean(0)), interpolation="nearest")
            _bare(axis)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=12)
    for axis, (start, end) in zip(axes[0], pieces, strict=True):
        axis.set_title(_when(data, start, end), fontsize=7)
    return figure


def colours(rates: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Firing rates (C, H, W) in [0, 1] as RGB (H, W, 3): OFF takes red and green from white, ON green and blue.

    Channels go OFF, ON, and again for each bit plane; a single channel counts as OFF.
    """
    paired = len(rates) % 2 == 0
    off = np.sqrt((rates[::2] if paired else rates).max(0))
    on = np.sqrt(rates[1::2].max(0)) if paired else np.zeros_like(off)
    return np.clip(1 - np.stack([off, 0.8 * (on + off), on], axis=-1), 0, 1)


def _rasters(data: PackedFrames, samples: dict[str, npt.NDArray[np.uint8]]) -> "Figure":
    """A panel a class: channels from bottom to top, time to the right."""
    from matplotlib.ticker import AutoLocator

    info = data.info
    figure = new_figure(8.0, 1.1 * len(samples) + 1.0, _title(data))
    axes = figure.subplots(len(samples), 1, squeeze=False, sharex=True, sharey=True).ravel()
    for axis, (name, frames) in zip(axes, samples.items(), strict=True):
        raster = frames.reshape(info.steps, -1).T
        extent = (0, info.steps * (info.bin_width / 1000 or 1), -0.5, len(raster) - 0.5)
        axis.imshow(raster, cmap="Greys", aspect="auto", origin="lower", extent=extent, interpolation="nearest")
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=12)
        _bare(axis)
    axes[-1].xaxis.set_major_locator(AutoLocator())
    axes[-1].set_xlabel("ms" if info.bin_width else "step")
    figure.supylabel("channel", fontsize=9)
    return figure


def _bare(axis: "Axes") -> None:
    """No ticks, a light frame."""
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color("0.85")
