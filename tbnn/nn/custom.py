"""A neuron of your own: write one step, get the sequence, the estimators and everything that takes a neuron."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tbnn.nn.activity import Winners
from tbnn.nn.neuron import Neuron
from tbnn.ops.lif import SpikeGradient, Statistics
from tbnn.ops.lif.cell import spikes_of
from tbnn.ops.lif.reference import emit


class CustomState(NamedTuple):
    """What a custom neuron carries: its own state, and what decides about its next spikes."""

    own: Any
    """What :meth:`CustomNeuron.membrane` returned: a tensor or a (named) tuple of tensors."""
    spikes: Tensor
    """The last step's spikes, (B, features...)."""
    waiting: Tensor | None = None
    """Refractory steps left."""


class CustomNeuron(Neuron, abstract=True):
    """Base of neurons written by their users: override :meth:`rest` and :meth:`membrane`.

    Time is a Python loop differentiated by autograd, the spikes' feedback detached. Gradients are those of the soft
    target or a bare surrogate, applied to the distance u; the trace target needs the linear neurons of this library,
    whose sequence also runs in one fused kernel: a second state that is linear between spikes fits
    :class:`tbnn.ops.lif.cell.Second`, and ``coefficients`` is then all that such a neuron overrides.

    >>> class Quadratic(CustomNeuron):
    ...     def rest(self, current):
    ...         return torch.zeros_like(current)
    ...
    ...     def membrane(self, current, spikes, v):
    ...         v = v + 0.1 * v * (v - 0.5) + current - self.threshold * spikes
    ...         return v - self.threshold, v
    >>> spikes, state = Quadratic(1.0)(torch.ones(10, 2, 3))
    """

    def rest(self, current: Tensor) -> Any:
        """The state at rest, for currents (B, features...) of one step: a tensor or a tuple of tensors."""
        raise NotImplementedError

    def membrane(self, current: Tensor, spikes: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step: the current, the last step's spikes (detached) and state -> (distance from threshold u, state).

        The neuron spikes where u > 0.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Raise ``ValueError`` if the trace target is asked for."""
        if self.spike_gradient.uses_trace:
            raise ValueError(
                f"{type(self).__name__}: target='trace' needs a linear neuron of the library; expected 'soft'"
            )

    def run(
        self, current: Tensor, state: CustomState | None, lengths: Tensor | None, gradient: SpikeGradient
    ) -> tuple[Tensor, CustomState]:
        self.check()
        steps, batch = current.shape[:2]
        features = current.shape[2:]
        now = self._start(current[0]) if state is None else _checked(state, current)
        alive = None
        if lengths is not None:
            alive = torch.arange(steps, device=current.device).unsqueeze(1) < lengths
            padding = ~alive.reshape(steps, batch, *[1] * len(features))
            current = current.masked_fill(padding, 0)
        distances, bits = [], []
        for t, current_t in enumerate(current.unbind(0)):
            u, after = self._advance(current_t, now)
            if alive is not None:
                runs = alive[t].reshape(-1, *[1] * len(features))
                bits.append(after.spikes * runs)
                after = _select(runs, after, now)
            else:
                bits.append(after.spikes)
            distances.append(u)
            now = after
        weights = None if alive is None else alive.to(current.dtype)
        statistics = Statistics(features[0] if features else 1, weights, self.joined)
        affine = self.emitted_affine() if gradient.emit == "denoised" and not self.training else None
        flat = (steps, batch, -1)
        out, moments = emit(
            torch.stack(distances).reshape(flat), torch.stack(bits).reshape(flat), None, gradient, statistics, affine
        )
        if moments is not None:
            self._update(moments.mean(1, keepdim=True) if gradient.stats == "step" else moments)
        return out.reshape(current.shape), now

    def _start(self, current: Tensor) -> CustomState:
        waiting = torch.zeros_like(current) if self.refractory else None
        return CustomState(self.rest(current), torch.zeros_like(current), waiting)

    def _advance(self, current: Tensor, state: CustomState) -> tuple[Tensor, CustomState]:
        u, own = self.membrane(current, state.spikes, state.own)
        if u.shape != current.shape:
            raise ValueError(f"{type(self).__name__}.membrane: expected u {tuple(current.shape)}, got {tuple(u.shape)}")
        level = u.detach().flatten(1)
        waiting = None if state.waiting is None else state.waiting.flatten(1)
        winners = self.winners.of(level.shape[1]) if isinstance(self.winners, Winners) else None
        spikes = spikes_of(level, torch.zeros_like(level[0]), waiting, winners).reshape(current.shape)
        after = state.waiting
        if after is not None:
            after = torch.where(spikes > 0, float(self.refractory), (after - 1).clamp(min=0))
        return u, CustomState(own, spikes, after)


def _checked(state: CustomState, current: Tensor) -> CustomState:
    if not isinstance(state, CustomState) or state.spikes.shape != current.shape[1:]:
        got = tuple(state.spikes.shape) if isinstance(state, CustomState) else type(state).__name__
        raise ValueError(f"state: expected a CustomState with spikes {tuple(current.shape[1:])}, got {got}")
    return state


def _select(alive: Tensor, after: Any, before: Any) -> Any:
    """``after`` where a sequence still runs, else ``before``: over tensors and nested tuples."""
    if isinstance(after, Tensor):
        return torch.where(alive, after, before)
    if isinstance(after, tuple):
        parts = [_select(alive, a, b) for a, b in zip(after, before, strict=True)]
        return type(after)(*parts) if hasattr(after, "_fields") else tuple(parts)
    return after
