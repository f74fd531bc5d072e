"""A network as online rules see it: stages of weights and neurons, and what lies between them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from tbnn.nn import (
    BinaryConv1d,
    BinaryConv2d,
    BinaryLinear,
    LeakyIntegrator,
    Network,
    Neuron,
    Recurrent,
    Stateful,
    TemporalBatchNorm,
    Voting,
)
from tbnn.nn.custom import CustomNeuron
from tbnn.nn.residual import Residual
from tbnn.nn.stateful import call_stateless
from tbnn.nn.weights import BinaryWeight

LINEAR = (nn.Linear, BinaryLinear)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, BinaryConv1d, BinaryConv2d)
WEIGHTS = (*LINEAR, *CONVOLUTIONS)


@dataclass
class Stage:
    """Weights and the neurons they drive."""

    name: str
    """Of the weights in the network: "layers.0"."""
    path: list[nn.Module]
    """What the spikes before pass on their way: pools, flattening, dropout."""
    weights: nn.Module
    norm: TemporalBatchNorm | None
    neuron: Neuron | LeakyIntegrator
    recurrent: nn.Module | None = None
    """The weights by which the neurons' spikes return one step later."""
    loop: Recurrent | None = None
    """The neurons with these weights."""

    @property
    def spikes(self) -> bool:
        """Whether its neurons spike; else it is a readout."""
        return isinstance(self.neuron, Neuron)


def stages_of(
    network: nn.Module, rule: str, weights: tuple[type[nn.Module], ...] = WEIGHTS
) -> tuple[list[Stage], list[nn.Module]]:
    """A network's stages, and what its last neurons' output passes before it is the readout.

    Raises:
        ValueError: layers that ``rule`` is not derived for, by place, with those it takes.
    """
    if not isinstance(network, Network):
        raise ValueError(f"{rule}: expected a tbnn.nn.Network, got {type(network).__name__}")
    stages: list[Stage] = []
    path: list[nn.Module] = []
    layers, index = list(network.layers), 0
    while index < len(layers):
        layer, name = layers[index], f"layers.{index}"
        if isinstance(layer, weights):
            norm = layers[index + 1] if index + 1 < len(layers) else None
            norm = norm if isinstance(norm, TemporalBatchNorm) else None
            index += 1 if norm is None else 2
            neuron = layers[index] if index < len(layers) else None
            stages.append(_stage(f"layers.{index}", name, path, layer, norm, neuron, rule, weights))
            path = []
        elif isinstance(layer, (Stateful, Network, Residual, TemporalBatchNorm, *WEIGHTS)) and not _passes(layer):
            raise ValueError(f"{rule}: {name}: expected {_names(weights)} before neurons, got {type(layer).__name__}")
        else:
            path.append(layer)
        index += 1
    if not stages:
        raise ValueError(f"{rule}: expected layers of weights and neurons, got {[type(m).__name__ for m in layers]}")
    for stage in stages[:-1]:
        if not stage.spikes:
            raise ValueError(
                f"{rule}: {stage.name}: expected its neurons to spike, got a readout before the last layer"
            )
    return stages, path


def _stage(
    place: str, name: str, path: list[nn.Module], layer: nn.Module, norm: TemporalBatchNorm | None,
    neuron: nn.Module | None, rule: str, weights: tuple[type[nn.Module], ...],
) -> Stage:  # fmt: skip
    recurrent = loop = None
    if isinstance(neuron, Recurrent):
        loop = neuron
        if neuron.delay != 1:
            raise ValueError(f"{rule}: {place}: expected spikes that return after 1 step, got delay={neuron.delay}")
        recurrent, neuron = neuron.recurrent_layer, neuron.neuron
        if not isinstance(recurrent, weights):
            raise ValueError(f"{rule}: {place}: expected to return through {_names(weights)}, got {type(recurrent).__name__}")  # fmt: skip
    if not isinstance(neuron, (Neuron, LeakyIntegrator)) or isinstance(neuron, CustomNeuron):
        raise ValueError(
            f"{rule}: {place}: expected Leaky, Synaptic, Adaptive, AdLIF, LeakyIntegrator or one of them in Recurrent "
            f"after the weights, got {'nothing' if neuron is None else type(neuron).__name__}"
        )
    trained = [key for key, _ in neuron.named_parameters()]
    if trained:
        raise ValueError(f"{rule}: {place}: expected neurons whose constants are fixed, got a trained {trained[0]}")
    if isinstance(neuron, Neuron) and neuron.spike_gradient.emit != "bits":
        raise ValueError(f"{rule}: {place}: expected emit='bits', got {neuron.spike_gradient.emit!r}")
    return Stage(name, path, layer, norm, neuron, recurrent, loop)


def _passes(layer: nn.Module) -> bool:
    """Whether a layer with state is but a mask on spikes, such as dropout."""
    return type(layer).__name__ == "SpikeDropout" or isinstance(layer, Voting)


def _names(kinds: tuple[type[nn.Module], ...]) -> str:
    return " or ".join(kind.__name__ for kind in kinds)


@dataclass
class Passage:
    """One step's way through a path: what entered, what left, and the states of its layers."""

    entered: Tensor
    left: Tensor
    states: tuple[Any, ...]

    def back(self, gradient: Tensor) -> Tensor:
        """From a gradient by what left to one by what entered."""
        if self.left is self.entered:
            return gradient
        return torch.autograd.grad(self.left, self.entered, gradient.reshape(self.left.shape), retain_graph=True)[0]


def pass_through(
    path: list[nn.Module], spikes: Tensor, states: tuple[Any, ...] | None, steps: int | None = None
) -> Passage:
    """Spikes (B, ...) on their way through pools, flattening, dropout, with the little graph that leads back.

    Given ``steps`` they are those of several steps, (steps·B, ...), and so is what the passage holds.
    """
    if not path:
        return Passage(spikes, spikes, ())
    states = (None,) * len(path) if states is None else states
    after = []
    with torch.enable_grad():
        entered = spikes.detach().requires_grad_()
        x = entered if steps is None else entered.unflatten(0, (steps, -1))
        for layer, state in zip(path, states, strict=True):
            if isinstance(layer, Stateful):
                x, state = layer.step(x, state) if steps is None else layer(x, state)
            elif steps is None:
                x = call_stateless(layer, x.unsqueeze(0), None).squeeze(0)
            else:
                x = call_stateless(layer, x, None)
            after.append(state)
        left = x if steps is None else x.flatten(0, 1)
    return Passage(entered, left, tuple(after))


@dataclass
class Synapses:
    """A layer's weights while they stand still: quantised once, and the gradients gathered by what multiplies them."""

    layer: nn.Module
    weight: Tensor = field(init=False)
    """Ŵ with its graph to the latent weights."""
    current: Callable[[Tensor], Tensor] = field(init=False)
    dweight: Tensor = field(init=False)
    dbias: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        layer = self.layer
        with torch.enable_grad():
            weight = layer.quantized_weight() if isinstance(layer, BinaryWeight) else layer.weight
        self.weight = cast("Tensor", weight)
        with torch.no_grad():
            self.current = layer.prepare() if isinstance(layer, (BinaryLinear, BinaryConv1d, BinaryConv2d)) else layer
        self.dweight = torch.zeros_like(self.weight, requires_grad=False)
        bias = layer.bias
        self.dbias = torch.zeros_like(bias, requires_grad=False) if isinstance(bias, Tensor) else None

    def gather(self, x: Tensor, delta: Tensor) -> None:
        """Add the gradient of a product x -> y by its weights, ``delta`` (B, ...) being the one by y."""
        if isinstance(self.layer, LINEAR):
            self.dweight.addmm_(delta.flatten(0, -2).T, x.flatten(0, -2))
        else:
            self.dweight += self._convolved(x, delta, self.weight.detach(), 1)

    def gather_bias(self, delta: Tensor) -> None:
        """The same by the bias."""
        if self.dbias is not None:
            axes = [
                axis for axis in range(delta.ndim) if axis != (delta.ndim - 1 if isinstance(self.layer, LINEAR) else 1)
            ]
            self.dbias += delta.sum(axes)

    def back(self, x: Tensor, delta: Tensor, weight: Tensor | None = None) -> Tensor:
        """The gradient by x, through Ŵ or another ``weight`` of its shape."""
        weight = self.weight.detach() if weight is None else weight
        if isinstance(self.layer, LINEAR):
            return delta @ weight
        return self._convolved(x, delta, weight, 0)

    def push(self) -> None:
        """Hand what was gathered on to the latent weights' and the bias's ``.grad``."""
        if self.weight.requires_grad:
            torch.autograd.backward([self.weight], [self.dweight])
        if self.dbias is not None:
            add_gradient(self.layer.bias, self.dbias)

    def _convolved(self, x: Tensor, delta: Tensor, weight: Tensor, which: int) -> Tensor:
        """A convolution's gradient by x (0) or by the weight (1)."""
        layer: Any = self.layer
        spatial = len(layer.stride)
        margins = getattr(layer, "margins", None)
        if margins is not None and any(lo != hi for lo, hi in margins):
            pads = [side for margin in reversed(margins) for side in margin]
            inner = tuple(slice(lo, lo + size) for (lo, _), size in zip(margins, x.shape[2:], strict=True))
            padded, zeros = nn.functional.pad(x, pads), (0,) * spatial
        else:
            given = layer.padding if margins is None else tuple(lo for lo, _ in margins)
            zeros = tuple(given) if not isinstance(given, str) else _same(layer, given)
            padded, inner = x, ()
        found = torch.ops.aten.convolution_backward(
            delta, padded, weight, None, layer.stride, zeros, layer.dilation, False, [0] * spatial, layer.groups,
            [which == 0, which == 1, False],
        )[which]  # fmt: skip
        return found[(..., *inner)] if which == 0 else found


def _same(layer: Any, padding: str) -> tuple[int, ...]:
    """Margins of a torch convolution whose padding is a word."""
    if padding == "valid":
        return (0,) * len(layer.stride)
    reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if any(r % 2 for r in reach):
        raise ValueError(f"{type(layer).__name__}: expected padding='same' of an odd kernel, got {layer.kernel_size}")
    return tuple(r // 2 for r in reach)


def add_gradient(parameter: Any, gradient: Tensor) -> None:
    """Add to a parameter's ``.grad``, if it is one that trains."""
    if isinstance(parameter, Tensor) and parameter.requires_grad:
        parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)
