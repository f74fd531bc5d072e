"""What the online gradient rules share: a step forward with traces, and an error's way into the weights of each stage."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tbnn.learning.normalise import normalised
from tbnn.learning.ridge import MOMENTUM, RunningRidge, Seen, see
from tbnn.learning.rule import Outcome, Rule, RuleState, classification_error
from tbnn.learning.stages import WEIGHTS, Passage, Synapses, add_gradient, pass_through, stages_of
from tbnn.learning.stretch import Carry, Stretch, Whole, run, stretchable
from tbnn.learning.traces import Filter, Trace, filter_of
from tbnn.nn import Neuron


class StageState(NamedTuple):
    """One stage after a step."""

    neuron: Any
    """The neurons' own state."""
    out: Tensor
    """What left them, (B, features...)."""
    passage: Passage
    """The way of the spikes before to the weights."""
    inputs: Trace
    """Of what the weights multiply."""
    last: Tensor | None
    """The spikes that return, those of the step before, where they do."""
    returned: Trace | None
    """Their trace."""
    ones: Trace
    """Of a bias's input, 1."""
    normed: Trace | None
    """Of the normalised current, where there is a norm."""
    gain: Tensor | None
    """What the norm multiplied the current by, broadcasting to it."""
    seen: Seen | None
    """What a spiking stage gives to learn from."""
    extra: Any = None
    """A rule's own eligibilities."""


class OnlineRule(Rule):
    """Base of the rules that carry credit forward in time: traces in :meth:`step`, an error's way down in :meth:`update`.

    A weight's eligibility is the slope of its neuron's spike times a trace of its input (:mod:`tbnn.learning.traces`), which
    needs no graph over time. The slope is that of the neuron's own estimator: a surrogate's, or a ridge regression's
    on running averages (:class:`tbnn.learning.ridge.RunningRidge`). Where the error of a step comes from, :meth:`below`
    says. Batch norms stand at their running statistics and learn their weight and bias.

    Args:
        network: a :class:`tbnn.nn.Network` of stages, linear layers or convolutions followed by library neurons of fixed
            constants, maybe a batch norm between them, maybe recurrent by one step; pools, flattening and dropout anywhere.
        momentum: of the running ridge.

    Raises:
        ValueError: another network, with the layer and what is taken.
    """

    weights: tuple[type[nn.Module], ...] = WEIGHTS
    stretch: int | None = None  # steps that :meth:`sequence` takes at once; None: it goes step by step

    def __init__(self, network: nn.Module, *, momentum: float = MOMENTUM) -> None:
        super().__init__(network)
        self.stages, self.tail = stages_of(network, self.name, self.weights)
        self.filters: list[Filter] = [filter_of(stage.neuron, f"{self.name}: {stage.name}") for stage in self.stages]
        self.ridges = nn.ModuleList(
            RunningRidge(s.neuron, momentum) if isinstance(s.neuron, Neuron) else nn.Identity() for s in self.stages
        )
        self.parts: dict[str, nn.Module] = {"ridges": self.ridges}  # what the rule itself knows, and saves
        self.forward_synapses: list[Synapses] = []
        self.returning_synapses: list[Synapses | None] = []
        self._norms: list[list[Tensor]] = []
        self._last: RuleState | None = None
        self._end: Passage | None = None

    # forward

    @torch.no_grad()
    def step(self, x: Tensor, state: RuleState | None = None) -> RuleState:
        """One step: x (B, features...) of 0/1, or packed words; see :class:`tbnn.learning.rule.Rule`."""
        if not self.forward_synapses:
            self._refresh()
        spikes = self.network.unpacked(x.unsqueeze(0)).squeeze(0)  # pyright: ignore[reportCallIssue]
        before = (None,) * len(self.stages) if state is None else state.traces[0]
        after: list[StageState] = []
        for index, old in enumerate(before):
            after.append(self._advance(index, spikes, old))
            spikes = after[-1].out
        self._end = pass_through(self.tail, spikes, None if state is None else state.traces[1])
        own = tuple(stage.neuron for stage in after)
        self._last = RuleState(own, (tuple(after), self._end.states), self._end.left.detach())
        return self._last

    def _advance(self, index: int, spikes: Tensor, old: StageState | None) -> StageState:
        stage, synapses, filter_ = self.stages[index], self.forward_synapses[index], self.filters[index]
        passage = pass_through(stage.path, spikes, None if old is None else old.passage.states)
        x = passage.left.detach()
        current = synapses.current(x)
        normed = gain = None
        if stage.norm is not None:
            hat, current, gain = (part.squeeze(0) for part in normalised(stage.norm, current.unsqueeze(0)))
            normed = filter_.advance(None if old is None else old.normed, hat)
        last = returned = None
        returning = self.returning_synapses[index]
        if returning is not None:
            last = torch.zeros_like(current) if old is None else old.out
            current = current + returning.current(last)
            returned = filter_.advance(None if old is None else old.returned, last)
        out, own = stage.neuron.step(current, None if old is None else old.neuron)
        seen = see(stage.neuron, own, out) if isinstance(stage.neuron, Neuron) else None
        ridge = self.ridges[index]
        if seen is not None and seen.x is not None and seen.q is not None and isinstance(ridge, RunningRidge):
            ridge.observe(seen.x, seen.q)
        now = StageState(
            own, out, passage,
            filter_.advance(None if old is None else old.inputs, x),
            last, returned,
            filter_.advance(None if old is None else old.ones, x.new_ones(())),
            normed, gain, seen,
        )  # fmt: skip
        return now._replace(extra=self.remember(index, now, None if old is None else old.extra))

    def remember(self, index: int, now: StageState, before: Any) -> Any:
        """What a rule keeps of a stage beside the traces."""
        return None

    # backward in space, at one step

    @torch.no_grad()
    def credit(self, target: Tensor, weight: float) -> float:
        """Gather this step's gradients; see :class:`tbnn.learning.rule.Rule`."""
        if self._last is None or self._end is None:
            raise ValueError(f"{self.name}: update: expected a step before, got none")
        states: tuple[StageState, ...] = self._last.traces[0]
        loss, error = self.error(self._last.readout, target, weight)
        signal = self._end.back(error)
        for index in reversed(range(len(self.stages))):
            delta = self.assign(index, states[index], signal)
            if index:
                signal = self.below(index, states, delta, error)
        return loss * weight

    def finish(self) -> None:
        """Hand the gathered gradients on to the parameters; the weights may change after it."""
        for stage, norm, *synapses in zip(self.stages, self._norms, self.forward_synapses, self.returning_synapses, strict=True):  # fmt: skip
            for one in synapses:
                if one is not None:
                    one.push()
            if stage.norm is not None:
                add_gradient(stage.norm.weight, norm[0])
                add_gradient(stage.norm.bias, norm[1])
        self.forward_synapses = []  # the next step quantises anew

    # several steps at once

    def sequence(
        self, x: Tensor, target: Tensor, change: Callable[[], Any] | None = None, *, steps: int | None = None
    ) -> Outcome:
        """As the base's; rules and networks that allow it take ``stretch`` steps at once (:mod:`tbnn.learning.stretch`)."""
        if not self.stretch or steps == 1 or not self.stretches:
            return super().sequence(x, target, change, steps=steps)
        total, done, loss, readouts = len(x), 0, 0.0, []
        before = tail = None
        while done < total:
            until = min(done + self.stretch, total if steps is None else done - done % steps + steps, total)
            part, ran = self._stretched(x[done:until], target, total, before, tail)
            loss, done = loss + part, until
            readouts.append(ran.end.left.detach().unflatten(0, (-1, x.shape[1])))
            if done < total:
                before, tail = tuple(stage.carry(self.carry_steps(stage)) for stage in ran.stages), ran.end.states
            if done == total or (steps is not None and done % steps == 0):
                self.finish()
                if change is not None:
                    change()
        return Outcome(loss, torch.cat(readouts))

    @property
    def stretches(self) -> bool:
        """Whether the network is one whose steps can be taken together."""
        return stretchable([stage.neuron for stage in self.stages])

    @torch.no_grad()
    def _stretched(
        self, x: Tensor, target: Tensor, total: int, before: tuple[Carry, ...] | None, tail: Any
    ) -> tuple[float, Whole]:
        """Several steps forward and their gradients gathered; their share of the loss of ``total`` steps."""
        if not self.forward_synapses:
            self._refresh()
        self._last = self._end = None  # no single step stands to be credited
        ran = run(self, self.network.unpacked(x), before, tail)  # pyright: ignore[reportCallIssue]
        repeated, weight = target.repeat(len(x), *[1] * (target.ndim - 1)), len(x) / total
        loss, error = self.error(ran.end.left.detach(), repeated, weight)
        states, signal = tuple(_flat(stage) for stage in ran.stages), ran.end.back(error)
        for index in reversed(range(len(self.stages))):
            stage = ran.stages[index]
            delta = self.assign_steps(stage, signal.reshape(stage.out.shape))
            if index:
                signal = self.below(index, states, delta.flatten(0, 1), error)
        return loss * weight, ran

    def assign_steps(self, stage: Stretch, signal: Tensor) -> Tensor:
        """:meth:`assign` of several steps, (T, B, features...)."""
        delta = stage.through_spikes(signal)
        stage.gather(delta, self._norms[stage.index])
        return delta

    def remember_steps(self, stage: Stretch) -> Any:
        """:meth:`remember` of several steps, for what :meth:`below` reads: of T·B samples."""
        return None

    def carry_steps(self, stage: Stretch) -> Any:
        """And what of it the next steps need."""
        return None

    def forget(self) -> None:
        """Drop what was seen and gathered; the weights may have changed."""
        self.forward_synapses, self._last, self._end = [], None, None
        for ridge in self.ridges:
            if isinstance(ridge, RunningRidge):
                ridge.reset()

    def _refresh(self) -> None:
        self.forward_synapses = [Synapses(stage.weights) for stage in self.stages]
        self.returning_synapses = [None if s.recurrent is None else Synapses(s.recurrent) for s in self.stages]
        self._norms = [
            [] if s.norm is None else [torch.zeros_like(s.norm.weight), torch.zeros_like(s.norm.bias)] for s in self.stages
        ]  # fmt: skip

    def error(self, readout: Tensor, target: Tensor, weight: float) -> tuple[float, Tensor]:
        """The step's loss, and its gradient by the readout (B, C), times ``weight``."""
        loss, error = classification_error(readout, target, self.label_smoothing)
        return loss, error * weight

    def assign(self, index: int, state: StageState, signal: Tensor) -> Tensor:
        """Turn a signal by what left a stage into changes of its weights; returns what acts on its current, δ."""
        delta = self.slope(index, state, signal)
        self.gather(index, state, delta)
        return delta

    def slope(self, index: int, state: StageState, signal: Tensor) -> Tensor:
        """From a gradient by a stage's output to one by its level."""
        seen, ridge = state.seen, self.ridges[index]
        signal = signal.reshape(state.out.shape)
        if seen is None:
            return signal
        if seen.x is None or seen.q is None or not isinstance(ridge, RunningRidge):
            return signal * seen.slope
        return ridge.gradient(signal, seen.x, seen.q) * seen.slope

    def gather(self, index: int, state: StageState, delta: Tensor) -> None:
        """Add δ times the presynaptic traces to the gradients of a stage."""
        filter_, synapses = self.filters[index], self.forward_synapses[index]
        through = self._through_norm(index, state, delta)
        synapses.gather(filter_.level(state.inputs), through)
        synapses.gather_bias(through * filter_.level(state.ones))
        returning = self.returning_synapses[index]
        if returning is not None and state.returned is not None:
            returning.gather(filter_.level(state.returned), delta)
            returning.gather_bias(delta * filter_.level(state.ones))

    def _through_norm(self, index: int, state: StageState, delta: Tensor) -> Tensor:
        """δ by the product, from δ by the normalised current, whose weight and bias learn on the way."""
        if state.gain is None or state.normed is None:
            return delta
        filter_, axes = self.filters[index], [axis for axis in range(delta.ndim) if axis != 1]
        self._norms[index][0] += (delta * filter_.level(state.normed)).sum(axes)
        self._norms[index][1] += (delta * filter_.level(state.ones)).sum(axes)
        return delta * state.gain

    def below(self, index: int, states: tuple[StageState, ...], delta: Tensor, error: Tensor) -> Tensor:
        """The signal by what left the stage before ``index``: here through the weights, at the same step."""
        state = states[index]
        if state.gain is not None:
            delta = delta * state.gain
        x = state.passage.left.detach()
        return state.passage.back(self.forward_synapses[index].back(x, delta, self.backward_weight(index)))

    def backward_weight(self, index: int) -> Tensor | None:
        """The weights that errors take on their way down; None for the layer's own."""
        return None

    def gather_changes(self, index: int, changes: Tensor) -> None:
        """Add changes of a stage's weights and biases, (neurons, inputs + returning + 1), the last column the biases'."""
        synapses, returning = self.forward_synapses[index], self.returning_synapses[index]
        inputs = synapses.weight.shape[1]
        synapses.dweight += changes[:, :inputs]
        for one in (synapses, returning):
            if one is not None and one.dbias is not None:
                one.dbias += changes[:, -1]
        if returning is not None:
            returning.dweight += changes[:, inputs:-1]

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{part}.{k}": v for part, module in self.parts.items() for k, v in module.state_dict().items()}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        for part, module in self.parts.items():
            own = {k.removeprefix(f"{part}."): v for k, v in saved.items() if k.startswith(f"{part}.")}
            module.load_state_dict(own)


def _flat(stage: Stretch) -> StageState:
    """Several steps as one of T·B samples, of which errors pass down alike."""
    out = stage.out.flatten(0, 1)
    gain = None if stage.gain is None else stage.gain.expand(*stage.out.shape[:2], *stage.gain.shape[2:]).flatten(0, 1)
    return StageState(None, out, stage.passage, (), None, None, (), None, gain, None, stage.extra)
