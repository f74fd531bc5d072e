"""Statistics of comparisons against enumeration, published values and symmetries."""

import json
import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from compared import results, wide
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.stats import friedmanchisquare

from tbnn.compare import statistics as stats

accuracy = st.integers(0, 400).map(lambda n: n / 400)
pairs = st.lists(st.tuples(accuracy, accuracy), min_size=2, max_size=8)


def versus(a, b, **kwargs):
    return stats.comparisons(results({"task": {"ste": list(b), "ddt": list(a)}}, **kwargs))["task"]["comparisons"][
        "ddt"
    ]


@given(pairs)
def test_exact_p_is_the_enumeration_in_exact_arithmetic(values):
    differences = [Fraction(a).limit_denominator(400) - Fraction(b).limit_denominator(400) for a, b in values]
    signed = [
        sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in product((1, -1), repeat=len(values))
    ]
    observed = sum(differences)
    share = min(sum(x >= observed for x in signed), sum(x <= observed for x in signed)) / len(signed)
    found = stats.paired_test(*zip(*values, strict=True))
    assert found.p == min(1, 2 * share)
    assert found.smallest == 2 / 2 ** len(values)


def test_patterns_that_tie_in_arithmetic_tie_in_floating_point():
    # Differences 9, 40, -47, 97, -97 four-hundredths: swapping the last two pairs changes nothing but the rounding of the sum.
    found = stats.paired_test([0.755, 0.685, 0.8475, 0.91, 0.5825], [0.7325, 0.585, 0.965, 0.6675, 0.825])
    assert found.p == 1


@pytest.mark.parametrize("n", [14, 16])
def test_smallest_p_is_reached_where_every_pair_agrees(n):
    found = stats.paired_test(np.linspace(0.6, 0.7, n), np.linspace(0.3, 0.5, n))
    assert found.p == found.smallest == 2 / min(2**n, 2**14)


def test_holm_of_a_published_example():
    # Holm's procedure on p = 0.01, 0.04, 0.03, 0.005: 4·0.005, 3·0.01, 2·0.03, then max(0.06, 0.04).
    assert_allclose(stats.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert stats.holm([]) == []


def test_intervals_of_equal_values_are_the_point_and_few_values_give_none():
    assert stats.interval([0.25] * 4) == [0.25, 0.25]
    assert stats.interval([0.25]) is None
    assert stats.interval([]) is None


def test_the_interval_of_a_published_example():
    # Efron 1987, table 1's kind of data: skewed values get an interval longer on the side of the tail.
    values = np.array([1.0, 1.2, 1.3, 1.6, 1.7, 2.1, 2.2, 2.4, 3.9, 8.0]) / 10
    low, high = stats.interval(values)
    assert low < values.mean() < high
    assert high - values.mean() > 1.5 * (values.mean() - low)


@settings(max_examples=15)
@given(pairs)
def test_intervals_hold_the_mean_and_stay_within_the_values(values):
    column = [a for a, _ in values]
    low, high = stats.interval(column)
    assert min(column) - 1e-12 <= low <= np.mean(column) + 1e-9
    assert np.mean(column) - 1e-9 <= high <= max(column) + 1e-12


@settings(max_examples=10)
@given(pairs)
def test_swapping_the_sides_negates_the_difference(values):
    a, b = zip(*values, strict=True)
    one, other = versus(a, b), versus(b, a)
    assert one["difference"] == pytest.approx(-other["difference"], abs=1e-15)
    assert one["p"] == other["p"]
    assert one["effect"] == (None if other["effect"] is None else pytest.approx(-other["effect"]))
    reach = np.ptp(np.subtract(a, b))
    assert_allclose(one["interval"], [-end for end in reversed(other["interval"])], atol=0.1 * reach + 1e-12)
    mirror = {"better": "worse", "worse": "better"}
    if (one["interval"][0] < -0.025 or one["interval"][1] > 0.025) and one["verdict"] != "equal" != other["verdict"]:
        assert one["verdict"] == mirror.get(other["verdict"], other["verdict"])


@settings(max_examples=10)
@given(pairs, st.randoms(use_true_random=False))
def test_the_order_of_the_seeds_does_not_matter(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    assert versus(*zip(*values, strict=True)) == versus(*zip(*shuffled, strict=True))


@settings(max_examples=10)
@given(st.lists(accuracy, min_size=5, max_size=8))
def test_identical_runs_are_equal(values):
    row = versus(values, values)
    assert (row["difference"], row["interval"], row["p"], row["verdict"]) == (0, [0, 0], 1, "equal")
    assert row["effect"] is None
    assert row["spread"] == 0


def test_verdicts_effect_and_zero_spread():
    base = np.linspace(0.5, 0.6, 10)
    noise = np.tile([-0.01, 0.01], 5)
    assert versus(base + 0.1 + noise, base)["verdict"] == "better"
    assert versus(base - 0.1 + noise, base)["verdict"] == "worse"
    assert versus(base + noise, base)["verdict"] == "equal"
    assert versus(base + 10 * noise, base)["verdict"] == "undecided"
    row = versus(base + 0.1 + noise, base)
    assert row["effect"] == pytest.approx(0.1 / np.std(noise, ddof=1))
    same = versus(base + 0.1, base)
    assert (same["effect"], same["spread"], same["verdict"]) == (None, 0, "better")
    assert same["interval"] == pytest.approx([0.1, 0.1])


def test_five_seeds_cannot_show_a_difference_and_the_results_say_so():
    found = stats.comparisons(results({"task": {"ste": [0.1] * 5, "ddt": [0.9] * 5}}))["task"]
    row = found["comparisons"]["ddt"]
    assert (row["p"], row["smallest_p_holm"], row["verdict"]) == (0.0625, 0.0625, "undecided")
    assert found["seeds_needed"] == 6
    assert versus([0.9] * 6, [0.1] * 6)["verdict"] == "better"


@pytest.mark.parametrize("others", [1, 3, 13])
def test_seeds_needed_is_the_first_number_that_passes(others):
    def verdict(seeds):
        row = {"ste": [0.1] * seeds, **{f"ddt {i}": [0.9] * seeds for i in range(others)}}
        found = stats.comparisons(results({"task": row}))["task"]
        return found["seeds_needed"], found["comparisons"]["ddt 0"]["verdict"]

    needed, _ = verdict(2)
    assert verdict(needed)[1] == "better"
    assert verdict(needed - 1)[1] == "undecided"


def test_the_reference_is_validations_choice_never_tests():
    test = {"task": {"ste": [0.9] * 8, "atan": [0.5] * 8, "ddt": [0.7] * 8, "float": [0.99] * 8}}
    validation = {"task": {"ste": [0.5] * 8, "atan": [0.6] * 8, "ddt": [0.7] * 8, "float": [0.99] * 8}}
    made = results(test, {"atan": "surrogate", "float": "float"}, validation=validation)
    found = stats.comparisons(made)["task"]
    assert found["reference"] == "atan"
    assert found["threshold"] == pytest.approx(0.1 + 0.5 * (0.7 - 0.1))  # float weights are no rival
    assert stats.comparisons(made, "ste")["task"]["comparisons"]["ddt"]["verdict"] == "worse"
    with pytest.raises(ValueError, match=r"reference: got 'nobody', expected one of \['ste'"):
        stats.comparisons(made, "nobody")


def test_an_estimator_with_fewer_runs_is_not_picked():
    made = results({"task": {"ste": [0.5] * 6, "lucky": [0.9] * 6}}, {"lucky": "surrogate"})
    made["runs"] = [run for run in made["runs"] if run["estimator"] == "ste" or run["seed"] == 0]
    assert stats.best_of(made, "task", "surrogate") == "ste"
    assert stats.best_of(made, "task", "ddt") is None


def test_convergence_counts_diverged_runs_as_failures():
    made = results({"task": {"ste": [0.9, 0.9, 0.9, 0.4], "ddt": [0.9, 0.44, 0.9, 0.9]}})
    made["runs"][0]["diverged"] = 12
    made["runs"][1].update(diverged=3, test_accuracy=None, validation_accuracy=None)
    one = stats.estimates(made)["task"]
    assert (one["ste"]["converged"], one["ste"]["diverged"]) == (0.25, 2)
    assert one["ste"]["mean"] == pytest.approx((0.9 + 0.1 + 0.9 + 0.4) / 4)  # a run without an accuracy guesses
    assert one["ddt"]["converged"] == 0.75  # threshold 0.1 + 0.5·(0.785 − 0.1)


def test_nothing_converges_where_nothing_beats_chance():
    found = stats.estimates(results({"task": {"ste": [0.1, 0.1], "ddt": [0.1, 0.05]}}))["task"]
    assert found["ste"]["converged"] == found["ddt"]["converged"] == 0


def test_pairs_are_the_shared_seeds():
    made = results({"task": {"ste": [0.1, 0.2, 0.3, 0.4], "ddt": [0.5, 0.6, 0.8, 0.9]}})
    made["runs"] = [r for r in made["runs"] if (r["estimator"], r["seed"]) not in {("ste", 0), ("ddt", 3)}]
    row = stats.comparisons(made)["task"]["comparisons"]["ddt"]
    assert (row["pairs"], row["difference"]) == (2, pytest.approx(0.45))
    made["runs"] = [r for r in made["runs"] if r["seed"] != 1]
    row = stats.comparisons(made)["task"]["comparisons"]["ddt"]
    assert row["pairs"] == 1
    assert [row[key] for key in ("difference", "interval", "p", "p_holm", "effect", "verdict")] == [None] * 6


# Demšar 2006, table 5 (a): q at 0.05 for 2 to 10 classifiers, divided by √2.
DEMSAR = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]


@pytest.mark.parametrize(("k", "q"), list(zip(range(3, 11), DEMSAR[1:], strict=True)))
def test_nemenyi_is_demsars_table(k, q):
    rng = np.random.default_rng(k)
    found = stats.ranking(results({f"task {i}": {f"e{j}": [rng.random()] for j in range(k)} for i in range(6)}))
    assert found["critical_difference"] == pytest.approx(q * math.sqrt(k * (k + 1) / 36), abs=1.5e-3 * k)


def test_demsars_example_of_four_classifiers_on_fourteen_tasks():
    # Demšar 2006, table 6: AUC of C4.5, with m, with cf, with both; section 3.2.2 gives ranks 3.143, 2.000, 2.893, 1.964,
    # χ² = 9.28 and a critical difference of 1.25.
    table = [
        (0.763, 0.768, 0.771, 0.798), (0.599, 0.591, 0.590, 0.569), (0.954, 0.971, 0.968, 0.967), (0.628, 0.661, 0.654, 0.657),
        (0.882, 0.888, 0.886, 0.898), (0.936, 0.931, 0.916, 0.931), (0.661, 0.668, 0.609, 0.685), (0.583, 0.583, 0.563, 0.625),
        (0.775, 0.838, 0.866, 0.875), (1.000, 1.000, 1.000, 1.000), (0.940, 0.962, 0.965, 0.962), (0.619, 0.666, 0.614, 0.669),
        (0.972, 0.981, 0.9751, 0.975), (0.957, 0.978, 0.946, 0.970),
    ]  # fmt: skip
    names = ("C4.5", "m", "cf", "m cf")
    found = stats.ranking(
        results({f"{i}": {n: [v] for n, v in zip(names, row, strict=True)} for i, row in enumerate(table)})
    )
    assert_allclose([found["mean_ranks"][n] for n in names], [3.143, 2.000, 2.893, 1.964], atol=6e-4)
    assert found["friedman"] == friedmanchisquare(*np.array(table).T).statistic
    assert found["critical_difference"] == pytest.approx(1.25, abs=0.005)
    assert found["cliques"] == [["m cf", "m", "cf", "C4.5"]]


def test_cliques_are_maximal_and_within_the_critical_difference():
    found = stats.ranking(wide(12, 11, 2))
    ranks, cd = found["mean_ranks"], found["critical_difference"]
    together = {frozenset((a, b)) for clique in found["cliques"] for a in clique for b in clique if a != b}
    near = {frozenset((a, b)) for a in ranks for b in ranks if a != b and abs(ranks[a] - ranks[b]) <= cd}
    assert together == near
    assert not any(set(a) < set(b) for a in found["cliques"] for b in found["cliques"])


def test_ranks_need_tasks_and_estimators_and_leave_out_what_is_unfinished():
    one = {"ste": [0.9], "a": [0.8], "b": [0.7], "float": [0.99]}
    found = stats.ranking(results({"one": one}, {"float": "float"}))
    assert found["mean_ranks"] == {"ste": 1, "a": 2, "b": 3}
    assert found["p"] is found["critical_difference"] is None
    assert found["reason"] == "got 1 complete tasks and 3 estimators, expected at least 2 and 3"
    made = results({"one": one, "two": one, "three": one}, {"float": "float"})
    made["runs"] = [run for run in made["runs"] if (run["task"], run["estimator"]) != ("three", "b")]
    found = stats.ranking(made)
    assert (found["tasks"], found["left_out"], found["friedman"]) == (["one", "two"], ["three"], 4)
    tied = stats.ranking(results({t: {n: [0.5] for n in "abc"} for t in "12"}))
    assert (tied["friedman"], tied["p"]) == (0, 1)


def test_the_summary_counts_each_task_once():
    better, worse = [0.9 + 0.001 * i for i in range(8)], [0.5 + 0.002 * i for i in range(8)]
    made = results(
        {"1": {"ste": worse, "a": better, "b": worse}, "2": {"ste": better, "a": worse, "b": better}},
        {"a": "ddt", "b": "ddt"},
    )
    found = stats.statistics(made)["summary"]
    assert found["picked"] == {"1": "a", "2": "b"}
    assert (found["best_ddt"]["better"], found["best_ddt"]["equal"]) == (1, 1)
    assert (found["estimators"]["a"]["better"], found["estimators"]["a"]["worse"]) == (1, 1)
    assert found["estimators"]["ste"]["reference"] == 2
    assert all(sum(counts.values()) == 2 for counts in [*found["estimators"].values(), found["best_ddt"]])


@settings(max_examples=15)
@given(st.sets(st.integers(0, 26)), st.integers(0, 26))
def test_any_part_of_a_study_gives_json_without_nan(missing, diverged):
    made = results(
        {t: {"ste": [0.3, 0.5, 0.2], "a": [0.3, 0.6, 0.2], "b": [0.1, 0.1, 0.1]} for t in "123"}, {"b": "control"}
    )
    made["runs"][diverged].update(diverged=1, test_accuracy=math.nan, validation_accuracy=math.nan)
    made["runs"] = [run for i, run in enumerate(made["runs"]) if i not in missing]
    found = stats.statistics(made)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_an_unknown_task_is_an_error():
    made = results({"task": {"ste": [0.5]}})
    made["runs"][0]["task"] = "other"
    with pytest.raises(ValueError, match=r"results: a run is of task 'other' .* expected tasks \['task'\]"):
        stats.estimates(made)


@pytest.mark.parametrize(("pairs", "expected"), [(4, "undecided"), (5, "equal"), (12, "equal")])
def test_few_pairs_do_not_show_equality(pairs, expected):
    row = {"pairs": pairs, "p_holm": 0.7, "difference": 0.0, "interval": (-0.01, 0.01)}
    assert stats.verdict(row, 0.02) == expected
