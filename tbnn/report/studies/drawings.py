"""The figures of a study: which of them its results allow, under which names they are kept, and what they show."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tbnn.compare import figures
from tbnn.compare.fig_mechanism import mechanism, observed_tasks
from tbnn.compare.fig_style import axis_name
from tbnn.compare.statistics import Results
from tbnn.files import replacing
from tbnn.report.style import png, svg_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_BYTES = 250_000  # of a PNG that is kept beside the results
LARGEST_DRAWING = 400_000  # characters of an SVG on the page; beyond, the PNG is shown
RESOLUTIONS = (200, 170, 140, 110, 90, 72, 56)  # dots per inch, the first that stays below MOST_BYTES
MOST_OBSERVED = 4  # tasks whose mechanism is drawn


@dataclass(frozen=True)
class Drawing:
    """A figure, the name of its file, and the sentence below it."""

    name: str
    kind: str
    caption: str
    figure: "Figure"

    @cached_property
    def png(self) -> bytes:
        """The same bytes for the same results, fewer than ``MOST_BYTES``."""
        made = b""
        for dots in RESOLUTIONS:
            made = png(self.figure, dots)
            if len(made) < MOST_BYTES:
                return made
        raise ValueError(f"{self.name}: expected a figure of fewer than {MOST_BYTES:,} bytes, got {len(made):,}")

    @cached_property
    def uri(self) -> str:
        """For the page: lines where they are few, else dots."""
        import base64

        drawn = svg_uri(self.figure)
        if len(drawn) <= LARGEST_DRAWING:
            return drawn
        return "data:image/png;base64," + base64.b64encode(self.png).decode()

    @property
    def inches(self) -> float:
        """Its width."""
        return float(self.figure.get_figwidth())

    def save(self, folder: Path) -> None:
        """Write the PNG into a folder."""
        with replacing(folder / f"{self.name}.png") as temporary:
            temporary.write_bytes(self.png)


def drawings(results: Results) -> list[Drawing]:
    """All figures that the results allow, in the order of the page."""
    found: list[Drawing] = []
    for kind, caption, figure in _drawn(results):
        before = sum(drawing.kind == kind for drawing in found)
        found.append(Drawing(f"{kind}-{before + 1}" if before else kind, kind, caption, figure))
    return found


def _drawn(results: Results) -> Iterator[tuple[str, str, "Figure"]]:
    yield (
        "intervals",
        "Test accuracy: every seed, the mean and its 95 % interval (BCa bootstrap over seeds). The grey row is the reference.",
        figures.intervals(results, results["reference"]),
    )
    families = _families(results)
    for family, part in families.items():
        axes, of = figures.numeric_axes(part), f" Task: {family}." if len(families) > 1 else ""
        for axis in axes:
            text = f"Mean test accuracy over {axis_name(axis)}, band: 95 % interval over seeds; dotted: chance.{of}"
            yield "curves", text, figures.curves(part, axis)
        if len(axes) == 2:
            text = f"Mean validation accuracy over {axis_name(axes[0])} and {axis_name(axes[1])}.{of}"
            yield "stability", text, figures.stability_map(part, axes[0], axes[1])
    if len(results["tasks"]) >= 3:
        text = "Mean ranks over the tasks, 1 is best; bars join estimators that Nemenyi's test at 0.05 does not tell apart."
        yield "ranks", text, figures.critical_difference(results)
    if (setting := _searched(results)) is not None:
        text = f"The search: validation accuracy of every trial over {axis_name(setting)}; ringed: chosen for a task."
        yield "tuning", text, figures.tuning(results, setting)
    seen = observed_tasks(results)
    shown = [seen[round(i * (len(seen) - 1) / (MOST_OBSERVED - 1))] for i in range(MOST_OBSERVED)] if len(seen) > MOST_OBSERVED else seen  # fmt: skip
    for task in shown:
        left_out = f" {len(shown)} of {len(seen)} tasks are shown." if len(shown) < len(seen) else ""
        yield "mechanism", f"Inside the networks of {task}: medians over seeds.{left_out}", mechanism(results, task)


def _families(results: Results) -> dict[str, dict[str, Any]]:
    """The results of each named task with all points of the grid, for a figure over its axes takes one value a point."""
    tasks = results["config"].get("tasks")
    names = list(tasks) if isinstance(tasks, dict) and tasks else [""]  # a script's own configuration may use the word
    if len(names) == 1:
        return {names[0]: dict(results)}
    found = {}
    for name in names:
        tasks = {
            task: entry for task, entry in results["tasks"].items() if task == name or task.startswith(f"{name}, ")
        }
        runs = [run for run in results["runs"] if run["task"] in tasks]
        found[name] = {**results, "tasks": tasks, "runs": runs}
    return found


def _searched(results: Results) -> str | None:
    """The setting for the axis of the figure of trials: the learning rate, or else the first one with numbers."""
    keys = dict.fromkeys(["optim.learning_rate", *(key for trial in results["tuning"] for key in trial["settings"])])
    for key in keys:
        values = [trial["settings"].get(key) for trial in results["tuning"]]
        if any(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            return key
    return None


def over_all(joined: Results) -> Drawing:
    """The ranks over the tasks of several studies (:func:`tbnn.report.studies.across.across`)."""
    text = (
        "Mean ranks over the tasks of all studies that share these estimators, 1 is best; bars join those that Nemenyi's test at "
        "0.05 does not tell apart. Tasks of one study share data or a network, which the test does not know."
    )
    return Drawing("ranks", "ranks", text, figures.critical_difference(joined))


def sheet(found: list[Drawing], kind: str) -> list[Drawing]:
    """The drawings of a kind."""
    return [drawing for drawing in found if drawing.kind == kind]
