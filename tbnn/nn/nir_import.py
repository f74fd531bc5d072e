"""Graphs of NIR as networks of tbnn; the way there, and the convention of time, is :mod:`tbnn.nn.nir`."""

import copy
import math
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tbnn.nn.conv import BinaryConv1d, BinaryConv2d
from tbnn.nn.delay import Delay
from tbnn.nn.leaky import Leaky, LeakyIntegrator
from tbnn.nn.linear import BinaryLinear
from tbnn.nn.network import Network
from tbnn.nn.neuron import Neuron, SpikeOptions
from tbnn.nn.nir import DEFAULT_DT, nir_package
from tbnn.nn.nir_graph import Loop, chain
from tbnn.nn.pool import AvgPool2d, Flatten
from tbnn.nn.recurrent import Recurrent
from tbnn.nn.snntorch_export import OneToOne
from tbnn.nn.synaptic import Synaptic

UNIT = 1e-5
"""Input gains this close to 1 are 1: time constants went through single precision."""
LAYERS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "Conv1d": (nn.Conv1d, BinaryConv1d),
    "Conv2d": (nn.Conv2d, BinaryConv2d),
}
SPIKING = ("IF", "LIF", "CubaLIF")
INTEGRATING = ("I", "LI", "CubaLI")
KNOWN = (
    "Affine", "Linear", *LAYERS, "Scale", "Flatten", "AvgPool2d", "SumPool2d", "Delay", "Threshold", *SPIKING,
    *INTEGRATING,
)  # fmt: skip


def from_nir(
    graph: Any,
    *,
    dt: float | None = None,
    weights: str = "float",
    binary: dict[str, Any] | None = None,
    neuron: SpikeOptions | None = None,
) -> Network:
    """The network of a NIR graph that is a chain of layers, neurons with feedback included.

    Time is discretised as :func:`tbnn.nn.nir.to_nir` says. An input gain g = R·dt/τ other than 1 (``CubaLIF``: times
    w_in·dt/τ_syn) divides the threshold, which leaves the spikes as they are; a ``LI`` is then followed by a factor.
    ``Threshold`` after ``LI``, ``CubaLI`` or ``I`` makes a neuron without reset; alone, one with β = 0. Neurons reset to 0,
    as NIR has it, unless ``metadata["reset_mechanism"]`` says "subtract". ``Scale`` is a :class:`OneToOne`, ``SumPool2d``
    torch's average pool with a divisor of 1. Feedback may stand in a subgraph or as a cycle of edges; it arrives one
    step later, plus its ``Delay``. Values take torch's default dtype; those that are equal for all neurons become one.

    Args:
        graph: a ``nir.NIRGraph``, or the path of a file that ``nir.write`` wrote.
        dt: seconds a step; None is the graph's ``metadata["dt"]``, or else 1e-4. An ``IF`` with R = 1, as norse writes it,
            counts its input whole at dt=1.
        weights: "float", or "binary": :class:`BinaryLinear`, :class:`BinaryConv1d` and :class:`BinaryConv2d`, whose latent
            weights are the graph's. A ``Scale`` stays as it is.
        binary: with "binary", options of these layers: ``dict(estimator="ddt", form="affine", ...)``.
        neuron: options of every spiking neuron; ``dict(reset_mechanism="subtract")`` for graphs of other libraries that
            mean this and do not say so, as snntorch's. Neurons without reset keep that.

    Raises:
        ValueError: a file that cannot be read, by its path; branches, several inputs or outputs, and nodes without
            counterpart, by name and type; τ < dt; gains <= 0; ``v_leak`` or ``v_reset`` other than 0; delays that are not
            whole steps, or differ within a channel; layers whose shapes do not fit; arguments out of range.
        FileNotFoundError: no such file.

    Source: Pedersen et al., "Neuromorphic intermediate representation", Nature Communications 15:8122 (2024).

    >>> spikes, state = from_nir("network.nir", weights="binary")(torch.ones(10, 2, 8))
    """
    nir = nir_package()
    if weights not in ("float", "binary"):
        raise ValueError(f"weights: expected 'float' or 'binary', got {weights!r}")
    if binary is not None and weights != "binary":
        raise ValueError(f"binary: options of binary layers need weights='binary', got weights={weights!r}")
    unknown = (neuron or {}).keys() - SpikeOptions.__annotations__.keys()
    if unknown:
        raise ValueError(f"neuron: expected some of {', '.join(SpikeOptions.__annotations__)}, got {min(unknown)!r}")
    whole = _read(nir, graph)
    step = _numbers("dt", whole.metadata.get("dt", DEFAULT_DT)).flat[0].item() if dt is None else dt
    if not 0 < step < math.inf:
        raise ValueError(f"dt: expected seconds > 0, got {step}")
    nodes, items, input_shape = chain(nir, whole)
    reader = _Reader(nodes, step, weights == "binary", binary or {}, neuron or {})
    layers: list[tuple[str, nn.Module]] = []
    for name, item in _with_thresholds(nodes, items):
        place = f"{name} ({type(nodes[name]).__name__})"
        try:
            layers += [(place, layer) for layer in reader.layers(item)]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{place}: {error}") from error
    if not layers:
        raise ValueError("from_nir: expected at least one node between input and output, got none")
    network = Network([layer for _, layer in layers], input_shape)
    _check_shapes(network, [place for place, _ in layers])
    return network


Item = str | Loop | tuple[str, str]
"""A node, neurons with feedback, or an integrator with the threshold after it."""


def _with_thresholds(nodes: dict[str, Any], items: list[str | Loop]) -> list[tuple[str, Item]]:
    """The items, each with a node that names it, integrators joined with the thresholds after them."""
    joined: list[tuple[str, Item]] = []
    for item in items:
        last = joined[-1][1] if joined else None
        if isinstance(item, Loop):
            joined.append((item.body[0], item))
        elif _kind(nodes[item]) == "Threshold" and isinstance(last, str) and _kind(nodes[last]) in INTEGRATING:
            joined[-1] = (last, (last, item))
        else:
            joined.append((item, item))
    return joined


class _Reader:
    """How nodes are read: one item at a time, under the options of :func:`from_nir`."""

    def __init__(
        self, nodes: dict[str, Any], dt: float, quantised: bool, binary: dict[str, Any], neuron: SpikeOptions
    ) -> None:
        self.nodes, self.dt, self.quantised, self.binary, self.neuron = nodes, dt, quantised, binary, neuron

    def layers(self, item: Item) -> list[nn.Module]:
        """The layers of one item."""
        if isinstance(item, Loop):
            return [self.recurrent(item)]
        if isinstance(item, tuple):
            return [self.spiking(self.nodes[item[0]], self.nodes[item[1]])]
        node = self.nodes[item]
        kind = _kind(node)
        if kind in SPIKING or kind == "Threshold":
            return [self.spiking(node)]
        if kind in INTEGRATING:
            return self.integrator(node)
        if kind == "Delay":
            return [self.delay(node)]
        if kind in ("AvgPool2d", "SumPool2d"):
            sizes = [_sizes(getattr(node, name), 2) for name in ("kernel_size", "stride", "padding")]
            return [AvgPool2d(*sizes) if kind == "AvgPool2d" else nn.AvgPool2d(*sizes, divisor_override=1)]
        if kind == "Flatten":
            first, last = int(node.start_dim), int(node.end_dim)
            if (first, last) == (0, -1):
                return [Flatten()]
            return [nn.Flatten(*(axis + 2 if axis >= 0 else axis for axis in (first, last)))]
        return [self.weights(node)]

    def spiking(self, node: Any, after: Any = None) -> Neuron:
        """A spiking neuron; ``after`` is the threshold that follows an integrator."""
        kind = _kind(node)
        options: Any = {**self.neuron}
        threshold = node.v_threshold if after is None and kind != "Threshold" else (after or node).threshold
        if kind in SPIKING:
            _expect_zero(node, "v_reset")
            options.setdefault("reset_mechanism", _reset(node))
        else:
            options["reset_mechanism"] = "none"
        if kind == "Threshold":
            return Leaky(0.0, _value(threshold), **options)
        decays, gain = self.membrane(node)
        theta = _value(_numbers("v_threshold", threshold) / gain)
        if len(decays) == 1:
            return Leaky(decays[0], theta, **options)
        return Synaptic(decays[0], decays[1], theta, **options)

    def integrator(self, node: Any) -> list[nn.Module]:
        """A membrane as output."""
        decays, gain = self.membrane(node)
        if len(decays) == 2:
            raise ValueError("expected a Threshold after it: tbnn has no readout with a synapse")
        readout = LeakyIntegrator(decays[0])
        return [readout] if bool((gain == 1).all()) else [readout, OneToOne(_value(gain), learn=False)]

    def membrane(self, node: Any) -> tuple[list[Tensor], np.ndarray]:
        """The decays of a step, α before β, and how much of the current of a step arrives in v."""
        kind = _kind(node)
        if kind in ("I", "IF"):
            decays, gain = [_value(np.ones(()))], _numbers("r", node.r) * self.dt
        else:
            _expect_zero(node, "v_leak")
            membrane, gains = ("tau", [("r", "tau")]) if kind in ("LI", "LIF") else ("tau_mem", [("r", "tau_mem")])
            if membrane == "tau_mem":
                gains.insert(0, ("w_in", "tau_syn"))
            decays = [_value(1 - self.rate(node, tau)) for _, tau in gains]
            gain = np.ones(())
            for name, tau in gains:
                gain = gain * _numbers(name, getattr(node, name)) * self.rate(node, tau)
        if not (gain > 0).all():
            raise ValueError(f"r: expected an input gain > 0, got {gain.min():g}")
        return decays, np.where(abs(gain - 1) < UNIT, 1.0, gain)

    def rate(self, node: Any, name: str) -> np.ndarray:
        """dt/τ."""
        tau = _numbers(name, getattr(node, name))
        rate = self.dt / np.where(tau > 0, tau, np.nan)
        if not (rate <= 1 + UNIT).all():
            raise ValueError(f"{name}: expected at least a step of {self.dt:g} s, got {tau.min():g}")
        return np.minimum(rate, 1.0)

    def recurrent(self, loop: Loop) -> Recurrent:
        """Neurons whose spikes return."""
        names = ", ".join(f"{name} ({_kind(self.nodes[name])})" for name in (*loop.body, *loop.back))
        (_, body), *others = _with_thresholds(self.nodes, [*loop.body])
        neurons = [] if others else self.layers(body)
        back = [layer for name in loop.back for layer in self.layers(name)]
        delays = [layer for layer in back if isinstance(layer, Delay)]
        feedback = [layer for layer in back if not isinstance(layer, Delay)] or [nn.Identity()]
        if not neurons or not isinstance(neurons[0], Neuron) or len(feedback) > 1 or isinstance(feedback[0], Neuron):
            raise ValueError(f"expected one spiking neuron, and weights on the way back, got the cycle {names}")
        steps = torch.cat([layer.delay for layer in delays] or [torch.zeros(1)])
        if len(delays) > 1 or bool((steps != steps[0]).any()):
            raise ValueError(f"expected one delay for all neurons on the way back, got the cycle {names}")
        return Recurrent(neurons[0], feedback[0], 1 + int(steps[0]))

    def delay(self, node: Any) -> Delay:
        """Whole steps, one number a channel."""
        steps = _numbers("delay", node.delay) / self.dt
        whole = np.round(steps)
        if not (abs(steps - whole) < 1e-3).all() or not (whole >= 0).all():
            raise ValueError(f"delay: expected multiples >= 0 of {self.dt:g} s, got {node.delay}")
        if whole.ndim == 0 or (whole.reshape(len(whole), -1) != whole.reshape(len(whole), -1)[:, :1]).any():
            raise ValueError(f"delay: expected (features, ...), one value a channel, got shape {whole.shape}")
        each = whole.reshape(len(whole), -1)[:, 0]
        return Delay(len(each), int(each.max()), delay=torch.from_numpy(each), learn=False)

    @torch.no_grad()
    def weights(self, node: Any) -> nn.Module:
        """A layer whose output is linear in its input."""
        kind = _kind(node)
        if kind == "Scale":
            return OneToOne(_value(_numbers("scale", node.scale)))
        if kind not in KNOWN:
            raise ValueError(f"no counterpart in tbnn; expected one of {', '.join(KNOWN)}")
        weight = _tensor(_numbers("weight", node.weight))
        bias = None if kind == "Linear" else _tensor(_numbers("bias", node.bias))
        axes = {"Conv1d": 3, "Conv2d": 4}.get(kind, 2)
        if weight.ndim != axes or (bias is not None and bias.shape != weight.shape[:1]):
            got = f"{tuple(weight.shape)}" if bias is None else f"{tuple(weight.shape)}, bias {tuple(bias.shape)}"
            raise ValueError(f"weight: expected {axes} axes and a bias for the first, got {got}")
        options = self.binary if self.quantised else {}
        if axes == 2:
            sizes = (weight.shape[1], weight.shape[0])
            layer: Any = (BinaryLinear if self.quantised else nn.Linear)(*sizes, bias is not None, **options)
        else:
            groups = int(node.groups)
            sizes = {name: _sizes(getattr(node, name), axes - 2) for name in ("stride", "padding", "dilation")}
            channels = (weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]))
            layer = LAYERS[kind][self.quantised](*channels, **sizes, groups=groups, **options)
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
        return layer


def _read(nir: Any, graph: Any) -> Any:
    """The graph, from a file if it is a path."""
    if isinstance(graph, nir.NIRGraph):
        return graph
    if not isinstance(graph, (str, os.PathLike)):
        raise ValueError(f"from_nir: expected a nir.NIRGraph or a path, got {type(graph).__name__}")
    try:
        read = nir.read(graph, type_check=False)  # nir's check refuses grouped convolutions
    except FileNotFoundError:
        raise
    except Exception as error:  # the package has no error of its own: whatever the damage leads to
        raise ValueError(
            f"{os.fspath(graph)}: expected a graph as nir.write leaves it, got {type(error).__name__}: {error}"
        ) from error
    if not isinstance(read, nir.NIRGraph):
        raise ValueError(f"{os.fspath(graph)}: expected a NIRGraph, got a {type(read).__name__}")
    return read


def _kind(node: Any) -> str:
    return type(node).__name__


def _reset(node: Any) -> str:
    """How a neuron resets."""
    reset = node.metadata.get("reset_mechanism", "zero")
    if reset not in ("subtract", "zero"):
        raise ValueError(f"metadata: expected reset_mechanism 'subtract' or 'zero', got {reset!r}")
    return reset


def _expect_zero(node: Any, name: str) -> None:
    if _numbers(name, getattr(node, name)).any():
        raise ValueError(f"{name}: expected 0, got {getattr(node, name)}")


def _numbers(name: str, value: Any) -> np.ndarray:
    """An array of float64; ``ValueError`` unless all are finite."""
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected finite numbers, got {value!r}") from error
    if numbers.size == 0 or not np.isfinite(numbers).all():
        raise ValueError(f"{name}: expected finite numbers, got {value}")
    return numbers


def _tensor(numbers: np.ndarray) -> Tensor:
    return torch.from_numpy(numbers).to(torch.get_default_dtype())


def _value(numbers: np.ndarray) -> Tensor:
    """One value if all are equal."""
    alike = bool((numbers == numbers.flat[0]).all())
    return _tensor(numbers.reshape(-1)[:1].reshape(()).copy() if alike else numbers)


def _sizes(value: Any, count: int) -> Any:
    """Sizes of ``count`` axes, or the name of a padding."""
    if isinstance(value, str):
        return value
    sizes = tuple(int(size) for size in np.atleast_1d(np.asarray(value)))
    return sizes * count if len(sizes) == 1 else sizes


@torch.no_grad()
def _check_shapes(network: Network, places: list[str]) -> None:
    """Pass one step of zeros through; ``ValueError`` with the first node that does not take its input."""
    if network.input_shape is None:
        return
    shape, x = network.input_shape, None
    for place, layer in zip(places, copy.deepcopy(network).eval().layers, strict=True):
        try:
            x, _ = Network([layer])(torch.zeros(1, 1, *shape) if x is None else x)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{place}: does not take steps of {shape} ({error})") from error
        shape = tuple(x.shape[2:])
