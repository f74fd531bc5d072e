"""Exact gradients of a small spiking network in continuous time, to hold gradients on a time grid against."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tbnn.compare.gradients import cosine
from tbnn.nn.leaky import LeakyIntegrator
from tbnn.nn.network import Network
from tbnn.nn.synaptic import Synaptic

HALVINGS = 60  # of an interval, for a spike time exact in float64


@dataclass(frozen=True)
class EventNetwork:
    """Inputs -> leaky neurons with synapses -> leaky readout, in continuous time, simulated from event to event in float64.

    ``τ_syn·i' = −i``, ``τ_mem·v' = −v + i``; an input's spike adds its weight to i; where v reaches θ the neuron spikes and θ is
    taken off v. A hidden spike adds its weight to a readout ``τ_out·y' = −y``; a class's score is the mean of y over the duration.

    Attributes:
        hidden: weights (H, I), float64.
        readout: weights (C, H), float64.
        tau_mem, tau_syn, tau_out: seconds; tau_mem and tau_syn differ.
        threshold: θ > 0.
        duration: seconds.

    Raises:
        ValueError: weights of other shapes or dtypes; constants outside these ranges.
    """

    hidden: Tensor
    readout: Tensor
    tau_mem: float = 20e-3
    tau_syn: float = 5e-3
    tau_out: float = 20e-3
    threshold: float = 1.0
    duration: float = 0.1

    def __post_init__(self) -> None:
        for name in ("tau_mem", "tau_syn", "tau_out", "threshold", "duration"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: expected a finite number > 0, got {value}")
        if self.tau_mem == self.tau_syn:
            raise ValueError(f"tau_syn: expected another time constant than tau_mem = {self.tau_mem:g}")
        if self.hidden.ndim != 2 or self.readout.ndim != 2 or self.readout.shape[1] != self.hidden.shape[0]:
            raise ValueError(
                f"EventNetwork: expected weights (H, I) and (C, H), got {tuple(self.hidden.shape)} and {tuple(self.readout.shape)}"
            )
        if self.hidden.dtype != torch.float64 or self.readout.dtype != torch.float64:
            raise ValueError(f"EventNetwork: expected float64, got {self.hidden.dtype} and {self.readout.dtype}")

    @property
    def gain(self) -> float:
        """κ = τ_syn/(τ_mem − τ_syn): a spike of weight w lifts v by w·κ·(exp(−t/τ_mem) − exp(−t/τ_syn))."""
        return self.tau_syn / (self.tau_mem - self.tau_syn)

    def spike_times(self, inputs: Tensor) -> Tensor:
        """Times of the hidden spikes (B, H, K), inf where a neuron has fewer than K; differentiable in the hidden weights.

        The times come from bisection. Their derivatives are those of v(t_k) = θ, solved for t_k: one step of Newton's method
        that does not move them, in which earlier spikes of the neuron take part.

        Args:
            inputs: times of the input spikes (B, I, S) in seconds, float64, inf where there is none.
        """
        self._check(inputs)
        with torch.no_grad():
            found = self._find(inputs)
        times: list[Tensor] = []
        for at in found.unbind(2):  # (B, H)
            spikes = at.isfinite()
            t = torch.where(spikes, at, 0.0)
            since = t[:, :, None, None] - inputs[:, None]  # (B, H, I, S)
            arrived = since > 0
            since = torch.where(arrived, since, 0.0)
            rise, fall = torch.exp(-since / self.tau_mem), torch.exp(-since / self.tau_syn)
            lift = self.gain * torch.where(arrived, rise - fall, 0.0).sum(3)
            slope = self.gain * torch.where(arrived, fall / self.tau_syn - rise / self.tau_mem, 0.0).sum(3)
            v, speed = (lift * self.hidden).sum(2), (slope * self.hidden).sum(2)
            for earlier in times:
                taken = self.threshold * torch.exp(-(t - torch.where(spikes, earlier, 0.0)) / self.tau_mem)
                v, speed = v - taken, speed + taken / self.tau_mem
            step = (v - self.threshold) / torch.where(spikes, speed, 1.0).detach()
            times.append(torch.where(spikes, t - (step - step.detach()), at))
        return torch.stack(times, 2) if times else found

    def scores(self, inputs: Tensor) -> Tensor:
        """(B, C): the mean of each class's readout over the duration, ``Σ_k w·τ_out·(1 − exp(−(T − t_k)/τ_out)) / T``."""
        times = self.spike_times(inputs)
        left = torch.where(times.isfinite(), self.duration - times, 0.0)
        area = (self.tau_out * -torch.expm1(-left / self.tau_out)).sum(2)  # (B, H)
        return area @ self.readout.T / self.duration

    def _check(self, inputs: Tensor) -> None:
        if inputs.ndim != 3 or inputs.shape[1] != self.hidden.shape[1] or inputs.dtype != torch.float64:
            raise ValueError(
                f"inputs: expected float64 times (B, {self.hidden.shape[1]}, S), got {inputs.dtype} {tuple(inputs.shape)}"
            )

    def _find(self, inputs: Tensor) -> Tensor:
        """The times (B, H, K) without gradient: from input to input, and within from spike to spike."""
        batch, per_channel = inputs.shape[0], inputs.shape[2]
        events, order = inputs.reshape(batch, -1).clamp(max=self.duration).sort(1)
        weights = self.hidden[:, order // per_channel].permute(1, 2, 0)  # (B, events, H)
        ends = torch.cat([events[:, 1:], torch.full((batch, 1), self.duration, dtype=torch.float64)], 1)
        v = torch.zeros(batch, len(self.hidden), dtype=torch.float64)
        i = torch.zeros_like(v)
        found = [(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.float64))]
        for now, end, weight in zip(events.unbind(1), ends.unbind(1), weights.unbind(1), strict=True):
            i = i + weight
            at, until = now.unsqueeze(1).expand_as(v), end.unsqueeze(1).expand_as(v)
            while True:
                delay = self._next(v, i, until - at)
                fires = delay.isfinite()
                v, i = self._drift(v, i, torch.where(fires, delay, until - at))
                if not bool(fires.any()):
                    break
                at = torch.where(fires, at + delay, until)
                found.append((fires.flatten().nonzero().flatten(), at[fires]))
                v = torch.where(fires, 0.0, v)  # θ − θ
        return _in_order(found, batch, len(self.hidden))

    def _drift(self, v: Tensor, i: Tensor, delay: Tensor) -> tuple[Tensor, Tensor]:
        """v and i after a time without events."""
        slow, fast = torch.exp(-delay / self.tau_mem), torch.exp(-delay / self.tau_syn)
        return v * slow + i * self.gain * (slow - fast), i * fast

    def _next(self, v: Tensor, i: Tensor, limit: Tensor) -> Tensor:
        """The time to the next crossing of θ from below within ``limit``, or inf; v has one maximum at most."""
        slow, fast = v + self.gain * i, self.gain * i  # v(t) = slow·exp(−t/τ_mem) − fast·exp(−t/τ_syn)
        ratio = fast * self.tau_mem / (slow * self.tau_syn)
        turns = torch.log(ratio) / (1 / self.tau_syn - 1 / self.tau_mem)
        rises = (i > v) & (i > 0)
        high = torch.where(rises, torch.minimum(torch.where(turns > 0, turns, math.inf), limit), 0.0)
        crosses = rises & (self._drift(v, i, high)[0] > self.threshold)
        low = torch.zeros_like(high)
        if bool(crosses.any()):
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                above = self._drift(v, i, middle)[0] > self.threshold
                low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return torch.where(crosses, high, math.inf)


def _in_order(found: list[tuple[Tensor, Tensor]], batch: int, neurons: int) -> Tensor:
    """Spikes as (neuron's place, time) in the order of each neuron's times -> (B, H, K)."""
    places, times = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = torch.argsort(places, stable=True)
    places, times = places[order], times[order]
    counts = torch.bincount(places, minlength=batch * neurons)
    first = counts.cumsum(0) - counts
    table = torch.full((batch * neurons, int(counts.max()) if len(places) else 0), math.inf, dtype=torch.float64)
    table[places, torch.arange(len(places)) - first[places]] = times
    return table.view(batch, neurons, -1)


class OnGrid(NamedTuple):
    """The same network in discrete time, and its input."""

    network: Network
    x: Tensor
    """(T, B, I)"""


def on_grid(events: EventNetwork, inputs: Tensor, dt: float, **gradient: Any) -> OnGrid:
    """The network on a grid of ``dt`` seconds, in float64: the limit dt → 0 is :class:`EventNetwork`.

    Input spikes go to the step they fall into. From there on v is exact at the steps' ends, but for hidden spikes, which are
    reset up to a step late. ``gradient`` is how that of spikes is estimated, see :class:`tbnn.nn.Synaptic`. Layers are torch's linear ones, :class:`tbnn.nn.Synaptic` and :class:`tbnn.nn.LeakyIntegrator`.
    """
    events._check(inputs)
    steps = round(events.duration / dt)
    alpha, beta = math.exp(-dt / events.tau_syn), math.exp(-dt / events.tau_mem)
    place = (inputs / dt).floor()
    x = torch.zeros(steps, *inputs.shape[:2], dtype=torch.float64)
    b, i, s = (place < steps).nonzero(as_tuple=True)
    x.index_put_((place[b, i, s].long(), b, i), torch.ones(len(b), dtype=torch.float64), accumulate=True)
    hidden = nn.Linear(*reversed(events.hidden.shape), bias=False, dtype=torch.float64)
    readout = nn.Linear(*reversed(events.readout.shape), bias=False, dtype=torch.float64)
    neurons = Synaptic(alpha, beta, events.threshold, **gradient).double()
    # As tensors: a float would have been rounded to the default dtype.
    neurons.alpha, neurons.beta = (torch.tensor(d, dtype=torch.float64) for d in (alpha, beta))
    leak = LeakyIntegrator(0.0).double()
    leak.beta = torch.tensor(math.exp(-dt / events.tau_out), dtype=torch.float64)
    with torch.no_grad():
        hidden.weight.copy_(events.hidden.detach() * events.gain * (beta - alpha))
        readout.weight.copy_(events.readout.detach())
    return OnGrid(Network([hidden, neurons, readout, leak]), x)


class Agreement(NamedTuple):
    """How a gradient on a grid compares with the exact gradient."""

    cosine: dict[str, float]
    """Of "hidden", "readout" and "all" weights."""
    ratio: dict[str, float]
    """‖gradient‖ / ‖exact gradient‖ of the "hidden" and "readout" weights."""
    losses: tuple[float, float]
    """In continuous time and on the grid."""


def agreement(events: EventNetwork, inputs: Tensor, labels: Tensor, dt: float, **gradient: Any) -> Agreement:
    """Back-propagation through time on a grid, against the exact gradient of the same network and batch.

    The loss is the cross-entropy of the scores. Of one hidden layer a surrogate's scale moves the ratio and the cosine over
    "all", never that of the hidden weights alone. Its ratio grows as 1/dt: every step near the threshold adds a derivative,
    where in continuous time each spike has one.

    Args:
        events: the network; inputs: see :meth:`EventNetwork.spike_times`.
        labels: int64 (B,).
        dt: the grid's step in seconds.
        gradient: see :func:`on_grid`.

    Source: exact gradients of spiking networks are those of Wunderlich & Pehle, "Event-based backpropagation can compute exact
    gradients for spiking neural networks", Scientific Reports 2021; here by differentiating the spike times implicitly.
    """
    exact_loss, exact = exact_gradients(events, inputs, labels)
    network, x = on_grid(events, inputs, dt, **gradient)
    loss = nn.functional.cross_entropy(network(x)[0].mean(0), labels)
    weights = [p for p in network.parameters() if p.ndim == 2]
    by_grid = torch.autograd.grad(loss, weights)
    # The grid's hidden weights are the continuous ones times a constant.
    factor = events.gain * (math.exp(-dt / events.tau_mem) - math.exp(-dt / events.tau_syn))
    estimate: dict[str, Tensor] = {"hidden": by_grid[0] * factor, "readout": by_grid[1]}
    ratio = {name: (estimate[name].norm() / exact[name].norm()).item() for name in exact}
    return Agreement(cosine(estimate, exact), ratio, (exact_loss, loss.item()))


def exact_gradients(events: EventNetwork, inputs: Tensor, labels: Tensor) -> tuple[float, dict[str, Tensor]]:
    """The cross-entropy of the scores and its exact gradient by the "hidden" and the "readout" weights."""
    hidden, readout = (w.detach().clone().requires_grad_() for w in (events.hidden, events.readout))
    constants = (events.tau_mem, events.tau_syn, events.tau_out, events.threshold, events.duration)
    loss = nn.functional.cross_entropy(EventNetwork(hidden, readout, *constants).scores(inputs), labels)
    grads = torch.autograd.grad(loss, (hidden, readout))
    return loss.item(), {"hidden": grads[0], "readout": grads[1]}
