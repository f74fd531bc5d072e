"""What a spike's backward pass is: a bare surrogate, or the DDT of a soft spike or of a spike trace."""

import math
from dataclasses import dataclass, field

from tbnn.ops.ddt import check_ridge
from tbnn.surrogate import Bare, Surrogate, atan


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


@dataclass(frozen=True)
class SpikeGradient:
    """The estimator of a spiking neuron's gradient.

    Attributes:
        gradient: "ddt" (ridge-denoised) or "surrogate" (``surrogate.derivative`` alone).
        surrogate: the shape; its integral is the soft spike, which ``tbnn.surrogate.Bare`` ones lack: not for "ddt" of "soft".
        target: what the spike is a noisy copy of: "soft" (the soft spike f(v − θ)) or "trace" (the leaky trace of the
            input, of which the spike train of a neuron that resets by subtraction is a sigma-delta code).
        emit: "bits" (the spike leaves) or "denoised" (its reconstruction a·q + b leaves; soft target only).
        stats: the ridge's block in time: "sequence" (all steps) or "step" (each step by itself).
        per_channel: with "sequence": one block a channel rather than one for the layer.
        differentiate_stats: False treats slope and means as constants, which leaves the ridge's slope alone.
        lam: λ of the ridge regression.
        scale: multiplies the gradient of emitted bits.
        floor: lower clip of the trace target, below 0 so that a silent neuron still hears its gradient.
    """

    gradient: str = "ddt"
    surrogate: Surrogate = field(default_factory=atan)
    target: str = "soft"
    emit: str = "bits"
    stats: str = "sequence"
    per_channel: bool = True
    differentiate_stats: bool = True
    lam: float = 0.01
    scale: float = 1.0
    floor: float = -0.05

    def __post_init__(self) -> None:
        _one_of("gradient", self.gradient, ("ddt", "surrogate"))
        _one_of("target", self.target, ("soft", "trace"))
        _one_of("emit", self.emit, ("bits", "denoised"))
        _one_of("stats", self.stats, ("sequence", "step"))
        check_ridge(self.lam, "affine")
        if self.lam == 0:
            raise ValueError("lam: expected a number > 0 (a neuron may be silent, which makes Var(q) 0), got 0")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale: expected a finite number > 0, got {self.scale}")
        if not (math.isfinite(self.floor) and self.floor <= 0):
            raise ValueError(f"floor: expected a finite number <= 0, got {self.floor}")
        if self.gradient == "ddt" and self.target == "soft" and isinstance(self.surrogate, Bare):
            raise ValueError(
                f"surrogate: gradient='ddt' with target='soft' expected one with a soft spike, got {self.surrogate}; "
                "it needs gradient='surrogate'"
            )
        if self.emit == "denoised" and (self.gradient != "ddt" or self.target != "soft"):
            raise ValueError(
                "emit='denoised' needs gradient='ddt' and target='soft', "
                f"got gradient={self.gradient!r}, target={self.target!r}"
            )
        if self.emit == "denoised" and self.scale != 1:
            raise ValueError(
                f"scale: multiplies the gradient of bits; with emit='denoised' expected 1, got {self.scale}"
            )

    @property
    def uses_trace(self) -> bool:
        """Whether the gradient runs through the input's trace instead of the membrane."""
        return self.gradient == "ddt" and self.target == "trace"
