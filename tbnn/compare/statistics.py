"""What a comparison's results say: intervals, paired tests, ranks over tasks, verdicts.

Every function takes the dict of a comparison's results.json and returns plain dicts and lists of numbers, text and None, ready for JSON.
Two runs with the same seed share initial weights and the order of the data, so that estimators are compared in pairs.

What the figures cover: the spread over seeds. All runs of a task share one training and one test set, so that neither an interval nor
a p-value speaks of other recordings. A BCa interval of few values is too narrow: of normal values it holds the mean in 52 % of cases with
2 seeds, 70 % with 3, 86 % with 5, 90 % with 10 and 92 % with 20, where 95 % is meant. "equal" leans on it, so give the number of seeds beside it.

Missing runs: an estimator is described by the runs it has and compared on the seeds that both sides have; fewer than two give None.
A run that diverged and left no accuracy counts as a guess (chance level): leaving it out would flatter the estimator.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from tbnn.compare.statistics_types import (
    Comparison,
    Counts,
    Estimate,
    Interval,
    Ranking,
    Statistics,
    Summary,
    TaskComparison,
    Verdict,
)

LEVEL = 0.05  # of the tests; intervals hold 95 %
RESAMPLES = 2**14  # at most; sign patterns of up to 14 pairs are all tried
BOOTSTRAP = 9999  # resamples of an interval
DIGITS = 12  # of a difference of accuracies; beyond lies the rounding of float64
FEWEST = 5  # pairs that may show two estimators to be equal
OUTSIDE = ("float", "control")  # groups that are no rivals: an upper bound and a floor

Results = Mapping[str, Any]
Runs = dict[str, dict[str, dict[int, Mapping[str, Any]]]]


class PairedTest(NamedTuple):
    """A paired test: its p and the smallest p it could have given."""

    p: float
    smallest: float


def statistics(results: Results, reference: str | None = None) -> Statistics:
    """Everything below in one dict; ``reference`` as in ``comparisons``."""
    compared = comparisons(results, reference)
    return {
        "estimates": estimates(results),
        "comparisons": compared,
        "ranking": ranking(results),
        "summary": summary(results, compared),
    }


def runs_of(results: Results) -> Runs:
    """The final runs by task, estimator and seed (ascending); of two with the same three the later one counts.

    Raises ValueError for a run whose task or estimator the results do not list.
    """
    table: Runs = {task: {name: {} for name in results["estimators"]} for task in results["tasks"]}
    for run in results["runs"]:
        if run["task"] not in table or run["estimator"] not in results["estimators"]:
            raise ValueError(
                f"results: a run is of task {run['task']!r} and estimator {run['estimator']!r}, "
                f"expected tasks {list(table)} and estimators {list(results['estimators'])}"
            )
        table[run["task"]][run["estimator"]][run["seed"]] = run
    return {task: {name: dict(sorted(seeds.items())) for name, seeds in row.items()} for task, row in table.items()}


def accuracies(runs: Mapping[int, Mapping[str, Any]], chance: float, split: str = "test") -> dict[int, float]:
    """Seed to accuracy on "test" or "validation", of the runs that have one; a diverged run without one guesses."""
    found = {}
    for seed, run in runs.items():
        value = run.get(f"{split}_accuracy")
        if value is not None and math.isfinite(value):
            found[seed] = float(value)
        elif run.get("diverged") is not None:
            found[seed] = float(chance)
    return found


def interval(values: Iterable[float]) -> Interval | None:
    """The 95 % interval of the mean by the bias-corrected and accelerated bootstrap; the point where all are equal.

    None for fewer than two values. Their order does not matter. Source: Efron, "Better bootstrap confidence intervals", JASA 1987.

    >>> interval([0.5, 0.5, 0.5])
    [0.5, 0.5]
    """
    found = _interval(tuple(sorted(map(float, values))))
    return None if found is None else list(found)


@lru_cache(maxsize=4096)
def _interval(values: tuple[float, ...]) -> tuple[float, float] | None:
    from scipy.stats import DegenerateDataWarning, bootstrap  # slow to import

    if len(values) < 2:
        return None
    if values[-1] - values[0] < 10.0**-DIGITS:
        middle = float(np.mean(values))
        return middle, middle
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)
        for method in ("BCa", "percentile"):  # BCa divides by zero where hardly any resample differs
            found: Any = bootstrap((values,), np.mean, method=method, n_resamples=BOOTSTRAP, rng=0).confidence_interval
            if math.isfinite(found.low) and math.isfinite(found.high):
                break
    return float(found.low), float(found.high)


def paired_test(a: Sequence[float], b: Sequence[float]) -> PairedTest | None:
    """Two-sided paired permutation test of equal means, exact up to 14 pairs; None for fewer than two pairs.

    With n pairs an exact p is at least 2 / 2^n: five pairs cannot reach 0.05, six can.
    """
    from scipy.stats import permutation_test  # slow to import

    if len(a) < 2:
        return None
    pairs = sorted(zip(a, b, strict=True), key=lambda pair: (round(pair[0] - pair[1], DIGITS), pair))
    left, right = np.array(pairs, dtype=np.float64).T

    def mean_difference(x: Any, y: Any, axis: int) -> Any:
        # Two patterns with the same mean must tie, whatever the order in which float64 added them.
        return np.round(np.mean(x - y, axis=axis), DIGITS)

    exact = 2 ** len(a) <= RESAMPLES
    tested = permutation_test(
        (left, right), mean_difference, permutation_type="samples", vectorized=True,
        n_resamples=RESAMPLES if exact else RESAMPLES - 1, rng=0,
    )  # fmt: skip
    return PairedTest(min(1.0, float(tested.pvalue)), 2.0 / min(2 ** len(a), RESAMPLES))


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number. Source: Holm, "A simple sequentially rejective multiple test procedure", 1979."""
    # Fewer than two need no correction.
    return list(p) if len(p) < 2 else list(_holm(tuple(p)))


@lru_cache(maxsize=4096)  # statsmodels collects all garbage at each call, a third of a second in a large process
def _holm(p: tuple[float, ...]) -> tuple[float, ...]:
    from statsmodels.stats.multitest import multipletests  # slow to import

    corrected: Any = multipletests(p, method="holm")[1]
    return tuple(float(value) for value in corrected)


def estimates(results: Results) -> dict[str, dict[str, Estimate]]:
    """Task to estimator to its mean, interval and stability, in the order of the results."""
    runs = runs_of(results)
    found = {}
    for task, row in runs.items():
        needed = threshold(results, task, runs)
        found[task] = {name: _estimate(results, task, seeds, needed) for name, seeds in row.items()}
    return found


def _estimate(results: Results, task: str, runs: Mapping[int, Any], needed: float | None) -> Estimate:
    chance = results["tasks"][task]["chance"]
    test = list(accuracies(runs, chance).values())
    return {
        "seeds": len(test),
        "mean": _mean(test),
        "interval": interval(test),
        "validation": _mean(accuracies(runs, chance, "validation").values()),
        "converged": None if needed is None else _mean(has_converged(run, needed) for run in runs.values()),
        "diverged": sum(run.get("diverged") is not None for run in runs.values()),
    }


def threshold(results: Results, task: str, runs: Runs) -> float | None:
    """The validation accuracy from which a run of this task counts as converged: chance + converged·(best − chance).

    ``best`` is the highest mean validation accuracy of an estimator that is neither "float" nor "control". None where none of them has a
    run; infinite where the best does not beat chance, for then nothing was learned.
    """
    chance = results["tasks"][task]["chance"]
    means = [_mean(accuracies(runs[task][name], chance, "validation").values()) for name in rivals(results)]
    best = max((mean for mean in means if mean is not None), default=None)
    if best is None:
        return None
    return chance + results["converged"] * (best - chance) if best > chance else math.inf


def has_converged(run: Mapping[str, Any], needed: float) -> bool:
    """Whether a run stayed finite and reached this validation accuracy."""
    value = run.get("validation_accuracy")
    return run.get("diverged") is None and value is not None and value >= needed


def rivals(results: Results, group: str | None = None) -> list[str]:
    """The estimators of a group, or of every group but "float" and "control"."""
    groups = {name: entry["group"] for name, entry in results["estimators"].items()}
    return [name for name, own in groups.items() if (own == group if group else own not in OUTSIDE)]


def best_of(results: Results, task: str, group: str, runs: Runs | None = None) -> str | None:
    """The group's estimator with the best mean validation accuracy, never test, among those with the most runs.

    Equals go to the one listed first. None where the group has no run.
    """
    runs = runs or runs_of(results)
    chance = results["tasks"][task]["chance"]
    found = {name: accuracies(runs[task][name], chance, "validation") for name in rivals(results, group)}
    means = {name: float(np.mean(list(values.values()))) for name, values in found.items() if values}
    most = max((len(found[name]) for name in means), default=0)
    return max((name for name in means if len(found[name]) == most), key=means.__getitem__, default=None)


def comparisons(results: Results, reference: str | None = None) -> dict[str, TaskComparison]:
    """Each task's estimators against its reference: the named one, or validation's best of group "surrogate".

    Raises ValueError for a name the results do not list.
    """
    if reference is not None and reference not in results["estimators"]:
        raise ValueError(f"reference: got {reference!r}, expected one of {list(results['estimators'])}")
    runs = runs_of(results)
    return {task: _compare(results, task, runs, reference) for task in runs}


def _compare(results: Results, task: str, runs: Runs, reference: str | None) -> TaskComparison:
    chance = results["tasks"][task]["chance"]
    needed = threshold(results, task, runs)
    found = {name: accuracies(seeds, chance) for name, seeds in runs[task].items()}
    chosen = reference or best_of(results, task, "surrogate", runs)
    reason = None
    if chosen is None or not found[chosen]:
        reason = f"no run of {chosen}" if chosen else "no run of the group surrogate"
        chosen = None
    rows: dict[str, Comparison] = {}
    tests: dict[str, PairedTest] = {}
    for name in found:
        if chosen is not None and name != chosen:
            rows[name], test = _pair(found[name], found[chosen])
            if test is not None:
                tests[name] = test
    corrected = holm([test.p for test in tests.values()])
    smallest = holm([test.smallest for test in tests.values()])
    for name, p_holm, smallest_p_holm in zip(tests, corrected, smallest, strict=True):
        rows[name].update(p_holm=p_holm, smallest_p_holm=smallest_p_holm)
        rows[name]["verdict"] = verdict(rows[name], results["margin"])
    return {
        "reference": chosen,
        "reason": reason,
        "threshold": needed if needed is not None and math.isfinite(needed) else None,
        # 2·m/2^n < LEVEL, where all m comparisons have n pairs.
        "seeds_needed": math.floor(math.log2(2 * len(rows) / LEVEL)) + 1 if rows else None,
        "comparisons": rows,
    }


def _pair(values: Mapping[int, float], reference: Mapping[int, float]) -> tuple[Comparison, PairedTest | None]:
    shared = [seed for seed in values if seed in reference]
    a, b = [values[seed] for seed in shared], [reference[seed] for seed in shared]
    differences = np.sort(np.round(np.subtract(a, b), DIGITS))
    test = paired_test(a, b)
    mean = _mean(differences)
    spread = float(differences.std(ddof=1)) if len(shared) > 1 else None
    row: Comparison = {
        "pairs": len(shared),
        "difference": mean if test else None,
        "interval": interval(differences),
        "spread": spread,
        # A definition, not a procedure (neither scipy nor statsmodels offers it): Cohen, "Statistical power analysis", 1988, section 2.3.5.
        "effect": mean / spread if spread and mean is not None else None,
        "p": test.p if test else None,
        "p_holm": None,
        "smallest_p": test.smallest if test else None,
        "smallest_p_holm": None,
        "verdict": None,
    }
    return row, test


def verdict(row: Comparison, margin: float) -> Verdict | None:
    """Better or worse where Holm's p is below 0.05; equal where the interval of 5 pairs or more lies within ±margin; else undecided."""
    if row["p_holm"] is None or row["difference"] is None or row["interval"] is None:
        return None
    if row["p_holm"] < LEVEL:
        return "better" if row["difference"] > 0 else "worse"
    low, high = row["interval"]
    return "equal" if row["pairs"] >= FEWEST and -margin <= low and high <= margin else "undecided"


def ranking(results: Results) -> Ranking:
    """Mean ranks over tasks, Friedman's test and Nemenyi's critical difference at 0.05.

    The measure is a task's mean test accuracy over the seeds that all ranked estimators share there. Ranked is who has a run at all and is
    neither "float" nor "control", for more names widen the critical difference. q = studentized range / √2, CD = q·√(k(k+1)/6N).
    Source: Demšar, "Statistical comparisons of classifiers over multiple data sets", JMLR 2006.
    """
    runs = runs_of(results)
    names = [name for name in rivals(results) if any(row[name] for row in runs.values())]
    rows: dict[str, list[float]] = {}
    for task, row in runs.items():
        found = [accuracies(row[name], results["tasks"][task]["chance"]) for name in names]
        shared = set.intersection(*map(set, found)) if found else set()
        if shared:
            rows[task] = [round(float(np.mean([values[seed] for seed in shared])), DIGITS) for values in found]
    return _ranks(names, rows, [task for task in runs if task not in rows])


def _ranks(names: list[str], rows: Mapping[str, list[float]], left_out: list[str]) -> Ranking:
    from scipy.stats import friedmanchisquare, rankdata, studentized_range  # slow to import

    k, n = len(names), len(rows)
    measure = np.array(list(rows.values())).reshape(n, k)
    ranks = rankdata(-measure, axis=1)
    means = {name: float(mean) for name, mean in zip(names, ranks.mean(0), strict=True)} if n else {}
    order = sorted(means, key=means.__getitem__)
    out: Ranking = {
        "estimators": order, "tasks": list(rows), "left_out": left_out, "mean_ranks": {x: means[x] for x in order},
        "friedman": None, "p": None, "critical_difference": None, "cliques": [], "reason": None,
    }  # fmt: skip
    if n < 2 or k < 3:
        out["reason"] = f"got {n} complete tasks and {k} estimators, expected at least 2 and 3"
        return out
    tied = bool((ranks == ranks[:, :1]).all())  # scipy would divide by zero
    statistic, p = (0.0, 1.0) if tied else friedmanchisquare(*measure.T)
    difference = float(studentized_range.ppf(1 - LEVEL, k, np.inf)) / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * n))
    out.update(friedman=float(statistic), p=float(p), critical_difference=difference)
    out["cliques"] = _cliques([(name, means[name]) for name in order], difference)
    return out


def _cliques(ranked: Sequence[tuple[str, float]], difference: float) -> list[list[str]]:
    runs = [[name for name, rank in ranked[i:] if rank - start <= difference] for i, (_, start) in enumerate(ranked)]
    # A run that ends where the one before it ended lies inside it.
    return [run for i, run in enumerate(runs) if len(run) > 1 and (i == 0 or run[-1] != runs[i - 1][-1])]


def summary(results: Results, compared: Mapping[str, TaskComparison]) -> Summary:
    """How often each estimator, and validation's best of group "ddt", is better, equal, undecided or worse."""
    runs = runs_of(results)
    picked = {task: best_of(results, task, "ddt", runs) for task in compared}
    return {
        "estimators": {name: _count((row, name) for row in compared.values()) for name in results["estimators"]},
        "best_ddt": _count((row, picked[task]) for task, row in compared.items()),
        "picked": picked,
    }


def _count(pairs: Iterable[tuple[TaskComparison, str | None]]) -> Counts:
    counts: Counts = {"better": 0, "equal": 0, "undecided": 0, "worse": 0, "reference": 0, "missing": 0}
    for row, name in pairs:
        if name is not None and name == row["reference"]:
            counts["reference"] += 1
            continue
        found = row["comparisons"].get(name) if name is not None else None
        counts[(found["verdict"] if found else None) or "missing"] += 1
    return counts


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return float(np.mean(values)) if values else None
