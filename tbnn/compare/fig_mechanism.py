"""What happens inside the networks of a task, estimator by estimator, from the "mechanism" entries of its runs.

Every value is the median over seeds (:mod:`tbnn.compare.observer` says what is measured).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tbnn.compare.fig_axes import names_below
from tbnn.compare.fig_style import SMALL, WIDTH, Look, looks, panels, wrapped
from tbnn.compare.statistics import Results, runs_of
from tbnn.report.style import GREY, INK, new_figure, percent_axis, styled, whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    Draw = Callable[[Axes], None]

ALL = "all"

Entries = dict[str, list[Mapping[str, Any]]]


def observed_tasks(results: Results) -> list[str]:
    """The tasks in which a run has measured its mechanism."""
    return [task for task in results["tasks"] if _entries(results, task)]


def _entries(results: Results, task: str) -> Entries:
    """Estimator to the entries of its seeds, of those that have any."""
    found = {name: [r["mechanism"] for r in seeds.values() if r.get("mechanism")] for name, seeds in runs_of(results)[task].items()}  # fmt: skip
    return {name: entries for name, entries in found.items() if entries}


@styled
def mechanism(results: Results, task: str) -> "Figure":
    """Panels of what a task's runs measured: norms of the gradient by layer and over time, flips, firing, agreement.

    Lines: the gradient's norm by layer, then over time in the first and the last spiking layer at the start and at the
    end of training, weights flipped in each epoch, and, with several spiking layers, rates and silent neurons by layer.
    Bars, pale at the start and full at the end: the cosine with the smoothed gradient, a tick at the most that its
    noise allows, and, with one spiking layer, rates and silent neurons. What was not measured has no panel.

    Raises ValueError where no run of the task measured anything.
    """
    entries = _entries(results, task)
    if not entries:
        raise ValueError(f"{task}: expected runs with an entry 'mechanism', got none")
    every = looks(results)
    drawn = {name: every[name] for name in entries}
    lines, bars = _line_panels(entries, drawn), _bar_panels(entries, drawn)
    columns = 2 if len(lines) in (2, 4) else 3
    rows = -(-len(lines) // columns)
    tall, short = 2.05 * rows, (0.75 + max(0.2 * len(drawn), 0.5)) if bars else 0
    per_row = 4 if max(len(wrapped(name, 30)) for name in drawn) < 22 else 2
    legend = 0.2 + 0.24 * -(-len(drawn) // per_row)
    figure = new_figure(WIDTH, tall + short + legend)
    parts = [(tall, lines, columns)] if lines else []
    parts += [(short, bars, len(bars))] if bars else []
    if not parts:
        raise ValueError(f"{task}: the entries 'mechanism' hold nothing that can be drawn")
    heights = [height for height, _, _ in parts]
    places = figure.subfigures(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
    for place, (_, draws, columns) in zip(places, parts, strict=True):
        _fill(place, draws, columns, shared=draws is bars)
    names_below(figure, drawn)
    return figure


def _fill(place: "SubFigure", draws: Mapping[str, "Draw"], columns: int, *, shared: bool) -> None:
    rows = -(-len(draws) // columns)
    grid = panels(place, rows, columns, len(draws), sharey=shared)  # pyright: ignore[reportArgumentType]
    for pane, (title, draw) in zip(grid, draws.items(), strict=True):
        draw(pane)
        pane.set_title(title, fontsize=8, linespacing=0.95)
        pane.tick_params(labelsize=7)
        pane.xaxis.label.set_fontsize(SMALL)
        pane.yaxis.label.set_fontsize(SMALL)


def _line_panels(entries: Entries, drawn: Mapping[str, Look]) -> dict[str, "Draw"]:
    """Title to what draws the panel."""
    found: dict[str, Draw] = {}
    norms = {name: _by_layer(entry["layer_norms"] for entry in own) for name, own in entries.items()}
    if any(norms.values()):
        found["Gradient by layer"] = _profile(norms, drawn, "layer of weights", "norm, median of steps", log=True)
    for when in ("start", "end"):
        found |= _over_time(entries, drawn, when)
    flips = {name: _columns([entry.get("flips") or [] for entry in own]) for name, own in entries.items()}
    if any(map(len, flips.values())):
        found["Weights flipped"] = _course(flips, drawn, "epoch", "of all weights")
    for key, title in (("rates", "Firing rate"), ("silent", "Silent neurons")):
        end = _activity(entries, key, "end")
        if _most_layers(end) > 1:
            start = _activity(entries, key, "start")
            found[f"{title} at the end"] = _profile(end, drawn, "spiking layer", "", before=start)
    return found


def _bar_panels(entries: Entries, drawn: Mapping[str, Look]) -> dict[str, "Draw"]:
    found: dict[str, Draw] = {}
    cosines, ceilings = ({when: {name: _median(_of_all(entry, when, key) for entry in own) for name, own in entries.items()}
                          for when in ("start", "end")} for key in ("cosine", "cosine_ceiling"))  # fmt: skip
    if any(value is not None for row in cosines.values() for value in row.values()):
        found["Cosine with the\nsmoothed gradient"] = _bars(cosines, drawn, ceilings)
    for key, title in (("rates", "Firing rate"), ("silent", "Silent neurons")):
        both = {when: _activity(entries, key, when) for when in ("start", "end")}
        if _most_layers(both["end"]) == 1:
            values = {when: {name: next(iter(row.values()), None) for name, row in both[when].items()} for when in both}
            found[title] = _bars(values, drawn, shares=True)
    return found


def _of_all(entry: Mapping[str, Any], when: str, key: str) -> float | None:
    return entry.get(when, {}).get(key, {}).get(ALL)


def _activity(entries: Entries, key: str, when: str) -> dict[str, dict[str, float]]:
    return {name: _by_layer(entry.get(when, {}).get(key, {}) for entry in own) for name, own in entries.items()}


def _most_layers(rows: Mapping[str, Mapping[str, float]]) -> int:
    return max(map(len, rows.values()), default=0)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _by_layer(entries: Iterable[Mapping[str, float | None]]) -> dict[str, float]:
    """Layer to its median over seeds, in the order of the network, without layers that have no number."""
    entries = list(entries)
    layers = dict.fromkeys(layer for entry in entries for layer in entry if layer != ALL)
    found = {layer: _median(entry.get(layer) for entry in entries) for layer in layers}
    return {layer: value for layer, value in found.items() if value is not None}


def _columns(courses: Sequence[Sequence[float | None]]) -> list[float]:
    """The median over seeds of each point of a course, of the seeds that came so far; NaN where none has a number."""
    longest = max(map(len, courses), default=0)
    medians = [_median(course[i] for course in courses if i < len(course)) for i in range(longest)]
    return [np.nan if value is None else value for value in medians]


def _over_time(entries: Entries, drawn: Mapping[str, Look], when: str) -> dict[str, "Draw"]:
    """The first spiking layer's panel, and the last's where there are more."""
    layers = list(
        dict.fromkeys(x for own in entries.values() for e in own for x in e.get(when, {}).get("over_time", {}))
    )
    places = {"first": layers[0], "last": layers[-1]} if len(layers) > 1 else dict.fromkeys([""] * len(layers), *layers)
    found: dict[str, Draw] = {}
    for place, layer in places.items():
        courses = {
            name: _columns([entry.get(when, {}).get("over_time", {}).get(layer, []) for entry in own])
            for name, own in entries.items()
        }
        where = f"{place} layer, " if place else ""
        found[f"Gradient over time,\n{where}at the {when}"] = _timed(courses, drawn)
    return found


def _style(look: Look, points: int) -> dict[str, Any]:
    marker = {"marker": look.marker, "markersize": 3.4} if points <= 12 else {}
    return {"color": look.colour, "linestyle": look.dash, "linewidth": 1.2, **marker}


def _positive(values: Iterable[float]) -> list[float]:
    """For a logarithmic axis."""
    return [value if value > 0 else np.nan for value in values]


def _logarithmic(pane: "Axes") -> None:
    from matplotlib.ticker import NullFormatter

    values = [y for line in pane.lines for y in np.asarray(line.get_ydata(), float) if y > 0]
    if values:
        pane.set_yscale("log")
        if max(values) > 10 * min(values):  # else the ticks between powers of ten are the only ones
            pane.yaxis.set_minor_formatter(NullFormatter())


def _profile(
    rows: Mapping[str, Mapping[str, float]], drawn: Mapping[str, Look], x: str, y: str, *,
    log: bool = False, before: Mapping[str, Mapping[str, float]] | None = None,
) -> "Draw":  # fmt: skip
    """Lines over the layers; ``before``: what the same was at the start, equal for all up to the estimator's own codes."""

    def draw(pane: "Axes") -> None:
        layers = list(dict.fromkeys(layer for row in rows.values() for layer in row))
        for name, row in rows.items():
            places = [layers.index(layer) + 1 for layer in row]
            values = _positive(row.values()) if log else list(row.values())
            pane.plot(places, values, **_style(drawn[name], len(layers)))
        if before is not None:
            start = [_median(row.get(layer) for row in before.values()) for layer in layers]
            known = [np.nan if value is None else value for value in start]
            pane.plot(range(1, len(layers) + 1), known, ":", color=GREY, linewidth=1, zorder=1)
        if log:
            _logarithmic(pane)
        else:
            percent_axis(pane)
        pane.set_xlim(0.6, len(layers) + 0.4)
        whole_ticks(pane)
        pane.grid(axis="y")
        pane.set_xlabel(x if before is None else f"{x} (dotted: at the start)")
        pane.set_ylabel(y)

    return draw


def _course(rows: Mapping[str, Sequence[float]], drawn: Mapping[str, Look], x: str, y: str) -> "Draw":
    def draw(pane: "Axes") -> None:
        for name, row in rows.items():
            pane.plot(range(1, len(row) + 1), row, **_style(drawn[name], len(row)))
        percent_axis(pane)
        whole_ticks(pane)
        pane.grid(axis="y")
        pane.set_xlabel(x)
        pane.set_ylabel(y)

    return draw


def _timed(courses: Mapping[str, Sequence[float]], drawn: Mapping[str, Look]) -> "Draw":
    def draw(pane: "Axes") -> None:
        for name, course in courses.items():
            middles = (np.arange(len(course)) + 0.5) / max(len(course), 1)
            pane.plot(100 * middles, _positive(course), **_style(drawn[name], 99))
        _logarithmic(pane)
        pane.set_xlim(0, 100)
        pane.grid(axis="y")
        pane.set_xlabel("time step, % of the sequence")
        pane.set_ylabel("norm")

    return draw


def _bars(
    values: Mapping[str, Mapping[str, float | None]], drawn: Mapping[str, Look],
    ceilings: Mapping[str, Mapping[str, float | None]] | None = None, *, shares: bool = False,
) -> "Draw":  # fmt: skip
    """A pair of bars an estimator, at the start above the end; a tick at each one's ceiling; ``shares`` in percent."""

    from matplotlib.ticker import FuncFormatter

    def draw(pane: "Axes") -> None:
        for row, (name, look) in enumerate(drawn.items()):
            for when, place, opacity in (("start", row - 0.19, 0.4), ("end", row + 0.19, 1.0)):
                value = values[when].get(name)
                if value is not None:
                    pane.barh(place, value, 0.36, color=look.colour, alpha=opacity, linewidth=0)
                top = None if ceilings is None else ceilings[when].get(name)
                if top is not None:
                    pane.plot([top, top], [place - 0.18, place + 0.18], color=INK, linewidth=1.2)
        pane.axvline(0, color="#9aa5b1", linewidth=0.8)
        pane.set_yticks(range(len(drawn)), [wrapped(name, 26) for name in drawn], linespacing=0.85)
        pane.set_ylim(len(drawn) - 0.4, -0.6)
        pane.tick_params(axis="y", length=0, labelcolor=INK)
        pane.locator_params(axis="x", nbins=5)
        pane.grid(axis="x")
        if shares:
            pane.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g} %"))
        pane.set_xlabel("pale: start, full: end" + ("; tick: ceiling" if ceilings is not None else ""))

    return draw
