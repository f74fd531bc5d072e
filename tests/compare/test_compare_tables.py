"""Tables say what the statistics say."""

import pytest
from compared import results

from tbnn.compare.statistics import comparisons, estimates, ranking, statistics
from tbnn.compare.tables import markdown, number, probability, rank_table, summary_table, task_table


def cells(table):
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines() if line.startswith("|")
    ]


def made(seeds=6):
    steps = [0.001 * i for i in range(seeds)]
    row = {"ste": [0.5 + s for s in steps], "a|b": [0.912 + s for s in steps], "late": [0.4 + s for s in steps]}
    return results({"task": row}, {"late": "control"})


def test_a_task():
    found = made()
    table = task_table(estimates(found)["task"], comparisons(found)["task"])
    head, _, reference, other, _ = cells(table)
    assert head[:3] == ["estimator", "seeds", "test accuracy, % [95 %]"]
    assert reference[:2] == ["**ste** (reference)", "6"]
    assert reference[3:8] == ["", "", "", "", ""]
    low, high = (100 * end for end in estimates(found)["task"]["a|b"]["interval"])
    assert other == ["a\\|b", "6", f"91.5 [{low:.1f}, {high:.1f}]", "+41.2 [+41.2, +41.2]", "6", "0.062", "no spread", "undecided", "100", "0"]  # fmt: skip
    assert table.endswith("can give is 0.062: no difference could have passed 0.05; 7 seeds would be needed.")


def test_missing_runs_are_dashes():
    found = made()
    found["runs"] = [run for run in found["runs"] if run["estimator"] != "a|b"]
    row = cells(task_table(estimates(found)["task"], comparisons(found)["task"]))[3]
    assert row == ["a\\|b", "0", "–", "–", "0", "–", "–", "–", "–", "0"]
    found["runs"] = []
    assert task_table(estimates(found)["task"], comparisons(found)["task"]).endswith(
        "No comparison: no run of the group surrogate."
    )


def test_ranks_and_summary():
    found = results({t: {"ste": [0.5, 0.6], "x": [0.7, 0.8], "y": [0.6, 0.7]} for t in ("1", "2")})
    table = rank_table(ranking(found))
    assert cells(table)[2:] == [["x", "1.00"], ["y", "2.00"], ["ste", "3.00"]]
    assert "χ² = 4.00, p = 0.135. Nemenyi's critical difference at 0.05: 2.34 ranks." in table
    assert "No test: got 1 complete tasks" in rank_table(ranking(made()))
    rows = cells(summary_table(statistics(found)))
    assert rows[2] == ["ste", "0", "0", "0", "0", "2", "0"]
    assert rows[-1] == ["*best of ddt on validation*", "0", "0", "2", "0", "0", "0"]
    text = markdown(found)
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "### 1", "### 2", "### Ranks", "### Against each task's reference",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1.00"), (12.345, "12.3"), (123.4, "123"), (-0.5, "−0.500"), (None, "–")]
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_small_probabilities():
    assert [probability(p) for p in (1.0, 0.0305, 0.0004, None)] == ["1.000", "0.030", "< 0.001", "–"]
