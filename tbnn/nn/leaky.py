"""Leaky neurons: the spiking one and the integrating readout."""

from typing import cast

import torch
from torch import Tensor, nn

from tbnn.ops.lif import LifState, SpikeGradient, check_current, check_state, check_trace, lif
from tbnn.ops.lif.integrate import leaky_integrate
from tbnn.surrogate import Surrogate, atan

MOMENTUM = 0.1  # of the running statistics, as in torch's batch norm
HIGHEST_TRACE_BETA = 0.9999  # where a learned β of a neuron with target="trace" stops


class Leaky(nn.Module):
    """Leaky integrate-and-fire neurons over a whole sequence; snntorch's ``Leaky``, spike for spike.

    ``v[t] = β·v[t−1] + I[t] − θ·q[t−1]``, ``q[t] = 1[v[t] > θ]``, the reset detached.

    ``neuron(current, state=None) -> (out, state)`` with current and out (T, B, features...); ``neuron.step(current_t,
    state) -> (out_t, state)`` with (B, features...). Stepping T times gives what the sequence gives; a step's
    statistics run over that step alone.

    Args:
        beta: the membrane's decay per step, 0 <= β <= 1: a float, or a tensor that broadcasts to the features.
        threshold: θ, likewise; finite.
        gradient: "ddt", ridge-denoised, or "surrogate", the bare surrogate's derivative.
        surrogate: a shape from :mod:`tbnn.surrogate`; atan(2) by default.
        target: what the spike is a noisy copy of: "soft", the soft spike f(v − θ), or "trace", the input's trace.
        emit: "bits", or "denoised" (soft target): the reconstruction a·q + b leaves, a and b fitted on the batch in
            training and running averages in evaluation.
        stats: the block of the ridge regression: "sequence" (all steps and the batch) or "step" (each step's batch
            and features; causal).
        differentiate_stats: False keeps the ridge's slope and drops the gradient of slope and means.
        reset_mechanism: "subtract", "zero" or "none".
        learn_beta, learn_threshold: train them; β is clamped to [0, 1], with target="trace" to [0, 0.9999].
        lam: λ > 0 of the ridge regression.
        scale: multiplies the gradient of emitted bits.
        per_channel: with stats="sequence", one block a channel (the first feature axis), or one for the layer.
        floor: lower clip of the trace target.

    Raises:
        ValueError: values outside these ranges; target="trace" with another reset, β = 1 or θ <= 0; a state of another
            shape, dtype or device.

    Source: snntorch (Eshraghian et al. 2023); arXiv 2409.09245.
    """

    beta: Tensor
    threshold: Tensor
    running_moments: Tensor

    def __init__(
        self,
        beta: float | Tensor,
        threshold: float | Tensor = 1.0,
        *,
        gradient: str = "ddt",
        surrogate: Surrogate | None = None,
        target: str = "soft",
        emit: str = "bits",
        stats: str = "sequence",
        differentiate_stats: bool = True,
        reset_mechanism: str = "subtract",
        learn_beta: bool = False,
        learn_threshold: bool = False,
        lam: float = 0.01,
        scale: float = 1.0,
        per_channel: bool = True,
        floor: float = -0.05,
    ) -> None:
        super().__init__()
        self.spike_gradient = SpikeGradient(
            gradient=gradient,
            surrogate=surrogate if surrogate is not None else atan(),
            target=target,
            emit=emit,
            stats=stats,
            per_channel=per_channel,
            differentiate_stats=differentiate_stats,
            lam=lam,
            scale=scale,
            floor=floor,
        )
        if reset_mechanism not in ("subtract", "zero", "none"):
            raise ValueError(f"reset_mechanism: expected 'subtract', 'zero' or 'none', got {reset_mechanism!r}")
        self.reset_mechanism = reset_mechanism
        add_parameter(self, "beta", checked_beta(beta), learn_beta)
        theta = torch.as_tensor(threshold, dtype=torch.get_default_dtype())
        if not bool(theta.isfinite().all()):
            raise ValueError(f"threshold: expected finite values, got {threshold}")
        add_parameter(self, "threshold", theta, learn_threshold)
        if self.spike_gradient.uses_trace:
            check_trace(self.beta, self.threshold, reset_mechanism)
        # mean f, q and f·q of each block with emit="denoised"; sized by the first batch
        self.register_buffer("running_moments", torch.zeros(3, 0))
        self.register_load_state_dict_pre_hook(lambda module, *args: module._resize_moments(*args))

    def forward(self, current: Tensor, state: LifState | None = None) -> tuple[Tensor, LifState]:
        return self._run(current, state, self.spike_gradient)

    def step(self, current: Tensor, state: LifState | None = None) -> tuple[Tensor, LifState]:
        """One step: current (B, features...) -> (out (B, features...), state)."""
        out, state = self._run(current.unsqueeze(0), state, self.step_gradient)
        return out.squeeze(0), state

    @property
    def step_gradient(self) -> SpikeGradient:
        """The estimator of a single step: its statistics run over that step."""
        g = self.spike_gradient
        return g if g.stats == "step" else SpikeGradient(**{**vars(g), "stats": "step"})

    def _run(self, current: Tensor, state: LifState | None, gradient: SpikeGradient) -> tuple[Tensor, LifState]:
        affine = self.emitted_affine() if gradient.emit == "denoised" and not self.training else None
        highest = HIGHEST_TRACE_BETA if gradient.uses_trace else 1.0
        beta = self.beta.clamp(0, highest) if isinstance(self.beta, nn.Parameter) else self.beta
        out, state, moments = lif(
            current, beta, self.threshold, state, reset=self.reset_mechanism, gradient=gradient, affine=affine
        )
        if moments is not None:
            self._update(moments.mean(1, keepdim=True) if gradient.stats == "step" else moments)
        return out, state

    @torch.no_grad()
    def _update(self, moments: Tensor) -> None:
        """Follow a batch's moments (3, blocks); a single step's (3, 1) count for every block."""
        moments = moments.to(self.running_moments)
        if self.running_moments.shape[1] < moments.shape[1]:
            self.running_moments = moments.clone()
        else:
            self.running_moments.lerp_(moments.expand_as(self.running_moments), MOMENTUM)

    def emitted_affine(self) -> tuple[Tensor, Tensor]:
        """With emit="denoised": the constants (a, b) of what leaves in evaluation; (1, 0) before any training."""
        if self.running_moments.shape[1] == 0:
            return torch.ones_like(self.running_moments[0].new_empty(1)), self.running_moments.new_zeros(1)
        f, q, fq = self.running_moments.unbind(0)
        a = (fq - f * q) / (q - q * q + self.spike_gradient.lam)
        return a, f - a * q

    def _resize_moments(self, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
        """Give the running statistics the saved number of blocks, before a state dict is loaded."""
        saved = state_dict.get(prefix + "running_moments")
        if saved is not None:
            self.running_moments = self.running_moments.new_zeros(saved.shape)

    def extra_repr(self) -> str:
        g = self.spike_gradient
        how = f"target={g.target}, emit={g.emit}, stats={g.stats}" if g.gradient == "ddt" else f"{g.surrogate}"
        return f"beta={_brief(self.beta)}, threshold={_brief(self.threshold)}, gradient={g.gradient}, {how}, reset={self.reset_mechanism}"


class LeakyIntegrator(nn.Module):
    """A readout that integrates and never spikes: ``v[t] = β·v[t−1] + I[t]``, out = v.

    ``readout(current, state=None) -> (v, state)`` with (T, B, features...); the state is v after the last step,
    (B, features...).

    Raises:
        ValueError: β outside [0, 1]; a state of another shape, dtype or device.
    """

    beta: Tensor

    def __init__(self, beta: float | Tensor, *, learn_beta: bool = False) -> None:
        super().__init__()
        add_parameter(self, "beta", checked_beta(beta), learn_beta)

    def forward(self, current: Tensor, state: LifState | None = None) -> tuple[Tensor, LifState]:
        check_current(current)
        v0 = check_state(state, current, with_trace=False).v
        features = current.shape[2:]
        beta = self.beta.clamp(0, 1).to(current.dtype).expand(features).reshape(-1)
        v = leaky_integrate(current.flatten(2), beta, v0.flatten(1)).reshape(current.shape)
        return v, LifState(v[-1])

    def step(self, current: Tensor, state: LifState | None = None) -> tuple[Tensor, LifState]:
        """One step: current (B, features...) -> (v, state)."""
        v, state = self(current.unsqueeze(0), state)
        return v.squeeze(0), cast(LifState, state)

    def extra_repr(self) -> str:
        return f"beta={_brief(self.beta)}"


def checked_beta(beta: float | Tensor) -> Tensor:
    """β as a tensor; ``ValueError`` unless 0 <= β <= 1 everywhere."""
    tensor = torch.as_tensor(beta, dtype=torch.get_default_dtype())
    if not bool(((tensor >= 0) & (tensor <= 1)).all()):
        raise ValueError(f"beta: expected values in [0, 1], got {beta}")
    return tensor


def add_parameter(module: nn.Module, name: str, value: Tensor, learn: bool) -> None:
    """Register ``value`` as a parameter, or as a buffer if it is not learned."""
    if learn:
        module.register_parameter(name, nn.Parameter(value.clone()))
    else:
        module.register_buffer(name, value.clone())


def _brief(value: Tensor) -> str:
    return f"{value.item():g}" if value.numel() == 1 else f"{tuple(value.shape)}"
