"""Figures over epochs: learning curves, gradients, firing rates."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tbnn.nn.health import DEAD_BELOW, SATURATED_ABOVE
from tbnn.report.style import (
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    ORANGE,
    VERMILION,
    label,
    new_figure,
    percent_axis,
    short_axis,
    styled,
    whole_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RATE_PREFIX = "rate/"
LOWEST_RATE = 1e-4  # where silence is drawn on a logarithmic axis

History = Sequence[Mapping[str, float]]
Curve = npt.NDArray[np.float64]


def series(history: History, key: str) -> Curve:
    """One column of the history (epochs,); what is missing, infinite or not a number is NaN."""
    values = np.array([row.get(key, np.nan) for row in history], dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def has(history: History, *keys: str) -> bool:
    """Whether any of these columns holds a number."""
    return any(bool(np.isfinite(series(history, key)).any()) for key in keys)


def rate_layers(history: History) -> list[str]:
    """The layers whose firing rate was noted, in the order they first appear."""
    keys = dict.fromkeys(key for row in history for key in row if key.startswith(RATE_PREFIX))
    return [key.removeprefix(RATE_PREFIX) for key in keys]


@styled
def learning_curves(history: History, best_epoch: int | None = None) -> "Figure":
    """Loss above accuracy, training and validation, the best epoch marked."""
    figure = new_figure(5.6, 5.0)
    top, bottom = figure.subplots(2, 1, sharex=True)
    for axis, key, name in ((top, "loss", "loss"), (bottom, "accuracy", "accuracy")):
        _curve(axis, history, f"train_{key}", "training", BLUE)
        _curve(axis, history, f"validation_{key}", "validation", VERMILION)
        axis.set_ylabel(name)
        axis.grid(axis="y")
    percent_axis(bottom)
    bottom.set_xlabel("epoch")
    whole_ticks(bottom)
    if best_epoch is not None:
        for axis in (top, bottom):
            name = f"best epoch ({best_epoch})"
            axis.axvline(best_epoch, color=GREY, linewidth=1.2, linestyle=(0, (3, 2)), zorder=1, label=name)
    figure.align_ylabels()
    entries = {
        name: line for axis in (bottom, top) for line, name in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=3)
    return figure


@styled
def gradient_curves(history: History) -> "Figure":
    """The gradient's norm (mean and peak, logarithmic) above the learning rate."""
    figure = new_figure(5.6, 5.0)
    top, bottom = figure.subplots(2, 1, sharex=True)
    _curve(top, history, "grad_norm", "median of the epoch", BLUE, positive=True)
    _curve(top, history, "grad_norm_max", "largest", ORANGE, positive=True)
    if has(history, "grad_norm", "grad_norm_max"):
        top.set_yscale("log")
        short_axis(top, "y")
        figure.legend(*top.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    top.set_ylabel("gradient norm")
    _curve(bottom, history, "learning_rate", "learning rate", GREEN)
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("epoch")
    bottom.set_ylim(bottom=0)
    whole_ticks(bottom)
    figure.align_ylabels()
    for axis in (top, bottom):
        axis.grid(axis="y")
    return figure


@styled
def rate_curves(history: History) -> "Figure":
    """Spikes per neuron and step of each layer over the epochs, with the bands of dead and saturated layers."""
    from matplotlib.ticker import FixedLocator, NullLocator

    figure = new_figure(5.6, 3.9)
    axis = figure.subplots()
    axis.set_yscale("log")
    axis.set_ylim(LOWEST_RATE, 1)
    axis.axhspan(LOWEST_RATE, DEAD_BELOW, color=GREY, alpha=0.18, linewidth=0)
    axis.axhspan(SATURATED_ABOVE, 1, color=VERMILION, alpha=0.3, linewidth=0)
    epochs = series(history, "epoch")
    for i, layer in enumerate(rate_layers(history)):
        rates = np.clip(series(history, RATE_PREFIX + layer), LOWEST_RATE, 1)
        style = ("-", "--", ":")[i // len(CYCLE) % 3]
        colour = CYCLE[i % len(CYCLE)]
        # A silent layer lies on the axis: it is drawn over it, not cut in half.
        axis.plot(epochs, rates, style, marker="o", markersize=3, color=colour, label=label(layer), clip_on=False)
    edge = axis.get_yaxis_transform()
    middle = np.sqrt(LOWEST_RATE * DEAD_BELOW)
    axis.text(0.99, middle, f"dead (below {100 * DEAD_BELOW:g} %)", transform=edge, ha="right", va="center", color=GREY)
    axis.annotate(
        f"saturated (above {100 * SATURATED_ABOVE:g} %)", (0.99, SATURATED_ABOVE), xycoords=edge, ha="right", va="top",
        xytext=(0, -2), textcoords="offset points", color=VERMILION,
    )  # fmt: skip
    axis.yaxis.set_major_locator(FixedLocator([1e-4, 1e-3, 1e-2, 1e-1, 1]))
    axis.yaxis.set_minor_locator(NullLocator())
    percent_axis(axis)
    axis.set_ylabel("spikes per neuron and step")
    axis.set_xlabel("epoch")
    axis.grid(axis="y")
    whole_ticks(axis)
    figure.legend(loc="outside upper left", ncols=3)
    return figure


def _curve(axis: "Axes", history: History, key: str, name: str, colour: str, *, positive: bool = False) -> None:
    """A line with a dot an epoch, or nothing when the history does not know the column."""
    values = series(history, key)
    if positive:
        values = np.where(values > 0, values, np.nan)
    if np.isfinite(values).any():
        axis.plot(series(history, "epoch"), values, color=colour, label=name, marker="o", markersize=3)
