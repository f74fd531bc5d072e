"""The question every study is asked: does ridge denoising beat surrogate gradients? Answered task by task.

On each side stands the estimator with the best mean validation accuracy, whatever it does on test; its difference, interval and p
are those of the task's table with that surrogate as reference (:mod:`tbnn.compare.statistics`). Holm's correction runs over all
estimators of the task, so that having had the choice among them is paid for.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from tbnn.compare.statistics import LEVEL, Results, best_of, comparisons, estimates, runs_of
from tbnn.compare.statistics_types import Comparison, Interval, TaskComparison
from tbnn.compare.tables import Line, Table, percent, probability, with_interval
from tbnn.report.text import NO_BREAK

QUESTION = "Does ridge denoising beat surrogate gradients?"
SCALE = "model.scale"
VERDICTS = ("better", "equal", "undecided", "worse", "not compared")


class Question(NamedTuple):
    """What is asked of each task; of each side, whether it tunes the scale of its gradient (None: no matter)."""

    id: str
    text: str
    ridge: bool | None
    surrogate: bool | None


QUESTIONS = (
    Question("best", "best ridge against best surrogate", None, None),
    Question("untuned", "scale untuned on both sides", False, False),
    Question("tuned", "scale tuned on both sides", True, True),
    Question("crossed", "ridge untuned, surrogate tuned", False, True),
)


@dataclass(frozen=True)
class Answer:
    """One question to one task: who was chosen, and how the ridge's accuracy differs from the surrogate's."""

    task: str
    question: Question
    ridge: str | None
    surrogate: str | None
    accuracies: tuple[float | None, float | None]
    row: Comparison | None
    seeds_needed: int | None

    @property
    def verdict(self) -> str:
        """One of ``VERDICTS``."""
        return (self.row["verdict"] if self.row is not None else None) or "not compared"

    @property
    def too_few(self) -> bool:
        """Whether no difference at all could have passed the test."""
        least = self.row["smallest_p_holm"] if self.row is not None else None
        return least is not None and least >= LEVEL

    @property
    def interval(self) -> Interval | None:
        """Of the difference."""
        return self.row["interval"] if self.row is not None else None

    @property
    def cells(self) -> list[str]:
        """For a table: ridge, surrogate, difference, p, pairs."""
        row = self.row
        difference = with_interval(row["difference"] if row else None, self.interval, signed=True)
        return [
            *(_named(name, value) for name, value in zip((self.ridge, self.surrogate), self.accuracies, strict=True)),
            difference,
            probability(row["p_holm"] if row else None),
            str(row["pairs"]) if row else "0",
        ]

    @cached_property
    def sentence(self) -> str:
        """The answer in words, without the task's name and the verdict."""
        if self.ridge is None or self.surrogate is None:
            return ("no ridge estimator" if self.ridge is None else "no surrogate") + " has a run."
        row = self.row
        if row is None or row["difference"] is None or row["interval"] is None:
            return f"{self.ridge} and {self.surrogate} share fewer than two seeds."
        ridge, surrogate = (
            _named(name, value) for name, value in zip((self.ridge, self.surrogate), self.accuracies, strict=True)
        )
        points = percent(abs(row["difference"]))
        low, high = (percent(end, signed=True) for end in row["interval"])
        place = "level with" if points == "0.0" else f"{points} points {'above' if row['difference'] > 0 else 'below'}"
        text = f"{ridge} is {place} {surrogate}, 95{NO_BREAK}% interval [{low}, {high}], p{NO_BREAK}(Holm){NO_BREAK}{_equals(row['p_holm'])}, {row['pairs']} seeds"
        if self.too_few:
            text += f"; so few seeds cannot pass {LEVEL:g}, {self.seeds_needed} could"
        return text + "."


def answers(results: Results) -> list[Answer]:
    """Every question to every task; only the first where all estimators, or none, tune the scale of their gradient."""
    runs, figures = runs_of(results), estimates(results)
    asked = [question for question in QUESTIONS if _has_sides(results, question)]
    known: dict[tuple[str, str], TaskComparison] = {}  # many questions end at the same surrogate

    def mean(task: str, name: str | None) -> float | None:
        return None if name is None else figures[task][name]["mean"]

    def answer(task: str, question: Question) -> Answer:
        ridge = best_of(_members(results, question.ridge), task, "ddt", runs)
        surrogate = best_of(_members(results, question.surrogate), task, "surrogate", runs)
        row = needed = None
        if ridge is not None and surrogate is not None:
            if (task, surrogate) not in known:
                known[task, surrogate] = comparisons(_only(results, task), surrogate)[task]
            compared = known[task, surrogate]
            row, needed = compared["comparisons"].get(ridge), compared["seeds_needed"]
        return Answer(task, question, ridge, surrogate, (mean(task, ridge), mean(task, surrogate)), row, needed)

    return [answer(task, question) for task in results["tasks"] for question in asked]


def _members(results: Results, tuned: bool | None) -> dict[str, Any]:
    """The results as if there were only the estimators that tune their scale, or do not."""
    if tuned is None:
        return dict(results)
    names = {name: entry for name, entry in results["estimators"].items() if (SCALE in entry["search"]) == tuned}
    return {**results, "estimators": names}


def _has_sides(results: Results, question: Question) -> bool:
    if question.ridge is None:
        return True
    sides = (("ddt", question.ridge), ("surrogate", question.surrogate))
    arms = {tuned: {e["group"] for e in _members(results, tuned)["estimators"].values()} for tuned in (True, False)}
    rivals = {"ddt", "surrogate"}
    return all(arms[bool(tuned)] & rivals for tuned in (True, False)) and all(group in arms[bool(tuned)] for group, tuned in sides)  # fmt: skip


def _only(results: Results, task: str) -> dict[str, Any]:
    return {
        **results,
        "tasks": {task: results["tasks"][task]},
        "runs": [r for r in results["runs"] if r["task"] == task],
    }


def to(question: Question, found: Iterable[Answer]) -> list[Answer]:
    """The answers to one question."""
    return [answer for answer in found if answer.question is question]


def asked(found: Iterable[Answer]) -> list[Question]:
    """The questions that have an answer."""
    questions = {answer.question for answer in found}
    return [question for question in QUESTIONS if question in questions]


def as_table(found: Sequence[Answer]) -> Table:
    """All questions to all tasks, question by question."""
    lines: list[Line] = []
    for question in asked(found):
        lines.append(Line([question.text], heading=True))
        lines += [Line([answer.task, *answer.cells, answer.verdict]) for answer in to(question, found)]
    titles = ["task", "ridge", "surrogate", "difference, points [95 %]", "p (Holm)", "seeds", "verdict"]
    return Table(titles, lines, [], words=3)


def counted(found: Iterable[Answer]) -> dict[str, int]:
    """Verdict to the number of answers, all of ``VERDICTS``."""
    verdicts = [answer.verdict for answer in found]
    return {verdict: verdicts.count(verdict) for verdict in VERDICTS}


def in_words(found: Iterable[Answer]) -> str:
    """Counts as a phrase: "better in 1, undecided in 2 of 3 tasks"."""
    counts = counted(found)
    total = sum(counts.values())
    if total == 1:
        return next(verdict for verdict, n in counts.items() if n)
    return ", ".join(f"{verdict} in {n}" for verdict, n in counts.items() if n) + f" of {total} tasks"


def _named(name: str | None, accuracy: float | None) -> str:
    if name is None:
        return "–"
    return name if accuracy is None else f"{name} ({percent(accuracy)}{NO_BREAK}%)"


def _equals(p: float | None) -> str:
    text = probability(p)
    return text if text.startswith("<") else f"={NO_BREAK}{text}"
