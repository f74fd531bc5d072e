"""Surrogate gradients of the spike ``q = 1[u > 0]``, each with its integral, the soft spike.

A surrogate is called with the membrane's distance from threshold and returns the spike; its backward pass uses
``derivative``. The shapes and default parameters are snntorch's, so each may stand as ``spike_grad`` of a snntorch
neuron. ``soft`` is the integral of the derivative, normalised to run from 0 to 1; ``area`` is what it was divided by.
The :class:`Bare` ones are the rest of snntorch 1.0.0's, as they are there: gradients without a soft spike.

snntorch's ``SSO``, whose gradient below threshold is drawn anew in each backward pass, and ``custom_surrogate`` are not
here: they run in snntorch's networks only.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tbnn.ops.ddt import check_ridge, closed_form, sums_of


@dataclass(frozen=True, repr=False)
class Surrogate:
    """Base of the surrogates: ``derivative`` and ``soft`` are functions of u, any shape in, the same shape out.

    ``parameter`` is the one number that sets the width. Raises ``ValueError`` unless it is finite and positive.
    """

    parameter: float
    code: ClassVar[int]  # how a compiled kernel names the shape
    symbol: ClassVar[str]  # what the field calls the parameter

    def __post_init__(self) -> None:
        _positive(self.symbol, self.parameter)

    @property
    def area(self) -> float:
        """∫ derivative du."""
        return 1.0

    @property
    def numbers(self) -> tuple[float, ...]:
        """The arguments that make this surrogate again."""
        return (self.parameter,)

    @property
    def extra(self) -> float:
        """What a compiled kernel takes beside the parameter: the area, or the second number of a shape without one."""
        return self.area

    def derivative(self, u: Tensor) -> Tensor:
        """The surrogate of dq/du."""
        raise NotImplementedError

    def soft(self, u: Tensor) -> Tensor:
        """The soft spike f(u) in [0, 1]: f' = derivative / area."""
        raise NotImplementedError

    def __call__(self, u: Tensor) -> Tensor:
        """The spike 1[u > 0], in u's dtype, with this surrogate as its gradient."""
        spike: Tensor = _Spike.apply(u, self)
        return spike

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.symbol}={self.parameter:g})"


class Bare(Surrogate):
    """Base of the surrogates without a soft spike: gradients for ``gradient="surrogate"`` alone.

    They are snntorch's, gradient for gradient. Their integrals do not rise from 0 to 1 about the threshold, so ``soft``
    and ``area`` raise ``ValueError``.
    """

    @property
    def area(self) -> float:
        raise ValueError(f"area: expected a surrogate with a soft spike, got {self}")

    @property
    def extra(self) -> float:
        return 1.0

    def soft(self, u: Tensor) -> Tensor:
        raise ValueError(f"soft: expected a surrogate with a soft spike, got {self}")


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(u)
        ctx.surrogate = surrogate
        return (u > 0).to(u.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (u,) = ctx.saved_tensors
        return grads[0] * ctx.surrogate.derivative(u), None


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: expected a finite number > 0, got {value}")
    return float(value)


class ATan(Surrogate):
    """``α/2 / (1 + (π·α·u/2)²)``, f = ½ + atan(π·α·u/2)/π (Fang et al. 2021); snntorch's default."""

    code, symbol = 1, "alpha"

    def derivative(self, u: Tensor) -> Tensor:
        return self.parameter / 2 / (1 + (math.pi / 2 * self.parameter * u).square())

    def soft(self, u: Tensor) -> Tensor:
        return torch.atan(math.pi / 2 * self.parameter * u) / math.pi + 0.5


class FastSigmoid(Surrogate):
    """``1 / (1 + k·|u|)²``, f = ½ + ½·k·u / (1 + k·|u|) (Zenke & Ganguli 2018)."""

    code, symbol = 2, "slope"

    @property
    def area(self) -> float:
        return 2 / self.parameter

    def derivative(self, u: Tensor) -> Tensor:
        return 1 / (1 + self.parameter * u.abs()).square()

    def soft(self, u: Tensor) -> Tensor:
        ku = self.parameter * u
        return 0.5 + 0.5 * ku / (1 + ku.abs())


class Sigmoid(Surrogate):
    """``k·σ(k·u)·(1 − σ(k·u))``, f = σ(k·u) (Zenke & Ganguli 2018)."""

    code, symbol = 3, "slope"

    def derivative(self, u: Tensor) -> Tensor:
        e = torch.exp(-self.parameter * u.abs())  # of −|u|, so that neither tail overflows or cancels
        return self.parameter * e / (1 + e).square()

    def soft(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.parameter * u)


class Triangular(Surrogate):
    """``max(0, 1 − |u|/width)`` (Bellec et al. 2018). snntorch's function of this name is a sign, not a triangle."""

    code, symbol = 4, "width"

    @property
    def area(self) -> float:
        return self.parameter

    def derivative(self, u: Tensor) -> Tensor:
        return (1 - u.abs() / self.parameter).clamp(min=0)

    def soft(self, u: Tensor) -> Tensor:
        z = (u / self.parameter).clamp(-1, 1)
        return 0.5 + z - 0.5 * z * z.abs()


class Boxcar(Surrogate):
    """``1[|u| ≤ width/2] / width``, f = clip(½ + u/width, 0, 1)."""

    code, symbol = 5, "width"

    def derivative(self, u: Tensor) -> Tensor:
        return (u.abs() <= self.parameter / 2).to(u.dtype) / self.parameter

    def soft(self, u: Tensor) -> Tensor:
        return (0.5 + u / self.parameter).clamp(0, 1)


class LeakySpike(Bare):
    """1 where u > 0, k elsewhere, k >= 0: snntorch's ``LSO`` (k = 0.1).

    Also its ``straight_through_estimator``, with k = 1, and its ``heaviside``, with k = 0. snntorch 1.0.0's own ``LSO``
    raises ``TypeError`` when it is called; this is its documented form.
    """

    code, symbol = 6, "slope"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.parameter) and self.parameter >= 0):
            raise ValueError(f"{self.symbol}: expected a finite number >= 0, got {self.parameter}")

    def derivative(self, u: Tensor) -> Tensor:
        return torch.full_like(u, self.parameter).masked_fill(u > 0, 1.0)


class Signed(Bare):
    """θ where u < 0, −θ where u >= 0: what snntorch calls ``triangular``; :class:`Triangular` is a triangle.

    A neuron above threshold is thus told the opposite of what would change its loss.
    """

    code, symbol = 7, "threshold"

    def derivative(self, u: Tensor) -> Tensor:
        return torch.full_like(u, self.parameter).masked_fill(u >= 0, -self.parameter)


@dataclass(frozen=True, repr=False)
class SpikeRateEscape(Bare):
    """``k·exp(−β·|u − 1|)`` (after Gerstner & Kistler 2002), as in snntorch.

    u is the distance from threshold already, so the peak, k high, lies one above the threshold, not at it.
    """

    slope: float = 25.0
    code, symbol = 8, "beta"

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive("slope", self.slope)

    @property
    def numbers(self) -> tuple[float, ...]:
        return self.parameter, self.slope

    @property
    def extra(self) -> float:
        return float(self.slope)

    def derivative(self, u: Tensor) -> Tensor:
        return self.slope * torch.exp(-self.parameter * (u - 1).abs())

    def __repr__(self) -> str:
        return f"SpikeRateEscape(beta={self.parameter:g}, slope={self.slope:g})"


@dataclass(frozen=True, repr=False)
class SparseFastSigmoid(Bare):
    """``1[u > B] / (1 + k·|u|)²`` (after Perez-Nieves & Goodman 2021): snntorch's ``SFS``.

    With the default gate B = 1 only neurons that are more than 1 above their threshold have a gradient: snntorch's
    gate is on u, not on |u| < B as in the paper. B may be negative.
    """

    gate: float = 1.0
    code, symbol = 9, "slope"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.gate):
            raise ValueError(f"gate: expected a finite number, got {self.gate}")

    @property
    def numbers(self) -> tuple[float, ...]:
        return self.parameter, self.gate

    @property
    def extra(self) -> float:
        return float(self.gate)

    def derivative(self, u: Tensor) -> Tensor:
        return (u > self.gate).to(u.dtype) / (1 + self.parameter * u.abs()).square()

    def __repr__(self) -> str:
        return f"SparseFastSigmoid(slope={self.parameter:g}, gate={self.gate:g})"


SHAPES: tuple[type[Surrogate], ...] = (
    ATan, FastSigmoid, Sigmoid, Triangular, Boxcar, LeakySpike, Signed, SpikeRateEscape, SparseFastSigmoid,
)  # fmt: skip
"""Every surrogate that the kernels know."""


def atan(alpha: float = 2.0) -> ATan:
    """Arc tangent, snntorch's default: see :class:`ATan`."""
    return ATan(alpha)


def fast_sigmoid(slope: float = 25.0) -> FastSigmoid:
    """Fast sigmoid: see :class:`FastSigmoid`."""
    return FastSigmoid(slope)


def sigmoid(slope: float = 25.0) -> Sigmoid:
    """Logistic sigmoid: see :class:`Sigmoid`."""
    return Sigmoid(slope)


def triangular(width: float = 1.0) -> Triangular:
    """Triangle: see :class:`Triangular`."""
    return Triangular(width)


def boxcar(width: float = 1.0) -> Boxcar:
    """Boxcar: see :class:`Boxcar`."""
    return Boxcar(width)


def straight_through_estimator() -> LeakySpike:
    """A derivative of 1 everywhere: see :class:`LeakySpike`."""
    return LeakySpike(1.0)


def heaviside() -> LeakySpike:
    """The spike itself as its derivative: see :class:`LeakySpike`."""
    return LeakySpike(0.0)


def leaky_spike(slope: float = 0.1) -> LeakySpike:
    """snntorch's ``LSO``: see :class:`LeakySpike`."""
    return LeakySpike(slope)


def signed(threshold: float = 1.0) -> Signed:
    """snntorch's ``triangular``: see :class:`Signed`."""
    return Signed(threshold)


def spike_rate_escape(beta: float = 1.0, slope: float = 25.0) -> SpikeRateEscape:
    """Boltzmann distribution about one above threshold: see :class:`SpikeRateEscape`."""
    return SpikeRateEscape(beta, slope)


def sparse_fast_sigmoid(slope: float = 25.0, gate: float = 1.0) -> SparseFastSigmoid:
    """snntorch's ``SFS``: see :class:`SparseFastSigmoid`."""
    return SparseFastSigmoid(slope, gate)


@dataclass(frozen=True)
class RidgeSpike:
    """The spike function of :func:`ddt`: u -> 1[u > 0], ridge-denoised gradient over the tensor of each call."""

    base: Surrogate
    lam: float
    scale: float

    def __call__(self, u: Tensor) -> Tensor:
        spike: Tensor = _RidgeSpikeFunction.apply(u, self)
        return spike


class _RidgeSpikeFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, spike: RidgeSpike) -> Tensor:
        ctx.save_for_backward(u)
        ctx.spike = spike
        return (u > 0).to(u.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (u,) = ctx.saved_tensors
        spike: RidgeSpike = ctx.spike
        f, q, g = spike.base.soft(u), (u > 0).to(u.dtype), spike.scale * grads[0]
        one_block = (1, -1, 1)
        f3, q3, g3 = (t.reshape(one_block) for t in (f, q, g))
        sums, g_sums = sums_of(f3, q3, u.numel()), sums_of(g3, q3, u.numel())
        back = closed_form.gradient(sums, g_sums.x, g_sums.xq, spike.lam, "affine")
        s, r, const = back.s.item(), back.r.item(), (back.x_const + back.q_const).item()
        return (s * g + r * f + (r - 2 * s * r) * q + const) * spike.base.derivative(u) / spike.base.area, None


def ddt(base: Surrogate | None = None, lam: float = 0.01, stats: str = "step", scale: float = 1.0) -> RidgeSpike:
    """A spike function u -> {0, 1} whose gradient is the DDT of the soft spike: a ridge-denoised surrogate.

    It plugs into snntorch: ``snn.Leaky(beta, spike_grad=tbnn.surrogate.ddt())``. The block of the ridge regression
    is the tensor of one call, that is one time step over batch and features: ``stats="step"``, the only choice for a
    function that sees no time axis (``tbnn.nn.Leaky`` has the others).

    Args:
        base: the surrogate whose integral is the soft spike (atan(2) by default).
        lam: λ > 0 of the ridge regression; a layer may be silent, so 0 is refused.
        scale: multiplies the gradient.

    Raises:
        ValueError: ``stats`` other than "step", λ <= 0, a scale that is not finite and positive, a :class:`Bare` base.
    """
    if stats != "step":
        raise ValueError(f"surrogate.ddt: expected stats='step' (a spike function sees one step), got {stats!r}")
    if isinstance(base, Bare):
        raise ValueError(f"surrogate.ddt: base: expected a surrogate with a soft spike, got {base}")
    check_ridge(lam, "affine")
    _positive("lam", lam)
    return RidgeSpike(base if base is not None else atan(), lam, _positive("scale", scale))
