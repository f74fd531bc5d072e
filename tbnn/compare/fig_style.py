"""How the estimators of a comparison look: a family of colours for each group, a marker for each member, names that wrap."""

import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tbnn.compare.statistics import Results
from tbnn.report.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILION, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Cold against warm colours tell the groups apart, markers their members; both survive colour blindness, the markers print too.
FAMILIES = {
    "ddt": (BLUE, SKY, "#00395c"),
    "surrogate": (VERMILION, ORANGE, "#7f3300"),
    "float": (INK,),
    "control": (GREY, "#a3adb8"),
}
OTHERS = ((GREEN,), (PURPLE,), ("#004d38",), ("#8a4f74",))  # for groups of the user's own, in turn
MARKERS = "osD^vPXp<>h*"
DASHES: Any = ("-", (0, (4, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.2, 1.2, 1.2)))

MOST_IN_ONE = 8  # estimators in one panel of lines
SMALL = 7.5  # points, of what stands inside the panels
WIDTH = 7.2  # inches, of a page's two columns


class Look(NamedTuple):
    """How an estimator is drawn, in every figure alike."""

    colour: str
    marker: str
    dash: Any


def looks(results: Results) -> dict[str, Look]:
    """Estimator to its colour, marker and dashes, by group and by its place in the group."""
    members: dict[str, int] = {}
    found = {}
    for name, entry in results["estimators"].items():
        group = str(entry["group"])
        place = members[group] = members.get(group, -1) + 1
        own = [key for key in members if key not in FAMILIES]
        family = FAMILIES.get(group) or OTHERS[own.index(group) % len(OTHERS)]
        found[name] = Look(family[place % len(family)], MARKERS[place % len(MARKERS)], DASHES[place % len(DASHES)])
    return found


def wrapped(name: str, width: int = 22, lines: int = 2) -> str:
    """A name from the user's data on at most so many lines, broken at spaces and after - _ / , and shortened beyond."""
    name = " ".join(name.split())
    pieces = textwrap.wrap(re.sub(r"([_/,])(?=\S)", "\\1\u200b ", name), width, break_on_hyphens=True)
    if len(pieces) > lines:
        pieces = [*pieces[: lines - 1], " ".join(pieces[lines - 1 :])]
    pieces = [piece.replace("\u200b ", "").replace("\u200b", "") for piece in pieces]
    return "\n".join(label(piece, width + 1) for piece in pieces)


def axis_name(key: str) -> str:
    """A dotted setting as a label: "optim.learning_rate" is "learning rate"."""
    return label(key.rsplit(".", 1)[-1].replace("_", " "), 40)


def value_text(value: Any) -> str:
    """A setting's value, short: 0.001, 1e-05, [64, 64]."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(value_text(one) for one in value) + "]"
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else label(str(value), 16)


def panels(figure: "Figure", rows: int, columns: int, used: int, **kwargs: Any) -> list["Axes"]:
    """A grid of panels row by row, the unused ones at its end removed."""
    grid = list(figure.subplots(rows, columns, squeeze=False, **kwargs).flat)
    for axis in grid[used:]:
        axis.remove()
    return grid[:used]


def widened(values: Sequence[float], share: float = 0.04, least: float = 0.0) -> tuple[float, float]:
    """Limits around the values with a margin on both sides."""
    low, high = min(values), max(values)
    margin = max(share * (high - low), least)
    return low - margin, high + margin
