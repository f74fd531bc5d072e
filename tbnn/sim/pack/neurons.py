"""Spiking neurons, recurrent layers and readouts become packed ones."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from tbnn.nn import BinaryConv1d, BinaryConv2d, BinaryLinear, CustomNeuron, LeakyIntegrator, Neuron, Recurrent
from tbnn.ops.lif import Second
from tbnn.sim.layers import (
    IntegratorSpec,
    LeakySpec,
    PackedConv,
    PackedIntegrator,
    PackedLeaky,
    PackedLinear,
    PackedSparse,
)
from tbnn.sim.pack.signal import Shape, Signal
from tbnn.sim.pack.unpacked import RestingRecurrent
from tbnn.sim.pack.weights import pack_conv, pack_linear, shared

RUN = ("forward", "step", "run", "_lif", "effective_threshold", "emitted_affine")
"""What a subclass of Neuron must leave as it is for its ``coefficients`` to be all that it does."""


def is_packable(layer: nn.Module) -> bool:
    """Whether it is a neuron of the library's one equation: a subclass may have other coefficients, nothing else."""
    return isinstance(layer, Neuron) and all(getattr(type(layer), m, None) is getattr(Neuron, m, None) for m in RUN)


def refuse_custom(name: str, layer: nn.Module) -> None:
    """Raise ``ValueError`` for a neuron with steps of its own."""
    if isinstance(layer, CustomNeuron):
        raise ValueError(
            f"{name}: {type(layer).__name__} does not pack: the Python of a CustomNeuron's steps cannot be written to a file "
            "of bits; expected Leaky, Synaptic, Adaptive, AdLIF, or a Neuron that overrides only coefficients(), which "
            "holds any neuron of two states that is linear between spikes"
        )


def pack_neuron(
    name: str,
    neuron: Neuron,
    shape: Shape,
    feedback: PackedLinear | PackedSparse | PackedConv | None = None,
    rest_bias: Tensor | None = None,
    delay: int = 1,
) -> PackedLeaky:
    """Neurons of one equation, see :func:`tbnn.ops.lif.lif`: leaky, synaptic, adaptive."""
    size = torch.Size(shape).numel()
    cell = neuron.coefficients()
    beta = shared(name, "beta", cell.beta, shape)
    threshold = shared(name, "threshold", neuron.effective_threshold(torch.Size(shape)), shape)
    second = None if cell.second is None else _second(name, cell.second, shape)
    winners = 0 if neuron.winners is None else neuron.winners.of(size)
    spec = LeakySpec(
        name, size, neuron.reset_mechanism, beta.numel(), threshold.numel(),
        None if feedback is None else feedback.spec, rest_bias is not None,
        neuron.refractory, winners, 0 if second is None else second.shape[1], delay,
    )  # fmt: skip
    return PackedLeaky(spec, beta, threshold, feedback, rest_bias, second)


def _second(name: str, second: Second, shape: Shape) -> Tensor:
    """The coefficients of a second state in the order of their names, (7, 1) or (7, features)."""
    rows = [shared(name, what, value, shape) for what, value in second._asdict().items()]
    width = max(row.numel() for row in rows)
    return torch.stack([row.expand(width) for row in rows]).contiguous()


def pack_recurrent(name: str, layer: Recurrent, shape: Shape) -> PackedLeaky:
    """Neurons whose spikes return through a layer of weights, or a convolution, some steps later."""
    neuron, inner = layer.neuron, layer.recurrent_layer
    linear = type(inner) is BinaryLinear and len(shape) == 1
    refuse_custom(name, neuron)
    if not is_packable(neuron) or not (linear or type(inner) in (BinaryConv1d, BinaryConv2d)):
        expected = "Recurrent(neuron, BinaryLinear) on flat features or Recurrent(neuron, BinaryConv2d) on frames"
        raise ValueError(f"{name}: expected {expected}, got Recurrent({neuron}, {inner}) on {shape}")
    emitted = emitted_by(name, neuron, shape)
    if emitted.b != 0 and not (linear and layer.delay == 1):
        raise ValueError(
            f"{name}: emit='denoised' does not fold into a feedback that is a convolution or takes {layer.delay} steps: "
            "expected emit='bits'"
        )
    inner_name = f"{name}.recurrent_layer"
    if linear:
        feedback = pack_linear(inner_name, inner, emitted)  # pyright: ignore[reportArgumentType]
    else:
        feedback = pack_conv(inner_name, inner, emitted)  # pyright: ignore[reportArgumentType]
        got = feedback.spec.out_shape
        if (got if len(shape) == 3 else (got[0], got[2])) != shape:
            raise ValueError(f"{name}: expected a convolution that keeps the frames {shape}, got {got}")
    rest_bias = layer.rest_bias.detach().cpu().clone() if isinstance(layer, RestingRecurrent) else None
    if emitted.b != 0:
        rest_bias = torch.zeros(shape) if inner.bias is None else inner.bias.detach().cpu().clone()  # pyright: ignore[reportArgumentType, reportCallIssue]
    return pack_neuron(name, neuron, shape, feedback, rest_bias, layer.delay)


def pack_integrator(name: str, layer: LeakyIntegrator, shape: Shape) -> PackedIntegrator:
    """A readout."""
    beta = shared(name, "beta", layer.beta.clamp(0, 1), shape)
    return PackedIntegrator(IntegratorSpec(name, torch.Size(shape).numel(), beta.numel()), beta)


def emitted_by(name: str, neuron: Neuron, shape: Shape) -> Signal:
    """What leaves a neuron in evaluation."""
    signal = Signal(shape)
    if neuron.spike_gradient.emit == "bits":
        return signal
    a, b = neuron.emitted_affine()
    if a.numel() > 1:
        raise ValueError(
            f"{name}: emit='denoised' with {a.numel()} constants, one a channel, does not fold into the next layer's "
            "popcounts: expected one for the layer (per_channel=False or stats='step')"
        )
    return replace(signal, a=a.item(), b=b.item())
