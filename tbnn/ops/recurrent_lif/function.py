"""A recurrent layer by fused kernels: what they are given, and the autograd function around them.

Kept for the backward pass: the membranes, one bit a spike, and nothing else of a sequence's size (with target="trace" the
traces as well). The membranes are kept rather than recomputed from the input, which would have to be kept as well.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tbnn.bits import pack_bits, unpack_bits, wide_words, words_for
from tbnn.ops.binary_linear.events import weight_columns
from tbnn.ops.kernels import NUMPY_DTYPES, as_numpy, fresh, unexpanded, untraced
from tbnn.ops.lif import cpu as neurons
from tbnn.ops.lif import target
from tbnn.ops.lif.cell import Cell, trace_gain
from tbnn.ops.lif.gradient import SpikeGradient
from tbnn.ops.lif.state import LifState
from tbnn.ops.packed_lif.recurrent import Feedback as PackedFeedback
from tbnn.ops.packed_lif.recurrent import feedback_of
from tbnn.ops.recurrent_lif import backward, cpu
from tbnn.ops.recurrent_lif.product import LOOKUPS, ROWS, TILE, has_lookups
from tbnn.ops.recurrent_lif.reference import Feedback, RecurrentResult

MOST_PLANES = 3  # of weight bits: with more, multiplying is faster than looking sums up
DENSE_RATE = 0.5  # of spikes above which one big product gives the weights' gradient faster
ROWS_AT_ONCE = 1 << 14  # of spikes unpacked for it


class _Settings(NamedTuple):
    """The arguments of the autograd function that take no gradient."""

    feedback: Feedback
    reset: str
    gradient: SpikeGradient
    learn: neurons.Array  # (10,) bool: the coefficients whose gradients the kernel adds up


@untraced
def recurrent_lif_fused(
    current: Tensor, feedback: Feedback, cell: Cell, state: LifState, past: Tensor, reset: str, gradient: SpikeGradient
) -> RecurrentResult:
    """:func:`tbnn.ops.recurrent_lif.reference.recurrent_lif_reference` by the fused kernels."""
    gain = trace_gain(cell) if gradient.uses_trace else cell.threshold.detach()
    coefficients = (cell.beta, cell.threshold, gain)
    learn = np.zeros(neurons.COEFFICIENTS, bool)
    learn[:3] = [c.requires_grad for c in coefficients]
    if gradient.uses_trace:  # the trace knows spikes through its gain alone
        learn[neurons.THRESHOLD] = False
    settings = _Settings(feedback.detach(), reset, gradient, learn)
    v = state.v.detach() if gradient.uses_trace else state.v
    out, after, v, trace = _Recurrent.apply(
        current, torch.stack(coefficients), feedback.weight, feedback.bias, v, state.trace, past, settings
    )
    return RecurrentResult(out, LifState(v, trace), after)


class _Recurrent(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, current: Tensor, coefficients: Tensor, weight: Tensor, bias: Tensor | None,
        v_start: Tensor, trace_start: Tensor | None, past: Tensor, settings: _Settings,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
        current, v_start = current.contiguous(), v_start.contiguous()
        steps, batch, features = current.shape
        delay = past.shape[0]
        words = np.empty((delay + steps, batch, -(-features // cpu.WORD)), np.uint64)
        words[:delay] = wide_words(as_numpy(pack_bits(past)))
        out, v = fresh(current.shape, current.dtype), fresh(current.shape, current.dtype)
        traces = None if trace_start is None else fresh(current.shape, current.dtype)
        planes = _planes(settings.feedback.values)
        cpu.recurrent_scan(
            as_numpy(current), as_numpy(coefficients), neurons.RESETS[settings.reset],
            _packed(settings.feedback, *planes), -(-batch // torch.get_num_threads()), as_numpy(v_start), _or_empty(trace_start, v_start),
            as_numpy(v), _or_empty(traces, v), words, as_numpy(out), work=current.numel(),
        )  # fmt: skip
        ctx.settings, ctx.delay, ctx.planes = settings, delay, planes
        ctx.set_materialize_grads(False)
        bits = torch.from_numpy(words.view(np.int64))
        ctx.save_for_backward(coefficients, weight, v_start, v, trace_start, traces, bits)
        after = unpack_bits(
            torch.from_numpy(words[steps:].view(np.int32))[..., : words_for(features)].contiguous(), features, v.dtype
        )
        v_last, trace_last = v[-1].clone(), None if traces is None else traces[-1].clone()
        if traces is not None:
            ctx.mark_non_differentiable(v_last)
        return out, after, v_last, trace_last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        coefficients, weight, v_start, v, trace_start, traces, bits = ctx.saved_tensors
        settings, by_trace = ctx.settings, traces is not None
        dout, dafter, dv, dtrace = grads
        steps, batch, features = v.shape
        dlast = dtrace if by_trace else dv
        carry = torch.zeros_like(v_start) if dlast is None else dlast.clone(memory_format=torch.contiguous_format)
        dout = v.new_zeros((1, 1, features)) if dout is None else unexpanded(dout)
        dafter = v.new_zeros((ctx.delay, batch, features)) if dafter is None else dafter.contiguous()
        learns = bool(ctx.needs_input_grad[1] and settings.learn.any())
        learn = settings.learn if learns else np.zeros_like(settings.learn)
        totals = v.new_zeros((3 if learns else 0, batch, features))
        dpast, dbias, dcurrent = fresh(dafter.shape, v.dtype), torch.zeros_like(v_start), fresh(v.shape, v.dtype)
        driven = (trace_start, traces) if by_trace else (v_start, v)
        adjoint = _adjoint(settings.feedback, weight, *ctx.planes)
        backward.recurrent_backward(
            _estimator(settings.gradient), _ridge(settings.gradient), as_numpy(coefficients),
            neurons.RESETS[settings.reset], adjoint, as_numpy(v_start), as_numpy(v), *(as_numpy(d) for d in driven),
            as_numpy(dout), as_numpy(dafter), learn, _scratch(adjoint, batch, features), as_numpy(carry),
            as_numpy(totals), as_numpy(dpast), as_numpy(dbias), as_numpy(dcurrent), work=v.numel(),
        )  # fmt: skip
        dcoefficients = None
        if learns:
            dcoefficients = totals.sum(1)
            dcoefficients[neurons.GAIN] /= coefficients[neurons.GAIN]
        dweight = _weight_gradient(dcurrent, bits[:steps]) if ctx.needs_input_grad[2] else None
        dstart = (None, carry) if by_trace else (carry, None)
        return dcurrent, dcoefficients, dweight, dbias.sum(0) if ctx.needs_input_grad[3] else None, *dstart, dpast, None


def _or_empty(tensor: Tensor | None, like: Tensor) -> neurons.Array:
    return np.empty((0,) * like.ndim, NUMPY_DTYPES[like.dtype]) if tensor is None else as_numpy(tensor)


def _estimator(gradient: SpikeGradient) -> target.Estimator:
    kind, surrogate = target.SURROGATE, gradient.surrogate
    if gradient.gradient == "ddt":
        kind = target.TRACE if gradient.uses_trace else target.SOFT
    return target.Estimator(kind, surrogate.code, surrogate.parameter, surrogate.area, gradient.floor, 1.0)


def _ridge(gradient: SpikeGradient) -> backward.Ridge:
    return backward.Ridge(float(gradient.lam), float(gradient.scale), gradient.differentiate_stats)


def _planes(values: Tensor) -> tuple[list[Tensor], tuple[int, ...], int]:
    """Bit planes (N, N) bool, factors and a constant: ``values = Σ_j factors_j·plane_j + constant``."""
    constant = int(values.min())
    above = (values - constant).to(torch.int32)
    present = np.flatnonzero(np.bincount(as_numpy(above).ravel()))
    step = max(1, int(np.gcd.reduce(present)))
    count = max(1, (int(present[-1]) // step).bit_length())
    above = above // step if step > 1 else above
    return [above >> j & 1 != 0 for j in range(count)], tuple(step << j for j in range(count)), constant


def _packed(feedback: Feedback, planes: list[Tensor], factors: tuple[int, ...], constant: int) -> PackedFeedback:
    nothing = feedback.scale.new_empty(0)
    scale, offset, bias = (as_numpy(nothing if c is None else c) for c in feedback[2:])
    columns = [weight_columns(wide_words(as_numpy(pack_bits(plane)))) for plane in planes]
    return feedback_of(columns, factors, constant, scale, offset, bias)


def _adjoint(
    feedback: Feedback, weight: Tensor, planes: list[Tensor], steps: tuple[int, ...], constant: int
) -> backward.Adjoint:
    """The weights as the backward pass of a dtype takes them."""
    features = weight.shape[0]
    wide = -(-features // TILE) * TILE
    dtype = NUMPY_DTYPES[weight.dtype]
    bits, factors, rest = np.empty((0, 0, 0, TILE), np.uint32), np.empty(0, dtype), np.empty(0, dtype)
    padded = np.empty((0, wide), dtype)
    kind = backward.DENSE if weight.dtype == torch.float32 else backward.PLAIN
    if kind == backward.DENSE and has_lookups() and len(planes) <= MOST_PLANES:
        kind, factors = backward.LOOKUP, np.array(steps, dtype)
        rest = as_numpy(feedback.scale * constant + (0 if feedback.offset is None else feedback.offset))
        turned = np.zeros((len(planes), wide, words_for(features)), np.uint32)
        for j, plane in enumerate(planes):
            turned[j, :features] = as_numpy(pack_bits(plane.T.contiguous())).view(np.uint32)
        bits = turned.reshape(len(planes), wide // TILE, TILE, -1).transpose(0, 1, 3, 2)
    if kind != backward.LOOKUP:
        padded = np.zeros((features, wide), dtype)
        padded[:, :features] = as_numpy(weight)
    return backward.Adjoint(kind, np.ascontiguousarray(bits), factors, as_numpy(feedback.scale), rest, padded)


def _scratch(adjoint: backward.Adjoint, batch: int, features: int) -> backward.Scratch:
    tasks, words, dtype = -(-batch // ROWS), words_for(features), adjoint.scale.dtype
    wide = -(-features // TILE) * TILE
    tables = np.zeros((tasks, ROWS, backward.GROUPS * words, LOOKUPS), dtype)
    x, q, slope = (np.zeros((batch, features), dtype) for _ in range(3))
    scaled, grad = np.zeros((tasks, ROWS, 32 * words), dtype), np.zeros((tasks, ROWS, wide), dtype)
    return backward.Scratch(scaled, tables, grad, x, q, slope, np.zeros((batch, backward.SUMS)))


def _weight_gradient(dcurrent: Tensor, bits: Tensor) -> Tensor:
    """Σ_t dI[t]ᵀ·q[t − delay]: dcurrent (T, B, N), the spikes that returned at each step (T, B, ceil(N/64))."""
    features = dcurrent.shape[-1]
    grad, words = dcurrent.reshape(-1, features), bits.reshape(-1, bits.shape[-1])
    ones = int(np.bitwise_count(words.numpy()).sum(dtype=np.int64))
    if ones <= DENSE_RATE * grad.numel():
        dweight = fresh((features, features), grad.dtype)
        cpu.weight_gradient(
            as_numpy(grad), words.numpy().view(np.uint64), torch.get_num_threads(), as_numpy(dweight), work=grad.numel()
        )
        return dweight.T.contiguous()
    dweight = grad.new_zeros((features, features))
    for lo in range(0, len(grad), ROWS_AT_ONCE):
        some = words[lo : lo + ROWS_AT_ONCE].view(torch.int32)[:, : words_for(features)].contiguous()
        dweight.addmm_(grad[lo : lo + ROWS_AT_ONCE].T, unpack_bits(some, features, grad.dtype))
    return dweight
