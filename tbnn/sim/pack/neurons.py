"""Spiking neurons, recurrent layers and readouts become packed ones."""

import math

import torch
from torch import Tensor

from tbnn.nn import BinaryLinear, LeakyIntegrator, Neuron, Recurrent
from tbnn.ops.lif import Second
from tbnn.sim.layers import IntegratorSpec, LeakySpec, PackedIntegrator, PackedLeaky, PackedLinear
from tbnn.sim.pack.weights import BITS, Affine, Shape, pack_linear, shared


def pack_neuron(
    name: str, neuron: Neuron, shape: Shape, feedback: PackedLinear | None = None, rest_bias: Tensor | None = None
) -> PackedLeaky:
    """Neurons of one equation, see :func:`tbnn.ops.lif.lif`: leaky, synaptic, adaptive."""
    size = math.prod(shape)
    cell = neuron.coefficients()
    beta = shared(name, "beta", cell.beta, shape)
    threshold = shared(name, "threshold", neuron.effective_threshold(torch.Size(shape)), shape)
    second = None if cell.second is None else _second(name, cell.second, shape)
    winners = 0 if neuron.winners is None else neuron.winners.of(size)
    spec = LeakySpec(
        name, size, neuron.reset_mechanism, beta.numel(), threshold.numel(),
        None if feedback is None else feedback.spec, rest_bias is not None,
        neuron.refractory, winners, 0 if second is None else second.shape[1],
    )  # fmt: skip
    return PackedLeaky(spec, beta, threshold, feedback, rest_bias, second)


def _second(name: str, second: Second, shape: Shape) -> Tensor:
    """The coefficients of a second state in the order of their names, (7, 1) or (7, features)."""
    rows = [shared(name, what, value, shape) for what, value in second._asdict().items()]
    width = max(row.numel() for row in rows)
    return torch.stack([row.expand(width) for row in rows]).contiguous()


def pack_recurrent(name: str, layer: Recurrent, shape: Shape) -> PackedLeaky:
    """Neurons whose spikes return through a layer of weights one step later."""
    neuron, inner = layer.neuron, layer.recurrent_layer
    if type(inner) is not BinaryLinear or layer.delay != 1 or len(shape) != 1:
        got = f"Recurrent({neuron}, {inner}) of delay {layer.delay} on {shape}"
        raise ValueError(f"{name}: expected Recurrent(neuron, BinaryLinear) of delay 1 on flat features, got {got}")
    emitted = emitted_by(name, neuron)
    feedback = pack_linear(f"{name}.recurrent_layer", inner, emitted)
    rest_bias = None
    if emitted[1] != 0:
        rest_bias = torch.zeros(inner.out_features) if inner.bias is None else inner.bias.detach().cpu().clone()
    return pack_neuron(name, neuron, shape, feedback, rest_bias)


def pack_integrator(name: str, layer: LeakyIntegrator, shape: Shape) -> PackedIntegrator:
    """A readout."""
    beta = shared(name, "beta", layer.beta.clamp(0, 1), shape)
    return PackedIntegrator(IntegratorSpec(name, math.prod(shape), beta.numel()), beta)


def emitted_by(name: str, neuron: Neuron) -> Affine:
    """The constants (a, b) of what leaves a neuron in evaluation."""
    if neuron.spike_gradient.emit == "bits":
        return BITS
    a, b = neuron.emitted_affine()
    if a.numel() > 1:
        raise ValueError(
            f"{name}: emit='denoised' with {a.numel()} constants, one a channel, does not fold into the next layer's "
            "popcounts: expected one for the layer (per_channel=False or stats='step')"
        )
    return a.item(), b.item()
