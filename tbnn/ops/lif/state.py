"""What a spiking neuron carries from step to step."""

from typing import NamedTuple

import torch
from torch import Tensor

from tbnn.ops.lif.cell import Rule


class LifState(NamedTuple):
    """The state after the last step, each entry (B, features...); None where the neuron has no such state."""

    v: Tensor
    """The membrane after the last step."""
    trace: Tensor | None = None
    """With target='trace': what v would be had the neuron never spiked, its input's leaky trace."""
    w: Tensor | None = None
    """The second state of a neuron that has one."""
    w_trace: Tensor | None = None
    """With target='trace': what w would be had the neuron never spiked."""
    spikes: Tensor | None = None
    """The last step's spikes, where v > threshold does not tell them (refractory steps, winners)."""
    waiting: Tensor | None = None
    """Refractory steps left."""

    def detach(self) -> "LifState":
        """The same state, cut from its graph."""
        return LifState._make(None if part is None else part.detach() for part in self)

    def flat(self) -> "LifState":
        """Features flattened: each entry (B, F)."""
        return LifState._make(None if part is None else part.reshape(part.shape[0], -1) for part in self)

    def shaped(self, shape: torch.Size) -> "LifState":
        """The inverse of :meth:`flat`."""
        return LifState._make(None if part is None else part.reshape(shape) for part in self)


def check_state(
    state: LifState | None,
    current: Tensor,
    *,
    with_trace: bool = False,
    with_second: bool = False,
    rule: Rule | None = None,
) -> LifState:
    """The state to start from: rest, or the given one after a check against ``current`` (T, B, features...)."""
    shape = current.shape[1:]
    rule = rule if rule is not None else Rule()
    wanted = LifState._make(
        current.new_zeros(shape) if needed else None
        for needed in (True, with_trace, with_second, with_trace and with_second, rule.gated, rule.refractory > 0)
    )  # fmt: skip
    if state is None:
        return wanted
    if not isinstance(state, LifState):
        raise ValueError(f"state: expected a LifState or None, got {type(state).__name__}")
    for name, value, rest in zip(LifState._fields, state, wanted, strict=True):
        if rest is not None and value is None:
            why = "target='trace' carries a trace" if "trace" in name else f"this neuron carries {name}"
            raise ValueError(f"state: {why}, got a state without one")
        if rest is not None and value is not None and (
            value.shape != shape or value.device != current.device or value.dtype != current.dtype
        ):  # fmt: skip
            raise ValueError(
                f"state.{name}: expected {tuple(shape)} {current.dtype} on {current.device}, "
                f"got {tuple(value.shape)} {value.dtype} on {value.device}"
            )
    return LifState._make(None if rest is None else value for value, rest in zip(state, wanted, strict=True))
