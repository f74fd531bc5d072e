"""What a folder of studies says as a whole, for the README that is its ledger."""

from tbnn.compare.statistics import ranking
from tbnn.compare.tables import as_markdown, rank_table
from tbnn.files import replacing
from tbnn.report.studies.across import across
from tbnn.report.studies.collect import TEXT, Collection
from tbnn.report.studies.drawings import Drawing, over_all
from tbnn.report.studies.page import counts_table, verdict_lines
from tbnn.report.studies.readme import BEGIN, END, replaced


def overview(collection: Collection) -> tuple[str, Drawing | None]:
    """The Markdown between the two markers, both included, and the figure in it; from the results alone."""
    parts = [BEGIN, "<!-- made by `tbnn report`: what is changed here is lost -->"]
    parts.append("\n".join(f"- {line}" for line in verdict_lines(collection)))
    parts.append(as_markdown(counts_table(collection)))
    joined, drawn = across(collection.studies), None
    if joined is not None:
        drawn = over_all(joined)
        parts += [f"![ranks]({drawn.name}.png)", drawn.caption, as_markdown(rank_table(ranking(joined)))]
    return "\n\n".join([*parts, END]), drawn


def write_overview(collection: Collection) -> None:
    """Fill the place for it in the ledger, if there is one, and write its figure; ``ValueError`` for half a place."""
    path = collection.folder / TEXT
    if BEGIN not in collection.ledger and END not in collection.ledger:
        return
    block, drawn = overview(collection)
    with path.open(encoding="utf-8", newline="") as file:
        before = file.read()
    after = replaced(before, block, path)
    if drawn is not None:
        picture = collection.folder / f"{drawn.name}.png"
        if not picture.is_file() or picture.read_bytes() != drawn.png:
            drawn.save(collection.folder)
    if after != before:
        with replacing(path) as temporary:
            temporary.write_text(after, encoding="utf-8", newline="")
