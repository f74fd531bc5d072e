"""How the gradient crosses a quantiser. Forward they all give the ridge reconstruction, but for a :class:`Pege` under way.

Some change while a network trains: ``estimator.at(progress)`` is the same estimator at a point of training, progress
from 0 (start) to 1 (end, the default of each); those that do not change return themselves. It is computed from the
settings alone, so ``e.at(0.2).at(0.7) == e.at(0.7)``. :func:`tbnn.nn.progress` moves a whole network.
"""

import math
from dataclasses import dataclass, replace
from typing import Self


class _Steady:
    """An estimator that is the same throughout training."""

    def at(self, progress: float) -> Self:
        """Itself. Raises ``ValueError`` for a progress outside [0, 1]."""
        check_progress(type(self).__name__, progress)
        return self


def check_progress(name: str, progress: float) -> None:
    """Raise ``ValueError`` unless progress is in [0, 1]."""
    if not 0 <= progress <= 1:
        raise ValueError(f"{name}: expected a progress in [0, 1], got {progress}")


@dataclass(frozen=True)
class Ddt(_Steady):
    """The gradient of the ridge reconstruction, the rounding error δ held constant (arXiv 2409.09245).

    With f' = 1/s_f, c = q − q̄, D = N·Var(q) + λ·kept and A = Σ G·c in the affine form,

        dL/dx = s·f'·G + (Ḡ − s·f'·Ḡ) + (A/D)·(c + f'·(x − x̄ − 2·s·c))

    and in the linear one c = q, x̄ = Ḡ = 0, D = Σ q² + λ·kept. The first term goes through a value's own q, the others
    through the block's statistics: s and, in the affine form, both means.

    ``pruned="slope"``: what is pruned has q = 0 whatever it is, and cannot move the slope: it is no data of the ridge
    and gets ``s·f'·G`` alone, kept values all of dL/dx. It is the gradient where pruned x and q enter the statistics as
    constants. A block that keeps nothing has no slope: its values get G, as by "ste", and so may come back.
    ``pruned="ridge"``, "ddt_ridge": the paper's, exact with δ constant: all of dL/dx for every value, pruned or not; the
    gradient of a block that keeps nothing is Ḡ (affine) or 0 (linear). Without pruning both are one.

    ``slope_only``, "ddt_slope": the statistics are constants for every value, as neurons have them with
    ``differentiate_stats=False``: ``s·f'·G``, or G in a block that keeps nothing.
    """

    pruned: str = "slope"
    slope_only: bool = False

    def __post_init__(self) -> None:
        if self.pruned not in ("slope", "ridge"):
            raise ValueError(f"Ddt: expected pruned 'slope' or 'ridge', got {self.pruned!r}")
        if self.slope_only and self.pruned == "ridge":
            raise ValueError("Ddt: slope_only gives pruned values the slope, expected pruned='slope', got 'ridge'")


@dataclass(frozen=True)
class Ste(_Steady):
    """The identity: ``dL/dx = G`` (Bengio, Léonard & Courville 2013, arXiv 1308.3432)."""


@dataclass(frozen=True)
class Ewgs(_Steady):
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
    The authors raise the power from 1 to 3 while they train: ``at(progress)`` has ``1 + progress·(power − 1)`` for it,
    ``power`` being the one at the end.

    Source: Wu, Zheng, Liu & Zheng, "Estimator Meets Equilibrium Perspective: A Rectified Straight Through Estimator
    for Binary Neural Networks Training", ICCV 2023 (arXiv 2308.06689). They divide by the standard deviation.
    """

    power: float = 3.0
    bound: float = 1.5
    flat: float = 0.1
    progress: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.power) and self.power >= 1):
            raise ValueError(f"Reste: expected a finite power >= 1, got {self.power}")
        if not 0 < self.flat < self.bound:
            raise ValueError(f"Reste: expected 0 < flat < bound, got flat={self.flat}, bound={self.bound}")
        check_progress("Reste", self.progress)

    @property
    def power_now(self) -> float:
        """The power at this progress."""
        return 1 + self.progress * (self.power - 1)

    def at(self, progress: float) -> Self:
        """The same at another point of training."""
        return replace(self, progress=progress)


@dataclass(frozen=True)
class Qgait:
    """Soft quantiser, backward only: ``dL/dx = G·φ'(f(x))``, φ a staircase of tanh that softens the rounding.

    Between two neighbouring codes, t ∈ [0, 1] the place of f(x) between them and k the sharpness,

        φ(t) = ½ + tanh(k·(t − ½)) / (2·tanh(k/2)),    φ'(t) = (k/2)·(1 − tanh²(k·(t − ½))) / tanh(k/2)

    steps from the one to the other: φ' is (k/2)/tanh(k/2) where the rounding jumps, k/sinh(k) at a code, 1 on average.
    k → 0 gives the identity, "ste"; k → ∞ the rounding itself, whose slope is 0 but at the jumps. Beyond the outermost
    codes the slope stays that at a code. With ``bits=None`` nothing is rounded: the identity.

    ``at(progress)``: the identity before ``start``, k from then on: the authors train in two stages, for the soft
    quantiser alone may keep a network from converging, and let it in when they fine-tune.

    Theirs: a differentiable soft quantiser that stands for the rounding's gradient, and the two stages. Their formula and
    constants were not to be had; φ and k = 2.2 are those of Differentiable Soft Quantization (its α = 0.2), the slope
    beyond the codes and ``start`` are ours. Their inter-class distance-guided calibration is no part of this.

    Source: Tian et al., "QGait: Toward Accurate Quantization for Gait Recognition with Binarized Input", 2024 (arXiv
    2405.13859); Gong et al., "Differentiable Soft Quantization", ICCV 2019 (arXiv 1908.05033).
    """

    sharpness: float = 2.2
    start: float = 0.5
    progress: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.sharpness <= MOST_SHARP:
            raise ValueError(f"Qgait: expected a sharpness in [0, {MOST_SHARP:g}], got {self.sharpness}")
        if not 0 <= self.start <= 1:
            raise ValueError(f"Qgait: expected a start in [0, 1], got {self.start}")
        check_progress("Qgait", self.progress)

    @property
    def sharpness_now(self) -> float:
        """k at this progress."""
        return self.sharpness if self.progress >= self.start else 0.0

    def at(self, progress: float) -> Self:
        """The same at another point of training."""
        return replace(self, progress=progress)


@dataclass(frozen=True)
class Pege:
    """Progressive element-wise gradient estimation. **It changes the forward pass** until progress is 1.

    A share of the values, drawn anew at each call, is replaced by x̂; the others stay x, neither rounded nor pruned:

        x̃ = m·x̂ + (1 − m)·x,    m ~ Bernoulli(share),    share = ln(1 + (e − 1)·progress)

        dL/dx = G + weight·m·(x − x̂)

    The second term is the gradient of a loss on the discretisation error, ``weight/2·Σ(x − x̃)²``, x̂ held constant; a
    backward pass adds it, so that no loss need be written down (nor is it in the loss that one logs; a layer quantised
    twice in a pass has it twice). Progress 0 is full precision; progress 1, the default, is "ste" with the pull to the
    codes. Masks come from torch's generator of x's device: ``torch.manual_seed`` repeats them. At 0 and 1 none is drawn.

    Theirs: full-precision values replaced element by element by quantised ones, by a logarithmic curriculum; a loss of
    the task plus one of the discretisation error. Their formulas and constants were not to be had: the random choice,
    the curve of the share through (0, 0) and (1, 1), the squared error of what is replaced, and its weight are ours.

    Source: Zhao, "Progressive Element-wise Gradient Estimation for Neural Network Quantization", 2025 (arXiv 2509.00097).
    """

    weight: float = 1e-4
    progress: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"Pege: expected a finite weight >= 0, got {self.weight}")
        check_progress("Pege", self.progress)

    @property
    def share(self) -> float:
        """Of the values that are replaced by quantised ones."""
        return 1.0 if self.progress == 1 else math.log1p((math.e - 1) * self.progress)

    def at(self, progress: float) -> Self:
        """The same at another point of training."""
        return replace(self, progress=progress)


MOST_SHARP = 100.0  # of Qgait: beyond, nothing but the jumps has a slope that float32 tells from 0

Estimator = Ddt | Ste | Ewgs | Reste | Qgait | Pege

NAMES: dict[str, Estimator] = {
    "ddt": Ddt(),
    "ddt_ridge": Ddt(pruned="ridge"),
    "ddt_slope": Ddt(slope_only=True),
    "ste": Ste(),
    "ewgs": Ewgs(),
    "reste": Reste(),
    "qgait": Qgait(),
    "pege": Pege(),
}


def estimator_of(estimator: str | Estimator) -> Estimator:
    """An estimator by its name, with its defaults, or as it is. Raises ``ValueError`` for anything else."""
    if isinstance(estimator, Estimator):
        return estimator
    if estimator not in NAMES:
        expected = ", ".join(repr(name) for name in NAMES)
        raise ValueError(f"estimator: expected one of {expected}, or an instance, got {estimator!r}")
    return NAMES[estimator]


def name_and_settings(estimator: Estimator) -> tuple[str, list[float]]:
    """An estimator as the kernels take it: a name and numbers. They know "ste" alone of :class:`Qgait`, :class:`Pege`."""
    if isinstance(estimator, Ddt):
        return ("ddt_slope" if estimator.slope_only else "ddt_ridge" if estimator.pruned == "ridge" else "ddt"), []
    if isinstance(estimator, Ewgs):
        return "ewgs", [float(estimator.delta)]
    if isinstance(estimator, Reste):
        return "reste", [float(estimator.power_now), float(estimator.bound), float(estimator.flat)]
    return "ste", []
