"""Networks of tbnn as networks of snntorch; the way here is :mod:`tbnn.nn.snntorch`."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tbnn.nn.conv import BinaryConv1d, BinaryConv2d
from tbnn.nn.leaky import Leaky, LeakyIntegrator
from tbnn.nn.linear import BinaryLinear
from tbnn.nn.network import Network
from tbnn.nn.norm import TemporalBatchNorm
from tbnn.nn.pool import AvgPool2d, Flatten, MaxPool2d
from tbnn.nn.recorded import Recorded
from tbnn.nn.recurrent import Recurrent
from tbnn.nn.synaptic import Synaptic
from tbnn.nn.weights import BinaryWeight
from tbnn.surrogate import RidgeSpike, Surrogate, ddt

BINARY = {BinaryLinear: nn.Linear, BinaryConv1d: nn.Conv1d, BinaryConv2d: nn.Conv2d}
POOLS = {MaxPool2d: nn.MaxPool2d, AvgPool2d: nn.AvgPool2d}
KEPT = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.BatchNorm1d,
    nn.BatchNorm2d, nn.LayerNorm, nn.Dropout, nn.Identity, nn.ReLU, *BINARY, *POOLS,
)  # fmt: skip
"""Layers without state that mean the same for a step (B, features...) in snntorch and a sequence in a Network."""


class OneToOne(Recorded, nn.Module):
    """``y = weight·x``, one weight a feature or one for all: the feedback of snntorch's ``all_to_all=False``.

    Args:
        weight: a float, or a tensor that broadcasts to the features.
        learn: train it.

    >>> OneToOne(-0.5)(torch.ones(2, 3)).tolist()[0]
    [-0.5, -0.5, -0.5]
    """

    weight: Tensor

    def __init__(self, weight: float | Tensor = 1.0, learn: bool = True) -> None:
        super().__init__()
        value = torch.as_tensor(weight, dtype=torch.get_default_dtype()).clone()
        if learn:
            self.weight = nn.Parameter(value)
        else:
            self.register_buffer("weight", value)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


class SnntorchNetwork(nn.Module):
    """Layers of torch and snntorch in order, run by a loop over time: ``network(x, state=None) -> (y, state)``.

    x (T, B, features...) -> y (T, B, features...): the last layer's spikes, or membranes. State is None (rest), or a
    tuple with what each neuron carries; nothing stays in the neurons, which snntorch's ``utils.reset`` need not touch.

    Args:
        layers: modules, in order; neurons with ``init_hidden=False``.
        membranes: the places of the neurons that are read by their membrane.
        input_shape: the features of one step, if the input may be flat.

    Raises:
        ValueError: an input without time and batch; a state of another length.
    """

    def __init__(
        self,
        layers: Iterable[nn.Module],
        membranes: Iterable[int] = (),
        input_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.membranes = frozenset(membranes)
        self.input_shape = input_shape

    def forward(self, x: Tensor, state: tuple[Any, ...] | None = None) -> tuple[Tensor, tuple[Any, ...]]:
        if x.ndim < 3 or x.shape[0] < 1:
            raise ValueError(f"SnntorchNetwork: expected (T, B, features...), got {tuple(x.shape)}")
        out = []
        for x_t in x.unbind(0):
            y_t, state = self.step(x_t, state)
            out.append(y_t)
        return torch.stack(out), state or ()

    def step(self, x: Tensor, state: tuple[Any, ...] | None = None) -> tuple[Tensor, tuple[Any, ...]]:
        """One step: x (B, features...) -> (y (B, features...), state)."""
        before = (None,) * len(self.layers) if state is None else state
        if len(before) != len(self.layers):
            raise ValueError(f"state: expected one entry for each of {len(self.layers)} layers, got {len(before)}")
        x = x if self.input_shape is None else x.reshape(x.shape[0], *self.input_shape)
        after = []
        for index, (layer, carried) in enumerate(zip(self.layers, before, strict=True)):
            names = [name for name in ("spk", "syn", "mem") if name in layer._buffers]
            if not names:
                x = layer(x)
                after.append(None)
                continue
            out = layer(x, *(carried or [torch.zeros_like(x)] * len(names)))
            after.append(tuple(out[-len(names) :]))
            x = out[-1] if index in self.membranes else out[0]
            for name in names:  # snntorch keeps its states, and their graph, in the neuron
                setattr(layer, name, x.new_zeros(0))
        return x, tuple(after)

    def extra_repr(self) -> str:
        return f"membranes={sorted(self.membranes)}, input_shape={self.input_shape}"


def to_snntorch(network: Network) -> SnntorchNetwork:
    """The network of snntorch's neurons and torch's layers that does what a network of tbnn does, weights copied.

    ``exported(x, state=None) -> (y, state)``, x (T, B, features...): a loop over time with explicit states, see
    :class:`SnntorchNetwork`; ``exported.layers`` are the plain layers. Quantised weights are written out as those of
    ``nn.Linear`` and ``nn.Conv2d`` (what trains them, latent weights and estimator, stays behind); a
    :class:`LeakyIntegrator` becomes a ``Leaky`` without reset, read by its membrane. Forward is equal up to the order of
    sums in floating point; batch norms in evaluation. Gradients of spikes: of a neuron with gradient="surrogate" its
    own; with "ddt" that of :func:`tbnn.surrogate.ddt`, the ridge of the soft spike over each step, which is its own for
    target="soft" and stats="step" and stands in for others, whose blocks and traces a function of one step cannot see.
    A ``MaxPool2d`` becomes torch's, which gives the gradient to one of equal maxima.

    Raises:
        ValueError: what snntorch does not have, by layer: adaptive and custom neurons, delays, residual blocks, voting,
            spike dropout, winners, target rates, refractory periods, emit="denoised", a scaled surrogate; reset "zero"
            but in ``Leaky``, where snntorch drops the next current too.

    >>> exported = to_snntorch(Network([BinaryLinear(8, 16), Leaky(0.9), BinaryLinear(16, 4), LeakyIntegrator(0.9)]))
    >>> y, state = exported(torch.ones(10, 3, 8))
    """
    if not isinstance(network, Network):
        raise ValueError(f"to_snntorch: expected a tbnn.nn.Network, got {type(network).__name__}")
    layers, membranes = [], []
    flat = len(network.input_shape or ()) < 3  # whether features are (C,) or (C, L), which decides the kind of norm
    for index, layer in enumerate(network.layers):
        if isinstance(layer, (nn.Linear, BinaryLinear, nn.Conv1d, BinaryConv1d, Flatten, nn.Flatten)):
            flat = True
        elif isinstance(layer, (nn.Conv2d, BinaryConv2d)):
            flat = False
        if type(layer) is LeakyIntegrator:
            membranes.append(index)
        try:
            converted = _norm(layer, flat) if type(layer) is TemporalBatchNorm else _converted(layer)
        except ValueError as error:
            raise ValueError(f"layers.{index} ({type(layer).__name__}): {error}") from error
        layers.append(converted.train(layer.training))
    exported = SnntorchNetwork(layers, membranes, network.input_shape)
    exported.training = network.training
    return exported


def _converted(layer: nn.Module) -> nn.Module:
    kind = type(layer)
    if isinstance(layer, (Leaky, Synaptic)) and kind in (Leaky, Synaptic):
        return _neuron(layer, None)
    if isinstance(layer, LeakyIntegrator) and kind is LeakyIntegrator:
        options = {"learn_beta": isinstance(layer.beta, nn.Parameter), "reset_mechanism": "none"}
        beta = layer.beta.detach()
        return _made("Leaky", beta=beta, threshold=torch.full_like(beta, torch.inf), **options)
    if isinstance(layer, Recurrent) and kind is Recurrent:
        if layer.delay != 1:
            raise ValueError(f"delay: expected 1, got {layer.delay}")
        if not isinstance(layer.neuron, (Leaky, Synaptic)) or type(layer.neuron) not in (Leaky, Synaptic):
            raise ValueError(f"neuron: expected Leaky or Synaptic, got {type(layer.neuron).__name__}")
        return _neuron(layer.neuron, layer.recurrent_layer)
    if isinstance(layer, BinaryWeight) and kind in BINARY:
        return _written_out(layer)
    if kind in POOLS:
        return POOLS[kind](*(getattr(layer, name) for name in ("kernel_size", "stride", "padding")))
    if kind is Flatten:
        return nn.Flatten()
    if isinstance(layer, nn.Flatten) and kind is nn.Flatten:
        start, end = (axis if axis < 0 else axis - 1 for axis in (layer.start_dim, layer.end_dim))
        if layer.start_dim in (0, 1) or layer.end_dim in (0, 1):
            raise ValueError(f"start_dim: expected an axis after time and batch, got {layer.start_dim}")
        return nn.Flatten(start, end)
    if kind in KEPT:
        return copy.deepcopy(layer)
    raise ValueError("snntorch has no counterpart")


@torch.no_grad()
def _written_out(layer: Any) -> nn.Module:
    """Torch's layer with the quantised weights as its own."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    names = ("in_features", "out_features") if type(layer) is BinaryLinear else names
    plain: Any = BINARY[type(layer)](**{name: getattr(layer, name) for name in names}, bias=layer.bias is not None)
    plain = plain.to(layer.weight)
    plain.weight.copy_(layer.quantized_weight())
    if layer.bias is not None:
        plain.bias.copy_(layer.bias)
    return plain


def _norm(layer: Any, flat: bool) -> nn.Module:
    """A batch norm over time as torch's, of steps."""
    norm = (nn.BatchNorm1d if flat else nn.BatchNorm2d)(layer.features, layer.eps, layer.momentum).to(layer.weight)
    norm.load_state_dict({**layer.state_dict(), "num_batches_tracked": torch.tensor(0)})
    for own, theirs in ((norm.weight, layer.weight), (norm.bias, layer.bias)):
        own.requires_grad_(theirs.requires_grad)
    return norm


def _neuron(neuron: Leaky | Synaptic, feedback: nn.Module | None) -> nn.Module:
    """A spiking neuron, with what its spikes return through."""
    beta, second = neuron.coefficients()
    as_used = neuron.spike_gradient.uses_trace  # then decays stop short of 1; else both libraries clamp to [0, 1]
    options: dict[str, Any] = {
        "beta": (beta if as_used else neuron.beta).detach(),
        "threshold": neuron.threshold.detach(),
        "learn_beta": isinstance(neuron.beta, nn.Parameter),
        "learn_threshold": isinstance(neuron.threshold, nn.Parameter),
        "reset_mechanism": neuron.reset_mechanism,
        "spike_grad": _spike_grad(neuron),
    }
    if isinstance(neuron, Synaptic) and second is not None:
        alpha = torch.as_tensor(second.rho) if as_used else neuron.alpha
        options |= {"alpha": alpha.detach()}
        options |= {"learn_alpha": isinstance(neuron.alpha, nn.Parameter)}
    if neuron.reset_mechanism == "zero" and (second is not None or feedback is not None):
        raise ValueError("reset_mechanism='zero': snntorch then drops the current of the step after a spike as well")
    kind = "Leaky" if second is None else "Synaptic"
    if feedback is None:
        made = _made(kind, **options)
    elif isinstance(feedback, OneToOne):
        learn = isinstance(feedback.weight, nn.Parameter)
        weight = feedback.weight.detach().clone()
        made = _made(f"R{kind}", **options, all_to_all=False, V=weight, learn_recurrent=learn)
    elif isinstance(feedback, (nn.Linear, BinaryLinear)):
        made = _made(f"R{kind}", **options, linear_features=feedback.in_features)
        made.recurrent = _converted(feedback)
    elif isinstance(feedback, (nn.Conv2d, BinaryConv2d)):
        size = {"conv2d_channels": feedback.in_channels, "kernel_size": feedback.kernel_size}
        made = _made(f"R{kind}", **options, **size)
        made.recurrent = _converted(feedback)
    else:
        name = type(feedback).__name__
        raise ValueError(f"recurrent_layer: expected a linear layer, a Conv2d or OneToOne, got {name}")
    for name in ("alpha", "beta", "threshold"):
        if isinstance(getattr(made, name, None), nn.Parameter):
            getattr(made, name).requires_grad_(getattr(neuron, name).requires_grad)
    return made


def _spike_grad(neuron: Leaky | Synaptic) -> Surrogate | RidgeSpike:
    """The spike function; ``ValueError`` for what a neuron does besides."""
    g = neuron.spike_gradient
    if neuron.winners is not None or neuron.homeostasis is not None:
        rule = "Winners" if neuron.winners is not None else "TargetRate"
        raise ValueError(f"activity: expected None, got a {rule}")
    if neuron.refractory:
        raise ValueError(f"refractory: expected 0, got {neuron.refractory}")
    if g.emit != "bits":
        raise ValueError(f"emit: expected 'bits', got {g.emit!r}")
    if g.gradient == "ddt":
        lam = (
            neuron.__dict__["made_with"].get("lam", g.lam) if g.uses_trace else g.lam
        )  # of the spikes, not of their traces
        return ddt(g.surrogate, lam, scale=g.scale)
    if g.scale != 1:
        raise ValueError(f"scale: expected 1 for gradient='surrogate', got {g.scale}")
    return g.surrogate


def _made(kind: str, **options: Any) -> Any:
    """A neuron of snntorch."""
    import snntorch
    from snntorch._neurons.neurons import SpikingNeuron

    neuron = getattr(snntorch, kind)(**{k: v.clone() if isinstance(v, Tensor) else v for k, v in options.items()})
    SpikingNeuron.instances[:] = [
        one for one in SpikingNeuron.instances if one is not neuron
    ]  # it would never be freed
    return neuron
