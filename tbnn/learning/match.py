"""A scale for bare surrogates that the data choose: that of the ridge slope on the trace."""

import copy
import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tbnn.learning.ridge import RunningRidge, see
from tbnn.nn import Network, Neuron, Recurrent
from tbnn.nn.health import spiking_layers

SMALLEST = 1e-6  # a mean derivative below which no neuron is near its threshold, and the scale stays as it is


@torch.no_grad()
def match_scale(network: Network, x: Tensor, *, lam: float = 0.01, factor: float = 1.0) -> dict[str, float]:
    """Give each layer of neurons with a bare surrogate the scale at which its mean slope is that of the trace target, in place.

    A surrogate's shape says where gradient passes, its height is a matter of taste, and what serves in one network makes the
    gradient explode or vanish in another. The ridge regression of the spikes' trace on the current's (``target="trace"``)
    finds a height from the activity. Here it gives it to the surrogate: of a batch,

        scale = factor · mean(s·dx/dv) / mean(h'(v − θ))

    over steps, samples and neurons, h' the surrogate's derivative, s and x the ridge slope (of each channel) and the clipped rate of
    :mod:`tbnn.ops.lif`. Weights move, and so does the activity: call it again now and then, before each epoch say, as
    ``tbnn train --model.match_scale true`` does. It takes a forward pass by steps.

    Args:
        network: some of whose neurons have ``gradient="surrogate"``; others are left alone.
        x: one batch, as the network takes it.
        lam: λ of the regression, as of ``tbnn.nn.Leaky``.
        factor: multiplies every scale.

    Returns:
        The scale of each such layer, by its name in the network.

    Raises:
        ValueError: no such layer, or one whose neurons have no trace target (reset "subtract", decays below 1).

    >>> match_scale(network, x)
    {'layers.1': 0.13}
    """
    for name, value in (("lam", lam), ("factor", factor)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}: expected a finite number > 0, got {value}")
    layers = {
        name: layer
        for name, layer in spiking_layers(network).items()
        if neuron_of(layer).spike_gradient.gradient == "surrogate"
    }
    if not layers:
        raise ValueError("match_scale: expected a network with neurons of gradient='surrogate', got none")
    twins = {name: _twin(neuron_of(layer), name, lam) for name, layer in layers.items()}
    found: dict[str, float] = {}

    def look(name: str, layer: nn.Module, args: Any, output: Any) -> None:
        current, out = args[0], output[0]
        if isinstance(layer, Recurrent):
            back = torch.cat([torch.zeros_like(out[: layer.delay]), out[: -layer.delay]])
            current = current + layer.recurrent_layer(back)
        neuron = neuron_of(layer)
        wanted, height = _mean_slopes(twins[name], neuron, current)
        if height > SMALLEST:
            neuron.spike_gradient = replace(neuron.spike_gradient, scale=factor * wanted / height)
        found[name] = neuron.spike_gradient.scale

    hooks = [layer.register_forward_hook(partial(look, name)) for name, layer in layers.items()]
    was_training = network.training
    try:
        network.eval()(x)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return found


def neuron_of(layer: nn.Module) -> Neuron:
    """A layer's neurons, also those of a recurrent one."""
    return layer.neuron if isinstance(layer, Recurrent) else layer  # pyright: ignore[reportReturnType]


def _twin(neuron: Neuron, name: str, lam: float) -> Neuron:
    """The same neurons with a trace target."""
    twin = copy.deepcopy(neuron)
    twin.spike_gradient = replace(twin.spike_gradient, gradient="ddt", target="trace", emit="bits", lam=lam, scale=1.0)
    try:
        twin.check()
    except ValueError as error:
        raise ValueError(f"match_scale: {name}: {error}") from None
    return twin


def _mean_slopes(twin: Neuron, neuron: Neuron, current: Tensor) -> tuple[float, float]:
    """Of a current (T, B, features...): the trace target's mean slope, and the surrogate's mean derivative."""
    ridge = RunningRidge(twin, momentum=1 / (len(current) + 1)).to(current)  # plain means of all steps
    state, passed, heights = None, torch.zeros_like(current[0]), []
    for x in current:
        out, state = twin.step(x, state)
        seen = see(twin, state, out)
        ridge.observe(seen.x, seen.q)  # pyright: ignore[reportArgumentType]
        passed += seen.slope / len(current)
        heights.append(neuron.spike_gradient.surrogate.derivative(seen.u).mean())
    return float((ridge.fitted(passed) * passed).mean()), float(torch.stack(heights).mean())
