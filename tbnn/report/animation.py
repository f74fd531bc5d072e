"""Moving pictures: a recording on its way through the network, and weights that turn while it learns."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tbnn.files import replacing
from tbnn.report.bars import MOST_COUNTED, whites_to_blue
from tbnn.report.data import Sample
from tbnn.report.raster import event_colours, milliseconds
from tbnn.report.style import BLUE, CYCLE, GREY, VERMILION, label, new_figure, styled
from tbnn.report.weights import LARGEST_MATRIX

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PICTURES = 64
_DOTS = 80  # an inch
_PALETTE = 64  # colours
_BAND = 12  # pixels
_LAST = 1200  # ms that the last picture stays
_FADES = 0.45  # of a flash, from picture to picture
_COLUMNS = 4  # of panels
_STILL = "#c3ccd6"
_MINUS, _PLUS, _DOWN, _UP = "#cdd5dd", "#eef0f2", BLUE, VERMILION  # what stays is pale

Draw = Callable[[int], None]
"""Change a figure into its picture of this number."""


def animate_recording(
    sample: Sample, classes: Sequence[str], path: str | Path, *, bin_width: float | None = None, time_unit: str = "us",
    duration: int = 120,
) -> int:  # fmt: skip
    """Write a GIF of one recording: its frames, every layer's neurons as squares that flash when they spike, the readout.

    Args:
        sample, classes, bin_width, time_unit: as of :func:`tbnn.report.raster_figure`.
        path: of the GIF; it appears when it is whole.
        duration: ms a picture. Of more than 64 steps several share one.

    Returns:
        The number of pictures.

    Raises:
        ValueError: on an unknown time unit, or a duration below 20 ms.
        FileNotFoundError: the folder does not exist.
    """
    step = milliseconds(bin_width, time_unit)
    steps = len(sample.frames)
    edges = np.linspace(0, steps, min(steps, MOST_PICTURES) + 1).round().astype(int)
    film = _Recording(sample, classes, edges, step, "ms" if bin_width else "steps")
    _write(film.figure, film.draw, len(edges) - 1, path, duration)
    return len(edges) - 1


def animate_flips(
    moments: Sequence[Mapping[str, Any]], path: str | Path, *, names: Sequence[str] | None = None, duration: int = 400
) -> int:
    """Write a GIF of weights that turn between one moment of learning and the next: to + in vermilion, to − in blue.

    Args:
        moments: signs of all layers, as :func:`tbnn.learning.retention.signs` gives them, (outputs, ...) each; two or more.
        names: of the moments after the first, "epoch 1" and so on if not given.
        path, duration: as in :func:`animate_recording`.

    Returns:
        The number of pictures: one less than the moments.

    Raises:
        ValueError: fewer than two moments, other layers or shapes in one of them, other than one name each.
        FileNotFoundError: the folder does not exist.
    """
    matrices = [{k: np.asarray(v).reshape(len(v), -1) for k, v in moment.items()} for moment in moments]
    shapes = [{k: v.shape for k, v in moment.items()} for moment in matrices]
    if len(moments) < 2 or not shapes[0] or any(other != shapes[0] for other in shapes):
        raise ValueError(
            f"animate_flips: expected signs of the same layers at two moments or more, got {shapes[:2] or 'none'}"
        )
    count = len(moments) - 1
    names = [f"epoch {i + 1}" for i in range(count)] if names is None else list(names)
    if len(names) != count:
        raise ValueError(f"animate_flips: expected {count} names, got {len(names)}")
    film = _Flips(matrices, names)
    _write(film.figure, film.draw, count, path, duration)
    return count


def _write(figure: "Figure", draw: Draw, count: int, path: str | Path, duration: int) -> None:
    from PIL import Image

    if duration < 20:
        raise ValueError(f"duration: expected 20 ms or more, which viewers show, got {duration}")
    pictures = []
    canvas: Any = figure.canvas
    canvas.draw()
    figure.set_layout_engine("none")  # the first picture's layout for all: nothing jumps
    for i in range(count):
        draw(i)
        canvas.draw()
        pictures.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]))
    # One palette for all: of the last picture, one in the middle, and bands of the colours that few pixels may have.
    width, height = pictures[0].size
    seen = Image.new("RGB", (width, 2 * height + _BAND * len(CYCLE)))
    seen.paste(pictures[-1], (0, 0))
    seen.paste(pictures[count // 2], (0, height))
    for i, colour in enumerate(CYCLE):
        seen.paste(colour, (0, 2 * height + _BAND * i, width, 2 * height + _BAND * (i + 1)))
    palette = seen.quantize(_PALETTE, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    frames = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    times = [duration] * (count - 1) + [max(duration, _LAST)]
    with replacing(path) as temporary:
        frames[0].save(temporary, "GIF", save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=True)


def _square(count: int) -> tuple[int, int]:
    """Rows and columns of a grid for so many neurons."""
    columns = math.ceil(math.sqrt(count))
    return -(-count // columns), columns


def _grid(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """One number a neuron on a grid, NaN where there is none."""
    rows, columns = _square(len(values))
    sheet = np.full(rows * columns, np.nan)
    sheet[: len(values)] = values
    return sheet.reshape(rows, columns)


class _Recording:
    """The panels of a recording, and how they change."""

    def __init__(
        self, sample: Sample, classes: Sequence[str], edges: npt.NDArray[np.intp], step: float, unit: str
    ) -> None:
        self.sample, self.classes, self.edges, self.step, self.unit = sample, classes, edges, step, unit
        _, _, height, width = sample.frames.shape
        self.as_images = height > 1 and width > 1
        parts = list(itertools.pairwise(edges))
        self.inputs = [self._input(sample.frames[a:b]) for a, b in parts]
        self.spikes = {name: _glow(np.stack([s[a:b].mean(0) for a, b in parts])) for name, s in sample.spikes.items()}
        self.figure = self._panels()

    def _input(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        rates = frames.mean(0)
        return event_colours(rates) if self.as_images else _grid(rates.reshape(-1))

    @styled
    def _panels(self) -> "Figure":
        panels = 2 + len(self.spikes)
        columns = min(panels, _COLUMNS)
        rows = -(-panels // columns)
        figure = new_figure(2.5 * columns + 0.5, 2.6 * rows + 0.5)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis in axes[panels:]:
            axis.remove()
        self.pictures = []
        names = ["input events" if self.as_images else "input", *(label(name) for name in self.spikes)]
        firsts = [self.inputs[0], *(_grid(glow[0]) for glow in self.spikes.values())]
        for axis, name, first in zip(axes, names, firsts, strict=False):
            colours: Any = {} if first.ndim == 3 else {"cmap": whites_to_blue(), "vmin": 0, "vmax": 1}
            self.pictures.append(axis.imshow(first, interpolation="nearest", **colours))
            axis.set_title(name)
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(True)
        for axis, spikes in zip(axes[1:], self.sample.spikes.values(), strict=False):
            axis.set_xlabel(f"{spikes.shape[1]} neurons")
        self._bars(axes[panels - 1])
        self.title = figure.suptitle(self._words(0), x=0.012, ha="left", fontsize=10.5, fontweight="bold")
        return figure

    def _bars(self, axis: "Axes") -> None:
        """The readout, a bar a class, the highest one in colour."""
        readout = self.sample.readout
        places = np.arange(readout.shape[1])
        self.bars = axis.barh(places, readout[0], 0.7)
        low, high = min(0.0, float(readout.min())), max(0.0, float(readout.max()))
        margin = 0.05 * (high - low) or 1.0
        axis.set_xlim(low - margin, high + margin)
        axis.axvline(0, color=GREY, linewidth=0.8)
        shown = list(places) if len(places) <= MOST_COUNTED else [self.sample.label]
        axis.set_yticks(shown, [label(self.classes[c], 12) for c in shown])
        axis.get_yticklabels()[shown.index(self.sample.label)].set(fontweight="bold", color=VERMILION)
        axis.invert_yaxis()
        axis.tick_params(axis="y", length=0)
        axis.set_title("readout")
        axis.set_xlabel("true class in bold red")

    def _words(self, i: int) -> str:
        now = self.edges[i + 1] * self.step
        time = f"{now:.4g} ms" if self.unit == "ms" else f"step {now:.0f}"
        return f"recording {self.sample.index}: {time} of {self.edges[-1] * self.step:.4g}"

    def draw(self, i: int) -> None:
        """Show picture i."""
        for picture, values in zip(
            self.pictures, [self.inputs[i], *(_grid(g[i]) for g in self.spikes.values())], strict=True
        ):
            picture.set_data(values)
        scores = self.sample.readout[self.edges[i + 1] - 1]
        for c, bar in enumerate(self.bars):
            bar.set_width(scores[c])
            bar.set_color(BLUE if c == scores.argmax() else _STILL)
        self.title.set_text(self._words(i))


def _glow(rates: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Spikes (pictures, neurons) full for the picture they fall in, fading over the next ones so that the eye can follow."""
    glow = (rates > 0).astype(np.float64)
    for i in range(1, len(glow)):
        glow[i] = np.maximum(glow[i], _FADES * glow[i - 1])
    return glow


class _Flips:
    """A matrix of signs a layer, with what turned in colour."""

    def __init__(self, matrices: list[dict[str, npt.NDArray[Any]]], names: Sequence[str]) -> None:
        self.matrices, self.names = matrices, names
        self.figure = self._panels()

    @styled
    def _panels(self) -> "Figure":
        from matplotlib.colors import ListedColormap
        from matplotlib.patches import Patch

        colours = ListedColormap([_DOWN, _MINUS, "white", _PLUS, _UP])
        layers = self.matrices[0]
        columns = min(len(layers), _COLUMNS)
        rows = -(-len(layers) // columns)
        figure = new_figure(max(3.0 * columns, 4.8) + 0.3, 2.9 * rows + 0.9)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis in axes[len(layers) :]:
            axis.remove()
        self.pictures, self.titles = [], []
        for axis, name in zip(axes, layers, strict=False):
            self.pictures.append(
                axis.imshow(
                    self._turned(name, 0), cmap=colours, vmin=-2, vmax=2, interpolation="nearest", aspect="auto"
                )
            )
            self.titles.append(axis.set_title(label(name, 26)))
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel("input")
            axis.set_ylabel("neuron")
        patches = [
            Patch(facecolor=colour, edgecolor=GREY, linewidth=0.5, label=name)
            for colour, name in ((_MINUS, "−1"), (_PLUS, "+1"), (_DOWN, "turned to −1"), (_UP, "turned to +1"))
        ]
        figure.legend(handles=patches, loc="outside lower left", ncols=4, handlelength=1.0, fontsize=8.5)
        self.title = figure.suptitle(self._words(0), x=0.012, ha="left", fontsize=10.5, fontweight="bold")
        return figure

    def _turned(self, name: str, i: int) -> npt.NDArray[np.float64]:
        """−1, 0, 1, or ±2 where a sign has turned to it."""
        before, after = (
            self.matrices[i + k][name][:LARGEST_MATRIX, :LARGEST_MATRIX].astype(np.float64) for k in (0, 1)
        )
        return np.where(before == after, after, 2 * after)

    def _words(self, i: int) -> str:
        pairs = [(self.matrices[i][name], self.matrices[i + 1][name]) for name in self.matrices[0]]
        turned, total = sum(int((a != b).sum()) for a, b in pairs), sum(a.size for a, _ in pairs)
        return f"{label(self.names[i], 40)}: {turned:,} of {total:,} weights turned ({100 * turned / total:.2g} %)"

    def draw(self, i: int) -> None:
        """Show picture i."""
        for picture, name in zip(self.pictures, self.matrices[0], strict=True):
            picture.set_data(self._turned(name, i))
        self.title.set_text(self._words(i))
