"""STDP of triplets of spikes, the full rule and the minimal one."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from tbnn.learning.plasticity.traces import (
    check_finite,
    check_interaction,
    check_spikes,
    check_traces,
    decay_of,
    reached,
)


class TripletTraces(NamedTuple):
    """r and o of the paper, each (B, N) or (B, M)."""

    r1: Tensor
    """Of inputs, decays with tau_plus."""
    r2: Tensor
    """Of inputs, decays with tau_x."""
    o1: Tensor
    """Of outputs, decays with tau_minus."""
    o2: Tensor
    """Of outputs, decays with tau_y."""


@dataclass(frozen=True)
class Triplets:
    """The triplet rule: a pre spike takes ``o1·(A2− + A3−·r2)`` off, a post spike adds ``r1·(A2+ + A3+·o2)``.

    r2 and o2 are those just before the spike. With a3_minus = 0, and a2_plus = 0, it is the minimal rule of visual cortex.
    The defaults are the paper's fit of that rule to visual cortex with all-to-all pairs, times in ms, so a step is 1 ms.

    Attributes:
        a2_plus, a2_minus, a3_plus, a3_minus: amplitudes, finite.
        tau_plus, tau_minus, tau_x, tau_y: in steps, > 0.
        interaction: "all" spikes count or the "nearest" alone.

    Raises ``ValueError`` for values outside these ranges.
    """

    a2_plus: float = 0.0
    a2_minus: float = 7.1e-3
    a3_plus: float = 6.5e-3
    a3_minus: float = 0.0
    tau_plus: float = 16.8
    tau_minus: float = 33.7
    tau_x: float = 101.0
    tau_y: float = 114.0
    interaction: str = "all"

    def __post_init__(self) -> None:
        check_finite(a2_plus=self.a2_plus, a2_minus=self.a2_minus, a3_plus=self.a3_plus, a3_minus=self.a3_minus)
        self.decays  # noqa: B018
        check_interaction(self.interaction)

    @property
    def decays(self) -> tuple[float, float, float, float]:
        """Of r1, r2, o1 and o2, a step."""
        names = ("tau_plus", "tau_x", "tau_minus", "tau_y")
        r1, r2, o1, o2 = (decay_of(name, getattr(self, name)) for name in names)
        return r1, r2, o1, o2

    def rest(self, pre: Tensor, post: Tensor) -> TripletTraces:
        """No spikes so far."""
        x, y = pre.new_zeros(pre.shape), post.new_zeros(post.shape)
        return TripletTraces(x, x, y, y)


def triplet_step(
    pre: Tensor, post: Tensor, traces: TripletTraces | None, window: Triplets
) -> tuple[TripletTraces, Tensor]:
    """One step of triplet STDP; arguments and returns as of :func:`pair_step`.

    ``dW = Σ_b [post·(A2+ + A3+·o2)] ⊗ r1 − Σ_b o1 ⊗ [pre·(A2− + A3−·r2)]``. Events of one step come in this order: all
    traces decay; inputs that spike read o1 and r2, then enter r1 and r2; outputs that spike read r1 and o2, then enter o1
    and o2. So two spikes in one step are a causal pair, and no spike sees itself.

    Raises:
        ValueError: other shapes or dtypes; traces that are not finite.

    Source: Pfister & Gerstner, "Triplets of Spikes in a Model of Spike Timing-Dependent Plasticity", J. Neurosci. 26
    (2006).
    """
    check_spikes(pre, post)
    before = window.rest(pre, post) if traces is None else traces
    check_traces(before, (pre.shape, pre.shape, post.shape, post.shape), pre)
    r1, r2, o1, o2 = (trace * decay for trace, decay in zip(before, window.decays, strict=True))
    down = o1.T @ (pre * (window.a2_minus + window.a3_minus * r2))
    r1 = reached(r1, pre, window.interaction)
    up = (post * (window.a2_plus + window.a3_plus * o2)).T @ r1
    rest = (reached(trace, spikes, window.interaction) for trace, spikes in ((r2, pre), (o1, post), (o2, post)))
    return TripletTraces(r1, *rest), up - down
