"""The sections of the page, in order, each with its figures, tables and plain sentences."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tbnn.report import bars, curves, raster, tables, text, weights
from tbnn.report.data import ReportData, WeightPicture
from tbnn.report.style import svg_uri
from tbnn.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


WIDEST_HALF = 7.0  # inches of a figure that is still legible on half of the page
LONGEST_CELL = 26  # characters in a table that stands beside a figure


@dataclass(frozen=True)
class Picture:
    """A figure as a data URI, with the sentence that explains it and its width in inches."""

    uri: str
    caption: str
    inches: float

    @property
    def wide(self) -> bool:
        """Whether it takes the whole width of the page."""
        return self.inches > WIDEST_HALF


@dataclass(frozen=True)
class Section:
    """A headline and what stands below it."""

    id: str
    title: str
    lead: str
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    source: str = ""  # a text to print as it is

    @property
    def side_by_side(self) -> bool:
        """Whether its only table stands beside its only figure."""
        if not len(self.pictures) == len(self.tables) == 1 or self.pictures[0].wide:
            return False
        return max((len(cell) for row in self.tables[0].rows for cell in row), default=0) <= LONGEST_CELL


def picture(figure: "Figure", caption: str) -> Picture:
    """A figure on the page."""
    return Picture(svg_uri(figure), caption, float(figure.get_figwidth()))


def sections(data: ReportData) -> list[Section]:
    """The sections that have something to show."""
    return [section for build in _BUILDERS for section in build(data)]


def compared(data: ReportData) -> list[dict[str, Any]]:
    """This network and the baselines, as rows for the table and the figure of accuracies."""
    known = ("accuracy", "samples", "weights", "gradient")
    own = {"name": "this network", **{k: v for k, v in data.evaluation.items() if k in known}}
    return [own, *data.baselines] if own.get("accuracy") is not None else list(data.baselines)


def chance(data: ReportData) -> float | None:
    """The accuracy of always guessing the most common class."""
    total = int(data.confusion.sum())
    return float(data.confusion.sum(1).max() / total) if total else None


def _baselines(data: ReportData) -> Iterator[Section]:
    if not data.baselines:
        return
    rows = compared(data)
    drawn = [row for row in rows if row.get("accuracy") is not None]
    caption = "Each dot is a network's accuracy and the bar its 95\u00a0% Wilson interval: where bars overlap, "
    caption += "the difference may be luck of the draw."
    pictures = [picture(bars.accuracy_figure(drawn), caption)] if drawn else []
    lead = "The same data and the same split, with other weights or another gradient."
    if (guess := chance(data)) is not None:
        lead += f" Always guessing the most common class would give {text.share(guess)}."
    yield Section("baselines", "Comparison", lead, pictures, [tables.baseline_table(rows)])


def _learning(data: ReportData) -> Iterator[Section]:
    history, pictures = data.history, []
    if not history:
        return
    if curves.has(history, "train_loss", "validation_loss", "train_accuracy", "validation_accuracy"):
        figure = curves.learning_curves(history, data.evaluation.get("best_epoch"))
        caption = "Loss and accuracy after each epoch; a gap that opens between training and validation is overfitting."
        pictures.append(picture(figure, caption))
    if curves.has(history, "grad_norm", "grad_norm_max", "learning_rate"):
        caption = "The gradient's norm should stay within a few decades: a peak is an explosion, a fall towards zero "
        caption += "means that nothing is learned; below it, the learning rate."
        pictures.append(picture(curves.gradient_curves(history), caption))
    lead = f"{len(history)} epoch{'s' if len(history) > 1 else ''}"
    seconds = np.nansum(curves.series(history, "seconds"))
    lead += f", {text.number(round(float(seconds), 1))} seconds in all." if seconds else "."
    if data.evaluation.get("best_epoch") is not None:
        lead += f" The network of epoch {data.evaluation['best_epoch']}, the best on validation, is the one reported."
    yield Section("learning", "Learning", lead, pictures, [tables.history_table(data)])


def _confusion(data: ReportData) -> Iterator[Section]:
    if not data.confusion.sum():
        return
    right, total = int(np.trace(data.confusion)), int(data.confusion.sum())
    lead = f"{right:,} of {total:,} recordings were classified correctly."
    caption = "Rows are true classes and columns the network's answers; the diagonal is right, the rest are mistakes."
    drawn = picture(bars.confusion_figure(data.confusion, data.classes), caption)
    yield Section("confusion", "Mistakes", lead, [drawn], [tables.class_table(data)])


def _sample(data: ReportData) -> Iterator[Section]:
    if data.sample is None:
        return
    figure = raster.raster_figure(
        data.sample,
        data.classes,
        bin_width=data.dataset.get("bin_width"),
        time_unit=data.dataset.get("time_unit", "us"),
    )
    caption = "From top to bottom: what the sensor saw, every spike of every layer (a tick, neurons upwards), and the "
    caption += "readout, whose evidence for each class decides."
    lead = f"Recording {data.sample.index} on its way through the network."
    yield Section("sample", "One recording", lead, [picture(figure, caption)])


def _rates(data: ReportData) -> Iterator[Section]:
    pictures, shown = [], []
    if any(curves.has(data.history, curves.RATE_PREFIX + name) for name in curves.rate_layers(data.history)):
        caption = "How often each layer fires while it learns: in the grey band a layer is dead, in the red one "
        caption += "saturated, and neither can carry information."
        pictures.append(picture(curves.rate_curves(data.history), caption))
    if data.rates:
        shown.append(tables.rate_table(data.rates, str(data.evaluation.get("split", "evaluated"))))
    if pictures or shown:
        lead = "The share of time steps in which a neuron spikes. Fewer spikes are fewer operations."
        yield Section("rates", "Firing rates", lead, pictures, shown)


def _weights(data: ReportData) -> Iterator[Section]:
    if data.weights:
        pictures = [picture(weights.weight_figure(p), _weight_caption(p)) for p in data.weights]
        lead = "The signs that are stored. A random pattern is what a layer starts from; structure was learned."
        yield Section("weights", "Weights", lead, pictures)


def _weight_caption(weight: WeightPicture) -> str:
    out, inputs = weight.sign.shape
    if weights.shows_tiles(weight):
        n = weights.drawn_tiles(weight)
        which = f"the first {n} of {out:,} neurons" if n < out else f"all {out:,} neurons"
        return f"Each tile is what one neuron looks for in the image; {which} of {weight.name} are shown."
    kind = "from each neuron (column) to each neuron (row)" if weight.kind == "recurrent" else "a row a neuron"
    n = weights.LARGEST_MATRIX
    cut = f"; the first {min(out, n)} rows and {min(inputs, n)} columns" if max(out, inputs) > n else ""
    return f"{weight.name}: {out:,} × {inputs:,} {weight.kind} weights, {kind}{cut}."


def _storage(data: ReportData) -> Iterator[Section]:
    if data.storage:
        total = tables.total_of(data.storage, ("packed_bytes", "float32_bytes"))
        packed, dense = total.get("packed_bytes"), total.get("float32_bytes")
        lead = f"Packed, the network takes {text.size(packed)}; with float32 weights it would take {text.size(dense)}."
        weighted = [row for row in data.storage if row["weights"]]
        caption = "Bytes of each layer packed against float32; the axis is logarithmic, the numbers say how many times "
        drawn = picture(bars.storage_figure(weighted), caption + "smaller it became.")
        yield Section("storage", "Storage", lead, [drawn], [tables.storage_table(data.storage)])


def _counts(data: ReportData) -> Iterator[Section]:
    if data.counts:
        caption = "A dense network makes every operation at every step; a spiking one only those a spike causes. "
        drawn = picture(bars.counts_figure(data.counts), caption + "The axis is logarithmic.")
        lead = "What one inference takes. A synaptic operation (synop) is one weight added to one neuron. "
        lead += "These are counts, not measurements of time or energy."
        yield Section("counts", "Operations", lead, [drawn], [tables.counts_table(data.counts)])


def _neurobench(data: ReportData) -> Iterator[Section]:
    if data.neurobench:
        lead = "The same in NeuroBench's terms, operations and updates for one inference. Spikes make every synaptic "
        lead += "operation an accumulation (AC). "
        lead += f"Not among them are {text.count(data.neurobench['scale_multiplies'])} multiplications by the weights' scales."
        yield Section("neurobench", "NeuroBench", lead, [], [tables.neurobench_table(data.neurobench)])


def _energy(data: ReportData) -> Iterator[Section]:
    if data.energy:
        yield Section("energy", "Energy", str(data.energy["text"]), [], [tables.energy_table(data.energy)])


def _parity(data: ReportData) -> Iterator[Section]:
    if data.parity:
        shown = tables.parity_table(data.parity.get("layers"))
        lead = "Whether the packed network gives the same answers as the trained one."
        summary = str(data.parity.get("summary", ""))
        yield Section("parity", "Parity", f"{lead} {summary}".strip(), [], [shown] if shown else [])


def _dataset(data: ReportData) -> Iterator[Section]:
    known = data.dataset
    if not known:
        return
    facts = {**known, "classes": ", ".join(str(c) for c in known.get("classes", []))}
    facts["splits"] = ", ".join(f"{name} {text.count(n)}" for name, n in known.get("splits", {}).items())
    width, unit = known.get("bin_width"), str(known.get("time_unit", "us"))
    if width and known.get("steps"):
        step = raster.milliseconds(width, unit)
        facts["time"] = f"{known['steps']} steps of {step:g} ms, {known['steps'] * step:g} ms in all"
    titles = {
        "name": "name", "title": "title", "classes": "classes", "sensor": "channels × height × width",
        "bits": "bits a frame", "steps": "steps", "time": "time", "splits": "recordings",
        "licence": "licence", "source": "source", "citation": "citation",
    }  # fmt: skip
    if "time" in facts:
        titles.pop("steps")
    lead = "What the network was trained and judged on."
    yield Section("dataset", "Data", lead, [], [tables.facts_table("", facts, titles)])


def _config(data: ReportData) -> Iterator[Section]:
    if data.config_yaml.strip():
        lead = "The whole configuration: the same file trains the same network again."
        yield Section("config", "Configuration", lead, source=data.config_yaml.strip("\n"))


def _environment(data: ReportData) -> Iterator[Section]:
    if data.environment:
        lead = "Where and with what it was trained."
        yield Section("environment", "Environment", lead, [], [tables.facts_table("", data.environment)])


_BUILDERS: tuple[Callable[[ReportData], Iterator[Section]], ...] = (
    _baselines, _learning, _confusion, _sample, _rates, _weights, _storage, _counts, _neurobench, _energy, _parity, _dataset, _config,
    _environment,
)  # fmt: skip
