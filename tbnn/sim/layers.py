"""The layers of a packed network: what is stored, in which shapes, checked once when a layer is made.

A *spec* is what a file's header says about a layer, and knows the dtype and shape of every tensor that belongs to it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tbnn.bits import WORD_BITS, has_stray_bits, words_for
from tbnn.ops.lif.cpu import RESETS

Shapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Dtype and shape of each tensor, by its name inside the layer."""


@dataclass(frozen=True)
class LinearSpec:
    """A binary linear layer's name and sizes.

    Attributes:
        block: how many inputs share a scale: ``in_features``, or a multiple of the word size.
        offset, bias: whether there are any; the linear form of a weight has no offset.

    Raises ``ValueError`` for sizes below 1 and any other block.
    """

    kind: ClassVar[str] = "linear"
    name: str
    in_features: int
    out_features: int
    block: int
    offset: bool
    bias: bool

    def __post_init__(self) -> None:
        _check_sizes(self.name, in_features=self.in_features, out_features=self.out_features, block=self.block)
        if self.block != self.in_features and (self.block > self.in_features or self.block % WORD_BITS):
            raise ValueError(
                f"{self.name}: a packed block is a multiple of {WORD_BITS} inputs below in_features, or all "
                f"{self.in_features} inputs, got {self.block}"
            )

    @property
    def starts(self) -> range:
        """The first input of each block."""
        return range(0, self.in_features, self.block)

    def shapes(self) -> Shapes:
        """Every tensor of the layer."""
        blocks = (torch.float32, (self.out_features, len(self.starts)))
        shapes: Shapes = {"signs": (torch.int32, (self.out_features, words_for(self.in_features))), "scale": blocks}
        if self.offset:
            shapes["offset"] = blocks
        if self.bias:
            shapes["bias"] = (torch.float32, (self.out_features,))
        return shapes


@dataclass(frozen=True)
class LeakySpec:
    """A spiking layer's name, size and reset.

    Attributes:
        reset: "subtract", "zero" or "none".
        beta_size, threshold_size: 1 (shared) or ``features``.
        feedback: the layer through which spikes return one step later, or None.
        rest_bias: whether the feedback has another bias at the first step (what left the neuron before it is 0, not b).

    Raises ``ValueError`` for sizes below 1, an unknown reset, and a feedback of another size.
    """

    kind: ClassVar[str] = "leaky"
    name: str
    features: int
    reset: str
    beta_size: int
    threshold_size: int
    feedback: LinearSpec | None
    rest_bias: bool

    def __post_init__(self) -> None:
        _check_sizes(self.name, features=self.features)
        _check_shared(self.name, self.features, beta=self.beta_size, threshold=self.threshold_size)
        if self.reset not in RESETS:
            raise ValueError(f"{self.name}: reset: expected one of {', '.join(map(repr, RESETS))}, got {self.reset!r}")
        if self.feedback is not None:
            sizes = self.feedback.in_features, self.feedback.out_features
            if sizes != (self.features, self.features):
                raise ValueError(f"{self.name}: expected a feedback {self.features} -> {self.features}, got {sizes}")
        elif self.rest_bias:
            raise ValueError(f"{self.name}: a rest_bias needs a feedback, got none")

    def shapes(self) -> Shapes:
        """Every tensor of the layer, the feedback's apart."""
        shapes: Shapes = {
            "beta": (torch.float32, (self.beta_size,)), "threshold": (torch.float32, (self.threshold_size,)),
        }  # fmt: skip
        return shapes | ({"rest_bias": (torch.float32, (self.features,))} if self.rest_bias else {})


@dataclass(frozen=True)
class IntegratorSpec:
    """A readout's name and size; ``beta_size`` is 1 (shared) or ``features``. Raises ``ValueError`` for other sizes."""

    kind: ClassVar[str] = "integrator"
    name: str
    features: int
    beta_size: int

    def __post_init__(self) -> None:
        _check_sizes(self.name, features=self.features)
        _check_shared(self.name, self.features, beta=self.beta_size)

    def shapes(self) -> Shapes:
        """Every tensor of the layer."""
        return {"beta": (torch.float32, (self.beta_size,))}


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """``y = Σ_k (scale_k·p_k + offset_k·c_k) + bias``: p_k the popcount product of block k, c_k its number of spikes.

    Attributes:
        signs: int32 words (out_features, ceil(in_features/32)); bit 1 is a weight of +1.
        scale: float32 (out_features, blocks).
        offset: float32 (out_features, blocks), or None for 0.
        bias: float32 (out_features,), or None for 0.

    Raises ``ValueError`` where a tensor disagrees with the spec, holds a stray padding bit or is not finite.
    """

    spec: LinearSpec
    signs: Tensor
    scale: Tensor
    offset: Tensor | None = None
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        _check_tensors(self.spec.name, self.tensors(), self.spec.shapes())
        if has_stray_bits(self.signs, self.spec.in_features):
            raise ValueError(
                f"{self.spec.name}.signs: a padding bit past the {self.spec.in_features} inputs is set, expected 0"
            )

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name."""
        return _present(signs=self.signs, scale=self.scale, offset=self.offset, bias=self.bias)


@dataclass(frozen=True, eq=False)
class PackedLeaky:
    """Leaky integrate-and-fire neurons, with or without feedback; see :func:`tbnn.ops.lif.lif`.

    Attributes:
        beta, threshold: float32 (1,) or (features,).
        feedback: the recurrent layer.
        rest_bias: float32 (features,): the feedback's bias at the first step from rest.

    Raises ``ValueError`` where a tensor disagrees with the spec, is not finite, or β leaves [0, 1].
    """

    spec: LeakySpec
    beta: Tensor
    threshold: Tensor
    feedback: PackedLinear | None = None
    rest_bias: Tensor | None = None

    def __post_init__(self) -> None:
        _check_tensors(self.spec.name, self.tensors(), self.spec.shapes())
        _check_beta(self.spec.name, self.beta)
        if (None if self.feedback is None else self.feedback.spec) != self.spec.feedback:
            raise ValueError(f"{self.spec.name}: expected the feedback {self.spec.feedback}, got {self.feedback}")

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name, the feedback's apart."""
        return _present(beta=self.beta, threshold=self.threshold, rest_bias=self.rest_bias)


@dataclass(frozen=True, eq=False)
class PackedIntegrator:
    """``v[t] = β·v[t−1] + I[t]``, the readout; beta float32 (1,) or (features,). Raises like :class:`PackedLeaky`."""

    spec: IntegratorSpec
    beta: Tensor

    def __post_init__(self) -> None:
        _check_tensors(self.spec.name, self.tensors(), self.spec.shapes())
        _check_beta(self.spec.name, self.beta)

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name."""
        return {"beta": self.beta}


PackedLayer = PackedLinear | PackedLeaky | PackedIntegrator


def check_order(layers: tuple[PackedLayer, ...], in_features: int) -> None:
    """Raise ``ValueError`` unless the layers are linear, neuron, linear, neuron, …, each of the size before it.

    A readout comes last; a last linear layer without one gives currents.
    """
    if not layers:
        raise ValueError("expected at least one layer, got none")
    names = [layer.spec.name for layer in layers]
    if len(set(names)) < len(names):
        raise ValueError(f"expected layers of different names, got {', '.join(names)}")
    size = in_features
    for i, layer in enumerate(layers):
        name, last = layer.spec.name, i == len(layers) - 1
        if isinstance(layer, PackedLinear) != (i % 2 == 0):
            raise ValueError(f"{name}: expected a binary layer, then a neuron, in turns, got {layer.spec.kind} at {i}")
        if isinstance(layer, PackedIntegrator) and not last:
            raise ValueError(f"{name}: a readout's output is no bits: expected it as the last layer, got number {i}")
        got = layer.spec.in_features if isinstance(layer, PackedLinear) else layer.spec.features
        if got != size:
            raise ValueError(f"{name}: expected {size} inputs, as many as come from before it, got {got}")
        size = layer.spec.out_features if isinstance(layer, PackedLinear) else size


def _present(**tensors: Tensor | None) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _check_sizes(name: str, **sizes: int) -> None:
    for what, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: {what}: expected at least 1, got {size}")


def _check_shared(name: str, features: int, **sizes: int) -> None:
    for what, size in sizes.items():
        if size not in (1, features):
            raise ValueError(f"{name}: {what}: expected 1 or {features} values, got {size}")


def _check_beta(name: str, beta: Tensor) -> None:
    if not bool(((beta >= 0) & (beta <= 1)).all()):
        raise ValueError(f"{name}.beta: expected values in [0, 1], got {beta.min().item():g} to {beta.max().item():g}")


def _check_tensors(name: str, tensors: dict[str, Tensor], shapes: Shapes) -> None:
    if tensors.keys() != shapes.keys():
        raise ValueError(f"{name}: expected the tensors {', '.join(shapes)}, got {', '.join(tensors)}")
    for key, (dtype, shape) in shapes.items():
        tensor = tensors[key]
        if tensor.dtype != dtype or tensor.shape != shape or tensor.device.type != "cpu":
            raise ValueError(
                f"{name}.{key}: expected {dtype} {shape} on cpu, "
                f"got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{name}.{key}: expected finite values, got {tensor[~tensor.isfinite()][0].item()}")
