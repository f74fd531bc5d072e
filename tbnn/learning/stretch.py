"""Several steps of an online rule at once, while the weights stand still: what its steps find, by a few large products.

Between two changes of the weights all that a rule carries on is linear: the presynaptic traces, the membranes given their
spikes, the running averages. Over a stretch of T steps it is a matrix (T, T) of the filter's response
(:class:`tbnn.learning.traces.Response`), and Σ_t δ[t]·x̄[t]ᵀ turns into Σ_s (Σ_{t≥s} g[t−s]·δ[t])·x[s]ᵀ, so that the trace of
no input is written out. The neurons spike by their fused kernels. Memory is that of one stretch, whatever the sequence's
length; the figures are those of :meth:`tbnn.learning.rule.Rule.step`, to rounding.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from tbnn.learning.normalise import normalised
from tbnn.learning.ridge import RunningRidge, Seen, seen_of
from tbnn.learning.stages import Passage, Stage, Synapses, pass_through
from tbnn.learning.traces import Filter, Response, Trace, one_value, response
from tbnn.nn import LeakyIntegrator, Neuron
from tbnn.ops.lif.cell import Cell

if TYPE_CHECKING:
    from tbnn.learning.online import OnlineRule

STRETCH = 64  # steps


class Carry(NamedTuple):
    """What a stage takes from one stretch to the next."""

    neuron: Any
    passage: tuple[Any, ...]
    inputs: Trace | None
    ones: Trace | None
    last: Tensor | None
    """The last step's spikes, where neurons spike."""
    returned: Trace | None
    normed: Trace | None
    drive: Trace | None
    """Of the current."""
    pulls: tuple[Trace, ...]
    """Of the spikes, by which they hold the membrane down."""
    extra: Any
    """A rule's own."""


NOTHING = Carry(None, (), None, None, None, None, None, None, (), None)  # before the first stretch


@dataclass
class Stretch:
    """One stage over T steps; what has no time axis holds T·B samples."""

    index: int
    stage: Stage
    synapses: Synapses
    returning: Synapses | None
    ridge: Any
    trace: Response
    """Of the neurons' filter."""
    before: Carry | None
    passage: Passage
    out: Tensor
    """(T, B, features...)."""
    own: Any
    """The neurons' state after the last step."""
    last: Tensor | None
    """The spikes of the step before, (T, B, features...), where neurons spike."""
    current: Tensor
    hat: Tensor | None
    gain: Tensor | None
    pulls: tuple["Pull", ...]
    seen: Seen | None = None
    averages: Tensor | None = None
    """Of the running ridge, after each step."""
    extra: Any = None

    @property
    def steps(self) -> int:
        return len(self.out)

    def timed(self, samples: Tensor) -> Tensor:
        """(T·B, ...) as (T, B, ...)."""
        return samples.unflatten(0, self.out.shape[:2])

    def slopes(self) -> Tensor:
        """ψ (T, B, features...): the slope of each step's spikes by their level. Of neurons that spike."""
        seen = cast("Seen", self.seen)
        if seen.x is None or self.averages is None:
            return seen.slope
        return self.ridge.slopes(self.averages, seen.x) * seen.slope

    def through_spikes(self, signal: Tensor) -> Tensor:
        """From a gradient by what left the stage to one by its level."""
        seen = self.seen
        if seen is None:
            return signal
        if seen.x is None or seen.q is None or self.averages is None:
            return signal * seen.slope
        return self.ridge.gradient_steps(signal, seen.x, seen.q, self.averages) * seen.slope

    def gather(self, delta: Tensor, norms: list[Tensor]) -> None:
        """Add Σ_t δ[t]·x̄[t]ᵀ to the gradients, δ (T, B, features...) being what acts on the current."""
        before = self.before or NOTHING
        heard = here = (self.trace.later(delta), self.trace.earlier(delta))
        if self.gain is not None:
            self._gather_norm(*heard, norms)
            through = delta * self.gain
            here = (self.trace.later(through), self.trace.earlier(through))
        _gather(self.synapses, self.passage.left.detach(), *here, before.inputs, before.ones)
        if self.returning is not None and self.last is not None:
            _gather(self.returning, self.last.flatten(0, 1), *heard, before.returned, before.ones)

    def outer(self, delta: Tensor) -> Tensor:
        """Σ_t δ[t]·x̄[t]ᵀ sample by sample, (B, neurons, inputs + returning + 1), δ (T, B, neurons)."""
        now, early, before = self.trace.later(delta), self.trace.earlier(delta), self.before or NOTHING
        x = self.timed(self.passage.left.detach())
        parts = [x, *([] if self.returning is None else [cast("Tensor", self.last)]), x.new_ones(*x.shape[:2], 1)]
        found = now.permute(1, 2, 0) @ torch.cat(parts, 2).transpose(0, 1)
        if before.inputs is None or before.ones is None:
            return found
        returned = before.returned or (None,) * len(early)
        for part, inputs, back, one in zip(early, before.inputs, returned, before.ones, strict=True):
            known = [inputs, *([] if back is None else [back]), one.expand(len(inputs), 1)]
            found += part.unsqueeze(2) * torch.cat(known, 1).unsqueeze(1)
        return found

    def _gather_norm(self, now: Tensor, early: Trace, norms: list[Tensor]) -> None:
        """The same of a norm's weight, which the normalised current meets, and of its bias."""
        before = self.before or NOTHING
        hat = cast("Tensor", self.hat)
        parts = [(now.flatten(0, 1), hat.flatten(0, 1), torch.ones(()))]
        if before.normed is not None and before.ones is not None:
            parts += zip(early, before.normed, before.ones, strict=True)
        for part, of_weight, of_bias in parts:
            axes = [axis for axis in range(part.ndim) if axis != 1]
            norms[0] += (part * of_weight).sum(axes)
            norms[1] += (part * of_bias.to(part)).sum(axes)

    def carry(self, extra: Any) -> Carry:
        """What the next stretch needs."""
        before, x = self.before or NOTHING, self.timed(self.passage.left.detach())
        returned = normed = drive = last = None
        if self.returning is not None and self.last is not None:
            returned = self.trace.after(self.last, before.returned)
        if self.hat is not None:
            normed = self.trace.after(self.hat, before.normed)
        if self.last is not None:
            drive, last = self.trace.after(self.current, before.drive), self.out[-1]
        inputs, ones = self.trace.after(x, before.inputs), self.trace.after(x.new_ones(self.steps), before.ones)
        pulls = tuple(
            response(pull.filter, self.steps, self.out).after(cast("Tensor", self.last), known)
            for pull, known in self.pulling()
        )
        return Carry(self.own, self.passage.states, inputs, ones, last, returned, normed, drive, pulls, extra)

    def pulling(self) -> list[tuple["Pull", Trace | None]]:
        """How spikes hold the level down, with the traces of those before."""
        known = (None,) * len(self.pulls) if self.before is None else self.before.pulls
        return list(zip(self.pulls, known, strict=True))


def _gather(synapses: Synapses, x: Tensor, now: Tensor, early: Trace, before: Trace | None, ones: Trace | None) -> None:
    """Add what a product of weights and x (T·B, ...) was to do, and what it was to have done before."""
    synapses.gather(x, now.flatten(0, 1))
    synapses.gather_bias(now.flatten(0, 1))
    if before is not None and ones is not None:
        for part, trace, one in zip(early, before, ones, strict=True):
            synapses.gather(trace, part)
            synapses.gather_bias(part * one)


class Pull(NamedTuple):
    """One way in which spikes hold the level down."""

    filter: Filter
    by_threshold: bool
    """Whether the threshold multiplies it."""


def pulls_of(neuron: Neuron) -> tuple[Pull, ...]:
    """How the spikes of a layer hold its level down; ``ValueError`` where not linearly, or not alike in all neurons."""
    if neuron.reset_mechanism == "zero":
        raise ValueError("reset_mechanism: expected one that acts linearly, got 'zero'")
    beta, second = neuron.coefficients()
    own, pulls = one_value(beta, "beta", "pulls_of"), []
    names = ("rho", "from_v", "to_v", "to_threshold")
    others = {} if second is None else {name: one_value(getattr(second, name), name, "pulls_of") for name in names}
    if neuron.reset_mechanism == "subtract":
        pulls.append(Pull(Filter(own, **others), True))
    if second is not None and (jump := one_value(second.from_spike, "from_spike", "pulls_of")):
        pulls.append(Pull(Filter(own, **others, from_current=-jump, current_gain=0.0), False))
    return tuple(pulls)


def stretchable(neurons: list[Neuron | LeakyIntegrator]) -> bool:
    """Whether spikes act linearly in all of them, and no threshold follows the activity."""
    for neuron in neurons:
        if isinstance(neuron, Neuron):
            try:
                pulls_of(neuron)
            except ValueError:
                return False
            if neuron.homeostasis is not None:
                return False
    return True


def advance(rule: "OnlineRule", index: int, spikes: Tensor, steps: int, before: Carry | None) -> Stretch:
    """A stage's way through ``steps`` steps of spikes (T·B, ...) from the stage below."""
    stage, synapses, returning = rule.stages[index], rule.forward_synapses[index], rule.returning_synapses[index]
    passage = pass_through(stage.path, spikes, None if before is None else before.passage, steps)
    x = passage.left.detach()
    current = synapses.current(x).unflatten(0, (steps, -1))
    hat = gain = last = None
    if stage.norm is not None:
        hat, current, gain = normalised(stage.norm, current)
    own = None if before is None else before.neuron
    neuron, pulls = stage.neuron, ()
    if not isinstance(neuron, Neuron):
        out, own = neuron(current, own)
    else:
        out, own = (
            neuron.run(current, own, None, neuron.spike_gradient) if stage.loop is None else stage.loop(current, own)
        )
        first = torch.zeros_like(out[0]) if before is None or before.last is None else before.last
        last, pulls = torch.cat([first.unsqueeze(0), out[:-1]]), pulls_of(neuron)
        if returning is not None:
            current = current + returning.current(last.flatten(0, 1)).unflatten(0, (steps, -1))
    trace = response(rule.filters[index], steps, current)
    ran = Stretch(
        index, stage, synapses, returning, rule.ridges[index], trace, before, passage, out, own, last, current, hat, gain, pulls
    )  # fmt: skip
    if isinstance(neuron, Neuron):
        ran.seen = _see(ran, neuron)
        if ran.seen.x is not None and ran.seen.q is not None and isinstance(ran.ridge, RunningRidge):
            ran.averages = ran.ridge.observe_steps(ran.seen.x, ran.seen.q)
    ran.extra = rule.remember_steps(ran)
    return ran


def _see(ran: Stretch, neuron: Neuron) -> Seen:
    """:func:`tbnn.learning.ridge.see` of all steps: the level is the trace of the current less those of earlier spikes."""
    beta, second = neuron.coefficients()
    cell = Cell(beta, neuron.effective_threshold(ran.out.shape[2:]), second)
    driven = ran.trace.levels(ran.current, None if ran.before is None else ran.before.drive)
    spikes = torch.cat([cast("Tensor", ran.last), ran.out[-1:]])  # those of the step before the first, and of all steps
    down = torch.zeros_like(spikes)
    for pull, known in ran.pulling():
        by_spikes = response(pull.filter, len(spikes), spikes).levels(spikes, known)
        down += cell.threshold * by_spikes if pull.by_threshold else by_spikes
    held = down[1:] if neuron.spike_gradient.uses_trace else None
    return seen_of(neuron, cell, driven - down[:-1], ran.out, driven if held is not None else None, held)


class Whole(NamedTuple):
    """A network over one stretch."""

    stages: tuple[Stretch, ...]
    end: Passage
    """From the last neurons to the readout."""


def run(rule: "OnlineRule", x: Tensor, before: tuple[Carry, ...] | None, tail: tuple[Any, ...] | None) -> Whole:
    """Steps x (T, B, features...) through all stages, from what the stretch before left."""
    steps, spikes, stages = len(x), x.flatten(0, 1), []
    for index in range(len(rule.stages)):
        stages.append(advance(rule, index, spikes, steps, None if before is None else before[index]))
        spikes = stages[-1].out.flatten(0, 1)
    return Whole(tuple(stages), pass_through(rule.tail, spikes, tail, steps))
