"""From a trained network to packed bits. The only file of the simulator that knows :mod:`tbnn.nn`."""

from typing import Any

import torch
from torch import Tensor, nn

from tbnn._version import __version__
from tbnn.bits import WORD_BITS, pack_bits
from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network, Neuron, Recurrent
from tbnn.nn.dropout import SpikeDropout
from tbnn.nn.fold import NORMS, fold_batch_norms
from tbnn.nn.pool import Flatten
from tbnn.sim.layers import (
    IntegratorSpec,
    LeakySpec,
    LinearSpec,
    PackedIntegrator,
    PackedLayer,
    PackedLeaky,
    PackedLinear,
)
from tbnn.sim.network import PackedNetwork

PACKABLE = (
    "BinaryLinear of one bit without sparsity, batch norm right after it, Leaky without refractory steps or winners, "
    "LeakyIntegrator, Recurrent(Leaky, BinaryLinear) of delay 1, dropout, Identity, Flatten(2)"
)

Affine = tuple[float, float]
"""What leaves a neuron is a·bit + b."""

BITS: Affine = (1.0, 0.0)


@torch.no_grad()
def pack(model: Network, *, provenance: dict[str, Any] | None = None) -> PackedNetwork:
    """Pack a network as it is in evaluation: one bit a weight, a float32 scale and offset a block.

    Layers are binary layer, neuron, binary layer, neuron, …; a :class:`LeakyIntegrator` comes last. Dropout vanishes, a
    batch norm folds into the scales, offsets and bias of the binary layer before it.
    The constants of a neuron that emits denoised values, a·q + b, fold into the next layer's scale, offset and bias.

    Args:
        model: float32, on any device; a float64 model would have to be rounded, which is for the caller to do
            (``model.float()``).
        provenance: what to remember about where the network comes from; the version of tbnn is added.

    Raises:
        ValueError: a layer that does not pack, named; a block that is no multiple of the word size; denoised values
            with constants per channel; another dtype than float32; non-finite weights; layers out of order.

    >>> packed = pack(Network([BinaryLinear(8, 16), Leaky(0.9), BinaryLinear(16, 4), LeakyIntegrator(0.9)]))
    """
    if not isinstance(model, Network):
        raise ValueError(f"pack: expected a tbnn.nn.Network, got {type(model).__name__}")
    if any(isinstance(module, NORMS) for module in model.modules()):
        model = fold_batch_norms(model)
    layers: list[PackedLayer] = []
    size, emitted = 0, BITS
    for index, layer in enumerate(model.layers):
        name = f"layers.{index}"
        _check_dtype(name, layer)
        if _passes_through(layer):
            continue
        if not layers and type(layer) in (Leaky, LeakyIntegrator, Recurrent):
            raise ValueError(f"{name}: expected a BinaryLinear first, to take the input's bits, got {_describe(layer)}")
        if type(layer) is BinaryLinear:
            layers.append(_linear(name, layer, emitted))
            size = layer.out_features
        elif type(layer) is Leaky:
            emitted = _emitted(name, layer)
            layers.append(_leaky(name, layer, size))
        elif type(layer) is Recurrent:
            packed = _recurrent(name, layer, size)
            emitted = _emitted(name, layer.neuron)
            layers.append(packed)
        elif type(layer) is LeakyIntegrator:
            beta = _shared(name, "beta", layer.beta.clamp(0, 1), size)
            layers.append(PackedIntegrator(IntegratorSpec(name, size, beta.numel()), beta))
        else:
            raise ValueError(f"{name}: {_describe(layer)} does not pack; what packs: {PACKABLE}")
    if not layers:
        raise ValueError(f"pack: expected a layer that packs ({PACKABLE}), got none")
    first = layers[0].spec
    in_features = first.in_features if isinstance(first, LinearSpec) else 0
    return PackedNetwork(tuple(layers), in_features, {"tbnn": __version__, **(provenance or {})})


def _passes_through(layer: nn.Module) -> bool:
    """Whether a layer does nothing in evaluation to features that are flat anyway."""
    if isinstance(layer, nn.Flatten):
        return (layer.start_dim, layer.end_dim) == (2, -1)
    return isinstance(layer, (nn.Dropout, nn.Identity, SpikeDropout, Flatten))


def _describe(layer: nn.Module) -> str:
    return repr(layer).splitlines()[0].rstrip("(") + (" (float weights)" if isinstance(layer, nn.Linear) else "")


def _check_dtype(name: str, layer: nn.Module) -> None:
    for key, value in (*layer.named_parameters(), *layer.named_buffers()):
        if value.is_floating_point() and value.dtype != torch.float32:
            raise ValueError(f"{name}.{key}: expected torch.float32 (model.float() rounds to it), got {value.dtype}")


def _linear(name: str, layer: BinaryLinear, emitted: Affine) -> PackedLinear:
    """A binary layer whose inputs are a·bit + b: Ŵ(a·q + b) = (a·Ŵ)·q + b·Ŵ·1."""
    if layer.bits != 1 or layer.sparsity != 0:
        raise ValueError(f"{name}: expected bits=1 and sparsity=0, got {layer}")
    block = layer.in_features if layer.block is None else min(layer.block, layer.in_features)
    if block != layer.in_features and block % WORD_BITS:
        raise ValueError(f"{name}: block: a block that packs is a multiple of {WORD_BITS}, got {layer.block}")
    sign, scale, offset = (t.cpu() for t in layer.codes())
    bias = None if layer.bias is None else layer.bias.detach().cpu().clone()
    a, b = emitted
    if b != 0:
        signs_in_block = torch.stack([part.double().sum(1) for part in sign.split(block, 1)], 1)
        sizes = torch.tensor([part.shape[1] for part in sign.split(block, 1)], dtype=torch.float64)
        constant = b * (signs_in_block * scale.double() + sizes * offset.double()).sum(1)
        bias = (constant if bias is None else constant + bias.double()).float()
    if a != 1:
        scale, offset = (a * scale.double()).float(), (a * offset.double()).float()
    spec = LinearSpec(name, layer.in_features, layer.out_features, block, layer.form == "affine", bias is not None)
    return PackedLinear(
        spec, pack_bits(sign > 0), scale.contiguous(), offset.contiguous() if spec.offset else None, bias
    )


def _emitted(name: str, neuron: Neuron) -> Affine:
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


def _leaky(
    name: str, neuron: Leaky, size: int, feedback: PackedLinear | None = None, rest_bias: Tensor | None = None
) -> PackedLeaky:
    if neuron.refractory or neuron.winners is not None:
        raise ValueError(f"{name}: {_describe(neuron)} does not pack; what packs: {PACKABLE}")
    beta = neuron.coefficients().beta
    theta = neuron.effective_threshold(torch.Size((size,)))
    beta, threshold = _shared(name, "beta", beta, size), _shared(name, "threshold", theta, size)
    spec = LeakySpec(
        name, size, neuron.reset_mechanism, beta.numel(), threshold.numel(),
        None if feedback is None else feedback.spec, rest_bias is not None,
    )  # fmt: skip
    return PackedLeaky(spec, beta, threshold, feedback, rest_bias)


def _recurrent(name: str, layer: Recurrent, size: int) -> PackedLeaky:
    neuron, inner = layer.neuron, layer.recurrent_layer
    if type(neuron) is not Leaky or type(inner) is not BinaryLinear or layer.delay != 1:
        got = f"Recurrent({_describe(neuron)}, {_describe(inner)})"
        raise ValueError(
            f"{name}: expected Recurrent(Leaky, BinaryLinear) of delay 1, got {got}; what packs: {PACKABLE}"
        )
    emitted = _emitted(name, neuron)
    feedback = _linear(f"{name}.recurrent_layer", inner, emitted)
    rest_bias = None
    if emitted[1] != 0:
        rest_bias = torch.zeros(inner.out_features) if inner.bias is None else inner.bias.detach().cpu().clone()
    return _leaky(name, neuron, size, feedback, rest_bias)


def _shared(name: str, what: str, value: Tensor, size: int) -> Tensor:
    """A neuron's parameter as (1,) or (size,)."""
    flat = value.detach().cpu().reshape(-1).clone()
    if flat.numel() not in (1, size) or (value.ndim > 1 and flat.numel() > 1):
        raise ValueError(f"{name}: {what}: expected one value or {size}, got shape {tuple(value.shape)}")
    return flat
