"""What the search for hyperparameters tried: every trial, so that a budget too small or a range too narrow is seen."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tbnn.compare.fig_style import MARKERS, SMALL, WIDTH, axis_name, looks, panels, value_text, wrapped
from tbnn.compare.statistics import Results
from tbnn.report.style import GREY, INK, new_figure, percent_axis, short_axis, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def tuning(results: Results, x: str = "optim.learning_rate", marker: str = "model.scale") -> "Figure":
    """Validation accuracy of every trial of all tasks against a setting, a panel for each estimator.

    The marker shows a second setting. Ringed: what was chosen for a task; a ring at the edge of the range asks for a wider search.
    Crosses: trials that diverged. Raises ValueError where no trial knows the setting ``x``.
    """
    trials: dict[str, list[tuple[float, Any, Mapping[str, Any]]]] = {name: [] for name in results["estimators"]}
    for trial in results["tuning"]:
        place = _setting(results, trial, x)
        if isinstance(place, int | float) and trial.get("validation_accuracy") is not None:
            trials[trial["estimator"]].append((float(place), _setting(results, trial, marker), trial))
    trials = {name: found for name, found in trials.items() if found}
    if not trials:
        raise ValueError(f"{x}: no trial of the tuning has a number there, expected at least one")
    seconds = _ordered([second for found in trials.values() for _, second, _ in found if second is not None])
    columns = min(len(trials), 5 if len(trials) > 9 else 4 if len(trials) > 4 else 3)
    rows = -(-len(trials) // columns)
    figure = new_figure(WIDTH if columns > 1 else 5.0, 0.8 + rows * (1.5 if columns > 3 else 2.0))
    grid = panels(figure, rows, columns, len(trials), sharex=True, sharey=True)
    drawn = looks(results)
    for i, (pane, (name, found)) in enumerate(zip(grid, trials.items(), strict=True)):
        _scatter(pane, results, found, seconds, drawn[name].colour, x)
        pane.set_title(
            wrapped(name, 21 if columns > 3 else 30, 3), fontsize=7 if columns > 3 else SMALL, linespacing=0.95
        )
        pane.tick_params(labelsize=SMALL, labelbottom=i + columns >= len(trials))
        pane.grid(axis="y")
    places = [place for found in trials.values() for place, _, _ in found]
    if min(places) > 0 and max(places) > 3 * min(places):
        grid[0].set_xscale("log")
        short_axis(grid[0])
    percent_axis(grid[0])
    figure.supxlabel(axis_name(x), fontsize=9)
    figure.supylabel("validation accuracy", fontsize=9)
    _key(figure, seconds, axis_name(marker))
    return figure


def _setting(results: Results, trial: Mapping[str, Any], key: str) -> Any:
    """A setting of a trial: its own, else its task's, its estimator's or the comparison's; None where none has it."""
    task, estimator = results["tasks"][trial["task"]], results["estimators"][trial["estimator"]]
    for settings in (trial["settings"], task["axes"], estimator["settings"]):
        if key in settings:
            return settings[key]
    value: Any = results.get("config")
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _ordered(values: Sequence[Any]) -> list[Any]:
    unique = [value for i, value in enumerate(values) if value not in values[:i]]
    return sorted(unique, key=None if all(isinstance(value, int | float) for value in unique) else str)


def _scatter(
    pane: "Axes", results: Results, found: Sequence[tuple[float, Any, Any]], seconds: Sequence[Any], colour: str, x: str
) -> None:
    for place, second, trial in found:
        accuracy = trial["validation_accuracy"]
        if trial.get("diverged") is not None:
            pane.plot(place, accuracy, "x", color=INK, markersize=3.6, markeredgewidth=0.9)
            continue
        shape = MARKERS[seconds.index(second) % len(MARKERS)] if second is not None else "o"
        chosen = results["chosen"].get(trial["task"], {}).get(trial["estimator"])
        ringed = chosen is not None and all(trial["settings"].get(key) == value for key, value in chosen.items())
        pane.plot(
            place, accuracy, shape, markersize=4.2 if ringed else 3.6, alpha=1 if ringed else 0.65, zorder=3 if ringed else 2,
            markerfacecolor=colour if ringed else "none", markeredgecolor=INK if ringed else colour, markeredgewidth=0.9,
        )  # fmt: skip


def _key(figure: "Figure", seconds: Sequence[Any], name: str) -> None:
    from matplotlib.lines import Line2D

    style: Any = {"linestyle": "", "color": GREY, "markersize": 4}
    entries = [
        Line2D(
            [], [], marker=MARKERS[i % len(MARKERS)], label=f"{name} {value_text(value)}", markeredgewidth=0, **style
        )
        for i, value in enumerate(seconds)
        if len(seconds) > 1
    ]
    entries += [
        Line2D([], [], marker="o", markeredgecolor=INK, label="chosen", **style),
        Line2D([], [], marker="x", linestyle="", color=INK, markersize=3.6, label="diverged", markeredgewidth=0.9),
    ]
    figure.legend(
        handles=entries, loc="outside upper right", ncols=min(len(entries), 6), fontsize=SMALL, columnspacing=1.2
    )
