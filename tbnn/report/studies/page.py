"""The page about a folder of studies: the question and its answers, every study, the ledger, in one file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tbnn.compare.statistics import LEVEL, ranking
from tbnn.compare.tables import Line, Table, rank_table
from tbnn.files import replacing
from tbnn.report import text
from tbnn.report.page import Card, environment
from tbnn.report.studies.across import across
from tbnn.report.studies.answers import QUESTION, QUESTIONS, VERDICTS, Answer, Question, counted, in_words, to
from tbnn.report.studies.collect import RESULTS, Collection, Study
from tbnn.report.studies.drawings import Drawing, over_all
from tbnn.report.studies.ledger import rendered
from tbnn.report.studies.readme import Shown, sentence_case, tables_of, without_block

MOODS = {"better": "good", "worse": "bad"}


@dataclass(frozen=True)
class StudyView:
    """What the page says about one study."""

    study: Study
    answers: list[Answer]
    tables: list[Shown]
    drawings: list[Drawing]
    facts: Table


def write_page(path: Path, collection: Collection, drawn: Mapping[str, list[Drawing]]) -> None:
    """Write the page, whole or not at all; one that would not change is not touched."""
    page = render(collection, drawn).encode()
    if not path.is_file() or path.read_bytes() != page:
        with replacing(path) as temporary:
            temporary.write_bytes(page)


def render(collection: Collection, drawn: Mapping[str, list[Drawing]]) -> str:
    """The page as HTML: no link to, font, script or image from outside; the same studies and code give the same bytes."""
    from markupsafe import Markup

    views = [_view(study, drawn[study.id]) for study in collection.studies]
    joined = None if collection.single else across(collection.studies)
    ledger = Markup(rendered(without_block(collection.ledger), collection.folder)) if collection.ledger else ""
    return (
        environment()
        .get_template("studies/studies.html.j2")
        .render(
            question=QUESTION,
            subtitle=_subtitle(collection),
            verdict=verdict_lines(collection),
            warnings=[f"{study.id}: {doubt}" for study in collection.studies for doubt in study.doubts],
            cards=_cards(collection),
            summary=counts_table(collection),
            ranks=None if joined is None else rank_table(ranking(joined)),
            ranks_drawn=None if joined is None else over_all(joined),
            views=views,
            single=collection.single,
            method=_method(),
            not_run=collection.not_run,
            elsewhere=collection.elsewhere,
            ledger=ledger,
            commands=_commands(collection),
        )
    )


def _all(collection: Collection, question: Question) -> list[Answer]:
    return to(question, (answer for study in collection.studies for answer in study.answers))


def _plural(number: int, one: str, more: str = "") -> str:
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def _subtitle(collection: Collection) -> list[str]:
    results = [study.results for study in collection.studies]
    if not results:
        return ["no study has been run"]
    runs = sum(len(found["runs"]) for found in results)
    return [
        *(
            [collection.studies[0].results["title"]]
            if collection.single
            else [_plural(len(results), "study", "studies")]
        ),
        _plural(sum(len(found["tasks"]) for found in results), "task"),
        f"{_plural(runs, 'run')} and {_plural(sum(len(found['tuning']) for found in results), 'trial')}",
        f"{text.duration(sum(found['cpu_seconds'] for found in results))} of CPU time",
        max(found["date"] for found in results),
    ]


def verdict_lines(collection: Collection) -> list[str]:
    """A line for each question that some study asks."""
    found = [(question, _all(collection, question)) for question in QUESTIONS]
    return [f"{sentence_case(question.text)}: {in_words(answers)}." for question, answers in found if answers]


def _cards(collection: Collection) -> list[Card]:
    answers = _all(collection, QUESTIONS[0])
    counts = counted(answers)
    total = len(answers)
    return [
        Card(f"ridge {verdict}" if verdict in ("better", "worse") else verdict, str(n), [f"of {_plural(total, 'task')}"], MOODS.get(verdict, "") if n else "")
        for verdict, n in counts.items()
        if n or verdict != VERDICTS[-1]
    ] if answers else []  # fmt: skip


def counts_table(collection: Collection) -> Table:
    """In how many tasks of each study the ridge is better, equal, undecided or worse, question by question."""
    lines: list[Line] = []
    questions = [question for question in QUESTIONS if _all(collection, question)]
    for question in questions:
        lines += [Line([question.text], heading=True)] if len(questions) > 1 else []
        rows = [(study.id, answers) for study in collection.studies if (answers := to(question, study.answers))]
        lines += [Line([name, *_counts(answers)]) for name, answers in rows]
        if len(rows) > 1:
            lines.append(Line(["all studies", *_counts(_all(collection, question))], strong=True))
    return Table(["study", "tasks", *VERDICTS], lines, [])


def _counts(answers: list[Answer]) -> list[str]:
    return [str(len(answers)), *map(str, counted(answers).values())]


def _view(study: Study, drawn: list[Drawing]) -> StudyView:
    return StudyView(study, to(QUESTIONS[0], study.answers), tables_of(study), drawn, _facts(study))


def _facts(study: Study) -> Table:
    """How to make the results again, and what they depend on."""
    results, where = study.results, study.results["environment"]
    splits = [entry.get("recordings", {}) for entry in results["tasks"].values()]
    tests = sorted({int(split["test"]) for split in splits if "test" in split})
    rows = [
        ("command", study.command),
        ("machine", str(where.get("machine", "unknown"))),
        ("versions", ", ".join(f"{k} {where[k]}" for k in ("tbnn", "torch", "snntorch", "python") if k in where)),
        ("commit", str(where.get("commit", "unknown"))),
        ("CPU time", text.duration(results["cpu_seconds"])),
        ("date", results["date"]),
        ("test recordings", ", ".join(map(str, tests)) or text.MISSING),
        ("runs", f"{len(results['runs'])} and {len(results['tuning'])} trials"),
        ("margin of equality", f"{100 * results['margin']:g} points"),
        ("results", f"{study.id}/{RESULTS}"),
        ("to be doubted", study.standing),
    ]
    return Table(["", ""], [Line(list(row)) for row in rows], [])


def _method() -> list[str]:
    """How to read the figures; the statistics' own docstrings say more."""
    return [
        "Two runs with the same seed share initial weights and the order of the data, so that estimators are compared in pairs. "
        "Every estimator has the same number of trials; settings, and the best estimator of a group, are chosen on validation recordings.",
        "Intervals hold the mean over seeds (95 %, BCa bootstrap). All runs of a task share one training and one test set: neither "
        "interval nor p speaks of other recordings.",
        "p comes from a two-sided paired permutation test, corrected by Holm over all estimators compared with the same reference in a task; "
        "there is no correction over tasks and studies.",
        f"Better or worse: p (Holm) below {LEVEL:g}. Equal: the interval of the difference lies within the margin. Undecided: neither. "
        "With few seeds no p can be small enough; the tables say so.",
    ]


def _commands(collection: Collection) -> str:
    commands = [study.command for study in collection.studies]
    return "\n".join([*commands, f"tbnn report {collection.folder.resolve().name}"])
