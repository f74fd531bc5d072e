"""Real-time recurrent learning: the whole influence of every weight on every state, carried forward. Exact, and large."""

from typing import Any

import torch
from torch import Tensor, nn

from tbnn.learning.rule import Rule, RuleState, classification_error

LARGEST = 50_000_000  # entries of the influence matrix


class Rtrl(Rule):
    """The exact gradient forward in time, for small networks: what the other online rules are held against.

    With all states of the network and the batch as one vector s[t] = F(s[t−1], θ, x[t]),

        P[t] = ∂F/∂s·P[t−1] + ∂F/∂θ,   dL[t]/dθ = ∂L/∂s[t−1]·P[t−1] + ∂L/∂θ

    Derivatives are the network's own, estimators included, so every layer and neuron that can step is taken, and the result is
    back-propagation through time's wherever stepping is what a sequence does (``stats="step"``, surrogates). Memory:
    states × parameters; time: a backward pass of one step for each state.

    Args:
        network: a module with ``step``.
        largest: the entries that P may have.

    Raises:
        ValueError: at the first step, for a network and batch of more.

    Source: Williams & Zipser, "A learning algorithm for continually running fully recurrent neural networks", 1989.
    """

    name = "rtrl"

    def __init__(self, network: nn.Module, *, largest: int = LARGEST) -> None:
        super().__init__(network)
        self.largest = largest
        self._learnt: Any = None

    def step(self, x: Tensor, state: RuleState | None = None) -> RuleState:
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        before = None if state is None else _map(state.network, lambda part: part.detach().requires_grad_())
        influence = None if state is None else state.traces
        with torch.enable_grad():
            readout, after = self.network.step(x, before)  # pyright: ignore[reportCallIssue]
        entering = [] if before is None else _tensors(before)
        self._learnt = (readout, entering, influence, parameters)
        leaving, total = _tensors(after), sum(p.numel() for p in parameters)
        size = sum(part.numel() for part in leaving) * total
        if size > self.largest:
            raise ValueError(
                f"rtrl: expected a network and batch whose states × parameters are at most {self.largest:,}, got {size:,}"
            )
        rows = []
        for part in leaving:
            for place in range(part.numel()):
                rows.append(_forward(part.flatten()[place], entering, influence, parameters))
        return RuleState(_map(after, Tensor.detach), torch.stack(rows), readout.detach())

    def credit(self, target: Tensor, weight: float) -> float:
        if self._learnt is None:
            raise ValueError(f"{self.name}: update: expected a step before, got none")
        readout, entering, influence, parameters = self._learnt
        loss, error = classification_error(readout.detach(), target, self.label_smoothing)
        total = _forward((readout * (error * weight)).sum(), entering, influence, parameters)
        for parameter, part in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
            gradient = part.reshape(parameter.shape)
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return loss * weight


def _forward(value: Tensor, entering: list[Tensor], influence: Tensor | None, parameters: list[Any]) -> Tensor:
    """d value / d parameters in all, flat: by this step, and by the states it began with."""
    if not value.requires_grad:
        return torch.cat([torch.zeros_like(p).flatten() for p in parameters])
    grads = torch.autograd.grad(
        value, [*parameters, *entering], retain_graph=True, allow_unused=True, materialize_grads=True
    )
    own = torch.cat([g.flatten() for g in grads[: len(parameters)]])
    if influence is None or not entering:
        return own
    return own + torch.cat([g.flatten() for g in grads[len(parameters) :]]) @ influence


def _tensors(state: Any) -> list[Tensor]:
    """The tensors of a nested state, in order."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, tuple):
        return [tensor for part in state for tensor in _tensors(part)]
    return []


def _map(state: Any, change: Any) -> Any:
    """A nested state, each of its floating tensors changed."""
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, tuple):
        parts = [_map(part, change) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state
