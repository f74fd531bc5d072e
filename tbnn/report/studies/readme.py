"""What a study's folder keeps for readers: its figures, and a block of README.md made from its results."""

import re
from pathlib import Path
from typing import NamedTuple

from tbnn.compare.tables import Table, as_markdown, escaped, overview_table, rank_table, summary_table, task_table
from tbnn.files import replacing
from tbnn.report.studies.answers import QUESTION, QUESTIONS, as_table, asked, in_words, to
from tbnn.report.studies.collect import RESULTS, TEXT, Study
from tbnn.report.studies.drawings import Drawing
from tbnn.report.text import duration

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
KEPT = ("intervals", "curves", "stability", "ranks", "mechanism")
"""Kinds of figures that are written beside the results."""
FOLDED = 3  # tasks whose tables stand open


class Shown(NamedTuple):
    """A table under its title; ``folded``: behind a line to click."""

    title: str
    table: Table
    folded: bool = False


def block(study: Study, drawn: list[Drawing]) -> str:
    """The Markdown between the two markers, both included: answers, tables, figures, and how to make it again.

    It depends on the results alone, not on the code at hand, so that it can be compared with what is there.
    """
    parts = [BEGIN, "<!-- made by `tbnn report`: what is changed here is lost -->", "## Results"]
    parts += [f"> **Read with care**: {escaped(doubt)}." for doubt in study.lasting_doubts]
    best = to(QUESTIONS[0], study.answers)
    parts.append(f"**{QUESTION}** {sentence_case(in_words(best))}.")
    parts.append("\n".join(f"- **{escaped(a.task)}**: {a.verdict}. {escaped(a.sentence)}" for a in best))
    parts.append("### Tables")
    for shown in tables_of(study):
        table = as_markdown(shown.table)
        if shown.folded:
            parts += [f"<details><summary>{html_text(shown.title)}</summary>", table, "</details>"]
        else:
            parts += [f"#### {escaped(shown.title)}", table]
    parts.append("### Figures")
    for drawing in kept(drawn):
        caption = escaped(drawing.caption)
        parts.append(f"![{drawing.kind}]({drawing.name}.png)\n\n{caption}")
    parts += ["### How it was made", made(study), END]
    return "\n\n".join(parts)


def made(study: Study) -> str:
    """Command, date, machine, versions and time, in Markdown."""
    results, where = study.results, study.results["environment"]
    versions = ", ".join(f"{name} {where[name]}" for name in ("tbnn", "torch", "snntorch", "python") if name in where)
    runs = f"{len(results['runs'])} runs and {len(results['tuning'])} trials"
    return (
        f"{code(study.command)}\n\n{runs}, {duration(results['cpu_seconds'])} of CPU time, {results['date']}; "
        f"{escaped(str(where.get('machine', 'unknown machine')))}; {escaped(versions)}; commit {escaped(str(where.get('commit', 'unknown')))}. "
        f"All figures come from [{RESULTS}]({RESULTS})."
    )


def code(text: str) -> str:
    """A text as it is, in Markdown, whatever backticks it holds."""
    text = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}" if len(fence) == 1 else f"{fence} {text} {fence}"


def kept(drawn: list[Drawing]) -> list[Drawing]:
    """The drawings that are written as files."""
    return [drawing for drawing in drawn if drawing.kind in KEPT]


def write_study(study: Study, drawn: list[Drawing]) -> str | None:
    """Write a study's figures and the block of its README.md; returns a note where the README has no place for it.

    A missing README is made. Equal results leave equal bytes, and a file that would not change is not touched.
    """
    for drawing in kept(drawn):
        path = study.folder / f"{drawing.name}.png"
        if not path.is_file() or path.read_bytes() != drawing.png:
            drawing.save(study.folder)
    path = study.folder / TEXT
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:  # as it is, whatever ends its lines
            before = file.read()
    else:
        before = None
    text = before if before is not None else new_readme(study)
    if BEGIN not in text and END not in text:
        return f"{path}: left alone, it has no lines {BEGIN} and {END}"
    after = replaced(text, block(study, drawn), path)
    if after != before:
        with replacing(path) as temporary:
            temporary.write_text(after, encoding="utf-8", newline="")
    return None


def without_block(text: str) -> str:
    """A text without the block between its markers, if it has one."""
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", "", text, flags=re.S)


def new_readme(study: Study) -> str:
    """A README with title, claim and an empty block."""
    title, claim = (escaped(study.results[key]) for key in ("title", "claim"))
    return f"# {title}\n\n" + (f"Claim: {claim}\n\n" if claim else "") + f"{BEGIN}\n{END}\n"


def replaced(text: str, new: str, path: Path) -> str:
    """The text with the block between its markers replaced; ValueError unless it has each once, in order."""
    lines = text.splitlines(keepends=True)
    places = [[i for i, line in enumerate(lines) if line.strip() == marker] for marker in (BEGIN, END)]
    if [len(found) for found in places] != [1, 1] or places[0][0] > places[1][0]:
        raise ValueError(
            f"{path}: expected one line {BEGIN} and after it one line {END}, got {len(places[0])} and {len(places[1])} of them"
        )
    (first,), (last,) = places
    ending = "\r\n" if lines[first].endswith("\r\n") else "\n"
    after = lines[last][len(lines[last].rstrip("\r\n")) :]
    return "".join(lines[:first]) + new.replace("\n", ending) + after + "".join(lines[last + 1 :])


def sentence_case(text: str) -> str:
    """With a capital letter first."""
    return text[:1].upper() + text[1:]


def html_text(text: str) -> str:
    """For HTML inside Markdown."""
    from html import escape

    return escape(" ".join(text.split()))


def tables_of(study: Study) -> list[Shown]:
    """Everything a study tabulates; many tasks are folded."""
    results, found = study.results, study.found
    many = len(results["tasks"]) > FOLDED
    parts = [Shown("Scale tuned and untuned", as_table(study.answers), many)] if len(asked(study.answers)) > 1 else []
    if len(results["tasks"]) > 1:
        parts.append(Shown("All tasks", overview_table(results, found)))
    parts += [Shown(task, task_table(results, task, found), many) for task in results["tasks"]]
    if len(results["tasks"]) > 1:
        parts.append(Shown("Against each task's reference", summary_table(results, found)))
        parts.append(Shown("Ranks", rank_table(found["ranking"])))
    return parts
