"""Online training through time: presynaptic traces, and errors that go down through space alone."""

from tbnn.learning.online import OnlineRule
from tbnn.learning.stretch import STRETCH


class Ottt(OnlineRule):
    """OTTT: each step's error goes down through the weights of that step, and meets a trace of every weight's input.

        â[t] = β·â[t−1] + x[t]        ΔW ∝ Σ_t (δ[t] ∘ ψ(u[t]))·â[t]ᵀ,   δ[t] = Ŵᵀ_above (δ_above[t] ∘ ψ_above(u[t]))

    Memory is one trace an input and a sample, whatever the number of steps. For one layer without recurrence under a loss
    of its spikes at each step, this is the gradient of back-propagation through time (its reset detached); with layers above,
    what they remember of earlier spikes is left out.

    Source: Xiao et al., "Online training through time for spiking neural networks", NeurIPS 2022 (OTTT_A: gradients
    gathered over a sequence; an optimizer that steps after each ``update`` makes it OTTT_O).

    >>> rule = Ottt(network)
    >>> for x_t in x:
    ...     state = rule.step(x_t, state)
    ...     loss = rule.update(labels)
    """

    name = "ottt"
    stretch = STRETCH
