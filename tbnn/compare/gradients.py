"""Gradients to look at and to compare: by layer, over time, and the true gradient of the smoothed loss."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from tbnn.nn.health import spiking_layers
from tbnn.nn.leaky import LeakyIntegrator
from tbnn.nn.linear import BinaryLinear
from tbnn.nn.network import Network
from tbnn.nn.neuron import Neuron
from tbnn.nn.pool import Flatten
from tbnn.nn.recurrent import Recurrent
from tbnn.ops.quantize import quantize

LossOf = Callable[[Tensor], Tensor]
"""From what a network returns, (T, B, C), to a scalar."""

ALL = "all"  # the key of what holds for all layers together
ORTHOGONAL = 512  # directions that are made orthogonal to each other at once
MOST_NUMBERS = 1 << 22  # of a layer's outputs in all networks that run at once


class Seen(NamedTuple):
    """What entered a spiking layer and what left it, (T, B, features...) each."""

    current: Tensor
    out: Tensor


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Inside the ``with`` block running statistics and modes may change; after it they are as before."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in network.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer.copy_(value)


@contextmanager
def captured(network: nn.Module) -> Iterator[dict[str, Seen]]:
    """Collect what every spiking layer is given and emits, by name, from one call inside the ``with`` block.

    Layers then run one after the other, since currents are looked at (:func:`tbnn.nn.fused.group_at`). A current without a
    graph, the network's input say, is made a leaf that takes a gradient. A recurrent layer is given the current from outside:
    its derivative is that of the neurons' whole current.

    Raises:
        ValueError: a layer that runs more than once.
    """
    seen: dict[str, Seen] = {}
    hooks: list[Any] = []

    def enter(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        current, *others = args
        if torch.is_grad_enabled():
            # A view, since a shortcut may read the same tensor, whose gradient is then the sum of both paths.
            current = current.view_as(current) if current.requires_grad else current.detach().requires_grad_()
        return (current, *others)

    def leave(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if name in seen:
                raise ValueError(f"{name}: expected a layer that runs once a call, got a second run")
            seen[name] = Seen(args[0], output[0])

        return hook

    for name, layer in spiking_layers(network).items():
        hooks += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave(name))]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def readout_of(network: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """What a network returns, without its state."""
    return network(x)[0] if mask is None else network(x, mask=mask)[0]


def weights_of(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are weights, of two axes or more, by name: no biases, thresholds, decays or gains of norms."""
    return {name: p for name, p in network.named_parameters() if p.ndim > 1}


def gradient_norms(network: nn.Module) -> dict[str, float]:
    """‖dL/dW‖ of every layer of weights, by its name, in the network's order, after ``backward()``; 0 where none arrived."""
    return {
        name.rpartition(".")[0]: 0.0 if weight.grad is None else weight.grad.norm().item()
        for name, weight in weights_of(network).items()
    }


def current_gradients(network: nn.Module, x: Tensor, loss_of: LossOf, mask: Tensor | None = None) -> dict[str, Tensor]:
    """dL/dI of every spiking layer, (T, B, features...) by its name: I is the current that enters it.

    Neither the parameters' ``.grad`` nor running statistics change. 0 where no gradient arrives.

    Args:
        network: ``network(x) -> (y, state)``.
        x: its input.
        loss_of: from y to a scalar.
        mask: as the network takes it.
    """
    arrived: dict[str, Tensor] = {}
    with unchanged(network), torch.enable_grad(), captured(network) as seen:
        loss = loss_of(readout_of(network, x, mask))
        for name, (current, _) in seen.items():
            # a copy at once: a backward pass further down may write into the gradient that it is given
            current.register_hook(lambda grad, name=name: arrived.__setitem__(name, grad.detach().clone()))
        if seen and loss.requires_grad:
            torch.autograd.grad(loss, [current for current, _ in seen.values()], allow_unused=True)
    return {name: arrived.get(name, torch.zeros_like(current)) for name, (current, _) in seen.items()}


def gradient_over_time(network: nn.Module, x: Tensor, loss_of: LossOf, mask: Tensor | None = None) -> dict[str, Tensor]:
    """‖dL/dI[t]‖ of every spiking layer, (T,) by its name: over the batch and the features of each step.

    Arguments as for :func:`current_gradients`. The gradient that a surrogate lets explode or vanish through time shows here,
    before the sum over time that makes a weight's gradient of it.
    """
    return {name: g.flatten(1).norm(dim=1).detach() for name, g in current_gradients(network, x, loss_of, mask).items()}


def weight_gradients(network: nn.Module, x: Tensor, loss_of: LossOf, mask: Tensor | None = None) -> dict[str, Tensor]:
    """dL/dW as the network's own estimator has it, by parameter (:func:`weights_of`); arguments as :func:`current_gradients`.

    Neither ``.grad`` nor running statistics change. A weight that takes no gradient is left out.
    """
    weights = {name: p for name, p in weights_of(network).items() if p.requires_grad}
    with unchanged(network), torch.enable_grad():
        loss = loss_of(readout_of(network, x, mask))
        grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(weights.items(), grads, strict=True)}


Tensors = Mapping[str, Tensor] | Sequence[Tensor]


def cosine(a: Tensors, b: Tensors) -> dict[str, float]:
    """The cosine of each pair of tensors, by name or place, and under "all" that of all of them as one vector.

    NaN where one of the two is 0: it has no direction.

    Raises:
        ValueError: other names, lengths or shapes.

    >>> cosine([torch.tensor([1.0, 0.0])], [torch.tensor([3.0, 4.0])])
    {'0': 0.6000000238418579, 'all': 0.6000000238418579}
    """
    first, second = _named(a), _named(b)
    if first.keys() != second.keys():
        raise ValueError(f"cosine: expected the same tensors twice, got {list(first)} and {list(second)}")
    products = []
    for name, left in first.items():
        right = second[name]
        if left.shape != right.shape:
            raise ValueError(f"{name}: expected one shape, got {tuple(left.shape)} and {tuple(right.shape)}")
        u, v = left.detach().double().flatten(), right.detach().double().flatten()
        products.append(((u @ v).item(), (u @ u).item(), (v @ v).item()))
    found = dict(zip(first, (_ratio(*product) for product in products), strict=True))
    return {**found, ALL: _ratio(*(sum(column) for column in zip(*products, strict=True)))}


def _named(tensors: Tensors) -> dict[str, Tensor]:
    if isinstance(tensors, Mapping):
        return dict(tensors)
    return {str(place): tensor for place, tensor in enumerate(tensors)}


def _ratio(product: float, first: float, second: float) -> float:
    length = math.sqrt(first) * math.sqrt(second)
    return product / length if length > 0 else math.nan


class Smoothed(NamedTuple):
    """An estimate of the gradient of a smoothed loss, and how good it is."""

    gradient: dict[str, Tensor]
    """By parameter."""
    correlation: dict[str, float]
    """ρ, the cosine of two independent halves of the estimate, by parameter and under "all"."""
    ceiling: dict[str, float]
    """√(2ρ/(1+ρ)): the cosine that the exact gradient would have with this estimate; 0 where ρ <= 0."""
    loss: float
    """The smoothed loss."""


def smoothed_gradient(
    network: nn.Module,
    x: Tensor,
    labels: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    sigma: float = 0.3,
    samples: int = 1000,
    seed: int = 0,
    *,
    names: Iterable[str] | None = None,
    mask: Tensor | None = None,
) -> Smoothed:
    """The gradient of ``E[L(w + σ·ε)]``, ε normal, by the latent weights w: the true slope of a network of hard steps.

    The loss of a network of hard steps with 1-bit weights is flat almost everywhere, so its own gradient says nothing. Noise on
    the latent weights turns bits over with the probability Φ(−|w|/σ): the mean loss then is smooth in w, and
    ``∇ = E[(L(w + σ·ε) − L(w − σ·ε))·ε] / 2σ`` asks for true forward passes only, weights and spikes quantised. No estimator is
    preferred by it. (Noise on the membranes would smooth the spikes alone, leave 1-bit weights without a slope, and spread the
    estimate's variance over every neuron and step.)

    Directions come in pairs ±ε and in sets that are orthogonal, which leave each of them normal and cancel most of the
    estimate's error; what is left is told by two halves that share no direction. The more weights, the more pairs it takes:
    about as many as weights for a ceiling of 0.8 of a loss that is close to linear within σ.

    Args:
        network: ``network(x) -> (y, state)``; in the mode it is in, evaluation where it drops out.
        x, labels: the batch.
        loss: from (y, labels) to a scalar.
        sigma: σ > 0 in units of each parameter's mean magnitude.
        samples: pairs of forward passes, even, at least 2.
        seed: of the directions.
        names: the parameters w; by default all that are weights (:func:`weights_of`).
        mask: as the network takes it.

    Raises:
        ValueError: values outside these ranges; an unknown parameter, or one of zeros only.

    Source: Salimans et al., "Evolution strategies as a scalable alternative to reinforcement learning", arXiv 1703.03864;
    Choromanski et al., "Structured evolution with compact architectures", ICML 2018, for the orthogonal directions; the
    ceiling is the correction for attenuation of Spearman (1904) and Brown (1910).
    """
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma: expected a finite number > 0, got {sigma}")
    if samples < 2 or samples % 2:
        raise ValueError(f"samples: expected an even number >= 2, got {samples}")
    weights = _chosen(network, names)
    start = {name: weight.detach().clone() for name, weight in weights.items()}
    steps = {name: sigma * w.abs().mean().item() for name, w in start.items()}
    for name, step in steps.items():
        if step == 0:
            raise ValueError(f"{name}: expected values that are not all 0 (σ is in units of their magnitude)")
    sizes = [w.numel() for w in start.values()]
    widths = torch.cat([torch.full((size,), steps[name]) for name, size in zip(start, sizes, strict=True)])
    members = _Members(network, x, labels, loss, mask, start)
    generator = torch.Generator().manual_seed(seed)
    total, halves = 0.0, []
    with unchanged(network), torch.no_grad():
        for _ in range(2):
            estimate = torch.zeros(sum(sizes), dtype=torch.float64)
            for directions in _directions(samples // 2, sum(sizes), generator):
                for some in directions.split(members.at_once):
                    above, below = (members(sign * widths * some) for sign in (1, -1))
                    estimate += (above - below) @ some.double() / samples
                    total += (above + below).sum().item()
            halves.append(
                {n: e.view_as(start[n]) / steps[n] for n, e in zip(start, estimate.split(sizes), strict=True)}
            )
    correlation = cosine(*halves)
    return Smoothed(
        {name: ((halves[0][name] + halves[1][name]) / 2).to(w) for name, w in start.items()},
        correlation,
        {name: math.sqrt(2 * rho / (1 + rho)) if rho > 0 else 0.0 for name, rho in correlation.items()},
        total / (2 * samples),
    )


def _chosen(network: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Parameter]:
    if names is None:
        return weights_of(network)
    known, chosen = dict(network.named_parameters()), list(names)
    for name in chosen:
        if name not in known:
            raise ValueError(f"names: expected parameters of the network ({', '.join(known)}), got {name!r}")
    return {name: known[name] for name in chosen}


def _directions(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Normal vectors (some, size), those of a set orthogonal to each other."""
    while count > 0:
        together = min(count, size, ORTHOGONAL)
        drawn = torch.randn(size, together, generator=generator)
        # The lengths of normal vectors are independent of their directions, so each stays normal.
        yield (torch.linalg.qr(drawn).Q * drawn.norm(dim=0)).T
        count -= together


class _Members:
    """The losses of networks that differ in some weights, many in one pass where their layers allow it."""

    def __init__(
        self,
        network: nn.Module,
        x: Tensor,
        labels: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor],
        mask: Tensor | None,
        start: dict[str, Tensor],
    ) -> None:
        self.network, self.x, self.labels, self.loss, self.mask, self.start = network, x, labels, loss, mask, start
        self.at_once = 1
        if (
            isinstance(network, Network)
            and _together(network, {n: w.unsqueeze(0) for n, w in start.items()}) is not None
        ):
            self.x = network.unpacked(x)
            widest = max((max(w.shape) for w in start.values()), default=1)
            self.at_once = max(1, MOST_NUMBERS // (self.x.shape[0] * self.x.shape[1] * widest))

    def __call__(self, offsets: Tensor) -> Tensor:
        """The losses (K,), float64, at the start's weights plus offsets (K, weights)."""
        parts = offsets.split([w.numel() for w in self.start.values()], 1)
        weights = {n: w + part.view(-1, *w.shape).to(w) for (n, w), part in zip(self.start.items(), parts, strict=True)}
        if self.at_once == 1:
            return torch.stack([self._alone({name: w[k] for name, w in weights.items()}) for k in range(len(offsets))])
        network = cast("Network", _together(cast("Network", self.network), weights))
        batch, count = self.x.shape[1], len(offsets)
        x = self.x.repeat(1, count, *[1] * (self.x.ndim - 2))
        y = readout_of(network, x, None if self.mask is None else self.mask.repeat(1, count))
        return torch.stack([self.loss(own, self.labels).double() for own in y.split(batch, 1)])

    def _alone(self, weights: dict[str, Tensor]) -> Tensor:
        named = dict(self.network.named_parameters())
        try:
            for name, weight in weights.items():
                named[name].copy_(weight)
            return self.loss(readout_of(self.network, self.x, self.mask), self.labels).double()
        finally:
            for name, weight in self.start.items():
                named[name].copy_(weight)


class _Linear(nn.Module):
    """The linear layers of K networks, one after the other along the batch: (..., K·B, in) -> (..., K·B, out)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias  # (K, out, in), (out,)
        self.out_features, self.in_features = weight.shape[1:]

    def forward(self, x: Tensor) -> Tensor:
        own = x.unflatten(-2, (len(self.weight), -1)).movedim(-3, 0)  # (K, ..., B, in)
        y = torch.bmm(own.flatten(1, -2), self.weight.transpose(1, 2)).view(*own.shape[:-1], self.out_features)
        y = y.movedim(0, -3).flatten(-3, -2)
        return y if self.bias is None else y + self.bias


def _together(network: Network, weights: dict[str, Tensor]) -> Network | None:
    """K networks as one, from K of each of some weights (K, ...), or None where a layer looks across samples or is unknown."""
    left = dict(weights)
    count = len(next(iter(weights.values())))

    def many(layer: nn.Module, name: str) -> nn.Module | None:
        if type(layer) is Recurrent and isinstance(layer.recurrent_layer, BinaryLinear | nn.Linear):
            inner = many(layer.recurrent_layer, f"{name}.recurrent_layer")
            alike = inner is not None and many(layer.neuron, name) is not None
            return Recurrent(layer.neuron, inner, layer.delay) if inner is not None and alike else None
        if isinstance(layer, Neuron):
            crosses = layer.homeostasis is not None or (layer.training and layer.spike_gradient.emit == "denoised")
            return None if crosses or layer._forward_pre_hooks else layer
        if type(layer) in (LeakyIntegrator, Flatten, nn.Identity):
            return layer
        if type(layer) not in (BinaryLinear, nn.Linear):
            return None
        linear = cast("BinaryLinear | nn.Linear", layer)
        latent = left.pop(f"{name}.weight", linear.weight.expand(count, *linear.weight.shape))
        if isinstance(linear, nn.Linear):
            return _Linear(latent, linear.bias)
        if linear.gain is not None or linear.frozen_values is not None or linear.scope == "tensor":
            return None
        rows = quantize(
            latent.flatten(0, 1), bits=linear.bits, sparsity=linear.sparsity, scope=linear.scope,
            form=linear.form, lam=linear.lam, dim=1, block=linear.block,
        )  # fmt: skip
        return _Linear(rows.view_as(latent), linear.bias)

    layers = [many(layer, f"layers.{place}") for place, layer in enumerate(network.layers)]
    known = [layer for layer in layers if layer is not None]
    if len(known) < len(layers) or left:
        return None
    return Network(known, network.input_shape)
