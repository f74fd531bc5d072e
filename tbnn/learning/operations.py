"""What a step of learning takes under each rule: multiply-additions, and the numbers it keeps. The formulas alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from tbnn.learning.bptt import Bptt
from tbnn.learning.decolle import Decolle
from tbnn.learning.eprop import Eprop
from tbnn.learning.feedback import DirectFeedbackAlignment, FeedbackAlignment
from tbnn.learning.ostl import Ostl
from tbnn.learning.ottt import Ottt
from tbnn.learning.reward import RewardEprop
from tbnn.learning.rtrl import Rtrl
from tbnn.learning.rule import Rule

WORD = 32  # bits of a real number


@dataclass(frozen=True)
class Sizes:
    """Of one stage, weights and the neurons they drive, of one sample."""

    inputs: int
    neurons: int
    weights: int
    """Into the neurons."""
    synapses: int
    """The same, each in each place where it acts: of a convolution each weight of each window."""
    returning: int
    """From its neurons back to them: neurons², or 0."""
    biases: int
    """Neurons, or 0."""
    products: int
    """Multiply-additions that move one trace on by a step."""
    trace: int
    """Numbers of one trace."""
    states: int
    """Numbers of a neuron's own state."""
    first: bool
    spikes: bool
    adaptive: bool
    """Whether its neurons' thresholds adapt."""
    classes: int
    network_states: int
    """Of all stages together."""
    steps: int

    @property
    def plastic(self) -> int:
        """Synapses that learn, a bias being one of them."""
        return self.synapses + self.returning + self.biases


class Work(NamedTuple):
    """Multiply-additions of one stage, sample and step, and the bits kept between steps."""

    eligibility: float
    """To carry traces and eligibilities on."""
    update: float
    """To bring the error to the neurons and multiply it into changes of weights."""
    once: float = 0.0
    """At the end of a sequence."""
    input_bits: float = 0.0
    """Of each input."""
    neuron_bits: float = 0.0
    """Of each neuron, beside its own state."""
    synapse_bits: float = 0.0
    """Of each synapse, beside what the optimizer keeps."""
    rewritten: float = 1.0
    """How often a step these bits are written, and read."""
    feedback_bits: float = 0.0
    """Of weights that bring errors and stand for none of the network's, all together."""
    feedback_read: float = 0.0
    """Bits of them that are read a step."""
    down: float = 0.0
    """Weights of the stage that are read a step for an error on its way to the stage below."""


def work_of(rule: Rule, sizes: Sizes) -> Work:
    """The work of one stage under a rule, as its equations say, dense: errors and traces are real numbers.

    With I inputs, N neurons, C classes, S synapses into the neurons and M all that learn (S, those that return, a bias), p products
    a trace (1 for a leaky neuron), D = S where there is a stage below and 0 in the first, and per step:

    =============  =================================  ==========================  ====================================
    rule           eligibility                        update                      kept
    =============  =================================  ==========================  ====================================
    ottt           p·(I + returning N)                M + N + D                   a trace an input
    fa             the same                           the same                    and a real feedback weight a weight
    dfa            the same                           M + N + C·N, D = 0          and C feedback weights a neuron
    decolle        the same                           M + N + 2·C·N, D = 0        and C readout weights a neuron
    eprop          that + 2·M (ψ·x̄, κ·ē + e)          M + N + D                   and ē a synapse
    reward         that + 2·M (γ·F + L·ē)             N + D, M a sequence         and F a synapse
    ostl           2·M; recurrent (N + 2)·N·M         M (N·M) + N + D             ∂v a synapse; recurrent 2·N
    rtrl           s²·M + s·M, s all states           (s + 1)·M                   s a synapse
    bptt           0                                  M + (1 + p)·N + D + returning  states and a bit a neuron and step
    =============  =================================  ==========================  ====================================

    e-prop: 2·M more, and one more number a synapse, with adaptation; κ = 0, no leaky readout, spares one product and ē. Broadcast
    feedback as in dfa, adaptive feedback C·N more and a trace a neuron. ostl: M more with ``through_reset`` (recurrent N·M).
    The readout is none of the spiking ones: of every rule p·I and M + D, and under reward F too.

    Raises:
        ValueError: a rule it has no formula for.
    """
    for kind, formula in FORMULAS.items():
        if type(rule) is kind or (kind is Bptt and isinstance(rule, Bptt)):
            return formula(rule, sizes)
    known = ", ".join(kind.name for kind in FORMULAS)
    raise ValueError(f"learning_cost: expected one of the rules {known}, got {rule.name!r}")


def _traced(sizes: Sizes, down: float) -> Work:
    """Presynaptic traces, and an error from ``down`` products."""
    returns = sizes.neurons if sizes.returning else 0
    slopes = sizes.neurons if sizes.spikes else 0
    bits = WORD * sizes.trace
    return Work(
        eligibility=sizes.products * (sizes.inputs + returns),
        update=sizes.plastic + slopes + down,
        input_bits=bits,
        neuron_bits=bits if returns else 0,
        down=down,
    )


def _down(sizes: Sizes) -> int:
    """Products by which a stage's own error goes to the stage below."""
    return 0 if sizes.first else sizes.synapses


def _ottt(_: Rule, sizes: Sizes) -> Work:
    return _traced(sizes, _down(sizes))


def _fa(_: Rule, sizes: Sizes) -> Work:
    read = WORD * _down(sizes)
    return _traced(sizes, _down(sizes))._replace(
        down=0, feedback_bits=WORD * sizes.weights if read else 0, feedback_read=read
    )


def _broadcast(work: Work, sizes: Sizes, products: int, adaptive: bool = False) -> Work:
    """With weights from the classes to each spiking neuron, in so many products; adaptive ones hear a trace of it."""
    if not sizes.spikes:
        return work
    each = sizes.classes * sizes.neurons
    return work._replace(
        eligibility=work.eligibility + adaptive * sizes.neurons,
        update=work.update + products * each,
        neuron_bits=work.neuron_bits + WORD * adaptive,
        feedback_bits=WORD * each,
        feedback_read=WORD * products * each,
    )


def _dfa(rule: Any, sizes: Sizes) -> Work:
    return _broadcast(_traced(sizes, 0), sizes, 1 + rule.adaptive, rule.adaptive)


def _decolle(rule: Any, sizes: Sizes) -> Work:
    return _broadcast(_traced(sizes, 0), sizes, 2 + rule.learn_readouts)


def _eprop(rule: Any, sizes: Sizes) -> Work:
    work = _traced(sizes, _down(sizes) if rule.broadcast is None else 0)
    if sizes.spikes:
        adapts, filters = rule.adaptation and sizes.adaptive, rule.kappa != 0
        work = work._replace(
            eligibility=work.eligibility + (1 + filters + 2 * adapts) * sizes.plastic,
            synapse_bits=WORD * (filters + adapts),
        )
    if rule.broadcast is None:
        return work
    adaptive = rule.feedback == "adaptive"
    return _broadcast(work, sizes, 1 + adaptive, adaptive)


def _reward(rule: Any, sizes: Sizes) -> Work:
    work = _eprop(rule, sizes)
    return work._replace(
        eligibility=work.eligibility + 2 * sizes.plastic,
        update=work.update - sizes.plastic,
        once=sizes.plastic,
        synapse_bits=work.synapse_bits + WORD,
    )


def _ostl(rule: Any, sizes: Sizes) -> Work:
    if not sizes.spikes:
        return _traced(sizes, _down(sizes))
    reset = rule.through_reset
    each = sizes.plastic * (sizes.neurons if sizes.returning else 1)  # entries of ∂v
    products = (2 + reset + sizes.neurons) if sizes.returning else 2 + reset
    numbers = 2 * sizes.neurons if sizes.returning else 1 + reset
    down = _down(sizes)
    return Work(products * each, each + sizes.neurons + down, synapse_bits=WORD * numbers, down=down)


def _rtrl(_: Rule, sizes: Sizes) -> Work:
    states = sizes.network_states
    return Work(states * (states + 1) * sizes.plastic, (states + 1) * sizes.plastic, synapse_bits=WORD * states)


def _bptt(rule: Any, sizes: Sizes) -> Work:
    kept = min(rule.every or sizes.steps, sizes.steps)
    slopes = (1 + sizes.products) * sizes.neurons if sizes.spikes else sizes.products * sizes.neurons
    return Work(
        eligibility=0,
        update=sizes.plastic + slopes + _down(sizes) + sizes.returning,
        input_bits=kept if sizes.first else 0,  # the bits of other stages' inputs are the neurons' before
        neuron_bits=kept * (WORD * sizes.states + sizes.spikes),
        rewritten=1 / kept,
        down=_down(sizes) + sizes.returning,
    )


FORMULAS: dict[type[Rule], Callable[[Any, Sizes], Work]] = {
    Ottt: _ottt,
    FeedbackAlignment: _fa,
    DirectFeedbackAlignment: _dfa,
    Decolle: _decolle,
    Eprop: _eprop,
    RewardEprop: _reward,
    Ostl: _ostl,
    Rtrl: _rtrl,
    Bptt: _bptt,
}
