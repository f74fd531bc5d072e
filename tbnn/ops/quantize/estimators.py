"""How the gradient crosses a quantiser. Forward, all of them give the ridge reconstruction; only backward differs."""

import math
from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Ddt:
    """The exact gradient of the ridge reconstruction, the rounding error δ held constant (arXiv 2409.09245)."""


@dataclass(frozen=True)
class Ste:
    """The identity: ``dL/dx = G`` (Bengio, Léonard & Courville 2013, arXiv 1308.3432)."""


@dataclass(frozen=True)
class Ewgs:
    """Element-wise gradient scaling: ``dL/dx = G·(1 + δ·sign(G)·(x_n − x_q))``.

    x_n and x_q are the value and its code where the grid spans [0, 1] and x_n is clipped to it: the difference is the
    rounding error divided by (N − 1) steps. With ``bits=None`` it is x/s_f where a value is pruned, 0 elsewhere.

    Source: Lee, Kim & Ham, "Network Quantization with Element-wise Gradient Scaling", CVPR 2021 (arXiv 2104.00903).
    """

    delta: float = 1e-3

    def __post_init__(self) -> None:
        if not (math.isfinite(self.delta) and self.delta >= 0):
            raise ValueError(f"Ewgs: expected a finite delta >= 0, got {self.delta}")


@dataclass(frozen=True)
class Reste:
    """Rectified straight-through estimator, one bit only: ``dL/dx = G·h'(x / mean|x|)``, mean|x| of the kept values.

    ``h(z) = sign(z)·|z|^(1/power)`` lies between the identity (power 1) and the sign (power → ∞). Its slope is
    ``|z|^((1−power)/power) / power``; for |z| <= flat the chord's, ``flat^((1−power)/power)``; 0 beyond |z| = bound.
    The authors raise the power from 1 to 3 while they train; pass another instance to follow them.

    Source: Wu, Zheng, Liu & Zheng, "Estimator Meets Equilibrium Perspective: A Rectified Straight Through Estimator
    for Binary Neural Networks Training", ICCV 2023 (arXiv 2308.06689). They divide by the standard deviation.
    """

    power: float = 3.0
    bound: float = 1.5
    flat: float = 0.1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.power) and self.power >= 1):
            raise ValueError(f"Reste: expected a finite power >= 1, got {self.power}")
        if not 0 < self.flat < self.bound:
            raise ValueError(f"Reste: expected 0 < flat < bound, got flat={self.flat}, bound={self.bound}")


Estimator = Ddt | Ste | Ewgs | Reste

NAMES: dict[str, type[Ddt] | type[Ste] | type[Ewgs] | type[Reste]] = {
    "ddt": Ddt,
    "ste": Ste,
    "ewgs": Ewgs,
    "reste": Reste,
}


def estimator_of(estimator: str | Estimator) -> Estimator:
    """An estimator by its name, with its defaults, or as it is. Raises ``ValueError`` for anything else."""
    if isinstance(estimator, Ddt | Ste | Ewgs | Reste):
        return estimator
    if estimator not in NAMES:
        expected = ", ".join(repr(name) for name in NAMES)
        raise ValueError(f"estimator: expected one of {expected}, or an instance, got {estimator!r}")
    return NAMES[estimator]()


def name_and_settings(estimator: Estimator) -> tuple[str, list[float]]:
    """What :func:`estimator_of` was given, as plain values: its name and its settings in order."""
    name = next(name for name, kind in NAMES.items() if type(estimator) is kind)
    return name, [float(setting) for setting in astuple(estimator)]
