"""Tables of the page: rows of the report's data as text, columns that nobody filled in left out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tbnn.report import text
from tbnn.report.curves import RATE_PREFIX, rate_layers
from tbnn.report.data import ReportData
from tbnn.sim.energy import joules
from tbnn.sim.tables import ENERGIES

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """Where a column's values stand in a row, what it is called, and how they are written."""

    key: str
    title: str
    write: Callable[[Any], str] = text.number
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A table ready to be printed; ``folded``: behind a line to click; ``strong``: rows in bold."""

    caption: str
    titles: list[str]
    numeric: list[bool]
    rows: list[list[str]]
    folded: bool = False
    strong: frozenset[int] = frozenset()


def table(
    caption: str,
    columns: Sequence[Column],
    rows: Sequence[Row],
    *,
    folded: bool = False,
    strong: frozenset[int] = frozenset(),
) -> Table:
    """Rows as text, without the columns that are empty in all of them."""
    used = [c for c in columns if any(row.get(c.key) is not None for row in rows)]
    cells = [[text.MISSING if row.get(c.key) is None else c.write(row[c.key]) for c in used] for row in rows]
    return Table(caption, [c.title for c in used], [c.numeric for c in used], cells, folded, strong)


def _name(key: str, title: str) -> Column:
    return Column(key, title, text.shape, numeric=False)


def baseline_table(rows: Sequence[Row]) -> Table:
    """This network first, then the others, each with its interval."""
    full = [{**row, "interval": text.interval_text(row.get("accuracy"), row.get("samples"))} for row in rows]
    columns = [
        _name("name", "network"),
        Column("accuracy", "accuracy", text.share),
        Column("interval", "95 % interval", str),
        Column("samples", "recordings", text.count),
        _name("weights", "weights"),
        _name("gradient", "gradient"),
    ]
    return table("Accuracy on the same split", columns, full, strong=frozenset({0}))


def history_table(data: ReportData) -> Table:
    """Every epoch."""
    columns = [
        Column("epoch", "epoch"),
        Column("train_loss", "training loss"),
        Column("train_accuracy", "training accuracy", text.share),
        Column("validation_loss", "validation loss"),
        Column("validation_accuracy", "validation accuracy", text.share),
        Column("learning_rate", "learning rate"),
        Column("grad_norm", "gradient norm"),
        Column("grad_norm_max", "largest gradient norm"),
        Column("seconds", "seconds"),
        *(Column(RATE_PREFIX + name, f"rate of {name}", text.share) for name in rate_layers(data.history)),
    ]
    best = data.evaluation.get("best_epoch")
    strong = frozenset(i for i, row in enumerate(data.history) if best is not None and row.get("epoch") == best)
    caption = "Every epoch, the best one in bold" if strong else "Every epoch"
    return table(caption, columns, data.history, folded=True, strong=strong)


def class_table(data: ReportData) -> Table:
    """How each class fared: its recall and its precision."""
    confusion = data.confusion
    right, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    rows = [
        {
            "name": name,
            "true": int(true[i]),
            "recall": right[i] / true[i] if true[i] else None,
            "precision": right[i] / predicted[i] if predicted[i] else None,
            "mistake": _mistake(data, i),
        }
        for i, name in enumerate(data.classes)
    ]
    columns = [
        _name("name", "class"),
        Column("true", "recordings", text.count),
        Column("recall", "found (recall)", text.share),
        Column("precision", "rightly named (precision)", text.share),
        _name("mistake", "most often taken for"),
    ]
    return table("Class by class", columns, rows)


def _mistake(data: ReportData, i: int) -> str | None:
    wrong = data.confusion[i].copy()
    wrong[i] = 0
    j = int(wrong.argmax())
    return f"{data.classes[j]} ({text.count(wrong[j])}×)" if wrong[j] else None


def rate_table(rates: Mapping[str, float], split: str) -> Table:
    """The firing rate of each layer on the evaluated split."""
    rows = [{"layer": name, "rate": rate} for name, rate in rates.items()]
    columns = [_name("layer", "layer"), Column("rate", "spikes per neuron and step", text.share)]
    return table(f"Firing rates on the {split} split", columns, rows)


def storage_table(rows: Sequence[Row]) -> Table:
    """What each layer takes, and the sum."""
    columns = [
        _name("layer", "layer"),
        _name("shape", "shape"),
        Column("weights", "weights", text.count),
        Column("bits_per_weight", "bits a weight"),
        Column("packed_bytes", "packed", text.size),
        Column("float32_bytes", "as float32", text.size),
        Column("ratio", "ratio", str),
    ]
    total = {"layer": "total", **total_of(rows, ("weights", "packed_bytes", "float32_bytes"))}
    full = [{**row, "ratio": text.ratio(row["float32_bytes"], row["packed_bytes"])} for row in [*rows, total]]
    return table("Storage, layer by layer", columns, full, strong=frozenset({len(rows)}))


def counts_table(rows: Sequence[Row]) -> Table:
    """What each layer does in one inference, and the sum."""
    columns = [
        _name("layer", "layer"),
        Column("dense_synops", "dense synops", text.count),
        Column("effective_synops", "effective synops", text.count),
        Column("spikes", "spikes", text.count),
        Column("rate", "rate", text.share),
        Column("neuron_updates", "neuron updates", text.count),
        Column("bytes", "bytes moved", text.size),
    ]
    keys = ("dense_synops", "effective_synops", "spikes", "neuron_updates", "bytes")
    full = [*rows, {"layer": "total", **total_of(rows, keys)}]
    return table("Operations of one inference, layer by layer", columns, full, strong=frozenset({len(rows)}))


def neurobench_table(metrics: Row) -> Table:
    """The metrics in one row, under NeuroBench's names."""
    operations = metrics.get("SynapticOperations", {})
    columns = [
        Column("Footprint", "Footprint", text.size),
        Column("ConnectionSparsity", "ConnectionSparsity", text.share),
        Column("ActivationSparsity", "ActivationSparsity", text.share),
        *(Column(name, name, text.count) for name in operations),
        Column("MembraneUpdates", "MembraneUpdates", text.count),
    ]
    return table("", columns, [{**metrics, **operations}])


def energy_table(estimate: Row) -> Table:
    """Joules of one inference, layer by layer, and the sum."""
    columns = [_name("name", "layer"), *(Column(key, title, _joules) for key, title in ENERGIES.items())]
    rows = [*estimate["layers"], estimate["total"]]
    return table("Energy of one inference, layer by layer", columns, rows, strong=frozenset({len(rows) - 1}))


def _joules(value: float) -> str:
    return joules(value).replace(" ", text.NO_BREAK) if value else text.MISSING


def parity_table(layers: Any) -> Table | None:
    """The layers of a parity check, given as rows or as name -> row (or value)."""
    if isinstance(layers, Mapping):
        layers = [{"layer": k, **(v if isinstance(v, Mapping) else {"result": v})} for k, v in layers.items()]
    if not layers or not all(isinstance(row, Mapping) for row in layers):
        return None
    keys = dict.fromkeys(key for row in layers for key in row)
    text_keys = {key for key in keys if any(isinstance(row.get(key), str | bool) for row in layers)}
    columns = [Column(key, str(key).replace("_", " "), text.shape, numeric=key not in text_keys) for key in keys]
    return table("Parity, layer by layer", columns, layers)


def facts_table(caption: str, facts: Mapping[str, Any], titles: Mapping[str, str] | None = None) -> Table:
    """Names and values, two columns; empty values are left out."""
    names = titles or {key: key for key in facts}
    rows = [{"name": names[key], "value": facts[key]} for key in names if facts.get(key) not in (None, "", [], {})]
    return table(caption, [_name("name", ""), _name("value", "")], rows)


def total_of(rows: Sequence[Row], keys: Sequence[str]) -> dict[str, Any]:
    """Sums over the layers, of the columns that every layer knows."""
    return {key: sum(row[key] for row in rows) for key in keys if all(row.get(key) is not None for row in rows)}
