"""Stochastic binary units: neurons that spike with a probability, and estimators of the expected loss's gradient."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tbnn.nn.recorded import Recorded
from tbnn.nn.weights import BinaryWeight

GRADIENTS = ("psa", "st")
EVALUATIONS = ("threshold", "sample")
FLIPPED = 1 << 22  # probabilities that a backward pass computes at a time, at most


class StochasticLinear(Recorded, nn.Module):
    """A linear layer and units that spike with probability F(u): ``s ~ Bernoulli(F(u))``, ``u = x·Ŵᵀ + bias``.

    ``F(u) = 1/(1 + exp(−u/scale))``: the unit fires where u exceeds logistic noise. x (..., in_features) ->
    s (..., out_features) of 0/1. Units do not remember: in a network each step is drawn for itself. Networks of such layers
    have an expected loss that is smooth in the weights; backward, with G_j = dL/ds_j, estimates its gradient from one
    sample:

        du_j = G_j·F'(u_j)                                                        both
        "psa":  dL/dx_i = Σ_j G_j·[F(u_j where x_i = 1) − F(u_j where x_i = 0)]   the other inputs as they are
        "st":   dL/dx_i = Σ_j G_j·F'(u_j)·Ŵ_ji                                    its linearisation, straight-through

    Path sample-analytic gradients ("psa") want the same discrete difference of the loss for G, which :func:`by_flips`
    gives; any other loss gives its derivative, the linearisation of the last step. With one hidden layer and
    :func:`by_flips` the estimate is unbiased; with more it is where the loss is a sum over the last hidden layer's units
    and there are two; else it has a bias, less than the straight-through one's. The difference costs as many logistic
    functions as the product has terms, backward alone.

    Where this does not apply: neurons with a membrane (the past of v is no product of independent units), max pooling,
    convolutions (not written). The product runs in torch, in floating point, not by bits; such a layer does not pack.

    Args:
        linear: a :class:`BinaryLinear` or ``torch.nn.Linear``, whose weights and bias are the layer's.
        gradient: "psa" or "st".
        scale: of the noise; as it goes to 0 units become thresholds.
        evaluation: in evaluation "threshold", ``s = 1[u > 0]``, or "sample", as in training.

    Raises:
        ValueError: another kind of layer, gradient or evaluation, a scale that is not finite and positive, an input of
            another width; with "psa", inputs that want a gradient and are not 0/1.

    Source: Shekhovtsov, Yanush & Flach, "Path Sample-Analytic Gradient Estimators for Stochastic Binary Networks", NeurIPS
    2020 (arXiv 2006.03143), stated there for units of ±1; 0/1 units are those with weights halved and biases shifted.

    >>> StochasticLinear(BinaryLinear(8, 4))(torch.ones(5, 2, 8)).shape
    torch.Size([5, 2, 4])
    """

    def __init__(
        self,
        linear: nn.Module,
        gradient: str = "psa",
        scale: float = 1.0,
        evaluation: str = "threshold",
    ) -> None:
        super().__init__()
        weight = getattr(linear, "weight", None)
        if not isinstance(linear, (BinaryWeight, nn.Linear)) or not isinstance(weight, Tensor) or weight.ndim != 2:
            raise ValueError(f"linear: expected a BinaryLinear or torch.nn.Linear, got {type(linear).__name__}")
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient: expected one of {', '.join(map(repr, GRADIENTS))}, got {gradient!r}")
        if evaluation not in EVALUATIONS:
            raise ValueError(f"evaluation: expected one of {', '.join(map(repr, EVALUATIONS))}, got {evaluation!r}")
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale: expected a finite number > 0, got {scale}")
        self.linear, self.gradient, self.scale, self.evaluation = linear, gradient, scale, evaluation

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self.linear
        weight: Tensor = layer.quantized()[0] if isinstance(layer, BinaryWeight) else layer.weight
        if x.shape[-1] != weight.shape[1]:
            raise ValueError(f"StochasticLinear: expected (..., {weight.shape[1]}), got {tuple(x.shape)}")
        by_difference = self.gradient == "psa" and x.requires_grad
        u = F.linear(x.detach() if by_difference else x, weight, layer.bias) / self.scale
        if not self.training and self.evaluation == "threshold":
            spikes = (u > 0).to(u.dtype)
        else:
            spikes = torch.bernoulli(u.detach().sigmoid())
        if not by_difference:
            return _Unit.apply(u, spikes)
        if not bool(((x == 0) | (x == 1)).all()):
            raise ValueError("StochasticLinear: gradient='psa' passes a gradient to inputs of 0 and 1, got others")
        return _FlippedUnit.apply(u, spikes, x, weight.detach() / self.scale)

    def extra_repr(self) -> str:
        return f"gradient={self.gradient}, scale={self.scale:g}, evaluation={self.evaluation}"


def by_flips(objective: Callable[[Tensor], Tensor], spikes: Tensor) -> Tensor:
    """``objective(spikes)``, whose gradient in a spike is the discrete difference: ``f(s_j = 1) − f(s_j = 0)``.

    The last step of path sample-analytic gradients: the other spikes stay as they are. In the parameters of the objective
    the gradient is autograd's. The objective is evaluated once more for each spike of a row, without gradient.

    Args:
        objective: from spikes (M, n), any M, to one number a row, (M,), each of its own row alone.
        spikes: 0/1, (B, n).

    Returns:
        (B,).

    Raises:
        ValueError: spikes of another shape, an objective that returns another.

    Source: as :class:`StochasticLinear`.

    >>> by_flips(lambda s: (s.sum(1) - 1).square(), torch.tensor([[1.0, 0.0]], requires_grad=True)).item()
    0.0
    """
    if spikes.ndim != 2:
        raise ValueError(f"by_flips: expected spikes (B, n), got {tuple(spikes.shape)}")
    fixed = spikes.detach()
    value = objective(fixed)
    if value.shape != fixed.shape[:1]:
        raise ValueError(f"by_flips: expected an objective that returns ({len(fixed)},), got {tuple(value.shape)}")
    if not spikes.requires_grad:
        return value
    differences = []
    with torch.no_grad():
        for j in range(fixed.shape[1]):
            flipped = fixed.clone()
            flipped[:, j] = 1 - fixed[:, j]
            differences.append((2 * fixed[:, j] - 1) * (value.detach() - objective(flipped)))
    return value + _Slopes.apply(spikes, torch.stack(differences, 1))


def flip_gradient(g: Tensor, u: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """dL/dx of "psa": g, u (M, out), x (M, in) of 0/1, weight (out, in), noise of scale 1 -> (M, in)."""
    sign = 2 * x - 1
    rows = max(1, FLIPPED // weight.numel())
    parts = []
    for lo in range(0, len(u), rows):
        here = slice(lo, lo + rows)
        at = u[here, :, None]
        lost = at.sigmoid() - (at - sign[here, None, :] * weight).sigmoid()
        parts.append(sign[here] * torch.einsum("mo,moi->mi", g[here], lost))
    return torch.cat(parts) if parts else torch.zeros_like(x)


class _Unit(torch.autograd.Function):
    """Spikes drawn from u, with the gradient G·F'(u)."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, spikes: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(u)
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (u,) = ctx.saved_tensors
        return grads[0] * _slope(u), None


class _FlippedUnit(torch.autograd.Function):
    """The same, and the input's gradient by discrete differences."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, u: Tensor, spikes: Tensor, x: Tensor, weight: Tensor
    ) -> Tensor:
        ctx.save_for_backward(u, x, weight)
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        u, x, weight = ctx.saved_tensors
        g = grads[0]
        flat_g, flat_u, flat_x = (t.reshape(-1, t.shape[-1]) for t in (g, u, x.to(u.dtype)))
        dx = flip_gradient(flat_g, flat_u, flat_x, weight.to(u.dtype)).reshape(x.shape)
        return g * _slope(u), None, dx.to(x.dtype), None


class _Slopes(torch.autograd.Function):
    """0 for each row, with given slopes in the spikes."""

    @staticmethod
    def forward(ctx: Any, spikes: Tensor, slopes: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(slopes)
        return slopes.new_zeros(len(slopes))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (slopes,) = ctx.saved_tensors
        return grads[0][:, None] * slopes, None


def _slope(u: Tensor) -> Tensor:
    """F' at u."""
    p = u.sigmoid()
    return p * (1 - p)
