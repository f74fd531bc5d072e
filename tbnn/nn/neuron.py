"""What every spiking neuron shares: the estimator of its gradient, running statistics, sparse activity, the call."""

from dataclasses import replace
from typing import Any, NamedTuple, TypedDict, Unpack, cast

import torch
from torch import Tensor, nn

from tbnn.nn.activity import Homeostasis, TargetRate, Winners, distributed
from tbnn.nn.recorded import Recorded
from tbnn.nn.stateful import Stateful, guard, lengths_of
from tbnn.ops.layer_lif import WeightedSpikes, layer_lif
from tbnn.ops.lif import LifOutput, LifState, Second, SpikeGradient, check_rule, check_trace, lif
from tbnn.ops.lif.cell import RESETS, Cell
from tbnn.surrogate import Surrogate, atan

MOMENTUM = 0.1  # of the running statistics, as in torch's batch norm
HIGHEST_TRACE_BETA = 0.9999  # where a learned decay of a neuron with target="trace" stops


class SpikeOptions(TypedDict, total=False):
    """The keyword arguments that every spiking neuron takes; :class:`Neuron` says what they mean."""

    gradient: str
    surrogate: Surrogate | None
    target: str
    emit: str
    stats: str
    differentiate_stats: bool
    reset_mechanism: str
    learn_threshold: bool
    lam: float
    scale: float
    per_channel: bool
    floor: float
    refractory: int
    activity: Winners | TargetRate | None
    synchronise: bool


class Coefficients(NamedTuple):
    """A neuron's equation: what :func:`tbnn.ops.lif.lif` is given, each broadcasting to the features."""

    beta: Tensor
    second: Second | None = None


class Neuron(Recorded, Stateful, abstract=True):
    """Base of the spiking neurons: ``neuron(current, state=None, mask=None) -> (out, state)``.

    Current and out are (T, B, features...), of a step (B, features...); see :class:`tbnn.nn.stateful.Stateful`.

    Args:
        threshold: θ, a float or a tensor that broadcasts to the features; finite.
        gradient: "ddt", ridge-denoised, or "surrogate", the bare surrogate's derivative.
        surrogate: a shape from :mod:`tbnn.surrogate`; atan(2) by default.
        target: what the spike is a noisy copy of: "soft", the soft spike f(v − θ), or "trace", the input's trace.
        emit: "bits", or "denoised" (soft target): the reconstruction a·q + b leaves, a and b fitted on the batch in
            training and running averages in evaluation.
        stats: the block of the ridge regression: "sequence" (all steps and the batch) or "step" (each step's batch
            and features; causal).
        differentiate_stats: False keeps the ridge's slope and drops the gradient of slope and means.
        reset_mechanism: "subtract", "zero" or "none".
        learn_threshold: train θ.
        lam: λ > 0 of the ridge regression, in units of the spikes' q². The trace of white spikes varies less than they, by
            the factor (1−β)/(1+β): with target="trace" the regression's λ is smaller by it (of several β by the mean, of a
            learnt one by what it is at the start), so that it shrinks the gradient as little as the soft target's.
        scale: multiplies the gradient of emitted bits.
        per_channel: with stats="sequence", one block a channel (the first feature axis), the default, or one for the
            layer, the default for the soft target of :class:`Winners`.
        floor: lower clip of the trace target.
        refractory: steps after a spike in which a neuron cannot spike; its membrane goes on (Bellec et al. 2020).
        activity: :class:`Winners`, :class:`TargetRate` or None.
        synchronise: in distributed training, join the statistics of all processes (one collective a call, so every
            process must make the same calls; a recurrent layer makes one a step).

    Raises:
        ValueError: values outside these ranges; target="trace" where it does not hold; a state of another shape, dtype
            or device; a mask of another shape, with gaps, or that leaves a sequence empty.

    Source: arXiv 2409.09245 for the DDT.
    """

    threshold: Tensor
    running_moments: Tensor

    def __init__(self, threshold: float | Tensor, **options: Unpack[SpikeOptions]) -> None:
        super().__init__()
        unknown = options.keys() - SpikeOptions.__annotations__.keys()
        if unknown:
            raise TypeError(f"{type(self).__name__}: unknown argument {sorted(unknown)[0]!r}")
        names = SpikeGradient.__dataclass_fields__.keys()
        given = {k: v for k, v in options.items() if k in names and k != "surrogate"}
        if isinstance(options.get("activity"), Winners) and options.get("target", "soft") == "soft":
            given.setdefault("per_channel", False)  # who never wins has no variance of its own to regress on
        self.spike_gradient = SpikeGradient(surrogate=options.get("surrogate") or atan(), **cast(Any, given))
        self.reset_mechanism = options.get("reset_mechanism", "subtract")
        self.refractory = options.get("refractory", 0)
        self.synchronise = options.get("synchronise", True)
        activity = options.get("activity")
        if not (activity is None or isinstance(activity, (Winners, TargetRate))):
            raise ValueError(f"activity: expected Winners, TargetRate or None, got {activity!r}")
        if isinstance(activity, TargetRate) and self.spike_gradient.emit != "bits":
            raise ValueError(
                f"activity: a TargetRate counts bits and needs emit='bits', got {self.spike_gradient.emit!r}"
            )
        self.winners = activity if isinstance(activity, Winners) else None
        self.homeostasis = Homeostasis(activity) if isinstance(activity, TargetRate) else None
        if self.reset_mechanism not in RESETS:
            raise ValueError(f"reset_mechanism: expected 'subtract', 'zero' or 'none', got {self.reset_mechanism!r}")
        check_rule(self.reset_mechanism, self.refractory, None)
        theta = torch.as_tensor(threshold, dtype=torch.get_default_dtype())
        if not bool(theta.isfinite().all()):
            raise ValueError(f"threshold: expected finite values, got {threshold}")
        add_parameter(self, "threshold", theta, options.get("learn_threshold", False))
        # mean f, q and f·q of each block with emit="denoised"; sized by the first batch
        self.register_buffer("running_moments", torch.zeros(3, 0))
        self.register_load_state_dict_pre_hook(lambda module, *args: module._resize_moments(*args))

    def coefficients(self) -> Coefficients:
        """The equation's coefficients as they are now, learned ones in their range."""
        raise NotImplementedError

    def check(self) -> None:
        """For the end of a constructor: if the trace target is asked for, give λ its unit; ``ValueError`` if it does not hold."""
        if self.spike_gradient.uses_trace:
            for name in ("alpha", "beta", "rho"):
                decay = getattr(self, name, None)  # as given, not as clamped
                if decay is not None and bool((decay >= 1).any()):
                    raise ValueError(f"target='trace' needs {name} < 1, got {decay.max().item():g}")
            beta, second = self.coefficients()
            check_trace(Cell(beta, self.threshold, second), self.reset_mechanism)
            own = beta.detach().double()
            share = ((1 - own) / (1 + own)).mean().item()
            self.spike_gradient = replace(self.spike_gradient, lam=self.spike_gradient.lam * share)

    def forward(self, x: Tensor, state: LifState | None = None, mask: Tensor | None = None) -> tuple[Tensor, LifState]:
        lengths = None if mask is None else lengths_of(mask, *x.shape[:2], at_start=state is None)
        out, after = self.run(x, guard(state, type(self).__name__), lengths, self.spike_gradient)
        self.observe(out, lengths)
        return out, after

    def step(self, x: Tensor, state: LifState | None = None, mask: Tensor | None = None) -> tuple[Tensor, LifState]:
        """One step: current (B, features...) -> (out (B, features...), state)."""
        lengths = None if mask is None else mask.long()
        out, after = self.run(x.unsqueeze(0), guard(state, type(self).__name__), lengths, self.step_gradient)
        return out.squeeze(0), after

    @property
    def step_gradient(self) -> SpikeGradient:
        """The estimator of a single step: its statistics run over that step."""
        g = self.spike_gradient
        return g if g.stats == "step" else SpikeGradient(**{**vars(g), "stats": "step"})

    def run(self, current: Tensor, state: Any, lengths: Tensor | None, gradient: SpikeGradient) -> tuple[Tensor, Any]:
        """A sequence (T, B, features...) of ``lengths`` steps (B,), under a given estimator."""
        affine = self.emitted_affine() if gradient.emit == "denoised" and not self.training else None
        out, after, moments = self._lif(current, state, lengths, gradient, affine)
        if moments is not None:
            self._update(moments.mean(1, keepdim=True) if gradient.stats == "step" else moments)
        return out, after

    def _lif(
        self,
        current: Tensor | WeightedSpikes,
        state: LifState | None,
        lengths: Tensor | None,
        gradient: SpikeGradient,
        affine: tuple[Tensor, Tensor] | None,
    ) -> LifOutput:
        features = current.shape[2:]
        beta, second = self.coefficients()
        options: dict[str, Any] = {
            "second": second,
            "reset": self.reset_mechanism,
            "refractory": self.refractory,
            "winners": None if self.winners is None else self.winners.of(features.numel()),
            "gradient": gradient,
            "lengths": lengths,
            "joined": self.joined,
        }
        threshold = self.effective_threshold(features)
        if isinstance(current, WeightedSpikes):  # what a network fuses with the layer of weights before
            return layer_lif(current, beta, threshold, state, **options)
        return lif(current, beta, threshold, state, affine=affine, **options)

    @property
    def joined(self) -> bool:
        """Whether statistics are joined over processes now."""
        return self.synchronise and self.training and distributed()

    def effective_threshold(self, features: torch.Size) -> Tensor:
        """θ, with the offset that holds a target rate."""
        if self.homeostasis is None:
            return self.threshold
        return self.homeostasis.threshold(self.threshold, features)

    def observe(self, out: Tensor, lengths: Tensor | None) -> None:
        """Let the homeostatic threshold follow a training sequence that left the layer, (T, B, features...)."""
        if self.homeostasis is None or not self.training:
            return
        count = out.shape[0] * out.shape[1] if lengths is None else lengths.sum()
        self.homeostasis.observe((out.detach() > 0).to(out.dtype).sum((0, 1)), count, self.threshold, self.joined)

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

    def _decay(self, value: Tensor) -> Tensor:
        """A decay as it is, or in [0, 1] if it is learned: [0, 0.9999] with the trace target."""
        if not isinstance(value, nn.Parameter):
            return value
        return value.clamp(0, HIGHEST_TRACE_BETA if self.spike_gradient.uses_trace else 1.0)

    def extra_repr(self) -> str:
        g = self.spike_gradient
        how = f"target={g.target}, emit={g.emit}, stats={g.stats}" if g.gradient == "ddt" else f"{g.surrogate}"
        own = ", ".join(f"{name}={brief(value)}" for name, value in self._own_values().items())
        gates = (f", refractory={self.refractory}" if self.refractory else "") + (
            f", {self.winners}" if self.winners else ""
        )
        return f"{own}, gradient={g.gradient}, {how}, reset={self.reset_mechanism}{gates}"

    def _own_values(self) -> dict[str, Tensor]:
        own = {**dict(self.named_parameters(recurse=False)), **dict(self.named_buffers(recurse=False))}
        return {name: value for name, value in own.items() if name != "running_moments"}


def checked_decay(name: str, value: float | Tensor) -> Tensor:
    """A decay as a tensor; ``ValueError`` unless it is in [0, 1] everywhere."""
    tensor = torch.as_tensor(value, dtype=torch.get_default_dtype())
    if not bool(((tensor >= 0) & (tensor <= 1)).all()):
        raise ValueError(f"{name}: expected values in [0, 1], got {value}")
    return tensor


def checked_finite(name: str, value: float | Tensor) -> Tensor:
    """A coefficient as a tensor; ``ValueError`` unless it is finite everywhere."""
    tensor = torch.as_tensor(value, dtype=torch.get_default_dtype())
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name}: expected finite values, got {value}")
    return tensor


def add_parameter(module: nn.Module, name: str, value: Tensor, learn: bool) -> None:
    """Register ``value`` as a parameter, or as a buffer if it is not learned."""
    if learn:
        module.register_parameter(name, nn.Parameter(value.clone()))
    else:
        module.register_buffer(name, value.clone())


def brief(value: Tensor) -> str:
    """A number, or a tensor's shape."""
    return f"{value.item():g}" if value.numel() == 1 else f"{tuple(value.shape)}"
