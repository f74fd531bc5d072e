"""A layer of neurons whose spikes return through weights of few bits: every step of a sequence in one call."""

import torch
from torch import Tensor

from tbnn.ops.kernels import backend_for
from tbnn.ops.lif import Cell, LifState, SpikeGradient, check_rule, check_state, check_trace
from tbnn.ops.recurrent_lif.reference import Feedback, RecurrentResult, recurrent_lif_reference

__all__ = ["Feedback", "RecurrentResult", "recurrent_lif", "recurrent_lif_reference"]


def recurrent_lif(
    current: Tensor,
    feedback: Feedback,
    beta: Tensor | float,
    threshold: Tensor | float = 1.0,
    state: LifState | None = None,
    past: Tensor | None = None,
    *,
    delay: int = 1,
    reset: str = "subtract",
    gradient: SpikeGradient | None = None,
    backend: str | None = None,
) -> RecurrentResult:
    """Run currents through leaky neurons whose spikes come back ``delay`` steps later.

    ``v[t] = β·v[t−1] + I[t] + Ŵ·q[t−delay] + bias − θ·q[t−1]``, ``q[t] = 1[v[t] > θ]``; resets as in
    :func:`tbnn.ops.lif.lif`. On the CPU one kernel runs all steps forward and one backward, with the weights as bits;
    the membranes and a bit a spike are kept between them. Spikes equal the reference's bit for bit.

    Args:
        current: I, (T, B, N), T, B and N at least 1.
        feedback: the weights; differentiable in ``weight`` and ``bias``.
        beta, threshold: floats, or tensors that broadcast to (N,).
        state: of the neurons after an earlier sequence; None means rest.
        past: (delay, B, N), the spikes 0/1 of the last steps, oldest first; None: none.
        delay: steps a spike takes to return, at least 1.
        reset: "subtract", "zero" or "none".
        gradient: the estimator; bits leave, and its statistics run over a step's batch and neurons, so ``emit`` must be
            "bits" and ``stats`` "step". The default is the DDT of the soft spike.
        backend: for tests; the tensor's device decides otherwise.

    Returns:
        Spikes (T, B, N), the neurons' state and the spikes on their way, (delay, B, N): each differentiable, but v with
        target="trace".

    Raises:
        ValueError: wrong shapes, dtypes or devices; spikes other than 0 and 1; another ``emit`` or ``stats``; target="trace"
            where it does not hold.

    Source: arXiv 2409.09245 for the DDT.
    """
    gradient = gradient if gradient is not None else SpikeGradient(stats="step")
    if gradient.emit != "bits" or gradient.stats != "step":
        raise ValueError(
            f"recurrent_lif: expected emit='bits' and stats='step', got {gradient.emit!r} and {gradient.stats!r}"
        )
    if current.ndim != 3 or current.numel() == 0 or not current.is_floating_point():
        raise ValueError(
            f"recurrent_lif: expected floating point (T, B, N), no axis empty, got {current.dtype} {tuple(current.shape)}"
        )
    check_rule(reset, 0, None)
    _check_feedback(feedback, current)
    cell = Cell(_per_neuron("beta", beta, current), _per_neuron("threshold", threshold, current))
    if gradient.uses_trace:
        check_trace(cell, reset)
    state = check_state(state, current, with_trace=gradient.uses_trace)
    past = _checked_past(past, delay, current)
    if backend_for(current, backend) != "cpu":
        return recurrent_lif_reference(current, feedback, cell, state, past, reset, gradient)
    from tbnn.ops.recurrent_lif.function import recurrent_lif_fused

    return recurrent_lif_fused(current, feedback, cell, state, past, reset, gradient)


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
