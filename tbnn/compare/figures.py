"""Figures of a comparison, from the dict of its results.json: the same bytes for the same data.

``intervals``: every estimator on every task; ``critical_difference``: ranks over tasks; ``curves`` and ``stability_map``: accuracy over the
axes that the tasks vary; ``tuning``: what the search for hyperparameters tried. Each returns a figure for ``save``.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tbnn.compare.fig_axes import curves, numeric_axes, stability_map
from tbnn.compare.fig_style import SMALL, WIDTH, Look, looks, panels, widened, wrapped
from tbnn.compare.fig_tuning import tuning
from tbnn.compare.statistics import Estimate, Results, accuracies, comparisons, estimates, ranking, runs_of
from tbnn.files import replacing
from tbnn.report.style import FAINT, GREY, INK, label, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["critical_difference", "curves", "intervals", "numeric_axes", "save", "stability_map", "tuning"]


def save(figure: "Figure", path: str | Path) -> None:
    """Write a figure as .png (200 dots per inch) or .svg without dates, so that equal results give equal bytes.

    Raises ValueError for another suffix.
    """
    import matplotlib as mpl

    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise ValueError(f"{os.fspath(path)}: expected a name that ends in .png or .svg")
    nothing = {"Software": None} if kind == "png" else dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with replacing(path) as temporary, mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "tbnn"}):
        figure.savefig(temporary, format=kind, dpi=200, metadata=nothing, facecolor="white")


@styled
def intervals(results: Results, reference: str | None = None) -> "Figure":
    """Test accuracy on each task: a dot for each seed, the mean and its 95 % interval; the reference's row grey, its mean a line.

    The axis spans the runs at or above the task's convergence threshold, so that close results can be told apart, unless most
    estimators' means are below it; what lies below is an arrow at the left edge, a mean beside it in percent. Hollow: no run converged. ``reference`` as in ``comparisons``.
    """
    figures, compared = estimates(results), comparisons(results, reference)
    tasks, names = list(results["tasks"]), list(results["estimators"])
    columns = min(len(tasks), 4 if len(tasks) > 6 else 3)
    rows = -(-len(tasks) // columns)
    figure = new_figure(WIDTH if columns > 1 else 5.6, 0.4 + rows * (0.5 + max(0.18 * len(names), 0.6)))
    drawn, runs = looks(results), runs_of(results)
    for i, (axis, task) in enumerate(zip(panels(figure, rows, columns, len(tasks)), tasks, strict=True)):
        seeds = {name: list(accuracies(runs[task][name], results["tasks"][task]["chance"]).values()) for name in names}
        low, high = _span(seeds, compared[task]["threshold"])
        axis.set_xlim(low, high)
        chosen = compared[task]["reference"]
        if chosen is not None:
            at = names.index(chosen)
            axis.axhspan(at - 0.5, at + 0.5, color=FAINT, alpha=0.7, linewidth=0, zorder=0.5)
            axis.axvline(
                100 * (figures[task][chosen]["mean"] or 0), color=INK, linewidth=0.8, linestyle=(0, (4, 2)), zorder=0.9
            )
        for place, name in enumerate(names):
            _row(axis, place, seeds[name], figures[task][name], drawn[name], low)
        axis.set_title(wrapped(task, 21 if columns > 3 else 28), fontsize=8 if columns > 3 else 8.5, linespacing=0.95)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.set_yticks(
            range(len(names)), [wrapped(name, 34) if i % columns == 0 else "" for name in names], linespacing=0.85
        )
        axis.tick_params(labelsize=SMALL, length=2)
        axis.tick_params(axis="y", length=0, labelsize=7, labelcolor=INK)
        axis.locator_params(axis="x", nbins=4)
        axis.grid(axis="x")
        if i + columns >= len(tasks):
            axis.set_xlabel("test accuracy (%)", fontsize=8.5)
    _key(figure)
    return figure


def _span(seeds: dict[str, list[float]], needed: float | None) -> tuple[float, float]:
    """Limits of the axis in percent: the runs above the threshold, or all where most estimators are below it."""
    values = [100 * value for column in seeds.values() for value in column]
    means = [sum(column) / len(column) for column in seeds.values() if column]
    cut = needed is not None and 2 * sum(mean >= needed for mean in means) >= len(means)
    shown = [value for value in values if cut and value >= 100 * (needed or 0)]
    return widened(shown or values or [0.0, 100.0], 0.06, 0.4)


def _row(axis: "Axes", place: int, seeds: list[float], one: Estimate, look: Look, low: float) -> None:
    edge = axis.get_yaxis_transform()
    if one["mean"] is None:
        axis.text(0.5, place, "no run", transform=edge, ha="center", va="center", color=GREY, fontsize=6.5)
        return
    heights = place + (np.linspace(-0.22, 0.22, len(seeds)) if len(seeds) > 1 else np.zeros(1))
    axis.plot(100 * np.array(seeds), heights, ".", color=look.colour, alpha=0.4, markersize=3.4, markeredgewidth=0)
    if one["interval"] is not None:
        ends = [100 * end for end in one["interval"]]
        axis.plot(ends, [place, place], color=look.colour, linewidth=1.6, solid_capstyle="butt")
    face = "white" if one["converged"] == 0 else look.colour
    mean = 100 * one["mean"]
    if mean >= low:
        axis.plot(
            mean, place, look.marker, color=look.colour, markerfacecolor=face, markersize=4.2, markeredgewidth=0.9
        )
    if any(100 * seed < low for seed in seeds):
        axis.plot(
            0.02, place, "<", color=look.colour, markerfacecolor=face, markersize=3.6, transform=edge, clip_on=False
        )
        if mean < low:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
            axis.text(
                0.06, place, f"{mean:.1f}", transform=edge, ha="left", va="center", fontsize=6, color=GREY, bbox=box
            )


def _key(figure: "Figure") -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    style: Any = {"color": GREY, "markersize": 4}
    entries: list[Any] = [
        Line2D([], [], color=GREY, marker=".", linestyle="", alpha=0.6, label="a seed"),
        Line2D([], [], marker="o", label="mean, 95 % interval", **style),
        Line2D([], [], marker="o", markerfacecolor="white", linestyle="", label="no run converged", **style),
        Line2D([], [], marker="<", linestyle="", label="mean or seeds below the axis", **style),
        Patch(color=FAINT, label="reference"),
    ]
    figure.legend(
        handles=entries,
        loc="outside upper right",
        ncols=5,
        fontsize=7,
        handlelength=1.5,
        columnspacing=1.0,
        handletextpad=0.5,
    )


@styled
def critical_difference(results: Results) -> "Figure":
    """Mean ranks over the tasks, 1 is best; bars join what Nemenyi's test at 0.05 does not tell apart.

    Without enough tasks or estimators for the test the ranks stand alone and the title says why.
    Source: Demšar, "Statistical comparisons of classifiers over multiple data sets", JMLR 2006, figure 1.
    """
    found = ranking(results)
    order, ranks, difference = found["estimators"], found["mean_ranks"], found["critical_difference"]
    half = -(-len(order) // 2)
    first = 0.75 + 0.32 * len(found["cliques"])  # where the names begin, below the bars
    depth = first + 0.62 * half
    figure = new_figure(WIDTH, 1.0 + 0.36 * depth)
    axis = figure.subplots()
    best, last = 1, max(len(order), 2)
    span = last - best
    axis.set_xlim(best - 0.42 * span, last + 0.42 * span)
    axis.set_ylim(depth, -1.7)
    axis.axis("off")
    axis.set_title(_verdict_of_ranks(found), fontsize=9, pad=4)
    axis.plot([best, last], [0, 0], color=INK, linewidth=1)
    for rank in range(best, last + 1):
        axis.plot([rank, rank], [0, -0.22], color=INK, linewidth=1)
        axis.text(rank, -0.34, str(rank), ha="center", va="bottom", fontsize=SMALL)
    axis.text(best - 0.03 * span, -0.34, "mean rank", ha="right", va="bottom", fontsize=SMALL, color=GREY)
    if difference is not None:
        reach = min(best + difference, last + 0.42 * span)
        axis.plot([best, reach], [-1.2, -1.2], color=INK, linewidth=1.4, marker="|", markersize=7)
        axis.text((best + reach) / 2, -1.32, f"CD = {difference:.2f}", ha="center", va="bottom", fontsize=SMALL)
    drawn = looks(results)
    for i, name in enumerate(order):
        left = i < half
        y = first + 0.62 * (i if left else len(order) - 1 - i)
        end = best - 0.07 * span if left else last + 0.07 * span
        look = drawn[name]
        axis.plot([ranks[name], ranks[name], end], [0, y, y], color=look.colour, linewidth=1)
        axis.plot(ranks[name], 0, look.marker, color=look.colour, markersize=4, zorder=3)
        axis.text(
            end + (-0.015 if left else 0.015) * span, y, wrapped(name, 26), fontsize=SMALL, linespacing=0.9,
            ha="right" if left else "left", va="center",
        )  # fmt: skip
        axis.text(
            end, y - 0.05, f"{ranks[name]:.2f}", color=GREY, fontsize=6.2, ha="left" if left else "right", va="bottom"
        )
    for i, clique in enumerate(found["cliques"]):
        y = 0.42 + 0.32 * i
        ends = [ranks[clique[0]] - 0.012 * span, ranks[clique[-1]] + 0.012 * span]
        axis.plot(ends, [y, y], color=INK, linewidth=3.2, solid_capstyle="round", zorder=4)
    return figure


def _verdict_of_ranks(found: Any) -> str:
    tasks = f"{len(found['tasks'])} tasks"
    if found["reason"] is not None:
        return label(f"No test of ranks: {found['reason']}", 110)
    p = "p < 0.001" if found["p"] < 0.001 else f"p = {found['p']:.3f}"
    told = "" if found["p"] < 0.05 else ": no difference shown, read no bar"
    return f"Friedman's test over {tasks}: χ² = {found['friedman']:.1f}, {p}{told}"
