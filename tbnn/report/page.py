"""The page: one HTML file that holds everything it shows."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tbnn.files import replacing
from tbnn.nn.health import DEAD_BELOW, SATURATED_ABOVE
from tbnn.report import tables, text
from tbnn.report.data import ReportData
from tbnn.report.sections import sections

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class Card:
    """A key number: what it is, the number, and what it has to be read with, phrase by phrase. ``mood``: "", "good" or "bad"."""

    name: str
    value: str
    note: list[str]
    mood: str = ""


def render(data: ReportData) -> str:
    """The page as HTML: no link, font, script or image outside itself; the same data give the same bytes.

    Raises ``ValueError`` when the data's time unit is unknown.
    """
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            data=data,
            subtitle=subtitle(data),
            cards=cards(data),
            notes=not_measured(data),
            sections=sections(data),
        )
    )


def environment() -> "Environment":
    """Where the templates of this folder are filled in: everything is escaped, a missing value is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # slow to import

    return Environment(
        loader=PackageLoader("tbnn.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(data: ReportData, path: str | Path) -> None:
    """Write the page: under another name in the same folder first, so that ``path`` is never half a file."""
    path = Path(path)
    page = render(data).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(page)


def subtitle(data: ReportData) -> list[str]:
    """The data, the size of the network and the day, as far as they are known."""
    parts = [str(data.dataset.get("title") or data.dataset.get("name") or "")]
    if data.classes:
        parts.append(f"{len(data.classes)} classes")
    total = tables.total_of(data.storage, ("weights",)).get("weights") if data.storage else None
    parts += [f"{text.count(total)} weights"] if total else []
    parts += [data.environment.get("date", "")]
    return [part for part in parts if part]


def cards(data: ReportData) -> list[Card]:
    """The key numbers that are known."""
    made = [_accuracy_card(data), _size_card(data), _parity_card(data), _rate_card(data), _synops_card(data)]
    return [card for card in made if card is not None]


def not_measured(data: ReportData) -> list[str]:
    """What a reader would look for and does not find, said in words."""
    lines = []
    if not data.evaluation:
        lines.append("The network was not evaluated on held-out recordings.")
    if not data.baselines:
        lines.append("No other network was trained for comparison, so nothing here says how good the accuracy is.")
    if not data.parity:
        lines.append("The packed network was not compared with the trained one.")
    if not data.counts:
        lines.append("Operations were not counted.")
    return lines


def _accuracy_card(data: ReportData) -> Card | None:
    accuracy, samples = data.evaluation.get("accuracy"), data.evaluation.get("samples")
    if accuracy is None:
        return None
    split = str(data.evaluation.get("split", "evaluation"))
    facts = [text.interval_text(accuracy, samples), f"{text.count(samples)} recordings"] if samples else []
    if (loss := data.evaluation.get("loss")) is not None:
        facts.append(f"loss {text.number(loss)}")
    note = ["95 % interval"] * bool(samples) + [f"{fact}," for fact in facts[:-1]] + facts[-1:]
    return Card(f"{split} accuracy", text.share(accuracy), note)


def _size_card(data: ReportData) -> Card | None:
    total = tables.total_of(data.storage, ("packed_bytes", "float32_bytes")) if data.storage else {}
    if len(total) < 2:
        return None
    packed, dense = total["packed_bytes"], total["float32_bytes"]
    note = [f"{text.ratio(dense, packed)} smaller", f"than float32 ({text.size(dense)})"]
    return Card("packed size", text.size(packed), note)


def _parity_card(data: ReportData) -> Card | None:
    if not data.parity:
        return None
    if not data.parity.get("ok"):
        return Card("parity", "broken", ["the packed network", "differs from the trained one"], "bad")
    if data.parity.get("equal"):
        return Card("parity", "exact", ["spikes equal bit for bit,", "packed and trained"], "good")
    return Card("parity", "kept", ["equal but for neurons", "within rounding of their threshold"], "good")


def _rate_card(data: ReportData) -> Card | None:
    if not data.rates:
        return None
    low, high = min(data.rates.values()), max(data.rates.values())
    value = text.share(low) if low == high else f"{100 * low:.2g}–{100 * high:.2g}{text.NO_BREAK}%"
    layers = f"{len(data.rates)} spiking layers" if len(data.rates) > 1 else "1 spiking layer"
    mood = "bad" if low < DEAD_BELOW or high > SATURATED_ABOVE else ""
    return Card("firing rate", value, ["of neurons and steps,", layers], mood)


def _synops_card(data: ReportData) -> Card | None:
    total = tables.total_of(data.counts, ("effective_synops", "dense_synops")) if data.counts else {}
    if "effective_synops" not in total:
        return None
    dense = total.get("dense_synops")
    made = total["effective_synops"]
    note = [f"{text.ratio(dense, made)} fewer", f"than dense ({text.short(dense)})"] if dense else []
    return Card("synops per inference", text.short(made), note)
