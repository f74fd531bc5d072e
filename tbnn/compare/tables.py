"""Markdown tables of a comparison, from the dict of its results.json. Accuracies and differences are in percent (points)."""

from collections.abc import Sequence

from tbnn.compare.statistics import LEVEL, Results, statistics
from tbnn.compare.statistics_types import Comparison, Counts, Estimate, Interval, Ranking, Statistics, TaskComparison

MISSING = "–"
MINUS = "\u2212"


def markdown(results: Results, reference: str | None = None) -> str:
    """All tables under headings: each task, the ranks, the summary; ``reference`` as in ``statistics.comparisons``."""
    found = statistics(results, reference)
    parts = [
        f"### {_cell(task)}\n\n{task_table(found['estimates'][task], found['comparisons'][task])}"
        for task in results["tasks"]
    ]
    parts.append(f"### Ranks\n\n{rank_table(found['ranking'])}")
    parts.append(f"### Against each task's reference\n\n{summary_table(found)}")
    return "\n\n".join(parts) + "\n"


def task_table(estimates: dict[str, Estimate], compared: TaskComparison) -> str:
    """A task's estimators: mean, difference from the reference, test, verdict, stability; a note says what the seeds can show."""
    rows = []
    for name, one in estimates.items():
        row = compared["comparisons"].get(name)
        own = name == compared["reference"]
        rows.append(
            [
                f"**{_cell(name)}** (reference)" if own else _cell(name),
                str(one["seeds"]),
                _with(one["mean"], one["interval"]),
            ]
            + (_compared(row) if row is not None else ["", "", "", "", ""])
            + [MISSING if one["converged"] is None else f"{100 * one['converged']:.0f}", str(one["diverged"])]
        )
    head = [
        "estimator", "seeds", "test accuracy, % [95 %]", "difference, points [95 %]", "pairs", "p (Holm)", "d_z", "verdict",
        "converged, %", "diverged",
    ]  # fmt: skip
    return _table(head, rows) + _note(compared)


def _compared(row: Comparison) -> list[str]:
    effect = number(row["effect"])
    if row["spread"] == 0 and row["difference"]:
        effect = "no spread"
    return [
        _with(row["difference"], row["interval"], signed=True),
        str(row["pairs"]),
        probability(row["p_holm"]),
        effect,
        row["verdict"] or MISSING,
    ]


def _note(compared: TaskComparison) -> str:
    if compared["reason"] is not None:
        return f"\n\nNo comparison: {_cell(compared['reason'])}."
    least = [row["smallest_p_holm"] for row in compared["comparisons"].values() if row["smallest_p_holm"] is not None]
    if not least:
        return ""
    text = f"\n\nThe smallest p (Holm) that these seeds can give is {probability(max(least))}"
    if max(least) >= LEVEL:
        text += f": no difference could have passed {LEVEL:g}; {compared['seeds_needed']} seeds would be needed"
    return text + "."


def rank_table(ranking: Ranking) -> str:
    """Mean ranks over the tasks, best first, with Friedman's test and Nemenyi's critical difference below."""
    rows = [[_cell(name), number(ranking["mean_ranks"][name])] for name in ranking["estimators"]]
    text = _table(["estimator", f"mean rank over {len(ranking['tasks'])} tasks"], rows)
    if ranking["reason"] is not None:
        text += f"\n\nNo test: {ranking['reason']}."
    else:
        text += f"\n\nFriedman: χ² = {number(ranking['friedman'])}, p = {probability(ranking['p'])}. "
        text += f"Nemenyi's critical difference at {LEVEL:g}: {number(ranking['critical_difference'])} ranks."
    if ranking["left_out"]:
        text += f" Left out, for they lack an estimator: {', '.join(map(_cell, ranking['left_out']))}."
    return text


def summary_table(found: Statistics) -> str:
    """On how many tasks each estimator is better, equal, undecided or worse than the task's reference."""
    head = ["estimator", "better", "equal", "undecided", "worse", "is the reference", "not compared"]
    rows = [_counted(_cell(name), counts) for name, counts in found["summary"]["estimators"].items()]
    if any(found["summary"]["picked"].values()):
        rows.append(_counted("*best of ddt on validation*", found["summary"]["best_ddt"]))
    return _table(head, rows)


def _counted(name: str, counts: Counts) -> list[str]:
    order = (
        counts["better"],
        counts["equal"],
        counts["undecided"],
        counts["worse"],
        counts["reference"],
        counts["missing"],
    )
    return [name, *map(str, order)]


def number(value: float | None) -> str:
    """Three significant digits, a true minus, a dash for None.

    >>> number(0.12345), number(12.345), number(None)
    ('0.123', '12.3', '–')
    """
    return MISSING if value is None else f"{value:#.3g}".rstrip(".").replace("-", MINUS)


def probability(p: float | None) -> str:
    """A p-value to three digits, "< 0.001" below that."""
    return MISSING if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _with(value: float | None, interval: Interval | None, *, signed: bool = False) -> str:
    """A fraction and its interval in percent, to a tenth: three digits of an accuracy."""
    if value is None:
        return MISSING
    ends = "" if interval is None else f" [{', '.join(_percent(end, signed) for end in interval)}]"
    return _percent(value, signed) + ends


def _percent(value: float, signed: bool) -> str:
    tenths = round(100 * value, 1) + 0.0  # no "−0.0"
    return (f"{tenths:+.1f}" if signed and tenths else f"{tenths:.1f}").replace("-", MINUS)


def _cell(name: str) -> str:
    """A name from the user's data that cannot break the table."""
    return " ".join(name.split()).replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("`", "\\`")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---", *["---:"] * (len(head) - 1)], *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
