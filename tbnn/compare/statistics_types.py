"""What the statistics of a comparison hold: plain dicts and lists, ready for JSON."""

from typing import Literal, TypedDict

Interval = list[float]  # low, high
Verdict = Literal["better", "worse", "equal", "undecided"]


class Estimate(TypedDict):
    """An estimator on a task: accuracies are fractions, ``interval`` holds the mean test accuracy (95 %, BCa)."""

    seeds: int
    mean: float | None
    interval: Interval | None
    validation: float | None  # mean validation accuracy
    converged: float | None  # share of the runs
    diverged: int  # number of runs


class Comparison(TypedDict):
    """An estimator against the task's reference, on the seeds both have: accuracy minus the reference's."""

    pairs: int
    difference: float | None
    interval: Interval | None  # 95 %, BCa
    spread: float | None  # standard deviation of the differences (n - 1)
    effect: float | None  # Cohen's d_z = difference / spread; None too where the spread is 0
    p: float | None
    p_holm: float | None  # over the task's comparisons
    smallest_p: float | None  # that so many pairs can give
    smallest_p_holm: float | None  # after the correction, if every comparison of the task gave its smallest
    verdict: Verdict | None


class TaskComparison(TypedDict):
    """A task's reference and all others against it; ``reason`` says why there is no reference."""

    reference: str | None
    reason: str | None
    threshold: float | None  # validation accuracy from which a run counts as converged
    seeds_needed: int | None  # pairs from which a difference could pass Holm's correction at all
    comparisons: dict[str, Comparison]


class Ranking(TypedDict):
    """Ranks of mean test accuracy over tasks (1 is best); ``reason`` says why a test is missing.

    ``cliques`` are the largest sets of estimators whose mean ranks lie within the critical difference, best first.
    """

    estimators: list[str]  # best mean rank first
    tasks: list[str]
    left_out: list[str]  # tasks that lack one of the estimators
    mean_ranks: dict[str, float]
    friedman: float | None  # chi-squared statistic
    p: float | None
    critical_difference: float | None
    cliques: list[list[str]]
    reason: str | None


class Counts(TypedDict):
    """On how many tasks an estimator is better, ... than the task's reference, is it itself, or cannot be compared."""

    better: int
    equal: int
    undecided: int
    worse: int
    reference: int
    missing: int


class Summary(TypedDict):
    """Counts of every estimator, and of the one of group "ddt" that validation picks in each task (``picked``)."""

    estimators: dict[str, Counts]
    best_ddt: Counts
    picked: dict[str, str | None]


class Statistics(TypedDict):
    """All of it."""

    estimates: dict[str, dict[str, Estimate]]
    comparisons: dict[str, TaskComparison]
    ranking: Ranking
    summary: Summary
