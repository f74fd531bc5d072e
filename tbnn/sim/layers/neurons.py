"""Spiking neurons and the readout."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tbnn.ops.lif import Second
from tbnn.ops.lif.cpu import RESETS
from tbnn.sim.layers.checks import (
    LARGEST,
    Shapes,
    check_beta,
    check_delay,
    check_shared,
    check_sizes,
    check_tensors,
    present,
)
from tbnn.sim.layers.conv import ConvSpec, PackedConv
from tbnn.sim.layers.linear import LinearSpec, PackedLinear
from tbnn.sim.layers.sparse import PackedSparse, SparseSpec


@dataclass(frozen=True)
class LeakySpec:
    """A spiking layer's name, size and reset.

    Attributes:
        reset: "subtract", "zero" or "none".
        beta_size, threshold_size: 1 (shared) or ``features``.
        feedback: the layer through which spikes return, or None.
        rest_bias: whether the feedback has another bias at the first step (what left the neuron before it is 0, not b).
        refractory: steps after a spike in which a neuron cannot spike.
        winners: how many may spike in a step of a sample; 0: all.
        second_size: of a second state (synaptic and adaptive neurons): 0 (none), 1 (shared) or ``features``.
        delay: how many steps later spikes return through the feedback.

    Raises ``ValueError`` for sizes below 1, an unknown reset, a feedback of another size, and a ``rest_bias`` of more than
    one step or of a convolution.
    """

    kind: ClassVar[str] = "leaky"
    name: str
    features: int
    reset: str
    beta_size: int
    threshold_size: int
    feedback: LinearSpec | SparseSpec | ConvSpec | None
    rest_bias: bool
    refractory: int = 0
    winners: int = 0
    second_size: int = 0
    delay: int = 1

    def __post_init__(self) -> None:
        check_sizes(self.name, features=self.features)
        check_shared(self.name, self.features, beta=self.beta_size, threshold=self.threshold_size)
        if self.second_size:
            check_shared(self.name, self.features, second=self.second_size)
        if not (0 <= self.refractory <= LARGEST and 0 <= self.winners <= LARGEST):
            raise ValueError(
                f"{self.name}: expected refractory and winners of 0 to {LARGEST}, got {self.refractory}, {self.winners}"
            )
        if self.reset not in RESETS:
            raise ValueError(f"{self.name}: reset: expected one of {', '.join(map(repr, RESETS))}, got {self.reset!r}")
        check_sizes(self.name, delay=self.delay)
        check_delay(self.name, delay=self.delay)
        if self.feedback is None and self.delay > 1:
            raise ValueError(f"{self.name}: a delay needs a feedback, got none and a delay of {self.delay}")
        if self.rest_bias and (self.delay > 1 or isinstance(self.feedback, ConvSpec)):
            raise ValueError(
                f"{self.name}: expected a linear feedback of delay 1 with a rest_bias, got {self.feedback}"
            )
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
        if self.second_size:
            shapes["second"] = (torch.float32, (len(Second._fields), self.second_size))
        return shapes | ({"rest_bias": (torch.float32, (self.features,))} if self.rest_bias else {})


@dataclass(frozen=True)
class IntegratorSpec:
    """A readout's name and size; ``beta_size`` is 1 (shared) or ``features``. Raises ``ValueError`` for other sizes."""

    kind: ClassVar[str] = "integrator"
    name: str
    features: int
    beta_size: int

    def __post_init__(self) -> None:
        check_sizes(self.name, features=self.features)
        check_shared(self.name, self.features, beta=self.beta_size)

    def shapes(self) -> Shapes:
        """Every tensor of the layer."""
        return {"beta": (torch.float32, (self.beta_size,))}


@dataclass(frozen=True, eq=False)
class PackedLeaky:
    """Integrate-and-fire neurons of one or two states, with or without feedback; see :func:`tbnn.ops.lif.lif`.

    Attributes:
        beta, threshold: float32 (1,) or (features,).
        second: float32 (7, 1) or (7, features): the coefficients of a second state, in the order of
            :class:`tbnn.ops.lif.Second`.
        feedback: the recurrent layer.
        rest_bias: float32 (features,): the feedback's bias at the first step from rest.

    Raises ``ValueError`` where a tensor disagrees with the spec, is not finite, or β leaves [0, 1].
    """

    spec: LeakySpec
    beta: Tensor
    threshold: Tensor
    feedback: PackedLinear | PackedSparse | PackedConv | None = None
    rest_bias: Tensor | None = None
    second: Tensor | None = None

    def __post_init__(self) -> None:
        check_tensors(self.spec.name, self.tensors(), self.spec.shapes())
        check_beta(self.spec.name, self.beta)
        if (None if self.feedback is None else self.feedback.spec) != self.spec.feedback:
            raise ValueError(f"{self.spec.name}: expected the feedback {self.spec.feedback}, got {self.feedback}")

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name, the feedback's apart."""
        return present(beta=self.beta, threshold=self.threshold, rest_bias=self.rest_bias, second=self.second)


@dataclass(frozen=True, eq=False)
class PackedIntegrator:
    """``v[t] = β·v[t−1] + I[t]``, the readout; beta float32 (1,) or (features,). Raises like :class:`PackedLeaky`."""

    spec: IntegratorSpec
    beta: Tensor

    def __post_init__(self) -> None:
        check_tensors(self.spec.name, self.tensors(), self.spec.shapes())
        check_beta(self.spec.name, self.beta)

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name."""
        return {"beta": self.beta}
