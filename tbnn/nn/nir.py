"""Networks of tbnn as graphs of NIR, the Neuromorphic Intermediate Representation; the way back is :mod:`tbnn.nn.nir_import`."""

import copy
import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tbnn.nn.conv import BinaryConv1d, BinaryConv2d
from tbnn.nn.delay import Delay
from tbnn.nn.dropout import SpikeDropout
from tbnn.nn.fold import NORMS, fold_batch_norms, norm_affine
from tbnn.nn.leaky import Leaky, LeakyIntegrator
from tbnn.nn.linear import BinaryLinear
from tbnn.nn.network import Network
from tbnn.nn.pool import AvgPool2d, Flatten, Voting
from tbnn.nn.recurrent import Recurrent
from tbnn.nn.snntorch_export import OneToOne
from tbnn.nn.synaptic import Synaptic
from tbnn.nn.weights import BinaryWeight

Shape = tuple[int, ...]

DEFAULT_DT = 1e-4
"""Seconds a step, as snntorch's bridge assumes."""
DENSE = (nn.Linear, BinaryLinear)
CONVOLUTIONS = {nn.Conv1d: "Conv1d", BinaryConv1d: "Conv1d", nn.Conv2d: "Conv2d", BinaryConv2d: "Conv2d"}
VANISHING = (nn.Identity, nn.Dropout, SpikeDropout)
"""Layers that do nothing in evaluation."""


def nir_package() -> Any:
    """The package ``nir``; ``ValueError`` that says how to get it where it is missing."""
    try:
        import nir
    except ImportError as error:
        raise ValueError(f"nir: expected the package, got {error}; pip install 'tbnn[exchange]'") from error
    return nir


@torch.no_grad()
def to_nir(network: Network, *, dt: float = DEFAULT_DT, input_shape: Iterable[int] | None = None) -> Any:
    """A ``nir.NIRGraph`` of the nodes that do what a network's layers do in evaluation, for ``nir.write``.

    NIR speaks of continuous time. Its equations become tbnn's by a forward Euler step of ``dt``, a spike's effect at the
    next step, and a current that counts whole in the step in which it arrives:

    - ``LIF``: ``τ·v̇ = −v + R·I`` -> ``v[t] = (1 − dt/τ)·v[t−1] + (R·dt/τ)·I[t]``, so τ = dt/(1 − β) and R = τ/dt.
    - ``CubaLIF``: the same twice, the new current into v: τ_syn = dt/(1 − α), w_in = τ_syn/dt.
    - ``IF`` and ``I``, for β = 1: ``v̇ = R·I``, R = 1/dt. ``LI`` is a :class:`LeakyIntegrator`.

    A spike sets NIR's v to ``v_reset``: with 0 this is reset "zero", exactly. Reset "none" is a ``LI`` (``CubaLI``, ``I``)
    before a ``Threshold``, exactly. NIR has no reset "subtract", tbnn's default: the node is the one for "zero", with
    ``metadata["reset_mechanism"] = "subtract"``, which :func:`tbnn.nn.nir_import.from_nir` obeys. A reader that does not
    loses what v had above θ at each spike (in continuous time nothing, since v never passes θ).

    Quantised weights are written out, ``Affine``, ``Linear``, ``Conv1d`` or ``Conv2d`` with ``metadata["bits"]``; latent
    weights, estimators and what is learned stay behind. Batch norms are folded, dropout vanishes, learned delays are
    rounded, a :class:`Voting` is a ``Linear``, a :class:`TargetRate` its threshold of now. A :class:`Recurrent` is a
    subgraph: input -> neuron -> output, and neuron -> weights (-> ``Delay`` of delay − 1 steps) -> neuron.

    Args:
        network: layers in order.
        dt: seconds a step; the graph's metadata hold it.
        input_shape: the features of a step, where neither ``network.input_shape`` nor the first layer says.

    Raises:
        ValueError: what NIR has no node for, by layer and attribute: other neurons, ``refractory``, winners,
            emit="denoised", max pools, residual blocks, synaptic delays; β or α = 1 in a :class:`Synaptic`, or in some
            of a layer's neurons only; a norm that no weights precede; no input shape; ``nir`` is missing.

    Source: Pedersen et al., "Neuromorphic intermediate representation", Nature Communications 15:8122 (2024).

    >>> graph = to_nir(Network([BinaryLinear(8, 4), Leaky(0.9)]))  # nir.write("network.nir", graph)
    """
    if not isinstance(network, Network):
        raise ValueError(f"to_nir: expected a tbnn.nn.Network, got {type(network).__name__}")
    if not 0 < dt < math.inf:
        raise ValueError(f"dt: expected seconds > 0, got {dt}")
    writer = _Writer(nir_package(), dt)
    plain = _folded(network)
    shape = starting_shape(plain, input_shape)
    x = next(plain.parameters(), torch.zeros(())).new_zeros(1, 1, *shape)
    nodes, edges, last = {"input": writer.nir.Input(np.array(shape))}, [], "input"
    for index, layer in enumerate(plain.layers):
        before = tuple(x.shape[2:])
        try:
            x = Network([layer])(x)[0]
            made = writer.nodes(layer, before)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"layers.{index} ({type(layer).__name__}): {error}") from error
        for suffix, node in made:
            name = f"layer_{index}{suffix}"
            nodes[name] = _typed(writer.nir, node, before, tuple(x.shape[2:]))
            edges.append((last, name))
            last = name
    nodes["output"] = writer.nir.Output(np.array(x.shape[2:]))
    edges.append((last, "output"))
    return writer.nir.NIRGraph(nodes, edges, metadata={"dt": dt, "source": "tbnn"}, type_check=False)


class _Writer:
    """How layers are written: one at a time, for one time step."""

    def __init__(self, nir: Any, dt: float) -> None:
        self.nir, self.dt = nir, dt

    def nodes(self, layer: nn.Module, shape: Shape) -> list[tuple[str, Any]]:
        """A layer's nodes in order, each with what its name ends in; ``shape`` are the features that come in."""
        kind = type(layer)
        if kind in VANISHING:
            return []
        if isinstance(layer, (Leaky, Synaptic)) and kind in (Leaky, Synaptic):
            return self.neuron(layer, shape)
        if isinstance(layer, LeakyIntegrator) and kind is LeakyIntegrator:
            return [("", self.integrator(_spread(layer.beta.clamp(0, 1), shape)))]
        if isinstance(layer, Recurrent) and kind is Recurrent:
            return [("", self.recurrent(layer, shape))]
        if isinstance(layer, Delay) and kind is Delay:
            delay = layer.rounded().reshape(-1, *[1] * (len(shape) - 1))
            return [("", self.nir.Delay(_spread(delay, shape) * self.dt))]
        if kind is Flatten or isinstance(layer, nn.Flatten):
            return [("", self.flatten(layer, shape))]
        if kind in (AvgPool2d, nn.AvgPool2d):
            return [("", self.pool(layer))]
        return [("", self.weights(layer, shape))]

    def neuron(self, neuron: Leaky | Synaptic, shape: Shape) -> list[tuple[str, Any]]:
        """A spiking neuron: one node, or without reset two."""
        _check(neuron)
        threshold = _spread(neuron.effective_threshold(torch.Size(shape)), shape)
        beta, second = neuron.coefficients()
        betas, alpha = _spread(beta, shape), None if second is None else _spread(torch.as_tensor(second.rho), shape)
        if neuron.reset_mechanism == "none":
            return [("", self.integrator(betas, alpha)), ("_threshold", self.nir.Threshold(threshold))]
        options = {"v_threshold": threshold, "v_reset": np.zeros(shape)}
        options["metadata"] = {"reset_mechanism": neuron.reset_mechanism}
        kinds = (self.nir.IF, self.nir.LIF, self.nir.CubaLIF)
        return [("", self.membrane(kinds, betas, alpha, **options))]

    def integrator(self, beta: np.ndarray, alpha: np.ndarray | None = None) -> Any:
        """A membrane that never resets."""
        return self.membrane((self.nir.I, self.nir.LI, self.nir.CubaLI), beta, alpha)

    def membrane(self, kinds: tuple[Any, Any, Any], beta: np.ndarray, alpha: np.ndarray | None, **options: Any) -> Any:
        """The one of three kinds, (integrating, leaky, with a synapse), whose step has decays β and α and unit gain."""
        perfect, leaky, synaptic = kinds
        if alpha is None and (beta == 1).all():
            return perfect(r=np.full(beta.shape, 1 / self.dt), **options)
        tau = self.time_constant("beta", beta)
        options |= {"r": tau / self.dt, "v_leak": np.zeros(beta.shape)}
        if alpha is None:
            return leaky(tau=tau, **options)
        tau_syn = self.time_constant("alpha", alpha)
        return synaptic(tau_syn=tau_syn, tau_mem=tau, w_in=tau_syn / self.dt, **options)

    def time_constant(self, name: str, decay: np.ndarray) -> np.ndarray:
        """τ of a decay, seconds."""
        if (decay == 1).any():
            raise ValueError(f"{name}: expected values below 1 (NIR's time constants are finite), got {decay.max():g}")
        return self.dt / (1 - decay)

    def recurrent(self, layer: Recurrent, shape: Shape) -> Any:
        """A subgraph with the feedback edge."""
        if type(layer.neuron) not in (Leaky, Synaptic):
            raise ValueError(f"neuron: expected Leaky or Synaptic, got {type(layer.neuron).__name__}")
        forward = [(f"lif{suffix}", node) for suffix, node in self.nodes(layer.neuron, shape)]
        try:
            back = [("w_rec", self.weights(layer.recurrent_layer, shape))]
        except ValueError as error:
            raise ValueError(f"recurrent_layer ({type(layer.recurrent_layer).__name__}): {error}") from error
        if layer.delay > 1:
            back.append(("delay", self.nir.Delay(np.full(shape, (layer.delay - 1) * self.dt))))
        nodes = {"input": self.nir.Input(np.array(shape))}
        nodes |= {name: _typed(self.nir, node, shape, shape) for name, node in [*forward, *back]}
        nodes["output"] = self.nir.Output(np.array(shape))
        ahead = ["input", *(name for name, _ in forward), "output"]
        around = [ahead[-2], *(name for name, _ in back), ahead[1]]
        edges = [*pairwise(ahead), *pairwise(around)]
        return self.nir.NIRGraph(nodes, edges, type_check=False)

    def weights(self, layer: Any, shape: Shape) -> Any:
        """A layer whose output is linear in its input."""
        kind = type(layer)
        if kind is OneToOne:
            return self.nir.Scale(_spread(layer.weight, shape))
        if kind is Voting and len(shape) == 1:
            classes = shape[0] // layer.voters
            return self.nir.Linear(np.kron(np.eye(classes), np.full((1, layer.voters), 1 / layer.voters)))
        if kind not in DENSE and kind not in CONVOLUTIONS:
            raise ValueError("NIR has no node for it")
        weight, metadata = layer.weight, {}
        if isinstance(layer, BinaryWeight):
            weight = layer.quantized_weight()
            metadata = {} if layer.bits is None else {"bits": layer.bits, "form": layer.form}
        bias = layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias
        if kind in DENSE:
            if len(shape) != 1:
                raise ValueError(f"expected flat features (N,) for NIR's Affine, got {shape}; put a Flatten before it")
            if layer.bias is None:
                return self.nir.Linear(_array(weight), metadata=metadata)
            return self.nir.Affine(_array(weight), _array(bias), metadata=metadata)
        if getattr(layer, "padding_mode", "zeros") != "zeros":
            raise ValueError(f"padding_mode: expected 'zeros', got {layer.padding_mode!r}")
        one = CONVOLUTIONS[kind] == "Conv1d"
        sizes = {name: getattr(layer, name) for name in ("stride", "padding", "dilation")}
        sizes = {name: size[0] if one and not isinstance(size, str) else size for name, size in sizes.items()}
        return getattr(self.nir, CONVOLUTIONS[kind])(
            input_shape=shape[1] if one else shape[1:],
            weight=_array(weight), bias=_array(bias), groups=layer.groups, metadata=metadata, **sizes,
        )  # fmt: skip

    def flatten(self, layer: Any, shape: Shape) -> Any:
        """NIR counts the axes of the features alone."""
        first, last = 0, -1
        if isinstance(layer, nn.Flatten):
            first, last = (axis + len(shape) if axis < 0 else axis - 2 for axis in (layer.start_dim, layer.end_dim))
            if first < 0 or last < 0:
                raise ValueError(f"start_dim: expected an axis after time and batch, got {layer.start_dim}")
        return self.nir.Flatten(input_type={"input": np.array(shape)}, start_dim=first, end_dim=last)

    def pool(self, layer: Any) -> Any:
        """An average pool; torch's with a divisor of 1 is a sum."""
        sizes = {}
        for name in ("kernel_size", "stride", "padding"):
            size = getattr(layer, name)
            sizes[name] = np.array((size, size) if isinstance(size, int) else size)
        divisor = None
        if isinstance(layer, nn.AvgPool2d):
            divisor = layer.divisor_override
            if layer.ceil_mode or (sizes["padding"].any() and not layer.count_include_pad):
                raise ValueError(f"expected ceil_mode=False and count_include_pad=True, got {layer}")
        if divisor not in (None, 1):
            raise ValueError(f"divisor_override: expected None or 1, got {divisor}")
        return (self.nir.AvgPool2d if divisor is None else self.nir.SumPool2d)(**sizes)


def _check(neuron: Leaky | Synaptic) -> None:
    """Raise ``ValueError`` for what a neuron does besides NIR's equations."""
    if neuron.winners is not None:
        raise ValueError(f"activity: expected None or a TargetRate, got {neuron.winners}")
    if neuron.refractory:
        raise ValueError(f"refractory: expected 0, got {neuron.refractory}")
    if neuron.spike_gradient.emit != "bits":
        raise ValueError(f"emit: expected 'bits', got {neuron.spike_gradient.emit!r}")


@torch.no_grad()
def _folded(network: Network) -> Network:
    """A copy in evaluation without batch norms: those after binary layers folded, those after torch's as well."""
    plain = copy.deepcopy(network).eval()
    for index in range(1, len(plain.layers)):
        before, norm = plain.layers[index - 1], plain.layers[index]
        if not (isinstance(norm, NORMS) and isinstance(before, (nn.Linear, nn.Conv1d, nn.Conv2d))):
            continue
        scale, shift = norm_affine(norm)
        weight = before.weight
        if before.bias is not None:
            shift = shift + scale * before.bias
        before.weight = nn.Parameter(weight * scale.reshape(-1, *[1] * (weight.ndim - 1)))
        before.bias = nn.Parameter(shift)
        plain.layers[index] = nn.Identity()
    return fold_batch_norms(plain)


def starting_shape(network: Network, given: Iterable[int] | None) -> Shape:
    """The features of one step."""
    shape = network.input_shape if given is None else tuple(given)
    if shape is None:
        features = getattr(network.layers[0], "in_features", None)
        shape = None if features is None else (features,)
    if not shape or min(shape) < 1:
        raise ValueError(f"input_shape: expected the sizes of one step's features, got {shape}; pass input_shape=")
    return shape


def _typed(nir: Any, node: Any, before: Shape, after: Shape) -> Any:
    """The node with its shapes set: nir infers those of grouped and non-square convolutions wrongly, of pools never."""
    if not isinstance(node, nir.NIRGraph):
        node.input_type, node.output_type = {"input": np.array(before)}, {"output": np.array(after)}
    return node


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy().copy()


def _spread(value: Tensor, shape: Shape) -> np.ndarray:
    """A value a feature, float64: decays then survive the way through time constants."""
    return value.detach().cpu().double().expand(shape).numpy().copy()
