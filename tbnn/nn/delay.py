"""Delays: of a neuron's spikes on their way out, and of each synapse."""

import torch
from torch import Tensor, nn

from tbnn.nn.recorded import Recorded
from tbnn.nn.stateful import Stateful, lengths_of
from tbnn.nn.weights import BinaryWeight, Parts, Product
from tbnn.nn.wiring import WiringLike
from tbnn.ops.quantize.estimators import Estimator
from tbnn.ops.quantize.sparsify import SparsityLike

FINAL_SIGMA = 0.5  # where a schedule ends: the kernel's mass is then on one or two steps


def sigma_at(progress: float, max_delay: int, *, end: float = FINAL_SIGMA, over: float = 0.25) -> float:
    """σ after a share ``progress`` of training: from max_delay/2 exponentially down to ``end`` within the share ``over``.

    For ``set_sigma`` at the start of each epoch. Raises ``ValueError`` for a progress outside [0, 1].

    Source: Hammouamri et al., ICLR 2024.

    >>> [round(sigma_at(p, 20), 2) for p in (0.0, 0.125, 0.25, 1.0)]
    [10.0, 2.24, 0.5, 0.5]
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress: expected a share in [0, 1], got {progress}")
    start = max(max_delay / 2, end)
    return start * (end / start) ** min(progress / over, 1.0)


class Delays(Recorded, Stateful, abstract=True):
    """Base of layers with delays 0 … ``max_delay``: what they know of time.

    The state is the last ``max_delay`` inputs, (max_delay, B, features...), oldest first; None is silence. A learned
    delay d is a position on the time axis: in training the kernel ``g[τ] ∝ exp(−½((τ − d)/σ)²)``, τ = 0 … max_delay, of
    sum 1, stands for it; in evaluation, and for delays that are not learned, the shift by round(d) steps.
    """

    delay: Tensor
    sigma: Tensor

    def _init_delays(
        self, shape: tuple[int, ...], max_delay: int, delay: Tensor | int | None, learn: bool, sigma: float | None
    ) -> None:
        if max_delay < 0:
            raise ValueError(f"max_delay: expected an integer >= 0, got {max_delay}")
        self.max_delay = max_delay
        if delay is None:
            start = torch.rand(shape) * max_delay
            start = start if learn else start.round()
        else:
            start = torch.as_tensor(delay, dtype=torch.get_default_dtype()).expand(shape).clone()
            if not bool(((start >= 0) & (start <= max_delay)).all()):
                raise ValueError(f"delay: expected values in [0, {max_delay}], got {delay}")
        if learn:
            self.delay = nn.Parameter(start)
        else:
            self.register_buffer("delay", start)
        self.register_buffer("sigma", torch.tensor(1.0))
        self.set_sigma(max(max_delay / 2, FINAL_SIGMA) if sigma is None else sigma)

    def set_sigma(self, sigma: float) -> None:
        """The width, in steps, of the kernel that stands for a learned delay in training; see :func:`sigma_at`."""
        if not 0 < sigma < float("inf"):
            raise ValueError(f"sigma: expected a finite number > 0, got {sigma}")
        self.sigma.fill_(sigma)

    @property
    def blurred(self) -> bool:
        """Whether a call uses the kernel: in training, of learned delays."""
        return self.training and isinstance(self.delay, nn.Parameter)

    def rounded(self) -> Tensor:
        """The delays as whole steps, int64."""
        return self.delay.detach().round().clamp(0, self.max_delay).long()

    def kernel(self) -> Tensor:
        """g (..., max_delay + 1) of sum 1, differentiable in the delays."""
        # The gradient passes the clamp, so that a delay that was pushed out comes back.
        inside = self.delay + (self.delay.clamp(0, self.max_delay) - self.delay).detach()
        steps = torch.arange(self.max_delay + 1, device=inside.device, dtype=inside.dtype)
        return torch.softmax(-0.5 * ((steps - inside[..., None]) / self.sigma).square(), dim=-1)

    def _extended(self, x: Tensor, state: Tensor | None) -> Tensor:
        """The inputs after those that the state holds, (max_delay + T, B, features...)."""
        past = x.new_zeros(self.max_delay, *x.shape[1:]) if state is None else state
        if past.shape != (self.max_delay, *x.shape[1:]):
            raise ValueError(f"state: expected {(self.max_delay, *x.shape[1:])}, got {tuple(past.shape)}")
        return torch.cat([past, x])

    def _leave(self, y: Tensor, extended: Tensor, mask: Tensor | None, first: bool) -> tuple[Tensor, Tensor]:
        """Output and state, both as the mask has them: an ended sequence outputs 0 and keeps its last inputs."""
        if mask is None:
            return y, extended[y.shape[0] :]
        lengths = lengths_of(mask, *y.shape[:2], at_start=first)
        rows = torch.arange(self.max_delay, device=y.device)[:, None] + lengths  # (max_delay, B)
        state = extended[rows, torch.arange(y.shape[1], device=y.device)]
        return y * mask.reshape(*mask.shape, *[1] * (y.ndim - 2)), state


class Delay(Delays):
    """Axonal delays: ``y[t, b, i] = x[t − d_i, b, i]``, each feature (channel) by its own number of steps.

    ``delay(x, state=None, mask=None) -> (y, state)``, x (T, B, features, ...). Bits stay bits.

    Args:
        features: the size of the first feature axis.
        max_delay: the longest delay, in steps.
        delay: where the delays start, one value or one a feature; None draws them uniformly from 0 … max_delay.
        learn: learn them.
        sigma: the kernel's width in training at the start; None is max_delay/2.
        straight_through: in training, let the shifted bits out and take the kernel's gradient; False lets out what the
            kernel gives, numbers between the bits, as Hammouamri et al. do.

    Raises:
        ValueError: sizes or delays out of range; an input of other features; a state of another shape.

    Source: Hammouamri, Khalfaoui-Hassani & Masquelier, "Learning delays in spiking neural networks using dilated
    convolutions with learnable spacings", ICLR 2024.

    >>> y, _ = Delay(2, 3, delay=torch.tensor([0, 2]), learn=False)(torch.eye(4)[:, None, :2])
    >>> y[:, 0].T.tolist()
    [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    """

    def __init__(
        self,
        features: int,
        max_delay: int,
        *,
        delay: Tensor | int | None = None,
        learn: bool = True,
        sigma: float | None = None,
        straight_through: bool = True,
    ) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"features: expected an integer >= 1, got {features}")
        self.features, self.straight_through = features, straight_through
        self._init_delays((features,), max_delay, delay, learn, sigma)

    def forward(self, x: Tensor, state: Tensor | None = None, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if x.ndim < 3 or x.shape[2] != self.features:
            raise ValueError(f"Delay: expected (T, B, {self.features}, ...), got {tuple(x.shape)}")
        extended = self._extended(x, state)
        y = self._shifted(extended, x.shape[0])
        if self.blurred:
            soft = self._convolved(extended, x.shape[0])
            y = soft + (y - soft).detach() if self.straight_through else soft
        return self._leave(y, extended, mask, state is None)

    def _shifted(self, extended: Tensor, steps: int) -> Tensor:
        """Each feature by its whole number of steps."""
        delays = self.rounded().reshape(-1, *[1] * (extended.ndim - 3))
        rows = torch.arange(steps, device=extended.device).reshape(-1, *[1] * (extended.ndim - 1)) + self.max_delay
        return extended.gather(0, (rows - delays).expand(steps, *extended.shape[1:]))

    def _convolved(self, extended: Tensor, steps: int) -> Tensor:
        """Each feature with its kernel."""
        taps = self.kernel().reshape(self.features, *[1] * (extended.ndim - 3), self.max_delay + 1).unbind(-1)
        lags = range(self.max_delay, -1, -1)
        return torch.stack([g * extended[lag : lag + steps] for g, lag in zip(taps, lags, strict=True)]).sum(0)

    def extra_repr(self) -> str:
        return f"{self.features}, {self.max_delay}, learn={isinstance(self.delay, nn.Parameter)}"


class DelayedLinear(Delays, BinaryWeight):
    """Synaptic delays: ``y[t, b, o] = Σ_i ŵ[o, i]·x[t − d[o, i], b, i] + bias[o]``, each synapse one bit and one delay.

    ``layer(x, state=None, mask=None) -> (y, state)``, x (T, B, in_features) -> (T, B, out_features). In training a
    learned delay is a kernel over time (see :class:`Delays`), whose position is learned and whose width ``set_sigma``
    anneals (:func:`sigma_at`; the paper learns positions at 100 times the weights' rate). In evaluation delays are
    whole steps and the product is ``scale·(x·values) + offset·Σx`` over delayed bits: exact whole numbers, then scaled.

    Args:
        in_features, out_features, bias: as in :class:`BinaryLinear`.
        max_delay: the longest delay, in steps.
        delay, learn, sigma: as in :class:`Delay`, one delay a synapse, (out_features, in_features).
        bits, sparsity, scope, estimator, form, lam, block, wiring: as in :class:`BinaryLinear`.

    Raises:
        ValueError: as :class:`Delay` and :class:`BinaryLinear`.

    Source: Hammouamri, Khalfaoui-Hassani & Masquelier, ICLR 2024 (DCLS-Delays), here with binary weights.

    >>> y, state = DelayedLinear(700, 128, max_delay=24)(torch.ones(30, 2, 700))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        max_delay: int,
        bias: bool = True,
        *,
        delay: Tensor | int | None = None,
        learn: bool = True,
        sigma: float | None = None,
        bits: float | None = 1,
        sparsity: SparsityLike = 0.0,
        scope: str = "row",
        estimator: str | Estimator = "ddt",
        form: str = "affine",
        lam: float = 0.01,
        block: int | None = None,
        wiring: WiringLike | None = None,
    ) -> None:
        BinaryWeight.__init__(
            self, (out_features, in_features), bias,
            bits=bits, sparsity=sparsity, scope=scope, estimator=estimator, form=form, lam=lam, block=block,
            wiring=wiring,
        )  # fmt: skip
        self.in_features, self.out_features = in_features, out_features
        self._init_delays((out_features, in_features), max_delay, delay, learn, sigma)

    def forward(self, x: Tensor, state: Tensor | None = None, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if x.ndim != 3 or x.shape[2] != self.in_features:
            raise ValueError(f"DelayedLinear: expected (T, B, {self.in_features}), got {tuple(x.shape)}")
        extended = self._extended(x, state)
        inputs = extended.permute(1, 2, 0)  # (B, in, max_delay + T)
        weight, codes = self.quantized()
        if self.blurred:
            y = torch.conv1d(inputs, weight[..., None] * self.kernel().flip(-1))
        else:
            hits = torch.nn.functional.one_hot(self.max_delay - self.rounded(), self.max_delay + 1).to(x)
            y = _DelayedProduct(hits, self.block)(inputs, weight, codes, self.form)
        y = y.permute(2, 0, 1) if self.bias is None else y.permute(2, 0, 1) + self.bias
        return self._leave(y, extended, mask, state is None)

    def extra_repr(self) -> str:
        learn = isinstance(self.delay, nn.Parameter)
        return f"{self.in_features}, {self.out_features}, {self.max_delay}, learn={learn}, {self._options_repr()}"


class _DelayedProduct(Product):
    """x (M, in, taps − 1 + T) with weights (out, in) whose place on the time axis is 1 in ``hits`` (out, in, taps)."""

    def __init__(self, hits: Tensor, block: int | None) -> None:
        self.hits, self.block = hits, block

    def parts(self, x: Tensor, values: Tensor, sums: bool) -> Parts:
        block = self.block or x.shape[1]
        for lo in range(0, x.shape[1], block):
            part, hits = x[:, lo : lo + block], self.hits[:, lo : lo + block]
            total = torch.conv1d(part, hits) if sums else None
            yield torch.conv1d(part, values[:, lo : lo + block, None] * hits), total

    def gradients(
        self, dy: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        dx, dkernel, _ = torch.ops.aten.convolution_backward(
            dy, x, weight[..., None] * self.hits, None, [1], [0], [1], False, [0], 1, [*needs, False]
        )
        return dx, (dkernel * self.hits).sum(-1) if needs[1] else None
