"""Networks of tbnn as ONNX models of one time step, the state explicit."""

import copy
from collections.abc import Iterable
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor, nn

from tbnn.files import replacing
from tbnn.nn.delay import Delay, DelayedLinear
from tbnn.nn.leaky import LeakyIntegrator
from tbnn.nn.network import Network
from tbnn.nn.neuron import Neuron
from tbnn.nn.nir import VANISHING, starting_shape
from tbnn.nn.onnx_graph import Graph, Shape, is_all, onnx_package, per_channel
from tbnn.nn.onnx_layers import WEIGHTS, add_stateless, add_weights, blocks_of, coded, needs_sums
from tbnn.nn.recurrent import Recurrent
from tbnn.nn.residual import Residual

# The graph is written operator by operator, not traced by torch.onnx.export: that needs onnxscript, unpacks the weights
# to float32, and its graph changes with torch's versions.

OWN_STEP = ("forward", "step", "run", "_lif")
"""What a neuron with an equation of its own overrides; see :class:`tbnn.nn.custom.CustomNeuron`."""
TO_THE_END = 2**31 - 1


@torch.no_grad()
def to_onnx(
    network: Network, path: str | Path, *, batch: int | None = None, input_shape: Iterable[int] | None = None
) -> None:
    """Write one step of a network in evaluation as an ONNX model, ``(x, states) -> (y, next states)``.

    Inputs: ``x``, the step's 0/1 values (B, features...), and a tensor for each state, named after its place in the
    network's state: "layers.1.v", "layers.2.neuron.v", "layers.2.out", "layers.3.body.0.w". Outputs: ``y``, and for each
    state its successor, "layers.1.v.next", in the inputs' order. All are float32. A sequence starts with zeros; the
    model's metadata "states", JSON, say each state's ``next``, ``shape`` and ``start``.

    The operators are plain ones of opset 17, in the order in which tbnn rounds: on bits, binary layers and neurons give
    tbnn's own, bit for bit (in ONNX Runtime, on the CPU). Weights are stored as 1, 2, 4 or 8 bits a value beside their
    scales, and unpacked by operators on constants, once where a runtime folds those. What acts on gradients alone, the
    traces of target="trace" among them, stays behind. Batch norms are written as they are; to have them in the weights,
    pass ``fold_batch_norms(network)``. Other dtypes become float32. There is no mask: every sequence of a batch runs.

    Args:
        network: layers in order.
        path: the file; it appears under this name when it is whole.
        batch: B, or None for any.
        input_shape: the features of a step, where neither ``network.input_shape`` nor the first layer says.

    Raises:
        ValueError: layers without operators, by place and type: neurons with a step of their own, other modules than
            tbnn's and torch's weights, pools, batch norms, dropouts and ``Flatten``; pools with ``ceil_mode``; a batch
            below 1; no input shape; ``onnx`` is missing.
        FileNotFoundError: the folder of ``path`` does not exist.

    Source: ONNX operator schemas, opset 17 (onnx.ai).

    >>> to_onnx(Network([BinaryLinear(8, 4), Leaky(0.9)]), "step.onnx")
    >>> session = onnxruntime.InferenceSession("step.onnx")
    >>> names = [i.name for i in session.get_inputs()][1:]
    >>> state = [np.zeros((1, 4), np.float32)]
    >>> for x in frames:  # (1, 8) each
    ...     y, *state = session.run(None, {"x": x, **dict(zip(names, state))})
    """
    if not isinstance(network, Network):
        raise ValueError(f"to_onnx: expected a tbnn.nn.Network, got {type(network).__name__}")
    if batch is not None and batch < 1:
        raise ValueError(f"batch: expected None or a size >= 1, got {batch}")
    onnx = onnx_package()
    plain = copy.deepcopy(network).eval().cpu().float()
    given = starting_shape(plain, input_shape)
    shape = tuple(plain.unpacked(torch.zeros(1, 1, *given)).shape[2:])
    writer = _Writer(Graph(onnx, batch, given))
    x = "x" if shape == given else writer.graph.op("Reshape", "x", writer.graph.indices(0, *shape))
    y, after = writer.chain("layers.", plain, x, shape)
    model = writer.graph.model(y, after)
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


class _Writer:
    """How layers that remember are written; ``name`` is a layer's place, x its input, (B, shape...)."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def chain(self, prefix: str, network: Network, x: str, shape: Shape) -> tuple[str, Shape]:
        """Layers in order; their places are ``prefix`` and a number."""
        for index, layer in enumerate(network.layers):
            name = f"{prefix}{index}"
            try:
                after = tuple(Network([layer])(torch.zeros(1, 1, *shape))[0].shape[2:])
                self.graph.place = name
                x = self.layer(name, layer, x, shape, after)
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"{name} ({type(layer).__name__}): {error}") from error
            shape = after
        return x, shape

    def layer(self, name: str, layer: nn.Module, x: str, shape: Shape, after: Shape) -> str:
        kind = type(layer)
        if kind in VANISHING:
            return x
        if isinstance(layer, Neuron):
            return self.neuron(name, layer, x, shape)
        if isinstance(layer, LeakyIntegrator) and kind is LeakyIntegrator:
            v = self.graph.state(f"{name}.v", shape)
            y = self.total([(layer.beta.clamp(0, 1), v), (torch.ones(()), x)])
            self.graph.follow(f"{name}.v", y)
            return y
        if isinstance(layer, Recurrent) and kind is Recurrent:
            return self.recurrent(name, layer, x, shape)
        if isinstance(layer, Delay) and kind is Delay:
            return self.delay(name, layer, x, shape)
        if isinstance(layer, DelayedLinear) and kind is DelayedLinear:
            return self.delayed_linear(name, layer, x, shape)
        if isinstance(layer, Residual) and kind is Residual:
            return self.residual(name, layer, x, shape)
        return add_stateless(self.graph, layer, x, shape, after)

    def neuron(self, name: str, neuron: Neuron, x: str, shape: Shape) -> str:
        """:func:`tbnn.ops.lif.cell.advance`, and who spikes, by :func:`tbnn.ops.lif.cell.spikes_of`."""
        if any(getattr(type(neuron), method) is not getattr(Neuron, method) for method in OWN_STEP):
            raise ValueError("to_onnx writes a neuron's coefficients, got one with a step of its own")
        graph, (beta, second) = self.graph, neuron.coefficients()
        threshold = neuron.effective_threshold(torch.Size(shape))
        theta, one = graph.constant(threshold), torch.ones(())
        v = graph.state(f"{name}.v", shape)
        w = None if second is None else graph.state(f"{name}.w", shape)
        gated = neuron.refractory > 0 or neuron.winners is not None
        if gated:
            fired = graph.state(f"{name}.spikes", shape)
        else:
            level = v if second is None or w is None else self.level(v, w, second.to_threshold)
            fired = self.number(graph.op("Greater", level, theta))
        if neuron.reset_mechanism == "zero":
            v = graph.op("Mul", graph.op("Sub", graph.constant(1.0), fired), v)
        if second is None or w is None:
            level = v = self.reset(neuron, self.total([(beta, v), (one, x)]), fired, threshold)
        else:
            drives = [(second.from_v, v), (second.from_current, x), (second.from_spike, fired)]
            w = self.total([(second.rho, w), *drives])
            v = self.total([(beta, v), (second.to_v, w), (second.current_gain, x)])
            v = self.reset(neuron, v, fired, threshold)
            level = self.level(v, w, second.to_threshold)
            graph.follow(f"{name}.w", w)
        graph.follow(f"{name}.v", v)
        spikes = self.spikes(name, neuron, level, theta, shape)
        if gated:
            graph.follow(f"{name}.spikes", spikes)
        if neuron.spike_gradient.emit == "bits":
            return spikes
        a, b = (value if value.numel() == 1 else per_channel(value, len(shape)) for value in neuron.emitted_affine())
        return graph.op("Add", graph.op("Mul", graph.constant(a), spikes), graph.constant(b))

    def reset(self, neuron: Neuron, v: str, fired: str, threshold: Tensor) -> str:
        """v less what the last step's spikes take."""
        if neuron.reset_mechanism != "subtract":
            return v
        return self.graph.op("Sub", v, self.total([(threshold, fired)]))

    def level(self, v: str, w: str, to_threshold: Tensor) -> str:
        """What is compared with the threshold."""
        if is_all(to_threshold, 0):
            return v
        return self.graph.op("Sub", v, self.graph.op("Mul", self.graph.constant(to_threshold), w))

    def spikes(self, name: str, neuron: Neuron, level: str, theta: str, shape: Shape) -> str:
        """1 where a neuron is above its threshold, waits for nothing and is among the winners."""
        graph = self.graph
        bits = graph.op("Greater", level, theta)
        waiting = graph.state(f"{name}.waiting", shape) if neuron.refractory else None
        if waiting is not None:
            bits = graph.op("And", bits, graph.op("Equal", waiting, graph.constant(0.0)))
        size = torch.Size(shape).numel()
        if neuron.winners is not None and neuron.winners.of(size) < size:
            bits = self.winners(bits, graph.op("Sub", level, theta), neuron.winners.of(size), shape)
        if waiting is not None:
            less = graph.op("Relu", graph.op("Sub", waiting, graph.constant(1.0)))
            graph.follow(f"{name}.waiting", graph.op("Where", bits, graph.constant(float(neuron.refractory)), less))
        return self.number(bits)

    def winners(self, bits: str, above: str, count: int, shape: Shape) -> str:
        """Those of the bits with the ``count`` highest values: among equals ``TopK`` takes the first, as tbnn does."""
        graph = self.graph
        above = graph.op("Where", bits, above, graph.constant(float("-inf")))
        best = graph.op("TopK", graph.op("Flatten", above, axis=1), graph.indices(count), outputs=2, axis=1)
        places = f"{best}.1"
        nobody = graph.op("Mul", graph.op("Flatten", self.number(bits), axis=1), graph.constant(0.0))
        won = self.number(graph.op("GreaterOrEqual", places, graph.indices(0)))
        first = graph.op("Reshape", graph.op("ScatterElements", nobody, places, won, axis=1), graph.indices(0, *shape))
        return graph.op("And", bits, graph.op("Greater", first, graph.constant(0.0)))

    def recurrent(self, name: str, layer: Recurrent, x: str, shape: Shape) -> str:
        """A neuron whose output returns through weights."""
        graph, inner, many = self.graph, layer.recurrent_layer, layer.delay > 1
        if type(inner) not in WEIGHTS:
            raise ValueError(f"recurrent_layer ({type(inner).__name__}): to_onnx knows no operators for it")
        past = graph.state(f"{name}.out", shape, layer.delay if many else None)
        first = graph.op("Gather", past, graph.constant(torch.tensor(0)), axis=0) if many else past
        current = graph.op("Add", x, add_weights(graph, inner, first, shape))
        y = self.neuron(f"{name}.neuron", layer.neuron, current, shape)
        graph.follow(f"{name}.out", self.without_oldest(self.extended(past, y)) if many else y)
        return y

    def extended(self, past: str, x: str) -> str:
        """The last steps' values (steps, B, ...) and this one's, (steps + 1, B, ...), oldest first."""
        return self.graph.op("Concat", past, self.graph.op("Unsqueeze", x, self.graph.indices(0)), axis=0)

    def without_oldest(self, extended: str) -> str:
        graph = self.graph
        return graph.op("Slice", extended, graph.indices(1), graph.indices(TO_THE_END), graph.indices(0))

    def delay(self, name: str, layer: Delay, x: str, shape: Shape) -> str:
        """Each feature's value of some steps ago: of the extended past times one 1 a feature, the sum."""
        if layer.max_delay == 0:
            return x
        graph = self.graph
        extended = self.extended(graph.state(name, shape, layer.max_delay), x)
        graph.follow(name, self.without_oldest(extended))
        hits = self.hits(layer, per_channel(layer.rounded(), len(shape))[None])
        return graph.op("ReduceSum", graph.op("Mul", extended, hits), graph.indices(0), keepdims=0)

    def delayed_linear(self, name: str, layer: DelayedLinear, x: str, shape: Shape) -> str:
        """Delayed bits times the values, as one product over time and inputs."""
        graph, values = self.graph, layer.codes().values
        past = graph.op("Unsqueeze", x, graph.indices(0))
        if layer.max_delay:
            past = self.extended(graph.state(name, shape, layer.max_delay), x)
            graph.follow(name, self.without_oldest(past))
        sums, parts = needs_sums(layer), []
        inputs = graph.op("Transpose", past, perm=[1, 0, 2])
        for lo, hi in blocks_of(layer):
            part = graph.op("Slice", inputs, graph.indices(lo), graph.indices(hi), graph.indices(2))
            part = graph.op("Reshape", part, graph.indices(0, -1))
            hits = self.hits(layer, layer.rounded()[:, lo:hi].T)  # (max_delay + 1, block, outputs)
            rows = graph.indices(-1, layer.out_features)
            weights = graph.op("Reshape", graph.op("Mul", graph.packed(values[:, lo:hi].T), hits), rows)
            total = graph.op("MatMul", part, graph.op("Reshape", hits, rows)) if sums else None
            parts.append((graph.op("MatMul", part, weights), total))
        return coded(graph, layer, parts, 1)

    def hits(self, layer: Delay | DelayedLinear, delays: Tensor) -> str:
        """1 where a row of the extended past, (max_delay + 1, ...), is ``delays`` steps old."""
        rows = torch.arange(layer.max_delay, -1, -1.0).reshape(-1, *[1] * delays.ndim)
        return self.number(self.graph.op("Equal", self.graph.constant(rows), self.graph.packed(delays)))

    def residual(self, name: str, layer: Residual, x: str, shape: Shape) -> str:
        """Two paths and :data:`tbnn.nn.residual.JOINS`."""
        graph = self.graph
        body, _ = self.chain(f"{name}.body.", layer.body, x, shape)
        shortcut = x
        if layer.shortcut is not None:
            shortcut, _ = self.chain(f"{name}.shortcut.", layer.shortcut, x, shape)
        graph.place = name
        if layer.join == "iand":
            return graph.op("Mul", graph.op("Sub", graph.constant(1.0), body), shortcut)
        both = graph.op("Mul", body, shortcut) if layer.join in ("and", "or") else ""
        if layer.join == "and":
            return both
        y = graph.op("Add", body, shortcut)
        return graph.op("Sub", y, both) if layer.join == "or" else y

    def total(self, terms: list[tuple[Tensor, str]]) -> str:
        """``Σ coefficient·value`` in order; terms of 0 vanish, but for the first where all do."""
        there = [term for term in terms if not is_all(term[0], 0)] or terms[:1]
        products = [
            value if is_all(factor, 1) else self.graph.op("Mul", self.graph.constant(factor), value)
            for factor, value in there
        ]
        return reduce(lambda y, product: self.graph.op("Add", y, product), products)

    def number(self, bits: str) -> str:
        """Truth values as 0 and 1."""
        return self.graph.op("Cast", bits, to=self.graph.onnx.TensorProto.FLOAT)
