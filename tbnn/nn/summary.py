"""A network at a glance: weights, bits, operations, activity and memory, layer by layer (in the manner of Larq's summary)."""

import copy
import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from tbnn.nn.fused import sees_no_current
from tbnn.nn.health import emitted_spikes
from tbnn.nn.memory import Predicted
from tbnn.nn.network import Network
from tbnn.nn.neuron import Neuron
from tbnn.nn.recurrent import Recurrent
from tbnn.nn.weights import BinaryWeight

REAL_BITS = 32  # of a scale, an offset, a bias, a neuron's parameter


@dataclass(frozen=True)
class LayerSummary:
    """One layer. Operations and activity are of one sample and one time step, averages over the input given.

    Attributes:
        name, kind: where it is in the network, and its class.
        output: the features that leave it in a step.
        weights: how many there are; of a wiring, its synapses.
        bits_per_weight: what they take, scales and offsets counted.
        sparsity: the share of weights that are 0.
        parameters: other numbers, 32 bits each: biases, decays, thresholds.
        macs: multiply-accumulates of the dense layer, or of a wiring's synapses.
        effective: those left where the input and the weight are not 0; additions if the input is bits.
        bits_in: whether the input is bits, so that ``effective`` counts additions (ACs).
        activity: spikes per neuron and step; None if nothing spikes here.
        saved: bytes that back-propagation through time keeps a step for each sample; layers of weights that run as one
            with the neurons after them count with these.
        packed: bytes of the layer once packed.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    weights: int = 0
    bits_per_weight: float = 0.0
    sparsity: float = 0.0
    parameters: int = 0
    macs: float = 0.0
    effective: float = 0.0
    bits_in: bool = False
    activity: float | None = None
    saved: float = 0.0
    packed: int = 0


@dataclass(frozen=True)
class Summary:
    """What :func:`summary` returns: printed, a table; ``layers`` and ``total`` hold the numbers.

    ``memory`` predicts, for each mode of :class:`tbnn.nn.Network`, the bytes that a batch like this one keeps for backward.
    """

    layers: tuple[LayerSummary, ...]
    steps: int
    batch: int
    memory: dict[str, int]

    @property
    def total(self) -> LayerSummary:
        """Sums over the layers; bits per weight, sparsity and activity are means over weights and neurons."""
        weights = sum(row.weights for row in self.layers)
        spiking = [(row.activity, math.prod(row.output)) for row in self.layers if row.activity is not None]
        sums: dict[str, Any] = {
            f.name: sum(getattr(row, f.name) for row in self.layers)
            for f in fields(LayerSummary)
            if f.name in ("parameters", "macs", "effective", "saved", "packed")
        }
        return LayerSummary(
            "total", "", (), weights,
            sum(row.bits_per_weight * row.weights for row in self.layers) / max(weights, 1),
            sum(row.sparsity * row.weights for row in self.layers) / max(weights, 1),
            bits_in=all(row.bits_in for row in self.layers if row.macs),
            activity=sum(a * n for a, n in spiking) / sum(n for _, n in spiking) if spiking else None,
            **sums,
        )  # fmt: skip

    def __str__(self) -> str:
        table = Table(title=f"{self.steps} steps, batch {self.batch}; operations and memory per sample and step")
        heads = ("layer", "kind", "output", "weights", "bits/weight", "zeros", "other", "MACs", "effective", "activity", "kept for BPTT", "packed")  # fmt: skip
        for i, head in enumerate(heads):
            table.add_column(head, justify="left" if i < 3 else "right", no_wrap=True)
        for row in self.layers:
            table.add_row(*_cells(row))
        table.add_section()
        table.add_row(*_cells(self.total))
        text = io.StringIO()
        Console(file=text, width=180, color_system=None).print(table)
        kept = ", ".join(f"{mode} {_bytes(count)}" for mode, count in self.memory.items())
        return f"{text.getvalue().rstrip()}\nkept for BPTT by this batch, by memory mode: {kept}"


def summary(network: Network, x: Tensor) -> Summary:
    """Run ``network`` on ``x``, as it takes it, and say what each layer holds and does.

    Neither the network nor its running statistics change. Memory is measured: what autograd saves, parameters aside; that
    of other modes is predicted.

    Args:
        network: any :class:`tbnn.nn.Network`.
        x: one batch, (T, B, features...) or packed.

    Raises:
        ValueError: what the network raises for ``x``.

    >>> print(summary(Network([BinaryLinear(8, 16), Leaky(0.9)]), torch.ones(5, 2, 8)))
    """
    steps, batch = x.shape[:2]
    own = copy.deepcopy(network)
    memory = Predicted(own, x).modes(steps)
    saved = _saved_bytes(own, x)
    rows: list[LayerSummary] = []
    with torch.no_grad():
        for name, layer, x_in, out in _traced(own.eval(), x):
            rows.append(_row(name, layer, x_in, out, saved.get(name, 0) / (steps * batch)))
            if isinstance(layer, Recurrent):
                back = torch.cat([torch.zeros_like(out[: layer.delay]), out[: -layer.delay]])[:steps]
                rows.append(_row(f"{name}.recurrent_layer", layer.recurrent_layer, back, out, 0.0))
    return Summary(tuple(rows), steps, batch, memory)


def _traced(network: Network, x: Tensor) -> Iterator[tuple[str, nn.Module, Tensor, Tensor]]:
    """Each leaf layer of the network and of networks inside it, with what entered and what left it."""
    seen: list[tuple[str, nn.Module, Tensor, Tensor]] = []
    hooks = []
    for name, layer in _leaves(network):

        def record(module: nn.Module, args: Any, out: Any, name: str = name) -> None:
            y = out[0] if isinstance(out, tuple) else out
            lead = (
                () if y.ndim and y.shape[0] == x.shape[0] else x.shape[:2]
            )  # torch's layers see time and batch as one
            y, x_in = (t.unflatten(0, lead) if lead else t for t in (y, args[0]))
            seen.append((name, module, x_in, y))

        hooks.append(layer.register_forward_hook(record))
    try:
        network(x)
    finally:
        for hook in hooks:
            hook.remove()
    yield from seen


def _leaves(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Layers that have no layers inside, recurrent ones and neurons counting as one."""
    for name, layer in network.named_children():
        path = f"{prefix}{name}"
        if isinstance(layer, (Recurrent, Neuron)) or not any(True for _ in layer.children()):
            yield path, layer
        else:
            yield from _leaves(layer, f"{path}.")


def _row(name: str, layer: nn.Module, x: Tensor, out: Tensor, saved: float) -> LayerSummary:
    per = x.shape[0] * x.shape[1]
    weight = getattr(layer, "weight", None)
    weighted = isinstance(layer, (BinaryWeight, nn.Linear, nn.Conv1d, nn.Conv2d)) and isinstance(weight, Tensor)
    inner = layer.recurrent_layer if isinstance(layer, Recurrent) else None
    skipped = set(map(id, inner.parameters())) if inner is not None else set()
    if weighted:
        skipped.add(id(weight))
    others = sum(p.numel() for p in _numbers(layer, inner) if id(p) not in skipped)
    activity = emitted_spikes(layer, out).float().mean().item() if isinstance(layer, (Neuron, Recurrent)) else None
    row = LayerSummary(
        name, type(layer).__name__, tuple(out.shape[2:]),
        parameters=others, activity=activity, saved=saved, packed=others * REAL_BITS // 8,
    )  # fmt: skip
    if not weighted:
        return row
    values, stored = _stored(layer)
    mask = getattr(layer, "mask", None)
    exists = torch.ones_like(values, dtype=x.dtype) if mask is None else mask.to(x.dtype)
    count = values.numel() if mask is None else int(mask.sum())
    kept = (values != 0).to(x.dtype)
    one_step = x.flatten(0, 1)
    bits = stored / count
    return LayerSummary(
        name, row.kind, row.output, count, bits, 1 - kept.mean().item() * (kept.numel() / count), others,
        macs=_products(layer, torch.ones_like(one_step[:1]), exists),
        effective=_products(layer, (one_step != 0).to(x.dtype), kept) / per,
        bits_in=bool(((x == 0) | (x == 1)).all()),
        saved=saved, packed=math.ceil(stored / 8) + row.packed,
    )  # fmt: skip


def _numbers(layer: nn.Module, inner: nn.Module | None) -> Iterator[Tensor]:
    """Parameters of a layer, and a neuron's constants."""
    yield from layer.parameters()
    for name, buffer in layer.named_buffers():
        if inner is None or not name.startswith("recurrent_layer."):
            yield from [buffer] if name.rpartition(".")[2] != "running_moments" else []


def _stored(layer: nn.Module) -> tuple[Tensor, int]:
    """A weighted layer's values, and the bits that they, their scales and offsets take.

    Dense weights take their planes; weights with zeros a plane more for the mask, or an index and the planes for each
    that is not 0, whichever is less.
    """
    if not isinstance(layer, BinaryWeight):
        weight: Tensor = layer.weight  # pyright: ignore[reportAssignmentType]
        return weight, weight.numel() * REAL_BITS
    values, scale, offset = layer.codes()
    reals = scale.numel() + (offset.numel() if layer.form == "affine" else 0)
    planes = REAL_BITS if layer.bits is None else math.ceil(layer.bits) if layer.bits != 1.58 else 1
    count, kept = values.numel(), int((values != 0).sum())
    dense, rows = count * planes, values.shape[0]
    if kept < count or layer.bits == 1.58:
        index = math.ceil(math.log2(max(count // rows, 2)))
        dense = min(count * (planes + 1), kept * (planes + index) + rows * REAL_BITS)
    return values, dense + reals * REAL_BITS


def _products(layer: nn.Module, x: Tensor, weight: Tensor) -> float:
    """Σ over outputs of the layer's product of x (M, features...) with ``weight``: for 0/1 both, operations."""
    if weight.ndim == 2:
        return float((x @ weight.T).sum(dtype=torch.float64))
    convolve: Callable[..., Tensor] = torch.nn.functional.conv1d if weight.ndim == 3 else torch.nn.functional.conv2d
    options = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
    return float(convolve(x, weight, **options).sum(dtype=torch.float64))


def _saved_bytes(network: Network, x: Tensor) -> dict[str, int]:
    """Bytes that autograd saves inside each leaf layer for one sequence; what two layers share counts for the first."""
    own = {p.untyped_storage().data_ptr() for p in [*network.parameters(), *network.buffers()]}
    seen: set[int] = set(own)
    bytes_of: dict[str, int] = {}
    kept: list[Tensor] = []  # hold what was counted, so that its memory is not used again
    with _inside(network) as now:

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                kept.append(tensor)
                bytes_of[now[-1]] = bytes_of.get(now[-1], 0) + storage.nbytes()
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network.train()(x)
    return bytes_of


@contextmanager
def _inside(network: Network) -> Iterator[list[str]]:
    """A stack whose top is the name of the leaf layer that runs."""
    now, hooks = ["network"], []
    for name, layer in _leaves(network):
        enter = sees_no_current(lambda *_, name=name: now.append(name), nor_spikes=True)
        leave = sees_no_current(lambda *_: now.pop() and None, nor_spikes=True)
        hooks += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
    try:
        yield now
    finally:
        for hook in hooks:
            hook.remove()


def _cells(row: LayerSummary) -> list[str]:
    weighted = row.weights > 0
    return [
        row.name,
        row.kind,
        "×".join(map(str, row.output)),
        f"{row.weights:,}" if weighted else "",
        f"{row.bits_per_weight:.2f}" if weighted else "",
        f"{row.sparsity:.1%}" if weighted else "",
        f"{row.parameters:,}" if row.parameters else "",
        f"{row.macs:,.0f}" if weighted else "",
        f"{row.effective:,.0f} {'ACs' if row.bits_in else 'MACs'}" if weighted else "",
        "" if row.activity is None else f"{row.activity:.2%}",
        _bytes(row.saved),
        _bytes(row.packed),
    ]


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000 or unit == "MB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    return ""
