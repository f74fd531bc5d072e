"""Receptive fields: the first layer's weights as images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tbnn.report.style import label, new_figure, styled
from tbnn.report.weights import sign_colours, tile_sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 32  # neurons
MOST_CHANNELS = 4
_COLUMNS = 8
_SHARE = 99.5  # per cent of the weights that the colours span


def most_varied(counts: npt.NDArray[Any], shown: int = SHOWN) -> npt.NDArray[np.intp]:
    """The neurons whose spike counts (recordings, neurons) vary most from recording to recording, the most varied first.

    Such neurons tell recordings apart; silent and saturated ones come last.
    """
    return np.argsort(-np.asarray(counts, dtype=np.float64).std(0), kind="stable")[:shown]


@styled
def fields_figure(
    weights: npt.NDArray[Any], input_shape: tuple[int, int, int], neurons: Sequence[int] | None = None,
    name: str = "layer", order: str = "",
) -> "Figure":  # fmt: skip
    """Each neuron's weights as an image a channel: two colours for ±1, else a diverging scale about 0.

    Args:
        weights: (N, C·H·W) or (N, C, H, W).
        input_shape: (C, H, W), with at most 4 channels of at least 2 × 2.
        neurons: which to draw, in this order; the first 32 by default.
        name: of the layer.
        order: what the order of the neurons means, for the title.

    Raises:
        ValueError: an input that is no image, weights that do not fit it, neurons that are not there.
    """
    channels, height, width = input_shape
    if min(height, width) < 2 or not 1 <= channels <= MOST_CHANNELS:
        raise ValueError(
            f"fields_figure: expected an image of 1 to {MOST_CHANNELS} channels, got {channels} x {height} x {width} inputs"
        )
    count = len(weights)
    if weights.size != count * channels * height * width:
        raise ValueError(f"fields_figure: expected weights ({count}, {channels * height * width}), got {weights.shape}")
    chosen = list(range(min(count, SHOWN))) if neurons is None else [int(j) for j in neurons]
    if not chosen or not all(0 <= j < count for j in chosen):
        raise ValueError(f"neurons: expected numbers from 0 to {count - 1}, got {chosen}")
    fields = np.asarray(weights, dtype=np.float64).reshape(count, channels, height, width)[chosen]
    signs = set(np.unique(fields)) <= {-1.0, 0.0, 1.0}
    columns = min(_COLUMNS, len(chosen))
    sheets = [tile_sheet(fields[:, c], columns) for c in range(channels)]
    aspect = sheets[0].shape[0] / sheets[0].shape[1]
    panel = 5.0 if channels <= 2 else 3.8
    figure = new_figure(panel * channels + 0.9, min(max(panel * aspect, 1.0), 9.0) + 1.0)
    axes = figure.subplots(1, channels, squeeze=False)[0]
    most = 1.0 if signs else float(np.percentile(np.abs(fields), _SHARE)) or 1.0
    levels = [level for level in (-1, 0, 1) if level or (fields == 0).any()]
    colours = sign_colours(len(levels)) if signs else _diverging()
    names = {1: ("",), 2: ("OFF inputs", "ON inputs")}.get(channels, [f"channel {c}" for c in range(channels)])
    drawn: Any = None
    for axis, sheet, title in zip(axes, sheets, names, strict=True):
        drawn = axis.imshow(sheet, cmap=colours, vmin=-most, vmax=most, interpolation="nearest")
        axis.set_title(title)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_xlabel(f"{len(chosen)} of {count} neurons, {height} × {width} inputs each")
        for spine in axis.spines.values():
            spine.set_visible(False)
    bar = figure.colorbar(
        drawn, ax=list(axes), fraction=0.035, pad=0.015, aspect=6 if signs else 18, shrink=0.4 if signs else 1
    )
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    if signs:
        middles = [(2 * i + 1) / len(levels) - 1 for i in range(len(levels))]  # of equal bands from −1 to 1
        bar.set_ticks(middles, labels=[{-1: "−1", 0: "0", 1: "+1"}[level] for level in levels])
        bar.ax.tick_params(length=0)
    else:
        bar.set_label("weight")
    title = f"receptive fields of {label(name, 40)}" + (f", {order}" if order else "")
    figure.suptitle(title, x=0.012, ha="left", fontsize=10.5, fontweight="bold")
    return figure


def _diverging() -> Any:
    """Blue below 0, paper white at 0, vermilion above."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = ["#00395c", "#0072B2", "#9cc9e3", "#f7f6f3", "#f3b68c", "#D55E00", "#7a2f00"]
    return LinearSegmentedColormap.from_list("diverging", stops).with_extremes(bad="white")
