"""Traces of spikes: what a synapse remembers of each side's past."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

INTERACTIONS = ("all", "nearest")


class Traces(NamedTuple):
    """Of pairs of spikes."""

    pre: Tensor
    """(B, N), decays with tau_plus."""
    post: Tensor
    """(B, M), decays with tau_minus."""


def decay_of(name: str, tau: float) -> float:
    """exp(−1/τ), what is left of a trace after a step; τ in steps. ``ValueError`` unless τ is a finite number > 0.

    A library whose traces decay by 1 − 1/τ' has the same ones at τ = −1/ln(1 − 1/τ').
    """
    if not (math.isfinite(tau) and tau > 0):
        raise ValueError(f"{name}: expected a finite number of steps > 0, got {tau}")
    return math.exp(-1 / tau)


def reached(trace: Tensor, spikes: Tensor, interaction: str) -> Tensor:
    """The trace with this step's spikes: plus 1 each ("all" pairs count), or 1 where there is one ("nearest" counts)."""
    return trace + spikes if interaction == "all" else torch.where(spikes > 0, 1.0, trace)


def check_interaction(interaction: str) -> None:
    """Raise ``ValueError`` for another name than these."""
    if interaction not in INTERACTIONS:
        raise ValueError(f"interaction: expected 'all' or 'nearest', got {interaction!r}")


def check_finite(**values: float) -> None:
    """Raise ``ValueError`` for a number that is not finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name}: expected a finite number, got {value}")


def check_spikes(pre: Tensor, post: Tensor) -> None:
    """Raise ``ValueError`` unless pre and post are (B, N) and (B, M) floats of one dtype on one device."""
    if pre.ndim != 2 or post.ndim != 2 or pre.shape[0] != post.shape[0]:
        raise ValueError(f"pre, post: expected (B, N) and (B, M), got {tuple(pre.shape)} and {tuple(post.shape)}")
    if not pre.is_floating_point() or pre.dtype != post.dtype or pre.device != post.device:
        raise ValueError(
            f"pre, post: expected floats of one dtype on one device, got {pre.dtype} on {pre.device} and {post.dtype} on "
            f"{post.device}"
        )


def check_traces(traces: tuple[Tensor, ...], shapes: tuple[torch.Size, ...], like: Tensor) -> None:
    """Raise ``ValueError`` for traces of other shapes or dtype, or that are no longer finite."""
    if len(traces) != len(shapes):
        raise ValueError(f"traces: expected {len(shapes)} of them, got {len(traces)}")
    for trace, shape in zip(traces, shapes, strict=True):
        if trace.shape != shape or trace.dtype != like.dtype or trace.device != like.device:
            raise ValueError(
                f"traces: expected {like.dtype} {tuple(shape)} on {like.device}, got {trace.dtype} {tuple(trace.shape)} "
                f"on {trace.device}"
            )
        if not bool(trace.isfinite().all()):
            raise ValueError("traces: expected finite values, got some that are not")
