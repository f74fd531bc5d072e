"""Figures over the axes that the tasks of a comparison vary: curves over one, maps over two."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tbnn.compare.fig_style import (
    MOST_IN_ONE,
    SMALL,
    WIDTH,
    Look,
    axis_name,
    looks,
    panels,
    value_text,
    widened,
    wrapped,
)
from tbnn.compare.statistics import Results, Runs, accuracies, estimates, has_converged, rivals, runs_of, threshold
from tbnn.report.style import GREY, INK, label, new_figure, percent_axis, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LARGE = 3  # members that make a group worth panels of its own
DECADES = 1.5  # an axis whose values span more is logarithmic


def numeric_axes(results: Results) -> list[str]:
    """The axes that ``curves`` can draw: a number or a list in some task, and at least two different values."""
    keys = dict.fromkeys(key for task in results["tasks"].values() for key in task["axes"])
    found = []
    for key in keys:
        values = [task["axes"][key] for task in results["tasks"].values() if key in task["axes"]]
        if (
            all(isinstance(value, int | float | list) for value in values)
            and len({_place(value) for value in values}) > 1
        ):
            found.append(key)
    return found


def _place(value: Any) -> float:
    return float(len(value)) if isinstance(value, list) else float(value)


def _tasks_with(results: Results, *keys: str) -> dict[str, Mapping[str, Any]]:
    """Task to its axes, of the tasks that have all these axes."""
    found = {name: task["axes"] for name, task in results["tasks"].items() if all(key in task["axes"] for key in keys)}
    if not found:
        known = list(dict.fromkeys(key for task in results["tasks"].values() for key in task["axes"]))
        raise ValueError(f"axes: no task varies {' and '.join(keys)}, expected some of {known}")
    return found


@styled
def curves(results: Results, axis: str) -> "Figure":
    """Mean test accuracy and its 95 % interval over an axis of the tasks, such as "optim.batch_size".

    A list, such as the widths of hidden layers, counts by its length. A row of panels for each combination of the other axes; with more
    than eight estimators a column for each large group, in which the other large groups stay faint. Dotted: chance.
    Raises ValueError where no task has the axis, a value is text, or two tasks of a panel share a value.
    """
    tasks = _tasks_with(results, axis)
    text = [axes[axis] for axes in tasks.values() if not isinstance(axes[axis], int | float | list)]
    if text:
        raise ValueError(f"{axis}: expected numbers or lists, got {text[0]!r}")
    facets = _facets(tasks, axis)
    groups = _groups(results)
    columns = len(groups) if len(groups) > 1 else min(len(facets), 3)
    rows = len(facets) if len(groups) > 1 else -(-len(facets) // columns)
    # One panel leaves room for the names beside it.
    figure = new_figure(WIDTH if columns > 1 else 5.6, max(1.0 + 2.2 * rows, 3.2) + 0.1 * len(results["estimators"]))
    grid = panels(figure, rows, columns, len(facets) * len(groups), sharex=True, sharey=True)
    drawn, values = looks(results), estimates(results)
    tops = _limits(results, values, list(tasks))
    lowest = tops[0]
    places = sorted({_place(axes[axis]) for axes in tasks.values()})
    panes = iter(grid)
    for facet, members in facets.items():
        for group, names in groups.items():
            pane = next(panes)
            for name in [*(x for x in results["estimators"] if x not in names), *names]:
                _curve(
                    pane, name, [(x, values[task][name]) for x, task in members], drawn[name], faint=name not in names
                )
            pane.plot(
                [x for x, _ in members],
                [results["tasks"][task]["chance"] for _, task in members],
                ":",
                color=GREY,
                linewidth=1,
            )
            _controls_below(pane, results, [values[task] for _, task in members], lowest)
            title = [wrapped(part, 30, 3) for part in (facet, group) if part]
            pane.set_title("\n".join(title), fontsize=8.5)
    for i, pane in enumerate(grid):
        _numbered(pane, axis, places)
        pane.set_ylim(tops)
        if i + columns >= len(grid):
            pane.set_xlabel(
                axis_name(axis) + (" (number)" if any(isinstance(a[axis], list) for a in tasks.values()) else "")
            )
        if i % columns == 0:
            pane.set_ylabel("test accuracy")
    names_below(figure, drawn)
    return figure


def _facets(tasks: Mapping[str, Mapping[str, Any]], axis: str) -> dict[str, list[tuple[float, str]]]:
    """Combination of the other axes' values to its tasks, sorted along the axis."""
    facets: dict[str, list[tuple[float, str]]] = {}
    for task, axes in tasks.items():
        others = ", ".join(f"{axis_name(key)} {value_text(value)}" for key, value in axes.items() if key != axis)
        facets.setdefault(others, []).append((_place(axes[axis]), task))
    for others, members in facets.items():
        members.sort()
        for (x, task), (next_x, next_task) in pairwise(members):
            if x == next_x:
                raise ValueError(
                    f"{axis}: tasks {task!r} and {next_task!r} share the value {x:g}, expected one task each"
                )
        facets[others] = members
    return facets


def _groups(results: Results) -> dict[str, list[str]]:
    """The estimators of each column of panels: all in one, or one large group each with the members of the small ones."""
    names = list(results["estimators"])
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(str(results["estimators"][name]["group"]), []).append(name)
    large = [group for group, members in groups.items() if len(members) >= LARGE]
    if len(names) <= MOST_IN_ONE or len(large) < 2:
        return {"": names}
    return {
        group: groups[group] + [name for other in groups if other not in large for name in groups[other]]
        for group in large
    }


def _limits(results: Results, values: Mapping[str, Mapping[str, Any]], tasks: Iterable[str]) -> tuple[float, float]:
    """The span of the mean accuracies and their intervals, of all but the controls where there are others."""
    controls = set(rivals(results, "control"))
    ends = {
        name: [end for task in tasks for end in [values[task][name]["mean"], *(values[task][name]["interval"] or [])]]
        for name in results["estimators"]
    }
    shown = [end for name, column in ends.items() if name not in controls for end in column if end is not None]
    others = [end for column in ends.values() for end in column if end is not None]
    low, high = widened(shown or others or [0.0, 1.0], 0.05, 0.005)
    return max(low, -0.02), min(high, 1.02)


def _curve(pane: "Axes", name: str, points: Sequence[tuple[float, Any]], look: Look, *, faint: bool) -> None:
    known = [(x, one) for x, one in points if one["mean"] is not None]
    if not known:
        return
    x = [place for place, _ in known]
    means = [one["mean"] for _, one in known]
    if faint:
        pane.plot(x, means, color="#cbd2d9", linewidth=0.7, zorder=1)
        return
    low, high = np.array([one["interval"] or (one["mean"], one["mean"]) for _, one in known]).T
    pane.fill_between(x, low, high, color=look.colour, alpha=0.13, linewidth=0, zorder=1.5)
    pane.plot(
        x,
        means,
        color=look.colour,
        linestyle=look.dash,
        marker=look.marker,
        markersize=4,
        linewidth=1.4,
        label=label(name, 60),
    )


def _controls_below(pane: "Axes", results: Results, rows: Sequence[Mapping[str, Any]], lowest: float) -> None:
    """A note where controls lie below the axis, whose span is made for the others."""
    means = [row[name]["mean"] for row in rows for name in rivals(results, "control") if row[name]["mean"] is not None]
    if means and min(means) < lowest:
        text = f"controls below: {100 * min(means):.1f}–{100 * max(means):.1f} %"
        pane.text(0.98, 0.02, text, transform=pane.transAxes, ha="right", va="bottom", fontsize=6.5, color=GREY)


def _numbered(pane: "Axes", axis: str, places: Sequence[float]) -> None:
    """Ticks at the values themselves, as many as fit, on a logarithmic axis where they span much."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if places[0] > 0 and places[-1] > places[0] * 10**DECADES:
        pane.set_xscale("log")
    every = -(-len(places) // 6)
    pane.xaxis.set_major_locator(FixedLocator(list(places[::every])))
    pane.xaxis.set_minor_locator(NullLocator())
    pane.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    percent_axis(pane)
    pane.tick_params(labelsize=SMALL)
    pane.grid(axis="y")


def names_below(figure: "Figure", drawn: Mapping[str, Look]) -> None:
    """A legend of estimators below the panels."""
    from matplotlib.lines import Line2D

    names = list(drawn)
    longest = max(len(wrapped(name, 30)) for name in names)
    columns = min(len(names), 4 if longest < 22 else 3 if longest < 34 else 2)
    entries = [
        Line2D(
            [],
            [],
            color=look.colour,
            linestyle=look.dash,
            marker=look.marker,
            markersize=4,
            linewidth=1.4,
            label=wrapped(name, 30),
        )
        for name, look in drawn.items()
    ]
    figure.legend(
        handles=entries, loc="outside lower center", ncols=columns, fontsize=SMALL, handlelength=2.6, labelspacing=0.35
    )


@styled
def stability_map(
    results: Results, x_axis: str, y_axis: str, measure: Literal["validation", "test"] = "validation"
) -> "Figure":
    """Mean accuracy of each estimator over two axes of the tasks, one map each, all with the same colours.

    A cross: a run diverged. A dot: a run did not converge (reach the task's threshold, see ``statistics.threshold``). White: no run.
    Raises ValueError where no task has both axes, or two tasks fall into one cell.
    """
    tasks = _tasks_with(results, x_axis, y_axis)
    x_values, y_values = (_sorted_values([axes[key] for axes in tasks.values()]) for key in (x_axis, y_axis))
    cells: dict[tuple[int, int], str] = {}
    for task, axes in tasks.items():
        cell = (y_values.index(axes[y_axis]), x_values.index(axes[x_axis]))
        if cell in cells:
            raise ValueError(
                f"axes: tasks {cells[cell]!r} and {task!r} differ in neither {x_axis} nor {y_axis}, expected one task a cell"
            )
        cells[cell] = task
    names = list(results["estimators"])
    columns = min(len(names), 5 if len(names) > 9 else 4)
    rows = -(-len(names) // columns)
    # A map is as wide as its share of the page, and its cells are no taller than wide.
    width = (WIDTH - 1.2) / max(columns, 3)
    tall = min(width / max(len(x_values), 2), 0.3) * len(y_values)
    figure = new_figure(1.4 + width * columns, 0.75 + rows * (max(tall, 0.7) + 0.5))
    grid = panels(figure, rows, columns, len(names), sharex=True, sharey=True)
    runs, image = runs_of(results), None
    limits = _colour_limits(results, tasks, runs, measure)
    for i, (pane, name) in enumerate(zip(grid, names, strict=True)):
        image = _map(pane, results, name, cells, (len(y_values), len(x_values)), runs, measure, limits)
        pane.set_title(wrapped(name, 20, 3), fontsize=7, linespacing=0.95)
        pane.set_xticks(
            range(len(x_values)), [value_text(v) for v in x_values], rotation=90 if len(x_values) > 4 else 0
        )
        pane.set_yticks(range(len(y_values)), [value_text(v) for v in y_values])
        pane.tick_params(labelsize=6.5, length=0, labelbottom=i + columns >= len(names))
    figure.supxlabel(axis_name(x_axis), fontsize=9)
    figure.supylabel(axis_name(y_axis), fontsize=9)
    _bar(figure, grid, image, f"mean {measure} accuracy")
    return figure


def _sorted_values(values: Sequence[Any]) -> list[Any]:
    unique = [value for i, value in enumerate(values) if value not in values[:i]]
    numbers = all(isinstance(value, int | float) for value in unique)
    lists = all(isinstance(value, list) for value in unique)
    return sorted(unique, key=(lambda v: (len(v), str(v))) if lists else None if numbers else str)


def _colour_limits(results: Results, tasks: Mapping[str, Any], runs: Runs, measure: str) -> tuple[float, float]:
    chance = min(results["tasks"][task]["chance"] for task in tasks)
    means = [
        float(np.mean(list(found.values())))
        for task in tasks
        for seeds in runs[task].values()
        if (found := accuracies(seeds, results["tasks"][task]["chance"], measure))
    ]
    return min([chance, *means]), max([chance + 0.01, *means])


def _map(
    pane: "Axes",
    results: Results,
    name: str,
    cells: Mapping[tuple[int, int], str],
    shape: tuple[int, int],
    runs: Runs,
    measure: str,
    limits: tuple[float, float],
) -> Any:
    values = np.full(shape, np.nan)
    for cell, task in cells.items():
        found = accuracies(runs[task][name], results["tasks"][task]["chance"], measure)
        if found:
            values[cell] = np.mean(list(found.values()))
    image = pane.imshow(
        values, cmap="cividis", vmin=limits[0], vmax=limits[1], aspect="auto", origin="lower", interpolation="none"
    )
    for (row, column), task in cells.items():
        seeds, needed = runs[task][name].values(), threshold(results, task, runs)
        diverged = any(run.get("diverged") is not None for run in seeds)
        if diverged or any(needed is not None and not has_converged(run, needed) for run in seeds):
            bright = values[row, column] > limits[0] + 0.6 * (limits[1] - limits[0])
            pane.plot(
                column, row, "x" if diverged else "o", color=INK if bright else "white",
                markersize=4.5 if diverged else 2.2, markeredgewidth=1.3 if diverged else 0,
            )  # fmt: skip
    for spine in pane.spines.values():
        spine.set_visible(False)
    return image


def _bar(figure: "Figure", grid: Sequence["Axes"], image: Any, text: str) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter

    bar = figure.colorbar(image, ax=list(grid), shrink=0.9, aspect=30, pad=0.015)
    bar.set_label(text, fontsize=8.5)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %"))
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)
    style: Any = {"color": INK, "linestyle": ""}
    entries = [
        Line2D([], [], marker="x", markersize=4.5, markeredgewidth=1.3, label="a run diverged", **style),
        Line2D([], [], marker="o", markersize=2.2, label="a run did not converge", **style),
    ]
    figure.legend(handles=entries, loc="outside upper right", ncols=2, fontsize=SMALL)
