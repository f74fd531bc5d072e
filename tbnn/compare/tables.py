"""Tables of a comparison, from the dict of its results.json: once as cells, for a page, and as Markdown.

Accuracies and differences are in percent (points). Estimators stand in groups, the best mean first.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tbnn.compare.statistics import LEVEL, Results, statistics
from tbnn.compare.statistics_types import Comparison, Counts, Interval, Ranking, Statistics, TaskComparison, Verdict

MISSING = "–"
MINUS = "\u2212"
GROUPS = {
    "ddt": "ridge-denoised",
    "surrogate": "bare surrogates",
    "other": "other estimators",
    "float": "float weights",
    "control": "controls",
}
"""Groups in the order of a table, as they are called there; groups of the user's own stand before "float"."""
MARKS: dict[Verdict | None, str] = {"better": "▲", "worse": "▼", "equal": "≈", "undecided": "", None: ""}
MOST_COLUMNS = 8  # tasks beside each other in an overview


class Line(NamedTuple):
    """A row: its cells; ``strong`` for a reference; a ``heading`` has a single cell, the name of a group."""

    cells: list[str]
    strong: bool = False
    heading: bool = False


class Table(NamedTuple):
    """Rows of plain text under titles, ``words`` columns of words and then numbers; ``notes`` stand below."""

    titles: list[str]
    lines: list[Line]
    notes: list[str]
    words: int = 1


def markdown(results: Results, reference: str | None = None) -> str:
    """All tables under headings: an overview, each task, the ranks, the summary; ``reference`` as in ``statistics.comparisons``."""
    found = statistics(results, reference)
    parts = [f"### All tasks\n\n{as_markdown(overview_table(results, found))}"] if len(results["tasks"]) > 1 else []
    parts += [f"### {escaped(task)}\n\n{as_markdown(task_table(results, task, found))}" for task in results["tasks"]]
    parts.append(f"### Ranks\n\n{as_markdown(rank_table(found['ranking']))}")
    parts.append(f"### Against each task's reference\n\n{as_markdown(summary_table(results, found))}")
    return "\n\n".join(parts) + "\n"


def grouped(results: Results, means: Mapping[str, float | None]) -> dict[str, list[str]]:
    """Group, as it is called in tables, to its estimators, the highest of ``means`` first, those without one last."""
    groups: dict[str, list[str]] = {}
    for name, entry in results["estimators"].items():
        groups.setdefault(str(entry["group"]), []).append(name)
    own = [group for group in groups if group not in GROUPS]
    order = [*list(GROUPS)[:3], *own, *list(GROUPS)[3:]]

    def place(name: str) -> float:
        mean = means.get(name)
        return float("inf") if mean is None else -mean

    return {GROUPS.get(group, group): sorted(groups[group], key=place) for group in order if group in groups}


def _under_groups(groups: Mapping[str, Sequence[str]], lines: Mapping[str, Line]) -> list[Line]:
    """The lines of a table under the headings of its groups; a single group needs none."""
    found = []
    for group, names in groups.items():
        found += [Line([group], heading=True)] if len(groups) > 1 else []
        found += [lines[name] for name in names]
    return found


def overview_table(results: Results, found: Statistics) -> Table:
    """Every estimator's mean on every task, with a mark for its verdict against the task's reference."""
    tasks, figures = list(results["tasks"]), found["estimates"]
    means = {name: _average([figures[task][name]["mean"] for task in tasks]) for name in results["estimators"]}
    groups = grouped(results, means)
    cells = {
        name: {task: _marked(figures[task][name]["mean"], found["comparisons"][task], name) for task in tasks}
        for name in results["estimators"]
    }
    notes = [
        "Mean test accuracy, %. Against the task's reference (*): ▲ better, ▼ worse, ≈ equal within the margin of "
        f"{100 * results['margin']:g} points, no mark: undecided or not compared."
    ]
    if len(tasks) <= MOST_COLUMNS:
        lines = {name: Line([name, *row.values(), _percent_or_dash(means[name])]) for name, row in cells.items()}
        return Table(["estimator", *tasks, "mean"], _under_groups(groups, lines), notes)
    names = [name for members in groups.values() for name in members]
    rows = [Line([task, *(cells[name][task] for name in names)]) for task in tasks]
    rows.append(Line(["mean", *(_percent_or_dash(means[name]) for name in names)], strong=True))
    return Table(["task", *names], rows, notes)


def _marked(mean: float | None, compared: TaskComparison, name: str) -> str:
    row = compared["comparisons"].get(name)
    mark = "*" if name == compared["reference"] else MARKS[row["verdict"] if row is not None else None]
    return f"{_percent_or_dash(mean)} {mark}".strip()


def task_table(results: Results, task: str, found: Statistics) -> Table:
    """A task's estimators: mean, difference from the reference, test, verdict, stability; a note says what the seeds can show."""
    estimates, compared = found["estimates"][task], found["comparisons"][task]
    lines = {}
    for name, one in estimates.items():
        row = compared["comparisons"].get(name)
        own = name == compared["reference"]
        cells = [f"{name} (reference)" if own else name, str(one["seeds"]), with_interval(one["mean"], one["interval"])]
        cells += _compared(row) if row is not None else [""] * 5
        cells += [MISSING if one["converged"] is None else f"{100 * one['converged']:.0f}", str(one["diverged"])]
        lines[name] = Line(cells, strong=own)
    titles = [
        "estimator", "seeds", "test accuracy, % [95 %]", "difference, points [95 %]", "pairs", "p (Holm)", "d_z", "verdict",
        "converged, %", "diverged",
    ]  # fmt: skip
    groups = grouped(results, {name: one["mean"] for name, one in estimates.items()})
    return Table(titles, _under_groups(groups, lines), _notes(compared))


def _compared(row: Comparison) -> list[str]:
    effect = MISSING if row["effect"] is None else f"{round(row['effect'], 2) + 0.0:.2f}".replace("-", MINUS)
    if row["spread"] == 0 and row["difference"]:
        effect = "no spread"
    return [
        with_interval(row["difference"], row["interval"], signed=True),
        str(row["pairs"]),
        probability(row["p_holm"]),
        effect,
        row["verdict"] or MISSING,
    ]


def _notes(compared: TaskComparison) -> list[str]:
    if compared["reason"] is not None:
        return [f"No comparison: {compared['reason']}."]
    least = [row["smallest_p_holm"] for row in compared["comparisons"].values() if row["smallest_p_holm"] is not None]
    if not least:
        return []
    text = f"The smallest p (Holm) that these seeds can give is {probability(max(least))}"
    if max(least) >= LEVEL:
        text += f": no difference could have passed {LEVEL:g}; {compared['seeds_needed']} seeds would be needed"
    return [text + "."]


def rank_table(ranking: Ranking) -> Table:
    """Mean ranks over the tasks, best first, with Friedman's test and Nemenyi's critical difference below."""
    lines = [Line([name, number(ranking["mean_ranks"][name])]) for name in ranking["estimators"]]
    if ranking["reason"] is not None:
        text = f"No test: {ranking['reason']}."
    else:
        text = f"Friedman: χ² = {number(ranking['friedman'])}, {p_value(ranking['p'])}. "
        text += f"Nemenyi's critical difference at {LEVEL:g}: {number(ranking['critical_difference'])} ranks."
    if ranking["left_out"]:
        text += f" Left out, for they lack an estimator: {', '.join(ranking['left_out'])}."
    return Table(["estimator", f"mean rank over {len(ranking['tasks'])} tasks"], lines, [text])


def summary_table(results: Results, found: Statistics) -> Table:
    """On how many tasks each estimator is better, equal, undecided or worse than the task's reference; most wins first."""
    titles = ["estimator", "better", "equal", "undecided", "worse", "is the reference", "not compared"]
    counts = found["summary"]["estimators"]
    lines = {name: Line([name, *_counted(row)]) for name, row in counts.items()}
    order = grouped(results, {name: row["better"] - row["worse"] for name, row in counts.items()})
    rows = _under_groups(order, lines)
    if any(found["summary"]["picked"].values()):
        own = Line(["best ridge-denoised on validation", *_counted(found["summary"]["best_ddt"])], strong=True)
        rows = [own, *rows]
    return Table(titles, rows, [])


def _counted(counts: Counts) -> list[str]:
    order = ("better", "equal", "undecided", "worse", "reference", "missing")
    return [str(counts[key]) for key in order]


def number(value: float | None) -> str:
    """Three significant digits, a true minus, a dash for None.

    >>> number(0.12345), number(12.345), number(None)
    ('0.123', '12.3', '–')
    """
    return MISSING if value is None else f"{value:#.3g}".rstrip(".").replace("-", MINUS)


def probability(p: float | None) -> str:
    """A p-value to three digits, "< 0.001" below that."""
    return MISSING if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def p_value(p: float | None) -> str:
    """The same as an equation or inequality."""
    text = probability(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def with_interval(value: float | None, interval: Interval | None, *, signed: bool = False) -> str:
    """A fraction and its interval in percent, to a tenth: three digits of an accuracy."""
    if value is None:
        return MISSING
    ends = "" if interval is None else f" [{', '.join(percent(end, signed=signed) for end in interval)}]"
    return percent(value, signed=signed) + ends


def percent(value: float, *, signed: bool = False) -> str:
    """A fraction in percent, to a tenth, with a true minus; ``signed``: with a plus too.

    >>> percent(0.1234), percent(0.01, signed=True), percent(-0.00001)
    ('12.3', '+1.0', '0.0')
    """
    tenths = round(100 * value, 1) + 0.0  # no "−0.0"
    return (f"{tenths:+.1f}" if signed and tenths else f"{tenths:.1f}").replace("-", MINUS)


def _percent_or_dash(value: float | None) -> str:
    return MISSING if value is None else percent(value)


def _average(values: Sequence[float | None]) -> float | None:
    """The mean where no value is missing: over fewer tasks it would be another measure."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def escaped(text: str) -> str:
    """A text from the user's data on one line, with nothing in it that Markdown would take for its own."""
    text = " ".join(text.split())
    return re.sub(r"[\\|*`$~]|(?<!\w)_|_(?!\w)|<(?=[A-Za-z/!?])|(?<=\])[(\[:]", r"\\\g<0>", text)


def as_markdown(table: Table) -> str:
    """A table as Markdown: headings of groups in italics, strong rows in bold, the notes below."""
    lines = [
        [escaped(title) for title in table.titles],
        ["---"] * table.words + ["---:"] * (len(table.titles) - table.words),
    ]
    for line in table.lines:
        first, *rest = map(escaped, line.cells)
        if line.heading:
            lines.append([f"*{first}*", *[""] * (len(table.titles) - 1)])
        else:
            lines.append([f"**{first}**" if line.strong else first, *rest])
    return "\n\n".join(["\n".join(f"| {' | '.join(line)} |" for line in lines), *map(escaped, table.notes)])
