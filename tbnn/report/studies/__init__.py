"""A page about all studies of a folder, and the figures and tables that each of them keeps: ``tbnn report FOLDER``."""

from pathlib import Path

from tbnn.report.studies.answers import QUESTION, QUESTIONS, in_words, to
from tbnn.report.studies.collect import PAGE, collect, holds_studies
from tbnn.report.studies.drawings import drawings
from tbnn.report.studies.readme import sentence_case, write_study

__all__ = ["holds_studies", "report_studies"]


def report_studies(folder: str | Path) -> tuple[Path, list[str]]:
    """Write report.html into a folder of studies, or a study's, and into each study its figures and its README's block.

    A ledger, the folder's README.md, with a place for it gets a block over all studies and the figure of their ranks.

    Returns the page's path and the lines that sum it up, notes on what was left alone among them. A second call changes
    no byte.

    Raises:
        ValueError: results that are damaged, of another format, or a rehearsal's (--quick); a README with half a block.
        FileNotFoundError: no such folder.
    """
    from tbnn.report.studies.overview import write_overview
    from tbnn.report.studies.page import write_page

    collection = collect(folder)
    drawn = {study.id: drawings(study.results) for study in collection.studies}
    lines = [QUESTION]
    for study in collection.studies:
        lines.append(
            f"{study.id}: {in_words(to(QUESTIONS[0], study.answers))}"
            + "".join(f" ({doubt})" for doubt in study.doubts)
        )
        note = write_study(study, drawn[study.id])
        lines += [] if note is None else [sentence_case(note)]
    lines += [f"{name}: not run" for name in collection.not_run]
    lines += [f"{name}: no results of a comparison, see the ledger" for name in collection.elsewhere]
    path = collection.folder / PAGE
    if not collection.single:
        write_overview(collection)
    write_page(path, collection, drawn)
    return path, lines
