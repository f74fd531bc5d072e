"""A layered network of symmetric few-bit weights that relaxes to a minimum of its energy."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tbnn.bits import unpack_bits, words_for
from tbnn.learning.equilibrium.dynamics import NEURONS, READOUTS, Dynamics, Units, binary, real
from tbnn.nn import BinaryLinear
from tbnn.ops.quantize.estimators import Estimator
from tbnn.ops.quantize.sparsify import SparsityLike


class EquilibriumState(NamedTuple):
    """Where a relaxation stands."""

    units: Units
    """u of each layer of units, (B, n) in [0, 1]."""
    clamped: Tensor
    """The mean of the inputs seen, (B, features)."""
    seen: Tensor
    """How many, () int64."""


class EquilibriumNetwork(nn.Module):
    """Units in layers, each pair of neighbours joined by one matrix both ways: ``network(x, state=None) -> (y, state)``.

    A step shows the network an input and lets it relax, ``u ← clip(u − dt·∂E/∂u, 0, 1)`` from rest, u = 0, with
    ``E(u) = Σ_l ½‖u_l‖² − ρ(u_l)·(Ŵ_l·ρ(u_{l−1}) + b_l)`` (:meth:`energy`). What is clamped, ρ(u_0), is the *mean of
    the inputs seen* times ``input_scale``: an energy has a minimum for a standing input, and the rates of a recording of
    spikes come to rest where its bits do not. Order in time is lost by that; T steps are T chances to settle.

    All of it is differentiable, so back-propagation through time trains it as well.

    Args:
        sizes: features, units of each hidden layer, classes.
        neurons: "real", ρ(u) = u, or "binary", ρ(u) = 1[u > ½] whose derivative counts as 1 on [0, 1].
        readout: "units": y is ρ of the last layer's units, the mean of ``copies`` of them for each class; or "linear":
            y = Ŵ·ρ(u) + b of the last hidden units, outside the energy, the scores of a softmax.
        copies: units a class, for the grain of a binary readout. The nudge of each is that of its class over ``copies``.
        dt: step of the relaxation, in (0, 1]. Where dt·(1 + ‖Ŵ‖) < 2, with the norm of all layers' weights as one
            symmetric matrix, E of real units falls at every step.
        relaxations: steps of relaxation a step of input.
        input_scale: multiplies the mean input.
        gain: multiplies the latent weights' start; below 1, as they act both ways.
        rest_bias: where the hidden units' biases start: between the ends of their range, where they answer. Those of the
            readout start at 0, and without ``bias`` there are none.
        bias, bits, sparsity, estimator, form, lam, block: of every layer's weights, see :class:`tbnn.nn.BinaryLinear`.

    Attributes:
        layers: the :class:`tbnn.nn.BinaryLinear`, first to last.

    Raises:
        ValueError: values outside these ranges; an input or a state of another shape.

    Source: Scellier & Bengio 2017; bits of units and weights: Laydevant, Ernoult, Querlioz & Grollier, "Training
    dynamical binary neural networks with equilibrium propagation", CVPR workshops 2021; the readout outside of the
    energy: Laborieux et al., "Scaling equilibrium propagation to deep ConvNets by drastically reducing its gradient
    estimator bias", Front. Neurosci. 2021.

    >>> y, state = EquilibriumNetwork((8, 16, 4))(torch.ones(10, 3, 8))
    >>> y.shape
    torch.Size([10, 3, 4])
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        neurons: str = "real",
        readout: str = "units",
        copies: int = 1,
        dt: float = 0.5,
        relaxations: int = 1,
        input_scale: float = 1.0,
        gain: float = 0.25,
        rest_bias: float = 0.3,
        bias: bool = True,
        bits: float | None = 1,
        sparsity: SparsityLike = 0.0,
        estimator: str | Estimator = "ddt",
        form: str = "affine",
        lam: float = 0.01,
        block: int | None = None,
    ) -> None:
        super().__init__()
        _check_choice("neurons", neurons, NEURONS)
        _check_choice("readout", readout, READOUTS)
        check_steps("copies", copies, 1)
        check_steps("relaxations", relaxations, 1)
        fewest = 3 if readout == "linear" else 2
        if len(sizes) < fewest or min(sizes) < 1:
            raise ValueError(
                f"sizes: expected {fewest} or more sizes >= 1 with readout={readout!r}, got {tuple(sizes)}"
            )
        if copies > 1 and readout == "linear":
            raise ValueError(f"copies: expected 1 with readout='linear', got {copies}")
        for name, value in (("input_scale", input_scale), ("gain", gain)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: expected a finite number > 0, got {value}")
        if not math.isfinite(rest_bias):
            raise ValueError(f"rest_bias: expected a finite number, got {rest_bias}")
        self.neurons, self.readout, self.copies, self.relaxations = neurons, readout, copies, relaxations
        self.dt, self.input_scale, self.classes = check_dt(dt), float(input_scale), sizes[-1]
        widths = [*sizes[:-1], sizes[-1] * copies]
        self.layers = nn.ModuleList(
            BinaryLinear(
                inputs, outputs, bias,
                bits=bits, sparsity=sparsity, estimator=estimator, form=form, lam=lam, block=block,
            )
            for inputs, outputs in pairwise(widths)
        )  # fmt: skip
        with torch.no_grad():
            for layer in self.linears:
                layer.weight.mul_(gain)
            for layer in self.linears[:-1]:
                if layer.bias is not None:
                    layer.bias.fill_(rest_bias)

    @property
    def linears(self) -> list[BinaryLinear]:
        """:attr:`layers`, typed."""
        return [layer for layer in self.layers if isinstance(layer, BinaryLinear)]

    @property
    def in_features(self) -> int:
        """Of the input."""
        return self.linears[0].in_features

    def prepare(self) -> Dynamics:
        """The equations with the weights as they are now, quantised once; differentiable in the latent weights."""
        output = binary if self.neurons == "binary" else real
        weights = tuple(layer.quantized_weight() for layer in self.linears)
        biases = tuple(layer.bias for layer in self.linears)
        return Dynamics(weights, biases, output, self.readout == "linear", self.copies)

    def forward(self, x: Tensor, state: EquilibriumState | None = None) -> tuple[Tensor, EquilibriumState]:
        """x: (T, B, features), or packed int32 words (T, B, ⌈features/32⌉) -> (y (T, B, classes), state)."""
        if x.ndim != 3 or len(x) < 1:
            raise ValueError(f"EquilibriumNetwork: expected (T >= 1, B, {self.in_features}), got {tuple(x.shape)}")
        dynamics, readouts = self.prepare(), []
        for x_t in x.unbind(0):
            y, state = self._step(dynamics, x_t, state)
            readouts.append(y)
        return torch.stack(readouts), state  # pyright: ignore[reportReturnType]  (T >= 1)

    def step(self, x: Tensor, state: EquilibriumState | None = None) -> tuple[Tensor, EquilibriumState]:
        """One step: x (B, features) or words (B, ⌈features/32⌉) -> (y (B, classes), state)."""
        return self._step(self.prepare(), x, state)

    def energy(self, state: EquilibriumState) -> Tensor:
        """E of a state, (B,), its input clamped; the linear readout has no part in it."""
        dynamics = self.prepare()
        return dynamics.energy(state.units, dynamics.drive(state.clamped * self.input_scale))

    def _step(self, dynamics: Dynamics, x: Tensor, state: EquilibriumState | None) -> tuple[Tensor, EquilibriumState]:
        x = self._numbers(x).to(dynamics.weights[0].dtype)
        if state is None:
            units, clamped, seen = dynamics.rest(len(x)), x, torch.ones((), dtype=torch.int64, device=x.device)
        else:
            _check_state(state, dynamics, x)
            units, seen = state.units, state.seen + 1
            clamped = state.clamped + (x - state.clamped) / seen
        units = dynamics.relax(units, dynamics.drive(clamped * self.input_scale), self.relaxations, self.dt)
        return dynamics.readout(units), EquilibriumState(units, clamped, seen)

    def _numbers(self, x: Tensor) -> Tensor:
        """A step's input as numbers."""
        width = words_for(self.in_features) if x.dtype == torch.int32 else self.in_features
        if x.ndim != 2 or x.shape[1] != width:
            kind = "packed words" if x.dtype == torch.int32 else "features"
            raise ValueError(f"EquilibriumNetwork: expected {kind} (B, {width}) a step, got {tuple(x.shape)}")
        return unpack_bits(x, self.in_features) if x.dtype == torch.int32 else x

    def extra_repr(self) -> str:
        return (
            f"neurons={self.neurons}, readout={self.readout}, copies={self.copies}, dt={self.dt:g}, "
            f"relaxations={self.relaxations}, input_scale={self.input_scale:g}"
        )


def _check_state(state: EquilibriumState, dynamics: Dynamics, x: Tensor) -> None:
    """Raise ``ValueError`` unless a state is one of the network, for as many samples as x (B, features)."""
    expected = [(len(x), w.shape[0]) for w in dynamics.weights[: dynamics.layers]]
    got = [tuple(u.shape) for u in state.units] if isinstance(state, EquilibriumState) else type(state).__name__
    if got != expected or state.clamped.shape != x.shape:
        raise ValueError(
            f"state: expected an EquilibriumState with units {expected}, clamped {tuple(x.shape)}, got {got}"
        )


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, known))}, got {value!r}")


def check_dt(dt: float) -> float:
    """A step size; ``ValueError`` unless it is in (0, 1]."""
    if not 0 < dt <= 1:
        raise ValueError(f"dt: expected a number in (0, 1], got {dt}")
    return float(dt)


def check_steps(name: str, value: int, least: int) -> int:
    """A count; ``ValueError`` unless it is whole and at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: expected a whole number >= {least}, got {value!r}")
    return value
