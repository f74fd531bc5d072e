"""The contract of every layer that remembers: a whole sequence, or one step, the state a value that travels."""

from typing import Any

import torch
from torch import Tensor, nn

FOLDED = (nn.Conv1d, nn.Conv2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.BatchNorm1d, nn.BatchNorm2d)
"""Layers of torch that know one batch axis: they see time and batch as one."""


class Stateful(nn.Module):
    """Base of neurons, readouts, recurrence and delays.

    ``layer(x, state=None, mask=None) -> (y, state)`` takes a sequence (T, B, features...); ``layer.step(x_t, state, mask_t)
    -> (y_t, state)`` takes one step (B, features...). Stepping T times gives what the sequence gives, but for statistics of
    gradients, which run over what a call sees. ``state`` is None (rest), a tensor or a tuple of them.

    ``mask`` (T, B), or (B,) for a step, is True where a sequence still runs: a batch of sequences of several lengths,
    padded at their ends. Past a sequence's end its state stands still, its output is 0 and it counts in no statistics.
    """

    def forward(self, x: Tensor, state: Any = None, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        raise NotImplementedError

    def step(self, x: Tensor, state: Any = None, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        """One step: x (B, features...) -> (y (B, features...), state)."""
        y, state = self(x.unsqueeze(0), state, None if mask is None else mask.unsqueeze(0))
        return y.squeeze(0), state


def lengths_of(mask: Tensor, steps: int, batch: int, *, at_start: bool) -> Tensor:
    """How many steps each sequence has, (B,) int64, from a mask (T, B).

    Raises ``ValueError`` unless the mask is bool (steps, batch), every sequence's steps come first, and, ``at_start`` of
    the sequences, none is empty; later one may have ended before. While a compiler traces, which knows no values, a
    mask of that shape is trusted.
    """
    if mask.dtype != torch.bool or mask.shape != (steps, batch):
        raise ValueError(f"mask: expected torch.bool ({steps}, {batch}), got {mask.dtype} {tuple(mask.shape)}")
    lengths = mask.sum(0)
    if torch.compiler.is_compiling():
        return lengths
    if at_start and not bool((lengths > 0).all()):
        empty = (lengths == 0).nonzero().flatten().tolist()
        raise ValueError(f"mask: expected at least one step in every sequence, got none in sequences {empty[:8]}")
    if steps > 1 and bool((mask[1:] & ~mask[:-1]).any()):
        broken = (mask[1:] & ~mask[:-1]).any(0).nonzero().flatten().tolist()
        raise ValueError(f"mask: expected each sequence's steps before its padding, got gaps in sequences {broken[:8]}")
    return lengths


def guard(state: Any, name: str) -> Any:
    """The same state; a backward pass that enters a graph freed by an earlier one through it raises an error that says so.

    Tensors are named after ``name`` and their place: "layers.1.v".
    """
    if isinstance(state, Tensor):
        fresh = state.grad_fn is None or not torch.is_grad_enabled() or "_Carried" in type(state.grad_fn).__name__
        return state if fresh else _Carried.apply(state, name)
    if isinstance(state, tuple):
        names = getattr(state, "_fields", range(len(state)))
        parts = [guard(part, f"{name}.{field}") for field, part in zip(names, state, strict=True)]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state


class _Carried(torch.autograd.Function):
    """The identity on a state that came with a graph of its own."""

    @staticmethod
    def forward(ctx: Any, state: Tensor, name: str) -> Tensor:
        ctx.name = name
        return state.view_as(state)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if _freed(ctx.next_functions[0][0]):
            raise RuntimeError(
                f"the state {ctx.name} carries the graph of an earlier sequence, whose backward pass has already run: "
                "pass tbnn.nn.detach(state) to go on from its values (truncated back-propagation), or None to start anew"
            )
        return grads[0], None


NODES_TO_ASK = 64  # a freed graph shows within the few nodes around the tensor that left it


def _freed(node: Any) -> bool:
    """Whether the graph behind an autograd node has lost the tensors it saved."""
    queue, seen = [node], set()
    while queue and len(seen) < NODES_TO_ASK:
        node = queue.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        saved = [name for name in dir(node) if name == "saved_tensors" or name.startswith("_saved_")]
        for name in saved:
            try:
                getattr(node, name)
            except RuntimeError:
                return True
        queue.extend(after for after, _ in node.next_functions)
    return False


def detach(state: Any) -> Any:
    """The same state cut from the graph that made it, for truncated back-propagation: tuples and tensors, nested."""
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, tuple):
        parts = [detach(part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state


def call_stateless(layer: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """A layer without state on x (T, B, features...); ``mask`` goes to the layers whose statistics need it."""
    if getattr(layer, "takes_mask", False):
        return layer(x, mask)
    if isinstance(layer, FOLDED):
        return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    return layer(x)
