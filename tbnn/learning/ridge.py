"""The slope of a spike, as online rules use it: a surrogate's, or a ridge regression's on running averages (online DDT)."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tbnn.nn import Neuron
from tbnn.ops.lif import LifState
from tbnn.ops.lif.cell import Cell, advance, effective, trace_gain

MOMENTUM = 0.005  # of a step: the averages remember about 200


def followed(values: Tensor, before: Tensor, shares: tuple[float, ...]) -> Tensor:
    """Running averages after each of several steps: ``a[t] = a[t−1] + shares[t]·(values[t] − a[t−1])``, a[−1] = ``before``."""
    if len(shares) == 1:
        return before.lerp(values[0], shares[0]).unsqueeze(0)
    weights, kept = (part.to(values) for part in _shares(shares))
    flat = weights @ values.flatten(1) + kept.unsqueeze(1) * before.flatten()
    return flat.reshape(values.shape)


@lru_cache(maxsize=64)
def _shares(shares: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """How much of each earlier step (t, s), and of what was before (t,), an average holds."""
    steps = len(shares)
    weights, kept = torch.zeros(steps, steps, dtype=torch.float64), torch.ones(steps, dtype=torch.float64)
    row, left = torch.zeros(steps, dtype=torch.float64), 1.0
    for t, share in enumerate(shares):
        row, left = row * (1 - share), left * (1 - share)
        row[t] = share
        weights[t], kept[t] = row, left
    return weights, kept


class Seen(NamedTuple):
    """What one step of a layer of neurons gives to learn from, each (B, features...)."""

    u: Tensor
    """The level's distance from the threshold."""
    spikes: Tensor
    x: Tensor | None
    """What the spike is a noisy copy of, of the ridge estimators: soft spike or clipped rate."""
    q: Tensor | None
    """Its quantised copy: the spike, or the spikes' trace."""
    slope: Tensor
    """dx/dlevel, or the bare surrogate's derivative, ``scale`` included."""


class RunningRidge(nn.Module):
    """The DDT of spikes, online and causal: each group keeps the averages of x, q, q², x·q, and of the gradients G and G·q.

    With s = Cov(x, q)/(Var(q) + λ), c = q − q̄ and r = (mean(G·q) − Ḡ·q̄)/(Var(q) + λ), all from the averages, the gradient
    that reaches x of a step is that of the closed form (arXiv 2409.09245; :mod:`tbnn.ops.ddt.closed_form`),

        dx = Ḡ + r·c + s·(G − Ḡ) + r·(x − x̄ − 2·s·c)

    or s·G alone without ``differentiate_stats``. A group is a channel (or the layer), as in the batch's DDT. Of the first
    1/``momentum`` steps the averages are plain means, afterwards they decay, so on stationary activity they tend to the
    batch's statistics over a long sequence. Cost: 6 numbers a group, nothing a synapse.

    Args:
        neuron: whose estimator this is: λ, grouping, scale.
        momentum: share of a step in the averages, in (0, 1].
    """

    averages: Tensor
    count: Tensor

    def __init__(self, neuron: Neuron, momentum: float = MOMENTUM) -> None:
        super().__init__()
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum: expected a number in (0, 1], got {momentum}")
        self.neuron_gradient, self.momentum = neuron.spike_gradient, momentum
        self.register_buffer("averages", torch.zeros(6, 0))  # x, q, q², x·q, G, G·q of each group
        self.register_buffer("count", torch.zeros(2))  # steps seen forward, and backward

    def reset(self) -> None:
        """Forget what was seen."""
        self.averages, self.count = self.averages.new_zeros(6, 0), torch.zeros_like(self.count)

    def observe(self, x: Tensor, q: Tensor) -> None:
        """Follow a step's x and q (B, features...)."""
        self.observe_steps(x.unsqueeze(0), q.unsqueeze(0))

    def observe_steps(self, x: Tensor, q: Tensor) -> Tensor:
        """Follow the x and q of several steps (T, B, features...); the averages after each, (T, 4, groups)."""
        return self._follow(slice(0, 4), 0, torch.stack([self._means(part) for part in (x, q, q * q, x * q)], 1))

    def gradient(self, g: Tensor, x: Tensor, q: Tensor) -> Tensor:
        """dL/dx in all, of a step's gradient by its spikes."""
        return self.gradient_steps(g.unsqueeze(0), x.unsqueeze(0), q.unsqueeze(0), self.averages[:4].unsqueeze(0))[0]

    def gradient_steps(self, g: Tensor, x: Tensor, q: Tensor, averages: Tensor) -> Tensor:
        """:meth:`gradient` of several steps (T, B, features...), given what :meth:`observe_steps` returned for them."""
        if not self.neuron_gradient.differentiate_stats:
            return self.slopes(averages, x) * g
        own = self._follow(slice(4, 6), 1, torch.stack([self._means(g), self._means(g * q)], 1))
        x_mean, q_mean, qq, xq = (self._spread(row, g) for row in averages.unbind(1))
        g_mean, gq = (self._spread(row, g) for row in own.unbind(1))
        denominator = qq - q_mean * q_mean + self.neuron_gradient.lam
        s = (xq - x_mean * q_mean) / denominator
        r, c = (gq - g_mean * q_mean) / denominator, q - q_mean
        return g_mean + r * c + s * (g - g_mean) + r * (x - x_mean - 2 * s * c)

    def fitted(self, like: Tensor) -> Tensor:
        """The slope s as it is now, broadcasting to ``like`` (B, features...)."""
        return self.slopes(self.averages[:4].unsqueeze(0), like.unsqueeze(0))[0]

    def slopes(self, averages: Tensor, like: Tensor) -> Tensor:
        """The slopes s of averages (T, 4, groups), broadcasting to ``like`` (T, B, features...)."""
        x_mean, q_mean, qq, xq = averages.unbind(1)
        return self._spread((xq - x_mean * q_mean) / (qq - q_mean * q_mean + self.neuron_gradient.lam), like)

    def _follow(self, rows: slice, which: int, means: Tensor) -> Tensor:
        """Let the averages follow the steps' means (T, rows, groups); they after each step."""
        if self.averages.shape[1] != means.shape[2]:
            self.averages = means.new_zeros(6, means.shape[2])
        first, steps = float(self.count[which]), len(means)
        self.count[which] += steps
        if self.neuron_gradient.stats == "step":
            history = means
        else:
            shares = tuple(max(self.momentum, 1 / (first + step)) for step in range(1, steps + 1))
            history = followed(means, self.averages[rows], shares)
        self.averages[rows] = history[-1]
        return history

    def _means(self, a: Tensor) -> Tensor:
        if self.neuron_gradient.stats == "step" or not self.neuron_gradient.per_channel:
            return a.flatten(1).mean(1, keepdim=True)
        return a.mean([axis for axis in range(1, a.ndim) if axis != 2])

    def _spread(self, row: Tensor, like: Tensor) -> Tensor:
        return row.reshape(len(row), 1, -1, *[1] * (like.ndim - 3))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        saved = state_dict.get(prefix + "averages")
        if saved is not None:
            self.averages = torch.zeros_like(saved)
        super()._load_from_state_dict(state_dict, prefix, *args)  # pyright: ignore[reportArgumentType]


def see(neuron: Neuron, state: LifState, spikes: Tensor) -> Seen:
    """What a step leaves to learn from: ``state`` and ``spikes`` are those after it, (B, features...)."""
    beta, second = neuron.coefficients()
    cell = Cell(beta, neuron.effective_threshold(spikes.shape[1:]), second)
    level = effective(state.v, state.w, cell)
    if not neuron.spike_gradient.uses_trace:
        return seen_of(neuron, cell, level, spikes)
    driven = effective(state.trace, state.w_trace, cell)  # pyright: ignore[reportArgumentType]
    return seen_of(neuron, cell, level, spikes, driven, _held(state, spikes, cell))


def seen_of(
    neuron: Neuron, cell: Cell, level: Tensor, spikes: Tensor, driven: Tensor | None = None, held: Tensor | None = None
) -> Seen:
    """The same from a step's level; with target="trace" also from what the current alone would have made of it, and how
    far this step's and all earlier spikes hold it down."""
    gradient, u = neuron.spike_gradient, level - cell.threshold
    if gradient.gradient == "surrogate":
        return Seen(u, spikes, None, None, gradient.scale * gradient.surrogate.derivative(u))
    if driven is None or held is None:
        shape = gradient.surrogate
        return Seen(u, spikes, shape.soft(u), spikes, gradient.scale / shape.area * shape.derivative(u))
    gain = trace_gain(cell)
    raw, highest = gain * driven, 1 / (1 + neuron.refractory)
    x = raw.clamp(gradient.floor, highest)
    passes = (raw >= gradient.floor) & (raw <= highest)
    return Seen(u, spikes, x, gain * held, gradient.scale * gain * passes)


def _held(state: LifState, spikes: Tensor, cell: Cell) -> Tensor:
    """How far this step's and all earlier spikes hold the level down."""
    trace, w_trace = state.trace, state.w_trace
    down_w = None if state.w is None or w_trace is None else w_trace - state.w
    turned = cell._replace(threshold=-cell.threshold)  # the states are counted downwards: both signs turn
    if cell.second is not None:
        turned = turned._replace(second=cell.second._replace(from_spike=-cell.second.from_spike))
    down = trace - state.v  # pyright: ignore[reportOptionalOperand]
    down_v, down_w = advance(down, down_w, spikes, torch.zeros_like(down), turned, "subtract")
    return effective(down_v, down_w, cell)
