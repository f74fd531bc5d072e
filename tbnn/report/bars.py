"""Figures of the result: accuracies, confusion, storage, operations."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tbnn.report import text
from tbnn.report.style import BLUE, FAINT, GREY, INK, label, new_figure, short_axis, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_COUNTED = 24  # classes; beyond, the counts would no longer be legible
LEAST_ON_AXIS = 0.8  # of a logarithmic axis of counts, so that 1 still has a bar


@styled
def accuracy_figure(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Accuracy with its 95 % interval, a row (name, accuracy, samples) a network; the first is the one reported."""
    figure = new_figure(5.6, 1.0 + 0.38 * len(rows))
    axis = figure.subplots()
    places = np.arange(len(rows))[::-1]
    for i, (place, row) in enumerate(zip(places, rows, strict=True)):
        colour = BLUE if i == 0 else GREY
        if row.get("samples"):
            low, high = text.wilson(row["accuracy"], row["samples"])
            axis.plot([100 * low, 100 * high], [place, place], color=colour, linewidth=3, alpha=0.45)
        axis.plot(100 * row["accuracy"], place, "o", color=colour, markersize=7)
    axis.set_yticks(places, [label(str(row["name"]), 30) for row in rows])
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.set_xlabel("accuracy (%)")
    axis.grid(axis="x")
    axis.tick_params(axis="y", length=0)
    return figure


@styled
def confusion_figure(confusion: npt.NDArray[np.integer], classes: Sequence[str]) -> "Figure":
    """The confusion matrix: counts, shaded by the share of their true class (row)."""
    n = len(classes)
    side = float(np.clip(1.2 + 0.4 * n, 5.0, 9.0))
    figure = new_figure(side + 0.4, side)
    axis = figure.subplots()
    rows = np.maximum(confusion.sum(1, keepdims=True), 1)
    shares = confusion / rows
    axis.imshow(shares, cmap=whites_to_blue(), vmin=0, vmax=1, interpolation="none")
    if n <= MOST_COUNTED:
        size = float(np.clip(110 / n, 5, 11))
        for (i, j), value in np.ndenumerate(confusion):
            colour = "white" if shares[i, j] > 0.55 else INK if value else "#b5bec8"
            axis.text(j, i, text.count(value), ha="center", va="center", color=colour, fontsize=size)
    names = [label(name, 14) for name in classes]
    every = max(1, -(-n // 40))
    slanted = max(len(name) for name in names) > 3
    axis.set_xticks(range(0, n, every), names[::every], rotation=90 if slanted else 0)
    axis.set_yticks(range(0, n, every), names[::every])
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    axis.tick_params(length=0)
    axis.set_xticks(np.arange(n + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(n + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=1.2 if n <= MOST_COUNTED else 0.3)
    axis.tick_params(which="minor", length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return figure


@styled
def storage_figure(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Bytes of each layer, packed against float32, on a logarithmic axis, with the ratio."""
    pairs = [(str(row["layer"]), float(row["packed_bytes"]), float(row["float32_bytes"])) for row in rows]
    return _paired_bars(pairs, ("packed", "float32"), "bytes", "smaller")


@styled
def counts_figure(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Synaptic operations of one inference in each layer, those spikes cause against all a dense layer makes."""
    pairs = [(str(row["layer"]), float(row["effective_synops"]), float(row["dense_synops"])) for row in rows]
    return _paired_bars(pairs, ("caused by spikes", "dense"), "synaptic operations per inference", "fewer")


def _paired_bars(rows: Sequence[tuple[str, float, float]], names: tuple[str, str], unit: str, word: str) -> "Figure":
    """Two bars a row on a logarithmic axis, what is small in blue, and how many times smaller it is."""
    figure = new_figure(5.6, 1.2 + 0.55 * len(rows))
    axis = figure.subplots()
    places = np.arange(len(rows))[::-1]
    small = np.array([row[1] for row in rows])
    large = np.array([row[2] for row in rows])
    axis.barh(places + 0.2, large, 0.36, color="#c3ccd6", label=names[1])
    axis.barh(places - 0.2, small, 0.36, color=BLUE, label=names[0])
    smallest = min((v for v in (*small, *large) if v > 0), default=1.0)
    # Room on the right for the ratios.
    axis.set_xlim(max(LEAST_ON_AXIS, smallest / 8), max(*small, *large, 10.0) * 1.3)
    axis.set_xscale("log")
    for place, a, b in zip(places, small, large, strict=True):
        if a > 0 and b > 0:
            axis.annotate(
                f"{text.ratio(b, a)} {word}", (a, place - 0.2), xytext=(5, 0), textcoords="offset points",
                va="center", fontsize=8.5, color=INK,
            )  # fmt: skip
    axis.set_yticks(places, [label(row[0]) for row in rows])
    axis.set_xlabel(f"{unit} (logarithmic)")
    short_axis(axis)
    axis.grid(axis="x", color=FAINT)
    axis.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper left", ncols=2, reverse=True)
    return figure


def whites_to_blue() -> Any:
    """From paper white to dark blue, for shares."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("report", ["#f4f7fa", "#9cc9e3", BLUE, "#00395c"])
