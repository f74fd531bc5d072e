"""How estimators differ inside a network: turned weights, what codes lose, how neurons fire, and controls."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from tbnn.compare.gradients import (
    ALL,
    Smoothed,
    captured,
    cosine,
    current_gradients,
    gradient_norms,
    gradient_over_time,
    readout_of,
    smoothed_gradient,
    unchanged,
    weight_gradients,
)
from tbnn.nn.fused import sees_no_current
from tbnn.nn.health import SATURATED_ABOVE, emitted_spikes, spiking_layers
from tbnn.nn.network import Network
from tbnn.nn.neuron import Neuron
from tbnn.nn.recurrent import Recurrent, prepared
from tbnn.nn.weights import BinaryWeight
from tbnn.ops.lif import Cell, Second
from tbnn.ops.lif.cell import advance, effective, trace_gain
from tbnn.ops.lif.reference import to_blocks
from tbnn.surrogate import Bare, straight_through_estimator

__all__ = [
    "CONTROLS",
    "FlipReport",
    "Flips",
    "Reconstruction",
    "Smoothed",
    "control",
    "cosine",
    "current_gradients",
    "gradient_norms",
    "gradient_over_time",
    "reconstruction_errors",
    "smoothed_gradient",
    "weight_gradients",
]

CONTROLS = ("readout", "zero", "constant")


class FlipReport(NamedTuple):
    """Shares of weights that changed their level, by layer; under "all" those of all layers."""

    epochs: dict[str, list[float]]
    """Between one call and the next."""
    ever: dict[str, float]
    """At least once."""
    oscillated: dict[str, float]
    """In two epochs or more: a bit that turned has turned back."""


class Flips:
    """Count the weights that change their level from epoch to epoch: the sign of 1-bit weights, the code of others.

    Two or three bytes a weight are kept. Of full-precision weights the sign counts, 0 where they are pruned.

    >>> flips = Flips(network)  # and once an epoch:
    >>> flips.observe()
    {'layers.0': 0.0}
    """

    def __init__(self, network: nn.Module) -> None:
        self._layers = {name: m for name, m in network.named_modules() if isinstance(m, BinaryWeight)}
        self._last = {name: _levels(layer) for name, layer in self._layers.items()}
        self._count = {name: torch.zeros_like(last, dtype=torch.uint8) for name, last in self._last.items()}
        self._epochs: dict[str, list[float]] = {name: [] for name in (*self._layers, ALL)}

    @torch.no_grad()
    def observe(self) -> dict[str, float]:
        """The share of each layer's weights that changed since the last call, the first time since the start, and of all."""
        changes: dict[str, Tensor] = {}
        for name, layer in self._layers.items():
            levels = _levels(layer)
            changes[name] = levels != self._last[name]
            self._last[name] = levels
            self._count[name].add_(changes[name]).clamp_(max=2)
        shares = _shares(changes)
        for name, share in shares.items():
            self._epochs[name].append(share)
        return shares

    def report(self) -> FlipReport:
        """All epochs so far."""
        return FlipReport(
            {name: list(shares) for name, shares in self._epochs.items()},
            _shares({name: count > 0 for name, count in self._count.items()}),
            _shares({name: count > 1 for name, count in self._count.items()}),
        )


def _levels(layer: BinaryWeight) -> Tensor:
    values = layer.codes().values
    values = values.sign() if layer.bits is None else values
    return values.to(torch.int8 if layer.bits is None or layer.bits <= 7 else torch.int16)


def _shares(which: dict[str, Tensor]) -> dict[str, float]:
    """The share of True of each tensor and, under "all", of all; of no tensors 0."""
    counts = {name: (int(where.sum()), where.numel()) for name, where in which.items()}
    counts[ALL] = sum(n for n, _ in counts.values()), sum(size for _, size in counts.values())
    return {name: n / max(size, 1) for name, (n, size) in counts.items()}


class Reconstruction(NamedTuple):
    """What a network's codes lose and how its neurons fire, by layer."""

    weights: dict[str, float]
    """‖Ŵ − W‖² / ‖W‖², W the latent and Ŵ the quantised weights."""
    spikes: dict[str, float]
    """1 − R² of the ridge regression of the neurons' target on the spikes: 0 is exact, 1 says no more than the mean does. NaN
    of a target that is constant."""
    rates: dict[str, float]
    """Spikes per neuron and step."""
    silent: dict[str, float]
    """The share of neurons that never spike."""
    saturated: dict[str, float]
    """The share of neurons that spike in more than 90 % of the steps."""


@torch.no_grad()
def reconstruction_errors(network: nn.Module, x: Tensor, mask: Tensor | None = None) -> Reconstruction:
    """What weights and spikes lose against what they are noisy copies of, on a batch, in evaluation.

    Each spiking layer has its own target and blocks, those of its estimator: the soft spike f(u) and the spike, or the input's
    trace as a rate and the spikes' (target="trace"); a neuron with a bare surrogate is measured by its surrogate's soft spike, if it has one.
    A recurrent layer's blocks are steps. Residuals and variances are summed over the blocks.

    Args:
        network: ``network(x) -> (y, state)``, its weights not folded with a norm.
        x: its input, (T, B, features...).
        mask: bool (T, B), as the network takes it: what is beyond does not count.

    Source: arXiv 2409.09245 for the regression.
    """
    weights = {}
    for name, layer in network.named_modules():
        if isinstance(layer, BinaryWeight):
            latent = layer.weight.detach()
            weights[name] = ((layer.quantized_weight() - latent).square().sum() / latent.square().sum()).item()
    found = Reconstruction(weights, {}, {}, {}, {})
    with unchanged(network), captured(network) as seen:
        readout_of(network.eval(), x, mask)
        for name, layer in spiking_layers(network).items():
            if name not in seen:
                continue
            current, out = seen[name]
            alive = torch.ones_like(out) if mask is None else _spread(mask, out)
            spikes = emitted_spikes(layer, out).to(out) * alive
            found.spikes[name] = _unexplained(layer, current, out, spikes, alive)
            rate = spikes.flatten(2).sum((0, 1)) / alive.flatten(2).sum((0, 1))
            found.rates[name] = rate.mean().item()
            found.silent[name] = (rate == 0).double().mean().item()
            found.saturated[name] = (rate > SATURATED_ABOVE).double().mean().item()
    return found


def _spread(mask: Tensor, like: Tensor) -> Tensor:
    return mask.reshape(*mask.shape, *[1] * (like.ndim - 2)).expand_as(like).to(like)


def _unexplained(layer: Neuron | Recurrent, current: Tensor, out: Tensor, spikes: Tensor, alive: Tensor) -> float:
    """1 − R² over all blocks of a layer; NaN for a surrogate without a soft spike."""
    neuron, gradient = (layer, layer.spike_gradient) if isinstance(layer, Neuron) else (layer.neuron, None)
    if not neuron.spike_gradient.uses_trace and isinstance(neuron.spike_gradient.surrogate, Bare):
        return math.nan
    if gradient is None:
        current, gradient = _with_feedback(cast("Recurrent", layer), current, out), neuron.step_gradient
    channels = current.shape[2] if current.ndim > 2 else 1
    target, value = target_and_copy(neuron, current, spikes)
    x, q, w = (to_blocks(t.flatten(2).double(), gradient, channels) for t in (target, value, alive))
    count = w.sum(1, keepdim=True).clamp(min=1)

    def centred(a: Tensor) -> Tensor:
        return w * (a - (w * a).sum(1, keepdim=True) / count)

    x, q = centred(x), centred(q)
    slope = (x * q).sum(1, keepdim=True) / (q.square().sum(1, keepdim=True) + gradient.lam * count)
    variance = x.square().sum().item()
    return (x - slope * q).square().sum().item() / variance if variance > 0 else math.nan


def _with_feedback(layer: Recurrent, current: Tensor, out: Tensor) -> Tensor:
    """The whole current of a recurrent layer's neurons."""
    past = torch.cat([out.new_zeros(layer.delay, *out.shape[1:]), out])[: len(out)]
    feedback = prepared(layer.recurrent_layer)
    return current + torch.stack([feedback(step) for step in past.unbind(0)])


def target_and_copy(neuron: Neuron, current: Tensor, spikes: Tensor) -> tuple[Tensor, Tensor]:
    """What a neuron's spikes are to copy, and the copy: (f(u), q), or the traces of the input and of the spikes, as rates.

    Args:
        neuron: as it is, learned coefficients included.
        current: (T, B, features...).
        spikes: of the same shape, 0 or 1: those that the neuron emits on it from rest.
    """
    features = current.shape[2:]

    def spread(value: Tensor) -> Tensor:
        return value.detach().to(current).expand(features).reshape(-1)

    beta, second = neuron.coefficients()
    threshold = spread(neuron.effective_threshold(features))
    cell = Cell(spread(beta), threshold, None if second is None else Second(*map(spread, second)))
    fired = v = trace = current.new_zeros(current.shape[1], features.numel())
    w = w_trace = None if second is None else v
    nothing, gradient = v, neuron.spike_gradient
    levels, traces, held = [], [], []
    for current_t, spikes_t in zip(current.flatten(2).unbind(0), spikes.flatten(2).unbind(0), strict=True):
        v, w = advance(v, w, fired, current_t, cell, neuron.reset_mechanism)
        levels.append(effective(v, w, cell))
        fired = spikes_t
        if gradient.uses_trace:
            trace, w_trace = advance(trace, w_trace, nothing, current_t, cell, "none")
            traces.append(effective(trace, w_trace, cell))
            # The states are linear: what all spikes up to now take away is what is missing a step later.
            whole = effective(*advance(trace, w_trace, nothing, nothing, cell, "none"), cell)
            held.append(whole - effective(*advance(v, w, fired, nothing, cell, "subtract"), cell))
    if not gradient.uses_trace:
        return gradient.surrogate.soft(torch.stack(levels) - threshold).reshape(current.shape), spikes
    gain, highest = trace_gain(cell), 1 / (1 + neuron.refractory)
    rate = (gain * torch.stack(traces)).clamp(gradient.floor, highest)
    return rate.reshape(current.shape), (gain * torch.stack(held)).reshape(current.shape)


def control(network: Network, kind: str) -> Network:
    """Prepare a network, in place, as a control of what its hidden layers learn; returns it.

    ==========  ======================================================================================================
    "readout"   only what comes after the last layer that spikes trains; all else keeps its values
    "zero"      the surrogate derivative is 0: no gradient passes a spike. What has a path around spikes still trains,
                weights of residual currents say; in a plain sequence of layers it equals "readout"
    "constant"  the surrogate derivative is 1 everywhere, whatever the membrane
    ==========  ======================================================================================================

    Forward passes do not change. A network that learns nothing at all is one with a learning rate of 0. "zero" works by hooks,
    which neither a saved configuration nor a state dict keeps: apply it to the network that trains.

    Raises:
        ValueError: an unknown kind; nothing to train after the last layer that spikes ("readout") or no layer there ("zero");
            neurons that emit reconstructions, whose forward pass depends on their estimator ("constant").

    Source: Zenke & Vogels, "The remarkable robustness of surrogate gradient learning for instilling complex function in
    spiking neural networks", Neural Computation 33, 2021.
    """
    if kind not in CONTROLS:
        raise ValueError(f"control: expected one of {', '.join(map(repr, CONTROLS))}, got {kind!r}")
    if kind == "constant":
        return _with_constant_slope(network)
    layers = list(network.layers)
    last = max((i for i, layer in enumerate(layers) if spiking_layers(layer)), default=-1)
    trains = any(p.requires_grad for layer in layers[last + 1 :] for p in layer.parameters())
    if not (trains if kind == "readout" else last < len(layers) - 1):
        raise ValueError(f"control: {kind!r} needs a readout that trains after the last layer that spikes, got none")
    if kind == "readout":
        for layer in layers[: last + 1]:
            layer.requires_grad_(False)
        return network
    for layer in spiking_layers(network).values():
        layer.register_forward_hook(cast("Callable[..., Any]", sees_no_current(_without_gradient, nor_spikes=True)))
    return network


def _without_gradient(_: nn.Module, __: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    out, state = output
    return out.detach(), state


def _with_constant_slope(network: Network) -> Network:
    changes: dict[str, Any] = {"gradient": "surrogate", "surrogate": straight_through_estimator(), "scale": 1.0}
    neurons = {name: m for name, m in network.named_modules() if isinstance(m, Neuron)}
    for name, neuron in neurons.items():
        if neuron.spike_gradient.emit != "bits":
            raise ValueError(f"{name}: control 'constant' needs emit='bits', got {neuron.spike_gradient.emit!r}")
    for neuron in neurons.values():
        neuron.spike_gradient = dataclasses.replace(neuron.spike_gradient, **changes)
        neuron.__dict__["made_with"].update(changes)
    return network
