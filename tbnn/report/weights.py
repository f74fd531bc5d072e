"""Pictures of weights: receptive fields where the input is an image, the matrix elsewhere."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tbnn.report.data import WeightPicture
from tbnn.report.style import label, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST_MATRIX = 256  # rows and columns drawn, so that every weight keeps a visible dot
MOST_TILES = 32
_COLUMNS = 8
_MINUS, _ZERO, _PLUS = "#1f4e79", "#f4f1ea", "#f0a202"  # distinct in brightness as well as in colour


def shows_tiles(picture: WeightPicture) -> bool:
    """Whether the rows are drawn as receptive fields: an image of one or two channels."""
    return picture.input_shape is not None and picture.input_shape[0] <= 2 and min(picture.input_shape[1:]) > 1


def sign_shares(picture: WeightPicture) -> dict[int, float]:
    """The shares of -1, 0 and 1 among the weights."""
    return {s: float((picture.sign == s).mean()) for s in (-1, 0, 1)}


def drawn_tiles(picture: WeightPicture) -> int:
    """How many neurons' receptive fields are drawn: the first ones."""
    return min(len(picture.sign), MOST_TILES)


def weight_figure(picture: WeightPicture) -> "Figure":
    """The signs of the weights: receptive-field tiles for an image of up to two channels, else the matrix."""
    return _tiles(picture) if shows_tiles(picture) else _matrix(picture)


def tile_sheet(fields: npt.NDArray[Any], columns: int) -> npt.NDArray[np.floating]:
    """Tiles (n, H, W) on one sheet, row by row, NaN between them and where there is none."""
    n, height, width = fields.shape
    rows = -(-n // columns)
    gap = max(1, round(min(height, width) / 12))
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), np.nan)
    for i, tile in enumerate(fields):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = tile
    return sheet


@styled
def _tiles(picture: WeightPicture) -> "Figure":
    channels, height, width = picture.input_shape or (1, 1, 1)
    n = drawn_tiles(picture)
    columns = min(_COLUMNS, n)
    fields = picture.sign[:n].reshape(n, channels, height, width)
    sheets = [tile_sheet(fields[:, c], columns) for c in range(channels)]
    aspect = sheets[0].shape[0] / sheets[0].shape[1]
    panel = 5.0
    figure = new_figure(
        panel * channels + 0.2 * (channels - 1), min(panel * aspect, 9.0) + (1.15 if channels == 2 else 0.95)
    )
    axes = figure.subplots(1, channels, squeeze=False)[0]
    names = ("OFF inputs", "ON inputs") if channels == 2 else ("",)
    for axis, sheet, name in zip(axes, sheets, names, strict=True):
        axis.imshow(sheet, cmap=sign_colours(), vmin=-1, vmax=1, interpolation="nearest")
        axis.set_title(name)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_xlabel(f"{n} neurons, {height} × {width} inputs each")
        for spine in axis.spines.values():
            spine.set_visible(False)
    _legend(figure, picture)
    return figure


@styled
def _matrix(picture: WeightPicture) -> "Figure":
    part = picture.sign[:LARGEST_MATRIX, :LARGEST_MATRIX]
    out, inputs = part.shape
    wide = float(np.clip(inputs / out, 0.5, 8.0))  # a matrix of few rows is a wide band, not a line
    side = 5.0
    height = min(side / wide, side)
    figure = new_figure(side + 0.5, max(height, 0.9) + 1.1)
    axis = figure.subplots()
    axis.imshow(part, cmap=sign_colours(), vmin=-1, vmax=1, interpolation="nearest", aspect="auto")
    recurrent = picture.kind == "recurrent"
    axis.set_xlabel("from neuron" if recurrent else "input")
    axis.set_ylabel("to neuron" if recurrent else "neuron")
    for spine in axis.spines.values():
        spine.set_visible(False)
    _legend(figure, picture)
    return figure


def _legend(figure: "Figure", picture: WeightPicture) -> None:
    """The name above, and what the colours mean with the share of each."""
    from matplotlib.patches import Patch

    shares = sign_shares(picture)
    kind = " (recurrent)" if picture.kind == "recurrent" else ""
    entries = [(1, "+1", _PLUS), (0, "0", _ZERO), (-1, "−1", _MINUS)]
    patches = [
        Patch(facecolor=colour, edgecolor="#9aa5b1", linewidth=0.5, label=f"{name}  ({100 * shares[s]:.3g} %)")
        for s, name, colour in entries
        if shares[s] or s
    ]
    figure.legend(
        handles=patches, loc="outside upper left", ncols=3, title=label(picture.name, 40) + kind,
        title_fontproperties={"weight": "bold", "size": 10}, alignment="left", handlelength=1.0, borderaxespad=0.3,
    )  # fmt: skip


def sign_colours(levels: int | None = None) -> Any:
    """Of −1, 0 and 1, white where there is nothing; with ``levels``, bands of two (−1 and 1) or three colours."""
    from matplotlib.colors import LinearSegmentedColormap, ListedColormap

    if levels is None:
        return LinearSegmentedColormap.from_list("signs", [_MINUS, _ZERO, _PLUS]).with_extremes(bad="white")
    return ListedColormap([_MINUS, _PLUS] if levels == 2 else [_MINUS, _ZERO, _PLUS]).with_extremes(bad="white")
