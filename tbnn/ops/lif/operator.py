"""The CPU scans as torch operators: what torch.compile puts into its graph in place of the autograd functions.

An operator takes and gives tensors and plain values: settings are taken apart, and what a neuron does not have is an empty
tensor where it is given back.
"""

from typing import Any

import torch
from torch import Tensor

from tbnn.ops.lif import integrate
from tbnn.ops.lif.cell import Rule
from tbnn.ops.lif.fused import Passed, Saved, Settings, backward_pass, forward, needs_sums, reads_current
from tbnn.ops.lif.gradient import SpikeGradient
from tbnn.ops.lif.rows import TILE
from tbnn.surrogate import SHAPES

_SURROGATES = {kind.code: kind for kind in SHAPES}
_SETTINGS = (
    "Tensor? lengths, Tensor? spikes_before, Tensor? slope, Tensor? offset, str reset, int refractory, int? winners, "
    "str gradient, int shape, float[] numbers, str target, str emit, str stats, bool per_channel, bool differentiate_stats, "
    "float lam, float scale, float floor, int channels, bool joined, bool[] learn, bool differentiates"
)
_PASSED = "Tensor out, Tensor last, Tensor trace_last, Tensor last_spikes, Tensor waiting_after, Tensor moments"

_library = torch.library.Library("tbnn", "FRAGMENT")
_library.define(
    f"lif(Tensor current, Tensor coefficients, Tensor start, Tensor? trace_start, Tensor? waiting, {_SETTINGS})"
    f" -> ({_PASSED}, Tensor states, Tensor traces, Tensor spikes, Tensor sums)"
)
_library.define(
    "lif_backward(Tensor? dout, Tensor? dlast, Tensor coefficients, Tensor start, Tensor states, Tensor? trace_start, "
    f"Tensor? traces, Tensor? spikes, Tensor? current, Tensor? sums, bool learns, {_SETTINGS}) -> (Tensor, Tensor, Tensor)"
)
_library.define("leaky_integrate(Tensor current, Tensor beta, Tensor v0) -> Tensor")
_library.define(
    "leaky_integrate_backward(Tensor dv, Tensor v, Tensor beta, Tensor v0, bool learns) -> (Tensor, Tensor, Tensor)"
)


def lif_traced(
    current: Tensor, coefficients: Tensor, start: Tensor, trace_start: Tensor | None, settings: Settings
) -> Passed:
    """The neurons' two passes as operators."""
    passed = torch.ops.tbnn.lif(current, coefficients, start, trace_start, settings.waiting, *_apart(settings))[:6]
    out, last, trace_last, spikes, waiting, moments = passed
    return Passed(
        out,
        last,
        None if trace_start is None else trace_last,
        spikes if settings.rule.gated else None,
        None if settings.waiting is None else waiting,
        moments if _gives_moments(settings) else None,
    )


def integrate_traced(current: Tensor, beta: Tensor, v0: Tensor) -> Tensor:
    """The integrator's two passes as operators."""
    v: Tensor = torch.ops.tbnn.leaky_integrate(current, beta, v0)
    return v


def _apart(settings: Settings) -> tuple[Any, ...]:
    """Settings as an operator takes them."""
    rule, g, (slope, offset) = settings.rule, settings.gradient, settings.affine or (None, None)
    return (
        settings.lengths, settings.spikes, slope, offset, rule.reset, rule.refractory, rule.winners,
        g.gradient, g.surrogate.code, g.surrogate.numbers, g.target, g.emit, g.stats, g.per_channel, g.differentiate_stats,
        g.lam, g.scale, g.floor, settings.channels, settings.joined, settings.learn, settings.differentiates,
    )  # fmt: skip


def _together(waiting: Tensor | None, *parts: Any) -> Settings:
    """The inverse of :func:`_apart`."""
    lengths, spikes, slope, offset, reset, refractory, winners, gradient, shape, numbers, *rest = parts
    (
        target,
        emit,
        stats,
        per_channel,
        differentiate_stats,
        lam,
        scale,
        floor,
        channels,
        joined,
        learn,
        differentiates,
    ) = rest
    estimator = SpikeGradient(
        gradient,
        _SURROGATES[shape](*numbers),
        target,
        emit,
        stats,
        per_channel,
        differentiate_stats,
        lam,
        scale,
        floor,
    )
    return Settings(
        Rule(reset, refractory, winners), estimator, channels, joined, list(learn), differentiates, lengths, spikes, waiting,
        None if slope is None else (slope, offset),
    )  # fmt: skip


def _gives_moments(settings: Settings) -> bool:
    return settings.gradient.emit == "denoised" and settings.affine is None


def _lif(
    current: Tensor,
    coefficients: Tensor,
    start: Tensor,
    trace_start: Tensor | None,
    waiting: Tensor | None,
    *parts: Any,
) -> tuple[Tensor, ...]:
    passed, saved = forward(current, coefficients, start, trace_start, _together(waiting, *parts))
    spikes = saved.spikes
    if spikes is not None and spikes.data_ptr() == passed.out.data_ptr():  # what an operator gives shares no memory
        spikes = spikes.clone()
    given = (*passed, saved.states, saved.traces, spikes, saved.sums)
    return tuple(current.new_empty(0) if t is None else t for t in given)


def _lif_fake(
    current: Tensor,
    coefficients: Tensor,
    start: Tensor,
    trace_start: Tensor | None,
    waiting: Tensor | None,
    *parts: Any,
) -> tuple[Tensor, ...]:
    settings = _together(waiting, *parts)
    steps, batch, features = current.shape
    gradient, gated, by_trace = settings.gradient, settings.rule.gated, trace_start is not None
    by_step, states = gradient.stats == "step", start.shape[0]
    nothing = (0,)
    moments = sums = nothing
    if _gives_moments(settings):
        moments = (3, steps if by_step else settings.channels if gradient.per_channel else 1)
    if needs_sums(settings):
        winners = settings.rule.winners
        tiles = 1 if winners is not None and winners < features else (features + TILE - 1) // TILE
        sums = (4, steps, tiles) if by_step else (4, 1, features)
    shapes = (
        current.shape, (states, batch, features), (states, batch, features) if by_trace else nothing,
        (batch, features) if gated else nothing, nothing if waiting is None else (batch, features), moments,
        (states, *current.shape), (states, *current.shape) if by_trace else nothing, current.shape if gated else nothing,
    )  # fmt: skip
    return (*(current.new_empty(shape) for shape in shapes), current.new_empty(sums, dtype=torch.float64))


def _lif_backward(
    dout: Tensor | None, dlast: Tensor | None, coefficients: Tensor, start: Tensor, states: Tensor,
    trace_start: Tensor | None, traces: Tensor | None, spikes: Tensor | None, current: Tensor | None, sums: Tensor | None,
    learns: bool, *parts: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    saved = Saved(coefficients, start, states, trace_start, traces, spikes, current, sums)
    dcurrent, dcoefficients, dstart = backward_pass(dout, dlast, saved, _together(None, *parts), learns)
    return dcurrent, states.new_empty(0) if dcoefficients is None else dcoefficients, dstart


def _lif_backward_fake(
    _dout: Tensor | None, _dlast: Tensor | None, coefficients: Tensor, start: Tensor, states: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    learns = rest[5]
    return (
        states.new_empty(states.shape[1:]),
        states.new_empty(coefficients.shape if learns else (0,)),
        states.new_empty(start.shape),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save what the backward operator reads; states and moments of a trace's course take no gradient."""
    current, coefficients, start, trace_start, waiting, *parts = inputs
    settings = _together(waiting, *parts)
    _, last, _, last_spikes, after, moments, states, traces, spikes, sums = output
    by_trace = trace_start is not None
    ctx.mark_non_differentiable(
        *([last] if by_trace else []), last_spikes, after, moments, states, traces, spikes, sums
    )
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(
        coefficients, start, states, trace_start, traces if by_trace else None, spikes if settings.rule.gated else None,
        current if reads_current(settings) else None, sums if needs_sums(settings) else None,
        *parts[:4],
    )  # fmt: skip
    ctx.by_trace, ctx.learn, ctx.rest = by_trace, settings.learn, parts[4:]


def _lif_gradient(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    *saved, lengths, spikes_before, slope, offset = ctx.saved_tensors
    learns = ctx.needs_input_grad[1] and any(ctx.learn)
    dlast = grads[2] if ctx.by_trace else grads[1]
    dcurrent, dcoefficients, dstart = torch.ops.tbnn.lif_backward(
        grads[0], dlast, *saved, learns, lengths, spikes_before, slope, offset, *ctx.rest
    )
    of_start = (None, dstart) if ctx.by_trace else (dstart, None)
    return dcurrent, dcoefficients if learns else None, *of_start, *(None,) * (1 + 4 + len(ctx.rest))


def _integrate_backward(dv: Tensor, v: Tensor, beta: Tensor, v0: Tensor, learns: bool) -> tuple[Tensor, Tensor, Tensor]:
    dcurrent, dbeta, dv0 = integrate.backward_pass(dv, v, beta, v0, learns)
    return dcurrent, v.new_empty(0) if dbeta is None else dbeta, dv0


def _keep_integrated(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(output, *inputs[1:])


def _integrate_gradient(ctx: Any, dv: Tensor) -> tuple[Tensor | None, ...]:
    learns = ctx.needs_input_grad[1]
    dcurrent, dbeta, dv0 = torch.ops.tbnn.leaky_integrate_backward(dv, *ctx.saved_tensors, learns)
    return dcurrent, dbeta if learns else None, dv0


for _name, _function in (
    ("lif", _lif),
    ("lif_backward", _lif_backward),
    ("leaky_integrate", integrate.forward),
    ("leaky_integrate_backward", _integrate_backward),
):
    _library.impl(_name, _function, "CPU")

torch.library.register_fake("tbnn::lif", _lif_fake, lib=_library)
torch.library.register_fake("tbnn::lif_backward", _lif_backward_fake, lib=_library)
torch.library.register_autograd("tbnn::lif", _lif_gradient, setup_context=_keep, lib=_library)
torch.library.register_autograd(
    "tbnn::leaky_integrate", _integrate_gradient, setup_context=_keep_integrated, lib=_library
)


@torch.library.register_fake("tbnn::leaky_integrate", lib=_library)
def _(current: Tensor, _beta: Tensor, _v0: Tensor) -> Tensor:
    return current.new_empty(current.shape)


@torch.library.register_fake("tbnn::leaky_integrate_backward", lib=_library)
def _(_dv: Tensor, v: Tensor, beta: Tensor, v0: Tensor, learns: bool) -> tuple[Tensor, Tensor, Tensor]:
    return v.new_empty(v.shape), v.new_empty(beta.shape if learns else (0,)), v.new_empty(v0.shape)
