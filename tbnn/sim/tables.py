"""A packed network and the cost of its simulation as rows of text, for people to read."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from tbnn.ops.binary_linear.choice import choose
from tbnn.sim.energy import joules
from tbnn.sim.layers import (
    ConvSpec,
    DelayedSpec,
    DelaySpec,
    EdgeSpec,
    LinearSpec,
    PackedConv,
    PackedDelayed,
    PackedIntegrator,
    PackedLayer,
    PackedLeaky,
    PackedLinear,
    PackedSparse,
    PoolSpec,
    SparseSpec,
    inner_linear,
)
from tbnn.sim.layers.wires import JOINS
from tbnn.sim.neurobench import zero_weights

if TYPE_CHECKING:
    from tbnn.sim.network import PackedNetwork

Row = dict[str, str]
DENSITY = 0.1  # share of spikes for which the product is named
PRODUCT = f"after a semicolon the product that the CPU takes when {DENSITY:.0%} of the inputs spike"
ROWS = 64  # of that product: steps × samples

COUNTS = {
    "dense_synops": "dense synops", "effective_synops": "effective", "scale_multiplies": "scales", "spikes": "spikes",
    "neuron_updates": "updates", "bytes_moved": "bytes",
}  # fmt: skip
ENERGIES = {
    "synapses": "synapses", "scales": "scales", "neurons": "neurons", "weight_memory": "weights", "spike_memory": "spikes",
    "membrane_memory": "membranes", "total": "total", "dense_float32": "dense float32",
}  # fmt: skip


def counts_rows(table: Sequence[Mapping[str, Any]], samples: int) -> list[Row]:
    """:meth:`tbnn.sim.Counts.table`, averaged over the samples."""
    return [
        {
            "layer": row["name"],
            "kind": row["kind"],
            **{title: f"{row[key] / samples:,.0f}" if row[key] else "" for key, title in COUNTS.items()},
            "rate": "" if row["firing_rate"] is None else f"{row['firing_rate']:.2%}",
            "path": row["path"],
        }
        for row in table
    ]


def energy_rows(table: Sequence[Mapping[str, Any]]) -> list[Row]:
    """:meth:`tbnn.sim.energy.Energy.table`: arithmetic (synapses, scales, neurons), then memories."""
    return [
        {"layer": row["name"], "kind": row["kind"]}
        | {title: joules(row[key]) if row[key] else "" for key, title in ENERGIES.items()}
        for row in table
    ]


def neurobench_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The metrics of :func:`tbnn.sim.neurobench.neurobench` in two lines."""
    activation = metrics["ActivationSparsity"]
    operations = ", ".join(f"{name} {value:,.0f}" for name, value in metrics["SynapticOperations"].items())
    return [
        f"Footprint {metrics['Footprint']:,} bytes, ConnectionSparsity {metrics['ConnectionSparsity']:.4f}, "
        f"ActivationSparsity {'none' if activation is None else f'{activation:.4f}'}, "
        f"MembraneUpdates {metrics['MembraneUpdates']:,.0f}",
        f"SynapticOperations: {operations}",
    ]


def network_rows(packed: "PackedNetwork") -> list[Row]:
    """A row for each layer: sizes, bits a weight (scales counted), share of zeros, bytes, and what kind of layer it is.

    In details "3x3 s2 p1 d2 g4" is a window of 3 × 3, stride 2, padding 1, dilation 2, 4 groups; for weights they end with
    ``PRODUCT``. Of wires only joins have a row.
    """
    rows = []
    for layer in packed.layers:
        if isinstance(layer.spec, EdgeSpec) and layer.spec.op not in JOINS:
            continue
        feedback = layer.feedback if isinstance(layer, PackedLeaky) else None
        for one in (layer,) if feedback is None else (feedback, layer):
            weights = None if isinstance(one, PackedLeaky) else inner_linear(one)
            name = (one.spec.name, one.spec.kind, _shape(one))
            rows.append(
                _row(*name, _bytes(one), _details(one)) if weights is None else _weights_row(name, one, weights)
            )
    zeros = sum(map(zero_weights, packed.linear_layers))
    share = f"{zeros / packed.weights:.1%}" if packed.weights else ""
    bits = f"{packed.bits_per_weight:.2f}" if packed.weights else ""
    name = ("total", "network", f"{packed.in_features} -> {packed.output.size}")
    numbers = {"weights": f"{packed.weights:,}", "bits": bits, "zeros": share}
    return [*rows, _row(*name, packed.packed_bytes, "") | numbers]


def _weights_row(name: tuple[str, str, str], layer: PackedLayer, weights: PackedLinear | PackedSparse) -> Row:
    count = weights.spec.in_features * weights.spec.out_features
    stored = sum(tensor.nbytes for key, tensor in weights.tensors().items() if key != "bias")
    size = _bytes(weights) + (0 if layer is weights else _bytes(layer))
    details = ", ".join((*_geometry(layer.spec), *_grid(weights.spec)))
    row = _row(*name, size, f"{details}; {_product(layer, weights.spec)}")
    return row | {
        "weights": f"{count:,}", "bits": f"{8 * stored / count:.2f}", "zeros": f"{zero_weights(weights) / count:.1%}",
    }  # fmt: skip


def _row(name: str, kind: str, shape: str, size: int, details: str) -> Row:
    return {
        "layer": name, "kind": kind, "shape": shape, "weights": "", "bits": "", "zeros": "",
        "bytes": f"{size:,}" if size else "", "details": details,
    }  # fmt: skip


def _bytes(layer: PackedLayer) -> int:
    return sum(tensor.nbytes for tensor in layer.tensors().values())


def _shape(layer: PackedLayer) -> str:
    spec = layer.spec
    if isinstance(spec, EdgeSpec):
        return ""
    if isinstance(spec, ConvSpec | PoolSpec):
        inside = (spec.channels, spec.height, spec.width)
        return f"{_times(inside)} -> {_times(spec.out_shape)}"
    if isinstance(layer, PackedLeaky | PackedIntegrator) or isinstance(spec, DelaySpec):
        return str(spec.features)  # pyright: ignore[reportAttributeAccessIssue]
    return f"{spec.in_features} -> {spec.out_features}"  # pyright: ignore[reportAttributeAccessIssue]


def _geometry(spec: object) -> tuple[str, ...]:
    """What windows and delays look like, without what is usual."""
    if isinstance(spec, DelayedSpec):
        return (f"delays up to {spec.max_delay}",)
    if not isinstance(spec, ConvSpec | PoolSpec):
        return ()
    margins = spec.margins if isinstance(spec, ConvSpec) else spec.padding
    text = [_times(spec.window)]
    text += [f"s{_alike(spec.stride)}"] if set(spec.stride) != {1} else []
    text += [f"p{_alike(margins)}"] if any(margins) else []
    if isinstance(spec, ConvSpec):
        text += [f"d{_alike(spec.dilation)}"] if set(spec.dilation) != {1} else []
        text += [f"g{spec.groups}"] if spec.groups > 1 else []
    return (" ".join(text),)


def _grid(spec: LinearSpec | SparseSpec) -> tuple[str, ...]:
    if isinstance(spec, SparseSpec):
        return (f"{spec.bits} bit{'s' if spec.bits > 1 else ''} and 0",)
    bits = "ternary" if spec.bits == 1 and spec.zeros else f"{spec.bits} bit{'s' if spec.bits > 1 else ''}"
    zeros = " and 0" if spec.zeros and spec.bits > 1 else ""
    blocks = (f"{len(spec.starts)} blocks",) if len(spec.starts) > 1 else ()
    return (f"{bits}{zeros}", *blocks)


def _product(layer: PackedLayer, spec: LinearSpec | SparseSpec) -> str:
    """The product that is chosen when 10 % of the inputs spike, in the words of :attr:`tbnn.sim.LayerCounts.path`."""
    if isinstance(layer, PackedDelayed) or isinstance(spec, SparseSpec):
        return "lists" if isinstance(spec, SparseSpec) else "delays"
    if isinstance(layer, PackedConv) and layer.spec.groups == 1 and len(spec.starts) == 1:
        return "windows"
    size = min(spec.block, spec.in_features)
    ones = np.full(ROWS, round(DENSITY * size), np.int32)
    outputs = spec.out_features // (layer.spec.groups if isinstance(layer, PackedConv) else 1)
    return choose(ones, -(-size // 64), outputs)


def _details(layer: PackedLayer) -> str:
    spec = layer.spec
    if isinstance(layer, PackedLeaky):
        reset = "no reset" if layer.spec.reset == "none" else layer.spec.reset
        text = [f"beta {_range(layer.beta)}", f"theta {_range(layer.threshold)}", reset]
        text += ["two states"] if layer.spec.second_size else []
        text += [f"refractory {layer.spec.refractory}"] if layer.spec.refractory else []
        text += [f"{layer.spec.winners} winners"] if layer.spec.winners else []
        text += [f"back after {layer.spec.delay}"] if layer.spec.delay > 1 else []
        return ", ".join(text)
    if isinstance(layer, PackedIntegrator):
        return f"beta {_range(layer.beta)}"
    if isinstance(spec, DelaySpec):
        return f"up to {spec.max_delay} steps"
    if isinstance(spec, EdgeSpec):
        return spec.op
    voters = getattr(spec, "voters", None)
    return ", ".join(_geometry(spec)) if voters is None else f"{voters} voters a class"


def _range(values: Tensor) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.4g}" if low == high else f"{low:.3g} to {high:.3g}"


def _alike(sizes: Sequence[int]) -> str:
    return str(sizes[0]) if len(set(sizes)) == 1 else _times(sizes)


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
