"""Figures of learning: agreement with back-propagation, flips of weights, what is retained, and traces inside a rule."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tbnn.learning.alignment import ALL, Agreement
from tbnn.learning.recording import Traces
from tbnn.learning.retention import Retention
from tbnn.report.bars import MOST_COUNTED, whites_to_blue
from tbnn.report.raster import draw_raster, milliseconds
from tbnn.report.style import (
    BLUE,
    CYCLE,
    GREY,
    INK,
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

_DASHES = ("-", "--", ":")
_MOST_MARKED = 40  # points of a curve that still have dots of their own


@styled
def alignment_figure(
    steps: Sequence[int], agreements: Sequence[Mapping[str, Agreement]], rule: str = "rule", unit: str = "training step"
) -> "Figure":
    """Cosine (above) and ratio of norms (below) of a rule's updates with the gradient, over training, by layer of weights.

    Args:
        steps, agreements: as :class:`tbnn.learning.alignment.AlignmentLog` collects them; biases count in "all" alone.
        rule: its name.
        unit: of the steps.

    Raises:
        ValueError: nothing collected, or not one row a step.
    """
    if not steps or len(steps) != len(agreements):
        raise ValueError(f"alignment_figure: expected a row a step, got {len(steps)} steps, {len(agreements)} rows")
    names = [name for name in dict.fromkeys(key for row in agreements for key in row) if name.endswith("weight")]
    figure = new_figure(5.8, 5.2)
    top, bottom = figure.subplots(2, 1, sharex=True)
    nothing = Agreement(np.nan, np.nan)
    for i, name in enumerate([*names, ALL]):
        line = {"color": INK if name == ALL else CYCLE[i % len(CYCLE)], "linestyle": _DASHES[i // len(CYCLE) % 3]}
        line |= {"linewidth": 2.4 if name == ALL else 1.6, "marker": "o" if len(steps) <= _MOST_MARKED else ""}
        shown = "all parameters" if name == ALL else label(name.removesuffix(".weight"), 30)
        for axis, part in ((top, "cosine"), (bottom, "ratio")):
            values = np.array([getattr(row.get(name, nothing), part) for row in agreements], dtype=np.float64)
            values = np.where(np.isfinite(values) & ((part == "cosine") | (values > 0)), values, np.nan)
            axis.plot(steps, values, label=shown, markersize=3, clip_on=False, **line)
    for axis in (top, bottom):
        axis.axhline(1, color=GREY, linewidth=1, linestyle=(0, (3, 2)), zorder=1)
        axis.grid(axis="y")
    low = min((row[key].cosine for row in agreements for key in row if np.isfinite(row[key].cosine)), default=0.0)
    top.set_ylim(-1 if low < 0 else 0, 1.02)
    top.set_ylabel("cosine with the gradient")
    bottom.set_yscale("log")
    bottom.set_ylabel("|update| / |gradient|")
    _room(bottom)
    bottom.set_xlabel(unit)
    whole_ticks(bottom)
    figure.align_ylabels()
    columns = 2 if max(map(len, names), default=0) > 16 else 3
    figure.legend(
        *top.get_legend_handles_labels(), loc="outside upper left", ncols=columns, title=f"updates of {label(rule)}",
        title_fontproperties={"weight": "bold", "size": 10}, alignment="left",
    )  # fmt: skip
    return figure


@styled
def flips_figure(flips: Mapping[str, Sequence[float]]) -> "Figure":
    """The share of weights that turned in each epoch, by layer, as :class:`tbnn.compare.mechanism.FlipReport` has it.

    Raises ``ValueError`` where there is nothing to show.
    """
    if not flips or not any(len(shares) for shares in flips.values()):
        raise ValueError("flips_figure: expected the shares of at least one layer and epoch, got none")
    figure = new_figure(5.8, 3.6)
    axis = figure.subplots()
    for i, (name, shares) in enumerate(flips.items()):
        whole = name == ALL
        axis.plot(
            np.arange(1, len(shares) + 1), shares, color=INK if whole else CYCLE[i % len(CYCLE)], label=label(name, 30),
            linestyle=_DASHES[i // len(CYCLE) % 3], linewidth=2.4 if whole else 1.6, marker="o", markersize=3, clip_on=False,
        )  # fmt: skip
    axis.set_ylim(bottom=0)
    percent_axis(axis)
    axis.set_xlabel("epoch")
    axis.set_ylabel("weights that turned")
    axis.grid(axis="y")
    whole_ticks(axis)
    figure.legend(loc="outside upper left", ncols=3)
    return figure


@styled
def retention_figure(retention: Retention, tasks: Sequence[str] | None = None) -> "Figure":
    """The accuracy on every task after each was learned, and beside it the share of signs that turned meanwhile.

    Raises ``ValueError`` for other than one name a task.
    """
    matrix = retention.accuracy.double().numpy()
    n = len(matrix)
    names = [str(k + 1) for k in range(n)] if tasks is None else [label(name, 14) for name in tasks]
    if len(names) != n:
        raise ValueError(f"retention_figure: expected {n} names of tasks, got {len(names)}")
    side = float(np.clip(1.6 + 0.5 * n, 3.4, 8.0))
    beside = retention.flips is not None
    figure = new_figure(side + 0.9 + (2.2 if beside else 0), side + 0.6)
    axes = figure.subplots(1, 2 if beside else 1, squeeze=False, width_ratios=[side, 1.8][: 1 + beside])[0]
    axis = axes[0]
    axis.imshow(matrix, cmap=whites_to_blue(), vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    if n <= MOST_COUNTED:
        for (i, j), value in np.ndenumerate(matrix):
            colour = "white" if value > 0.55 else INK
            axis.text(
                j, i, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize=float(np.clip(70 / n, 5, 11)),
                fontweight="bold" if i == j else "normal",
            )  # fmt: skip
    slanted = max(map(len, names)) > 3
    axis.set_xticks(range(n), names, rotation=90 if slanted else 0)
    axis.set_yticks(range(n), names)
    axis.set_xlabel("accuracy (%) on task")
    axis.set_ylabel("after learning task")
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    told = retention.summary()
    words = {"average_accuracy": "average in the end", "forgetting": "forgetting"}
    parts = [f"{name} {100 * told[key]:.1f} %" for key, name in words.items() if key in told]
    figure.suptitle(", ".join(parts), x=0.012, ha="left", fontsize=10, fontweight="bold")
    if retention.flips is not None:
        bars = axes[1]
        bars.barh(np.arange(n), [100 * share for share in retention.flips], 0.6, color=BLUE)
        bars.set_ylim(n - 0.5, -0.5)
        bars.set_yticks([])
        bars.set_xlabel("signs turned (%)")
        bars.grid(axis="x")
    return figure


@styled
def traces_figure(traces: Traces, *, bin_width: float | None = None, time_unit: str = "us") -> "Figure":
    """A layer's raster, and under it of each chosen neuron the membrane, the eligibility of a synapse, and the learning signal.

    Args:
        traces: as :func:`tbnn.learning.recording.record_traces` gives them; the first six neurons are drawn.
        bin_width, time_unit: the duration of a step; without it the axes count steps.

    Raises:
        ValueError: on an unknown time unit.
    """
    from matplotlib.ticker import MaxNLocator

    step = milliseconds(bin_width, time_unit)
    steps, n = len(traces.spikes), min(len(traces.chosen), len(CYCLE))
    times = (np.arange(steps) + 1) * step
    figure = new_figure(10.4, 7.6)
    grid = figure.add_gridspec(4, n, height_ratios=[1.5, 1, 1, 1])
    raster = figure.add_subplot(grid[0, :])
    draw_raster(raster, traces.spikes, step, f"{traces.layer} under {traces.rule}", "neuron")
    raster.set_xlim(0, steps * step)
    rows: list[list[Axes]] = [[], [], []]
    for k in range(n):
        neuron, colour = int(traces.chosen[k]), CYCLE[k]
        fired = np.nonzero(traces.spikes[:, neuron])[0]
        raster.plot((fired + 0.5) * step, np.full(len(fired), neuron), "s", color=colour, markersize=3.6)
        for row, values in zip(rows, (traces.membrane, traces.eligibility, traces.signal), strict=True):
            place = (1 + rows.index(row), k)
            axis = figure.add_subplot(grid[place], sharex=raster, sharey=row[0] if row else None)
            axis.plot(times, values[:, k], color=colour, linewidth=1.4)
            axis.grid(axis="y")
            axis.tick_params(labelbottom=place[0] == 3, labelleft=k == 0)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=max(2, 9 // n)))
            row.append(axis)
        _threshold(rows[0][k], times, traces.threshold[:, k], fired, step, first=k == 0)
        rows[0][k].set_title(f"neuron {neuron}", color=colour)
        rows[1][k].set_title(_synapse(traces, k), fontweight="normal", color=GREY, fontsize=9)
        rows[2][k].axhline(0, color=GREY, linewidth=0.8)
        rows[2][k].set_xlabel("time (ms)" if bin_width else "time step")
    low, high = rows[0][0].get_ylim()
    rows[0][0].set_ylim(low, high + 0.18 * (high - low))  # room for the ticks of the spikes
    filtered = "filtered\n" if traces.rule in ("eprop", "reward") else ""
    for row, name in zip(rows, ("membrane", f"{filtered}eligibility", "learning signal"), strict=True):
        row[0].set_ylabel(name)
    figure.align_ylabels([raster, *(row[0] for row in rows)])
    return figure


def _threshold(
    axis: "Axes", times: npt.NDArray[Any], threshold: npt.NDArray[Any], fired: npt.NDArray[np.intp],
    step: float, *, first: bool,
) -> None:  # fmt: skip
    """The dashed threshold, and a tick above the membrane for each spike."""
    axis.plot(times, threshold, color=INK, linewidth=1.2, linestyle=(0, (3, 2)), label="threshold")
    axis.plot(
        (fired + 0.5) * step, np.full(len(fired), 0.96), "|", transform=axis.get_xaxis_transform(), color=INK, markersize=6,
        label="spike",
    )  # fmt: skip
    if first:
        axis.legend(loc="lower right", ncols=2, fontsize=8, bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1)


def _synapse(traces: Traces, k: int) -> str:
    """Where the synapse shown of a neuron comes from."""
    place = int(traces.inputs[k])
    return f"from input {place}" if place < traces.fan_in else f"from neuron {place - traces.fan_in} of the layer"


def _room(axis: "Axes") -> None:
    """At least half a decade about 1 on a logarithmic axis, so that rounding does not look like a trend."""
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, 0.5), max(high, 2.0))
    short_axis(axis, "y")
