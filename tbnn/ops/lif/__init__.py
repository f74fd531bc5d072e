"""Spiking neurons over a whole sequence, with surrogate or ridge-denoised gradients."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tbnn.ops.kernels import autocasts, backend_for
from tbnn.ops.lif.cell import RESETS, Cell, Rule, Second, check_trace
from tbnn.ops.lif.fused import lif_fused
from tbnn.ops.lif.gradient import SpikeGradient
from tbnn.ops.lif.reference import Statistics, lif_reference
from tbnn.ops.lif.state import LifState, check_state

__all__ = [
    "Cell",
    "LifOutput",
    "LifState",
    "Rule",
    "Second",
    "SpikeGradient",
    "Statistics",
    "check_current",
    "check_state",
    "check_trace",
    "full_precision",
    "lif",
    "lif_reference",
]  # fmt: skip


class LifOutput(NamedTuple):
    """What :func:`lif` returns."""

    out: Tensor
    """(T, B, features...): spikes 0/1, or their reconstruction with emit='denoised'."""
    state: LifState
    moments: Tensor | None
    """With emit='denoised' and no ``affine``: mean f, q and f·q of each block, (3, blocks), for running statistics."""


def lif(
    current: Tensor,
    beta: Tensor | float,
    threshold: Tensor | float = 1.0,
    state: LifState | None = None,
    *,
    second: Second | None = None,
    reset: str = "subtract",
    refractory: int = 0,
    winners: int | None = None,
    gradient: SpikeGradient | None = None,
    affine: tuple[Tensor, Tensor] | None = None,
    lengths: Tensor | None = None,
    joined: bool = False,
    backend: str | None = None,
) -> LifOutput:
    """Run a sequence of currents through integrate-and-fire neurons.

    ``v[t] = β·v[t−1] + I[t] − θ·q[t−1]``, ``q[t] = 1[v[t] > θ]``: snntorch's ``Leaky``, spike for spike. The reset is
    detached. Other resets: "zero" (``v[t] = β·(1 − q[t−1])·v[t−1] + I[t]``) and "none". A second state makes synaptic and
    adaptive neurons of it, see :func:`tbnn.ops.lif.cell.advance`.

    On the CPU one compiled scan forward and one backward, for torch.compile one operator each; torch.export unrolls the
    reference's loop. Neither checks values (target="trace", ``lengths``). Under torch.autocast currents of half precision
    are widened: a membrane of eight bits would lose spikes.

    Args:
        current: I, (T, B, features...), T and B at least 1.
        beta, threshold: floats, or tensors that broadcast to (features...).
        state: the state after an earlier sequence; None means rest, v = 0.
        second: coefficients of a second state, floats or tensors that broadcast to (features...).
        reset, refractory, winners: see :class:`tbnn.ops.lif.cell.Rule`.
        gradient: the estimator, see :class:`SpikeGradient`; the default is the DDT of the soft spike. With
            target="trace" the gradient runs through the trace, and v is a constant. The gradient passes gates as if
            they were noise: a neuron that lost or waits hears what its target would have meant.
        affine: with emit="denoised": the constants (a, b) of a·q + b, each (channels,) or (1,), for evaluation.
        lengths: how many steps of each sequence there are, (B,) int64 in [0, T]; past them the state stands still, the
            output is 0 and nothing counts. None: all.
        joined: add up the statistics of all processes of a distributed run.
        backend: for tests; the tensor's device decides otherwise.

    Raises:
        ValueError: wrong shapes, dtypes or devices; a negative ``refractory``; ``winners`` < 1; target="trace" where it
            does not hold (:func:`tbnn.ops.lif.cell.check_trace`).

    Source: snntorch (Eshraghian et al. 2023) for the neuron; arXiv 2409.09245 for the DDT.
    """
    gradient = gradient if gradient is not None else SpikeGradient()
    check_current(current)
    current = full_precision(current)
    features = current.shape[2:]
    check_rule(reset, refractory, winners)
    rule = Rule(reset, refractory, winners)
    spread = None if second is None else Second(*(_per_feature(n, c, current) for n, c in second._asdict().items()))
    cell = Cell(_per_feature("beta", beta, current), _per_feature("threshold", threshold, current), spread)
    if gradient.uses_trace and not torch.compiler.is_compiling():
        check_trace(cell, reset)
    state = check_state(state, current, with_trace=gradient.uses_trace, with_second=second is not None, rule=rule)
    steps, batch = current.shape[:2]
    shaped = len(features) != 1  # each call saved counts where a loop over time calls with T = 1
    flat = current.reshape(steps, batch, math.prod(features)) if shaped else current
    alive = None if lengths is None else _alive(lengths, flat)
    statistics = Statistics(features[0] if features else 1, alive, joined)
    path = backend_for(current, backend, gpu_dtypes=(torch.float32, torch.bfloat16, torch.float16))
    if path == "gpu":
        from tbnn.ops.lif.gpu import lif_gpu as run
    else:
        run = lif_fused if path == "cpu" else lif_reference
    result = run(flat, cell, state.flat() if shaped else state, rule, gradient, statistics, affine)
    if not shaped:
        return LifOutput(result.out, result.state, result.moments)
    return LifOutput(result.out.reshape(current.shape), result.state.shaped(current.shape[1:]), result.moments)


def check_rule(reset: str, refractory: int, winners: int | None) -> None:
    """Raise ``ValueError`` for an unknown reset, a negative refractory period or fewer than one winner."""
    if reset not in RESETS:
        raise ValueError(f"reset: expected one of 'subtract', 'zero', 'none', got {reset!r}")
    if refractory < 0:
        raise ValueError(f"refractory: expected a number of steps >= 0, got {refractory}")
    if winners is not None and winners < 1:
        raise ValueError(f"winners: expected a number of neurons >= 1, got {winners}")


def check_current(current: Tensor) -> None:
    """Raise ``ValueError`` unless ``current`` is a floating point (T, B, features...) with no empty axis."""
    if current.ndim < 3 or current.numel() == 0 or not current.is_floating_point():
        raise ValueError(
            f"expected floating point (T, B, features...), no axis empty, got {current.dtype} {tuple(current.shape)}"
        )


def full_precision(current: Tensor) -> Tensor:
    """The current a neuron integrates: as it is, or float32 where torch.autocast made half precision of it."""
    half = current.dtype in (torch.bfloat16, torch.float16)
    return current.float() if half and autocasts(current) else current


def _alive(lengths: Tensor, current: Tensor) -> Tensor:
    steps, batch = current.shape[:2]
    if lengths.shape != (batch,) or lengths.dtype != torch.int64:
        raise ValueError(f"lengths: expected torch.int64 ({batch},), got {lengths.dtype} {tuple(lengths.shape)}")
    lengths = lengths.to(current.device)
    if not torch.compiler.is_compiling() and bool(((lengths < 0) | (lengths > steps)).any()):
        raise ValueError(
            f"lengths: expected values in [0, {steps}], got {lengths.min().item()} to {lengths.max().item()}"
        )
    return (torch.arange(steps, device=current.device).unsqueeze(1) < lengths).to(current.dtype)


def _per_feature(name: str, value: Tensor | float, current: Tensor) -> Tensor:
    """A parameter spread over the flattened features, (F,)."""
    features = current.shape[2:]
    if isinstance(value, float):
        return current.new_full((math.prod(features),), value)
    tensor = torch.as_tensor(value, dtype=current.dtype, device=current.device)
    try:
        return tensor.expand(features).reshape(-1)
    except RuntimeError:
        raise ValueError(
            f"{name}: expected a shape that broadcasts to {tuple(features)}, got {tuple(tensor.shape)}"
        ) from None
