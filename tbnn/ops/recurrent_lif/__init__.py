"""A layer of neurons whose spikes return through weights of few bits: every step of a sequence in one call."""

from contextlib import nullcontext

import torch
from torch import Tensor

from tbnn.ops.kernels import autocasts, backend_for
from tbnn.ops.layer_lif import Memory, WeightedSpikes, share_of
from tbnn.ops.lif import Cell, LifState, Rule, Second, SpikeGradient, check_rule, check_state, check_trace
from tbnn.ops.recurrent_lif.reference import Feedback, RecurrentResult, recurrent_lif_reference

__all__ = ["Feedback", "RecurrentResult", "recurrent_lif", "recurrent_lif_reference"]


def recurrent_lif(
    current: Tensor | WeightedSpikes,
    feedback: Feedback,
    beta: Tensor | float,
    threshold: Tensor | float = 1.0,
    state: LifState | None = None,
    past: Tensor | None = None,
    *,
    delay: int = 1,
    second: Second | None = None,
    reset: str = "subtract",
    refractory: int = 0,
    winners: int | None = None,
    gradient: SpikeGradient | None = None,
    lengths: Tensor | None = None,
    memory: Memory | None = None,
    backend: str | None = None,
) -> RecurrentResult:
    """Run currents through neurons whose spikes come back ``delay`` steps later.

    ``v[t] = β·v[t−1] + I[t] + Ŵ·q[t−delay] + bias − θ·q[t−1]``, ``q[t] = 1[v[t] > θ]``; resets, second states and gates as in
    :func:`tbnn.ops.lif.lif`. On the CPU compiled kernels run chunks of steps forward and backward, with the weights as bits;
    on CUDA, in float32, Triton kernels run all steps, see :mod:`tbnn.ops.recurrent_lif.gpu_kernels`. Spikes equal the
    reference's bit for bit.

    Args:
        current: I, (T, B, N), T, B and N at least 1; or the spikes and weights that make it, which are multiplied chunk by
            chunk: ``emitted`` then holds the spikes that left, packed.
        feedback: the weights; differentiable in ``weight`` and ``bias``.
        beta, threshold: floats, or tensors that broadcast to (N,).
        state: of the neurons after an earlier sequence; None means rest.
        past: (delay, B, N), the spikes 0/1 of the last steps, oldest first; None: none.
        delay: steps a spike takes to return, at least 1.
        second, reset, refractory, winners: as in :func:`tbnn.ops.lif.lif`.
        gradient: the estimator; bits leave, and its statistics run over a step's batch and neurons, so ``emit`` must be
            "bits" and ``stats`` "step". The default is the DDT of the soft spike.
        lengths: how many steps of each sequence there are, (B,) int64 in [0, T]; past them the state and the spikes on
            their way stand still, the output is 0 and nothing counts. None: all.
        memory: the share of steps whose states are kept for backward, see :data:`tbnn.ops.layer_lif.Memory`; the rest is
            worked out again from checkpoints, which takes the current: a tensor is then kept itself, in place of two or
            more states (a single one is kept in any mode). None: that of the weighted spikes, else "speed". On the CPU;
            on CUDA all states are kept.
        backend: for tests; the tensor's device decides otherwise.

    Returns:
        Spikes (T, B, N), the neurons' state and the spikes on their way, (delay, B, N): each differentiable, but v with
        target="trace".

    Raises:
        ValueError: wrong shapes, dtypes or devices; spikes other than 0 and 1; another ``emit`` or ``stats``; weights of
            a convolution; target="trace" where it does not hold.

    Source: arXiv 2409.09245 for the DDT; checkpoints: Gruslys et al., "Memory-efficient backpropagation through time",
    NeurIPS 2016.
    """
    gradient = gradient if gradient is not None else SpikeGradient(stats="step")
    if gradient.emit != "bits" or gradient.stats != "step":
        raise ValueError(
            f"recurrent_lif: expected emit='bits' and stats='step', got {gradient.emit!r} and {gradient.stats!r}"
        )
    if len(current.shape) != 3 or 0 in current.shape or not current.dtype.is_floating_point:
        raise ValueError(
            f"recurrent_lif: expected floating point (T, B, N), no axis empty, got {current.dtype} {tuple(current.shape)}"
        )
    check_rule(reset, refractory, winners)
    rule = Rule(reset, refractory, winners)
    weighted = isinstance(current, WeightedSpikes)
    like = current.weights.weight.detach().new_empty(1).expand(current.shape) if weighted else current
    _check_feedback(feedback, like)
    spread = None if second is None else Second(*(_per_neuron(n, c, like) for n, c in second._asdict().items()))
    cell = Cell(_per_neuron("beta", beta, like), _per_neuron("threshold", threshold, like), spread)
    if gradient.uses_trace:
        check_trace(cell, reset)
    state = check_state(state, like, with_trace=gradient.uses_trace, with_second=second is not None, rule=rule)
    past = _checked_past(past, delay, like)
    _check_lengths(lengths, like)
    memory = (current.memory if weighted else "speed") if memory is None else memory
    share_of(memory)
    path = backend_for(like, backend, gpu_dtypes=(torch.float32,))
    if path != "cpu":
        run = recurrent_lif_reference
        if path == "gpu":
            from tbnn.ops.recurrent_lif.gpu import recurrent_lif_gpu as run
        given = current.compose() if weighted else current
        with torch.autocast(like.device.type, enabled=False) if autocasts(like) else nullcontext():
            return run(given, feedback, cell, state, past, rule, gradient, lengths)
    from tbnn.ops.recurrent_lif.function import recurrent_lif_fused

    return recurrent_lif_fused(current, feedback, cell, state, past, rule, gradient, lengths, memory)


def _check_lengths(lengths: Tensor | None, current: Tensor) -> None:
    steps, batch = current.shape[:2]
    if lengths is None:
        return
    if lengths.shape != (batch,) or lengths.dtype != torch.int64 or lengths.device != current.device:
        raise ValueError(
            f"lengths: expected torch.int64 ({batch},) on {current.device}, "
            f"got {lengths.dtype} {tuple(lengths.shape)} on {lengths.device}"
        )
    if bool(((lengths < 0) | (lengths > steps)).any()):
        raise ValueError(
            f"lengths: expected values in [0, {steps}], got {lengths.min().item()} to {lengths.max().item()}"
        )


def _check_feedback(feedback: Feedback, current: Tensor) -> None:
    features = current.shape[2]
    for name, part in feedback._asdict().items():
        shape = (features, features) if name in ("weight", "values") else (features,)
        if part is not None and (part.shape != shape or part.dtype != current.dtype or part.device != current.device):
            raise ValueError(
                f"feedback.{name}: expected {shape} {current.dtype} on {current.device}, "
                f"got {tuple(part.shape)} {part.dtype} on {part.device}"
            )


def _per_neuron(name: str, value: Tensor | float, current: Tensor) -> Tensor:
    features = current.shape[2]
    tensor = torch.as_tensor(value, dtype=current.dtype, device=current.device)
    try:
        return tensor.expand(features)
    except RuntimeError:
        raise ValueError(
            f"{name}: expected a shape that broadcasts to ({features},), got {tuple(tensor.shape)}"
        ) from None


def _checked_past(past: Tensor | None, delay: int, current: Tensor) -> Tensor:
    if delay < 1:
        raise ValueError(f"delay: expected a number of steps >= 1, got {delay}")
    shape = (delay, *current.shape[1:])
    if past is None:
        return current.new_zeros(shape)
    if past.shape != shape or past.dtype != current.dtype or past.device != current.device:
        raise ValueError(
            f"past: expected {shape} {current.dtype} on {current.device}, "
            f"got {tuple(past.shape)} {past.dtype} on {past.device}"
        )
    if not bool(((past == 0) | (past == 1)).all()):
        raise ValueError("past: expected spikes 0 and 1, got other values")
    return past
