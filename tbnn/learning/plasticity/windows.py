"""STDP of pairs of spikes: the window, and one step of it."""

from dataclasses import dataclass

from torch import Tensor

from tbnn.learning.plasticity.traces import (
    Traces,
    check_finite,
    check_interaction,
    check_spikes,
    check_traces,
    decay_of,
    reached,
)

COINCIDENCES = ("causal", "both", "neither")


@dataclass(frozen=True)
class Pairs:
    """The window of pair STDP, ``dw(Δ) = A+·exp(−Δ/τ+)`` for Δ = t_post − t_pre > 0 and ``−A−·exp(Δ/τ−)`` for Δ < 0.

    Attributes:
        a_plus, a_minus: A+ and A−, finite; negative ones turn the window upside down.
        tau_plus, tau_minus: in steps, > 0.
        interaction: "all" pairs of spikes count, or each spike and the "nearest" one before it on the other side.
        coincidence: what two spikes in one step are: "causal", the input before the output it drove, +A+;
            "both", A+ − A−, as in BindsNET and SpikingJelly; "neither", 0.

    Raises ``ValueError`` for values outside these ranges. The default amplitudes and times (in ms) are those of Song,
    Miller & Abbott, Nature Neuroscience 3 (2000).
    """

    a_plus: float = 0.005
    a_minus: float = 0.00525
    tau_plus: float = 20.0
    tau_minus: float = 20.0
    interaction: str = "all"
    coincidence: str = "causal"

    def __post_init__(self) -> None:
        check_finite(a_plus=self.a_plus, a_minus=self.a_minus)
        decay_of("tau_plus", self.tau_plus)
        decay_of("tau_minus", self.tau_minus)
        check_interaction(self.interaction)
        if self.coincidence not in COINCIDENCES:
            raise ValueError(f"coincidence: expected 'causal', 'both' or 'neither', got {self.coincidence!r}")

    @property
    def decays(self) -> tuple[float, float]:
        """Of the pre- and of the postsynaptic trace, a step."""
        return decay_of("tau_plus", self.tau_plus), decay_of("tau_minus", self.tau_minus)

    def rest(self, pre: Tensor, post: Tensor) -> Traces:
        """No spikes so far."""
        return Traces(pre.new_zeros(pre.shape), post.new_zeros(post.shape))


def pair_seen(pre: Tensor, post: Tensor, traces: Traces | None, window: Pairs) -> tuple[Traces, Traces]:
    """The traces after a step, and what its spikes saw of them: each post spike of ``pre``, each pre spike of ``post``.

    Events of one step come in this order: traces decay; inputs that spike enter their traces; outputs that spike read
    those and inputs that spike read the outputs' traces, with this step's spikes or without as ``coincidence`` says;
    outputs that spike enter theirs.
    """
    check_spikes(pre, post)
    x, y = window.rest(pre, post) if traces is None else traces
    check_traces((x, y), (pre.shape, post.shape), pre)
    decay_pre, decay_post = window.decays
    x, y = x * decay_pre, y * decay_post
    after = Traces(reached(x, pre, window.interaction), reached(y, post, window.interaction))
    seen = Traces(
        x if window.coincidence == "neither" else after.pre, after.post if window.coincidence == "both" else y
    )
    return after, seen


def pair_step(pre: Tensor, post: Tensor, traces: Traces | None, window: Pairs) -> tuple[Traces, Tensor]:
    """One step of pair STDP: ``dW = A+·Σ_b post ⊗ x − A−·Σ_b y ⊗ pre``, x and y the traces of :func:`pair_seen`.

    Args:
        pre: (B, N) of 0/1.
        post: (B, M) of 0/1.
        traces: those the step before returned; None: no spikes so far.
        window: see :class:`Pairs`.

    Returns:
        The traces after the step, and dW (M, N), summed over the batch.

    Raises:
        ValueError: other shapes or dtypes; traces that are not finite.

    Source: the online form is of Morrison, Diesmann & Gerstner, Biological Cybernetics 98 (2008).

    >>> import torch
    >>> traces, dw = pair_step(torch.ones(1, 3), torch.zeros(1, 2), None, Pairs(a_plus=1.0))
    >>> pair_step(torch.zeros(1, 3), torch.ones(1, 2), traces, Pairs(a_plus=1.0))[1][0, 0]  # exp(−1/20)
    tensor(0.9512)
    """
    after, seen = pair_seen(pre, post, traces, window)
    return after, window.a_plus * (post.T @ seen.pre) - window.a_minus * (seen.post.T @ pre)
