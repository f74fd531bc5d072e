"""Start every layer alive: scale each layer's weights to a firing rate on a first batch of data."""

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tbnn.nn.health import firing_rate
from tbnn.nn.leaky import LeakyIntegrator
from tbnn.nn.network import Network
from tbnn.nn.neuron import Neuron
from tbnn.nn.recurrent import Recurrent
from tbnn.nn.stateful import Stateful, call_stateless
from tbnn.nn.wired import feedback_gain as gain_of_wired

logger = logging.getLogger("tbnn")

LOWEST_GAIN, HIGHEST_GAIN = 1e-4, 1e4
BISECTIONS = 16


@torch.no_grad()
def calibrate(
    network: Network, x: Tensor, *, rate: float = 0.1, readout_std: float = 1.0, feedback_gain: float = 0.5
) -> dict[str, float]:
    """Scale the weights in front of each spiking layer until it fires at ``rate`` on ``x``, layer by layer, in place.

    Whatever the density of the input, the form of the weights or the time constants, no layer starts silent or
    saturated. A readout's weights are scaled until its mean over time has the standard deviation ``readout_std``.
    Scaling latent weights scales their reconstruction alike. A norm before a neuron takes its running statistics from the
    batch, and its own weight is scaled. Where few may win, ``rate`` is that of the neurons that would fire if all might. The layers of residual blocks are scaled inside them. The feedback of a recurrent layer is set to
    mean |w|·√N = ``feedback_gain`` first: above 1 a random recurrent layer amplifies its own activity, and the gradient.

    Args:
        network: layers of weights (binary or float), each followed by a neuron or a readout.
        x: one batch, as the network takes it.
        rate: spikes per neuron and step to start from, in (0, 0.5].
        readout_std, feedback_gain: see above; torch's default weights have a feedback gain of 0.5.

    Returns:
        The firing rate reached in each spiking layer, by its name in the network.

    Raises:
        ValueError: a rate outside (0, 0.5], a ``readout_std`` or ``feedback_gain`` that is not finite and positive.
    """
    _check(rate, readout_std=readout_std, feedback_gain=feedback_gain)
    was_training = network.training
    try:
        reached = _calibrate(network.eval(), network.unpacked(x), rate, readout_std, feedback_gain)
    finally:
        network.train(was_training)
    layers = dict(network.named_modules())
    for name, got in reached.items():
        neuron = getattr(layers[name], "neuron", layers[name])
        if neuron.winners is None and abs(got - rate) > rate / 2:
            logger.warning(
                "calibrate: %s fires at %.2g, not at %.2g: no scale of its weights gives that rate", name, got, rate
            )
    return reached


def _check(rate: float, **positive: float) -> None:
    for name, value in positive.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}: expected a finite number > 0, got {value}")
    if not 0 < rate <= 0.5:
        raise ValueError(f"rate: expected a number in (0, 0.5], got {rate}")


def _calibrate(
    network: Network, x: Tensor, rate: float, readout_std: float, feedback_gain: float, prefix: str = ""
) -> dict[str, float]:
    """Layer by layer: find the gain, scale the weights, run on; the rates reached."""
    reached: dict[str, float] = {}
    between: list[nn.Module]
    weighted: nn.Module | None = None  # the layer whose weights drive the next neuron
    source, between = x, []  # what enters that layer, and the layers from there to the neuron
    for name, layer in network.layers.named_children():
        path = f"{prefix}layers.{name}"
        if isinstance(layer, (Neuron, Recurrent)):
            if isinstance(layer, Recurrent):
                _set_feedback(layer.recurrent_layer, feedback_gain)
            if weighted is not None:
                gain = _gain_for_rate(layer, x, rate)
                _scale(weighted, gain)
                x = _through(between, source)
            x = layer(x)[0]
            reached[path] = firing_rate(layer, x)
        elif isinstance(layer, LeakyIntegrator):
            std = layer(x)[0].mean(0).std().item()
            if weighted is not None and std > 0:
                _scale(weighted, readout_std / std)
                x = _through(between, source)
            x = layer(x)[0]
        else:
            for part in ("body", "shortcut"):  # of a residual block
                inner = getattr(layer, part, None)
                if isinstance(inner, Network):
                    reached |= _calibrate(inner, x, rate, readout_std, feedback_gain, f"{path}.{part}.")
            if isinstance(getattr(layer, "weight", None), Tensor):
                weighted, source, between = layer, x, []
            between.append(layer)
            x = _call(layer, x)
            continue
        weighted = None
    return reached


def _through(layers: list[nn.Module], x: Tensor) -> Tensor:
    """Run layers in order."""
    for layer in layers:
        x = _call(layer, x)
    return x


def _call(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer on a sequence from rest; a norm takes its running statistics from it."""
    if isinstance(layer, Stateful):
        return layer(x)[0]
    momentum = getattr(layer, "momentum", None)
    if not (hasattr(layer, "running_mean") and isinstance(momentum, float)):
        return call_stateless(layer, x, None)
    setattr(layer, "momentum", 1.0)  # noqa: B010
    try:
        call_stateless(layer.train(), x, None)
    finally:
        setattr(layer, "momentum", momentum)  # noqa: B010
    return call_stateless(layer.eval(), x, None)


def _scale(layer: nn.Module, gain: float) -> None:
    """Multiply a layer's weight and bias by ``gain``. Raises ``ValueError`` for weights frozen at their codes."""
    if getattr(layer, "frozen_values", None) is not None:
        raise ValueError(f"calibrate: expected weights that can be scaled, got frozen ones: {layer}")
    for name in ("weight", "bias"):
        parameter = getattr(layer, name, None)
        if isinstance(parameter, Tensor):
            parameter.mul_(gain)


def _set_feedback(layer: nn.Module, gain: float) -> None:
    """Scale feedback weights (N, N) to mean |w|·√N = ``gain``, of a wiring over the N synapses that a row has."""
    weight, mask = getattr(layer, "weight", None), getattr(layer, "mask", None)
    if isinstance(weight, Tensor):
        now = weight.abs().mean().item() * weight.shape[1] ** 0.5 if mask is None else gain_of_wired(weight, mask)
        if now > 0:
            _scale(layer, gain / now)


def _gain_for_rate(layer: Neuron | Recurrent, current: Tensor, rate: float) -> float:
    """The factor on ``current`` at which the layer fires at ``rate``: bisection on a logarithmic scale."""

    neuron = layer.neuron if isinstance(layer, Recurrent) else layer
    winners, neuron.winners = neuron.winners, None  # they are a choice among neurons that would fire

    def fires(gain: float) -> float:
        return firing_rate(layer, layer(current * gain)[0])

    try:
        return _bisect(fires, rate)
    finally:
        neuron.winners = winners


def _bisect(rate_at: Callable[[float], float], rate: float) -> float:
    """A gain whose rate is ``rate``, for a rate that grows with the gain where it is below one half."""
    low, high = LOWEST_GAIN, 1.0
    while rate_at(high) < rate and high < HIGHEST_GAIN:
        low, high = high, high * 4
    for _ in range(BISECTIONS):
        middle = (low * high) ** 0.5
        if rate_at(middle) < rate:
            low = middle
        else:
            high = middle
    return high
