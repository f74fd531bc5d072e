"""The same network in snntorch: its neurons, its surrogates, its loop over time, trained from the same latent weights."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tbnn.bits import unpack_bits
from tbnn.nn import BinaryConv2d, BinaryLinear, Network, Neuron, to_snntorch
from tbnn.ops.quantize import quantize

SURROGATES = {  # ours: snntorch's, and what it calls the parameter
    "atan": ("atan", "alpha"),
    "fast_sigmoid": ("fast_sigmoid", "slope"),
    "sigmoid": ("sigmoid", "slope"),
    "straight_through_estimator": ("straight_through_estimator", ""),
    "heaviside": ("heaviside", ""),
    "signed": ("triangular", "threshold"),
    "spike_rate_escape": ("spike_rate_escape", "beta"),
    "sparse_fast_sigmoid": ("SFS", "slope"),
    "sso": ("SSO", "variance"),
}


def spike_grad(name: str, width: float | None, scale: float) -> Callable[[Tensor], Tensor]:
    """A surrogate of snntorch's own by our name; ``scale`` multiplies its gradient.

    Raises ``ValueError`` if snntorch has no such surrogate.
    """
    from snntorch import surrogate

    if name not in SURROGATES:
        raise ValueError(f"surrogate: snntorch has no {name!r}, expected one of {', '.join(SURROGATES)}")
    theirs, parameter = SURROGATES[name]
    function = getattr(surrogate, theirs)(**({} if width is None else {parameter: width}))
    if scale == 1:
        return function

    def scaled(u: Tensor) -> Tensor:
        spike = function(u)
        return spike.detach() + scale * (spike - spike.detach())

    return scaled


class _Quantised(nn.Module):
    """Latent weights to Ŵ, as a binary layer of tbnn does it."""

    def __init__(self, layer: BinaryLinear | BinaryConv2d) -> None:
        super().__init__()
        if layer.wiring is not None:
            raise ValueError(f"wiring: expected None of a layer to run in snntorch, got {layer.wiring}")
        names = ("bits", "sparsity", "scope", "form", "lam", "block", "estimator")
        self.options: dict[str, Any] = {name: getattr(layer, name) for name in names}

    def forward(self, latent: Tensor) -> Tensor:
        return quantize(latent.flatten(1), dim=1, **self.options).view_as(latent)


class InSnntorch(nn.Module):
    """A network of tbnn in snntorch: ``model(x) -> (readout, state)``, x (T, B, features) float or packed words.

    Neurons are snntorch's, stepped in a loop; latent weights, a copy, are quantised once a call by :func:`tbnn.quantize`.

    Args:
        network: of layers that snntorch has, see :func:`tbnn.nn.to_snntorch`.
        features: of a step of the input.
        spike: the spike function of every neuron, :func:`spike_grad`.

    Raises:
        ValueError: a layer, or an option of a neuron, that snntorch does not have.
    """

    def __init__(self, network: Network, features: int, spike: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        plain = copy.deepcopy(network)
        for neuron in (m for m in plain.modules() if isinstance(m, Neuron)):
            neuron.spike_gradient = replace(neuron.spike_gradient, gradient="surrogate", scale=1.0)
        self.features, self.shape = features, network.input_shape
        self.network: Any = to_snntorch(plain)
        for layer in self.network.layers:
            if hasattr(layer, "spike_grad"):
                layer.spike_grad = spike
        ours = [m for m in network.modules() if isinstance(m, (BinaryLinear, BinaryConv2d))]
        theirs = [m for m in self.network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        for layer, converted in zip(ours, theirs, strict=True) if ours else ():
            parametrize.register_parametrization(converted, "weight", _Quantised(layer), unsafe=True)
            own: Any = converted.parametrizations
            with torch.no_grad():
                own.weight.original.copy_(layer.weight)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        frames = unpack_bits(x, self.features) if x.dtype == torch.int32 else x
        with parametrize.cached():
            return self.network(frames if self.shape is None else frames.unflatten(2, self.shape), state)
