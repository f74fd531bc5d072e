"""Tables say what the statistics say."""

import pytest
from compared import results

from tbnn.compare.statistics import estimates, ranking, statistics
from tbnn.compare.tables import (
    as_markdown,
    escaped,
    grouped,
    markdown,
    number,
    overview_table,
    probability,
    rank_table,
    summary_table,
    task_table,
)


def cells(table):
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines() if line.startswith("|")
    ]


def made(seeds=6):
    steps = [0.001 * i for i in range(seeds)]
    row = {"ste": [0.5 + s for s in steps], "a|b": [0.912 + s for s in steps], "late": [0.4 + s for s in steps]}
    return results({"task": row}, {"late": "control"})


def lines(table):
    return [list(line.cells) for line in table.lines]


def test_a_task():
    found = made()
    table = task_table(found, "task", statistics(found))
    assert table.titles[:3] == ["estimator", "seeds", "test accuracy, % [95 %]"]
    assert [(line.cells[0], line.heading, line.strong) for line in table.lines] == [
        ("ridge-denoised", True, False), ("a|b", False, False), ("bare surrogates", True, False),
        ("ste (reference)", False, True), ("controls", True, False), ("late", False, False),
    ]  # fmt: skip
    assert lines(table)[3][1:2] == ["6"]
    assert lines(table)[3][3:8] == ["", "", "", "", ""]
    low, high = (100 * end for end in estimates(found)["task"]["a|b"]["interval"])
    assert lines(table)[1] == ["a|b", "6", f"91.5 [{low:.1f}, {high:.1f}]", "+41.2 [+41.2, +41.2]", "6", "0.062", "no spread", "undecided", "100", "0"]  # fmt: skip
    assert table.notes[0].endswith("can give is 0.062: no difference could have passed 0.05; 7 seeds would be needed.")


def test_in_markdown_names_cannot_break_a_table():
    found = made()
    rows = cells(as_markdown(task_table(found, "task", statistics(found))))
    assert [row[0] for row in rows[2:]] == [
        "*ridge-denoised*", "a\\|b", "*bare surrogates*", "**ste (reference)**", "*controls*", "late",
    ]  # fmt: skip
    assert escaped("[x](http://y) <b> *z* _w_ a_b $1$ 5 < 6 [1, 2]\n# q") == (
        "[x]\\(http://y) \\<b> \\*z\\* \\_w\\_ a_b \\$1\\$ 5 < 6 [1, 2] # q"
    )


def test_effects_have_two_digits():
    found = results({"task": {"ste": [0.5, 0.6, 0.7], "same": [0.5, 0.61, 0.69], "other": [0.51, 0.58, 0.67]}})
    effects = {row[0]: row[6] for row in lines(task_table(found, "task", statistics(found))) if len(row) > 1}
    assert effects == {"ste (reference)": "", "same": "0.00", "other": "−0.64"}


def test_missing_runs_are_dashes():
    found = made()
    found["runs"] = [run for run in found["runs"] if run["estimator"] != "a|b"]
    row = lines(task_table(found, "task", statistics(found)))[1]
    assert row == ["a|b", "0", "–", "–", "0", "–", "–", "–", "–", "0"]
    found["runs"] = []
    assert task_table(found, "task", statistics(found)).notes == ["No comparison: no run of the group surrogate."]


def test_estimators_stand_in_groups_best_first():
    found = results(
        {
            "t": {
                "low": [0.1, 0.2],
                "none": [],
                "w": [0.6, 0.7],
                "ste": [0.5, 0.6],
                "x": [0.7, 0.8],
                "mine": [0.4, 0.5],
                "y": [0.8, 0.9],
            }
        },
        {"low": "control", "mine": "own", "y": "float"},
    )
    means = {name: one["mean"] for name, one in estimates(found)["t"].items()}
    assert grouped(found, means) == {
        "ridge-denoised": ["x", "w", "none"], "bare surrogates": ["ste"], "own": ["mine"], "float weights": ["y"], "controls": ["low"],
    }  # fmt: skip


def test_an_overview_of_few_and_of_many_tasks():
    runs = {"ste": [0.5, 0.6], "x": [0.7, 0.9]}
    few, many = (results({str(i): runs for i in range(n)}) for n in (2, 9))
    table = overview_table(few, statistics(few))
    assert table.titles == ["estimator", "0", "1", "mean"]
    assert lines(table)[1] == ["x", "80.0", "80.0", "80.0"]
    assert lines(table)[3] == ["ste", "55.0 *", "55.0 *", "55.0"]
    table = overview_table(many, statistics(many))
    assert table.titles == ["task", "x", "ste"]
    assert lines(table)[0] == ["0", "80.0", "55.0 *"]
    assert lines(table)[-1] == ["mean", "80.0", "55.0"]


def test_verdicts_are_marked():
    steps = [0.001 * i for i in range(8)]
    found = results({"t": {"ste": [0.5 + s for s in steps], "up": [0.6 + s for s in steps], "down": [0.4 + s for s in steps], "same": [0.5 + s + 0.001 * (-1) ** i for i, s in enumerate(steps)]}})  # fmt: skip
    marked = {row[0]: row[1] for row in lines(overview_table(found, statistics(found))) if len(row) > 1}
    assert marked["up"].endswith(" ▲")
    assert marked["down"].endswith(" ▼")
    assert marked["ste"].endswith(" *")
    assert marked["same"].endswith(" ≈")


def test_ranks_and_summary():
    found = results({t: {"ste": [0.5, 0.6], "x": [0.7, 0.8], "y": [0.6, 0.7]} for t in ("1", "2")})
    table = rank_table(ranking(found))
    assert lines(table) == [["x", "1.00"], ["y", "2.00"], ["ste", "3.00"]]
    assert table.notes == ["Friedman: χ² = 4.00, p = 0.135. Nemenyi's critical difference at 0.05: 2.34 ranks."]
    assert rank_table(ranking(made())).notes[0].startswith("No test: got 1 complete tasks")
    rows = {row[0]: row[1:] for row in lines(summary_table(found, statistics(found)))}
    assert rows["ste"] == ["0", "0", "0", "0", "2", "0"]
    assert rows["best ridge-denoised on validation"] == ["0", "0", "2", "0", "0", "0"]
    text = markdown(found)
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "### All tasks", "### 1", "### 2", "### Ranks", "### Against each task's reference",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1.00"), (12.345, "12.3"), (123.4, "123"), (-0.5, "−0.500"), (None, "–")]
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_small_probabilities():
    assert [probability(p) for p in (1.0, 0.0305, 0.0004, None)] == ["1.000", "0.030", "< 0.001", "–"]
