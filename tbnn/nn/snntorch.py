"""Networks of snntorch as networks of tbnn, their weights included; the way back is :mod:`tbnn.nn.snntorch_export`."""

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tbnn.nn.conv import BinaryConv1d, BinaryConv2d
from tbnn.nn.leaky import Leaky, LeakyIntegrator
from tbnn.nn.linear import BinaryLinear
from tbnn.nn.network import Network
from tbnn.nn.neuron import Neuron, SpikeOptions
from tbnn.nn.pool import Flatten
from tbnn.nn.recurrent import Recurrent
from tbnn.nn.snntorch_export import KEPT, OneToOne, SnntorchNetwork
from tbnn.nn.synaptic import Synaptic
from tbnn.surrogate import (
    RidgeSpike,
    Surrogate,
    atan,
    fast_sigmoid,
    heaviside,
    leaky_spike,
    sigmoid,
    signed,
    sparse_fast_sigmoid,
    spike_rate_escape,
    straight_through_estimator,
)

SURROGATES: dict[str, tuple[Callable[..., Surrogate], tuple[str, ...]]] = {
    "atan": (atan, ("alpha",)),
    "fast_sigmoid": (fast_sigmoid, ("slope",)),
    "sigmoid": (sigmoid, ("slope",)),
    "straight_through_estimator": (straight_through_estimator, ()),
    "heaviside": (heaviside, ()),
    "triangular": (signed, ("threshold",)),
    "spike_rate_escape": (spike_rate_escape, ("beta", "slope")),
    "SFS": (sparse_fast_sigmoid, ("slope", "B")),
    "LSO": (leaky_spike, ("slope",)),
}
"""snntorch's surrogates by its names: the counterpart, and what snntorch calls the counterpart's arguments, in order."""
RESETS = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}
"""What a neuron of snntorch does is the function it chose when it was made, whatever its attribute says later."""
DDT_OPTIONS = ("target", "emit", "stats", "lam", "floor", "per_channel", "differentiate_stats")


def from_snntorch(
    net: nn.Module | Iterable[nn.Module],
    *,
    weights: str = "float",
    binary: dict[str, Any] | None = None,
    neuron: SpikeOptions | None = None,
    readout: str = "spikes",
    input_shape: Iterable[int] | None = None,
) -> Network:
    """The network of tbnn that does what a network of snntorch does: same spikes, same gradients, weights copied.

    ``Leaky``, ``Synaptic``, ``RLeaky`` and ``RSynaptic`` become :class:`Leaky`, :class:`Synaptic` and
    :class:`Recurrent` around them; torch's linear layers, convolutions, pools, norms and dropout are copied. Neurons
    that keep their state (``init_hidden=True``) lose it: a network starts at rest and returns its state. A last neuron
    with ``output=True`` leaves its spikes alone. Equal means up to the order of sums in floating point. Batch norms are
    equal in evaluation; in training they see time and batch at once, where snntorch's loop shows them single steps.

    Args:
        net: an ``nn.Sequential``; a module whose children stand in the order in which they run (what its ``forward``
            does besides, pooling or flattening by functions say, is not seen: pass a list then); the layers in order.
        weights: "float", or "binary": :class:`BinaryLinear`, :class:`BinaryConv1d` and :class:`BinaryConv2d`, whose
            latent weights are the network's. One-to-one feedback stays as it is.
        binary: with "binary", options of these layers: ``dict(estimator="ddt", form="affine", ...)``.
        neuron: options of every spiking neuron (:class:`tbnn.nn.neuron.Neuron`), instead of the surrogate gradient it
            has: ``dict(gradient="ddt", target="trace")``, say.
        readout: "spikes", or "membrane": the last neuron, a ``Leaky`` with ``reset_mechanism="none"``, becomes a
            :class:`LeakyIntegrator`.
        input_shape: as in :class:`Network`; one step of zeros is then passed through, to see that the shapes fit.

    Raises:
        ValueError: what would not be equal, by layer and attribute: ``reset_delay=False``, ``inhibition``,
            ``state_quant``, ``graded_spikes_factor``, reset "zero" but in ``Leaky``, ``output=True`` before the end; a
            surrogate without counterpart; layers that are not known or stand twice; arguments out of range.

    >>> net = nn.Sequential(nn.Linear(784, 100), snn.Leaky(0.9), nn.Linear(100, 10), snn.Leaky(0.9))
    >>> spikes, state = from_snntorch(net, weights="binary", neuron=dict(gradient="ddt"))(torch.ones(25, 8, 784))
    """
    reader = _Reader(weights, binary, neuron)
    if readout not in ("spikes", "membrane"):
        raise ValueError(f"readout: expected 'spikes' or 'membrane', got {readout!r}")
    named = _layers_of(net)
    membranes = {len(named) - 1} if readout == "membrane" else set()
    if isinstance(net, SnntorchNetwork):
        read = {id(net.layers[index]) for index in net.membranes}
        membranes |= {index for index, (_, module) in enumerate(named) if id(module) in read}
        input_shape = net.input_shape if input_shape is None else input_shape
    layers = []
    for index, (name, module) in enumerate(named):
        place = f"{name} ({type(module).__name__})"
        if getattr(module, "output", False) and index + 1 < len(named):
            raise ValueError(f"{place}: output=True: snntorch then hands its states to the next layer too")
        try:
            layer = reader.integrator(module) if index in membranes else reader.layer(module)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{place}: {error}") from error
        layers.append(layer.train(module.training))
    network = Network(layers, input_shape)
    network.training = net.training if isinstance(net, nn.Module) else True
    if network.input_shape is not None:
        _check_shapes(network, [name for name, _ in named])
    return network


class _Reader:
    """How layers are read: one at a time, under the options of :func:`from_snntorch`."""

    def __init__(self, weights: str, binary: dict[str, Any] | None, neuron: SpikeOptions | None) -> None:
        import snntorch

        if weights not in ("float", "binary"):
            raise ValueError(f"weights: expected 'float' or 'binary', got {weights!r}")
        if binary is not None and weights != "binary":
            raise ValueError(f"binary: options of binary layers need weights='binary', got weights={weights!r}")
        self.weights, self.binary = weights, binary or {}
        self.neuron: dict[str, Any] = dict(neuron or {})
        unknown = self.neuron.keys() - SpikeOptions.__annotations__.keys()
        if unknown:
            known = ", ".join(SpikeOptions.__annotations__)
            raise ValueError(f"neuron: expected some of {known}, got {sorted(unknown)[0]!r}")
        self.spiking = (snntorch.Leaky, snntorch.Synaptic, snntorch.RLeaky, snntorch.RSynaptic)
        self.leaky = snntorch.Leaky

    def layer(self, module: nn.Module) -> nn.Module:
        """The layer of tbnn for one of snntorch's or torch's."""
        kind = type(module)
        if kind in self.spiking:
            neuron = self.spiking_neuron(module)
            feedback = getattr(module, "recurrent", None)
            return neuron if feedback is None else Recurrent(neuron, self.feedback(feedback))
        if isinstance(module, nn.Flatten) and kind is nn.Flatten:
            return _flatten(module)
        if self.weights == "binary" and kind in (nn.Linear, nn.Conv1d, nn.Conv2d):
            return self.binary_layer(module)
        if kind in KEPT:
            return copy.deepcopy(module)
        known = [*self.spiking, nn.Flatten, *KEPT]
        names = ", ".join(f"{one.__module__.partition('.')[0]}.{one.__name__}" for one in known)
        raise ValueError(
            f"no counterpart in tbnn; expected one of {names}. Weights that a subclass quantises are weights='binary' here"
        )

    def feedback(self, module: nn.Module) -> nn.Module:
        """The layer through which spikes return."""
        if type(module) in (nn.Linear, nn.Conv2d):
            return self.layer(module)
        weight = getattr(module, "V", None)
        if type(module).__name__ != "RecurrentOneToOne" or not isinstance(weight, Tensor):
            raise ValueError(f"recurrent: expected torch.nn.Linear, torch.nn.Conv2d or one-to-one, got {module}")
        layer = OneToOne(weight.detach(), learn=isinstance(weight, nn.Parameter)).to(weight)
        _take(layer, "weight", weight)
        return layer

    def binary_layer(self, module: Any) -> nn.Module:
        """A layer with one bit a weight, whose latent weights are the module's."""
        bias = module.bias is not None
        if isinstance(module, nn.Linear):
            layer = BinaryLinear(module.in_features, module.out_features, bias, **self.binary)
        else:
            kind = BinaryConv1d if isinstance(module, nn.Conv1d) else BinaryConv2d
            names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
            arguments = {name: getattr(module, name) for name in (*names, "padding_mode")}
            layer = kind(**arguments, bias=bias, **self.binary)
        layer = layer.to(module.weight)
        for name, value in module.named_parameters(recurse=False):
            _take(layer, name, value)
        return layer

    def integrator(self, module: Any) -> nn.Module:
        """A neuron that is read by its membrane and never resets."""
        if type(module) is not self.leaky:
            raise ValueError("readout='membrane': expected a snntorch.Leaky as the last layer")
        _check(module)
        if _reset_of(module) != "none":
            raise ValueError(
                f"readout='membrane': reset_mechanism: expected 'none', got {_reset_of(module)!r}: "
                "tbnn reads spikes, or the membrane of a neuron that never resets"
            )
        layer = LeakyIntegrator(_decay(module.beta), learn_beta=isinstance(module.beta, nn.Parameter))
        return _with_values(layer, module, ["beta"])

    def spiking_neuron(self, module: Any) -> Neuron:
        """The neuron without its feedback."""
        _check(module)
        options: dict[str, Any] = {"reset_mechanism": _reset_of(module), **self.gradient(module), **self.neuron}
        if _reset_of(module) == "zero" and type(module) is not self.leaky and "reset_mechanism" not in self.neuron:
            raise ValueError(
                "reset_mechanism='zero': snntorch then drops the current of the step after a spike as well, tbnn keeps "
                "it; pass neuron=dict(reset_mechanism='zero') for tbnn's"
            )
        names = ["beta", "threshold"]
        options = {"learn_threshold": isinstance(module.threshold, nn.Parameter), **options}
        decays: dict[str, Any] = {"learn_beta": isinstance(module.beta, nn.Parameter)}
        threshold = module.threshold.detach()
        alpha = getattr(module, "alpha", None)
        if alpha is not None:
            names.append("alpha")
            decays["learn_alpha"] = isinstance(alpha, nn.Parameter)
            neuron = Synaptic(_decay(alpha), _decay(module.beta), threshold, **decays, **options)
        else:
            neuron = Leaky(_decay(module.beta), threshold, **decays, **options)
        return _with_values(neuron, module, names)

    def gradient(self, module: Any) -> dict[str, Any]:
        """The options that give a neuron the gradient it had; with overrides, what they leave of it."""
        wanted = self.neuron.get("gradient")
        own: dict[str, Any] = {"gradient": "surrogate"}
        by_trace = wanted == "ddt" and self.neuron.get("target") == "trace"
        if "surrogate" not in self.neuron and not by_trace:
            own = _gradient_of(module)
        if wanted is not None and wanted != own["gradient"]:
            own = {name: value for name, value in own.items() if name == "surrogate"}
        idle = [name for name in DDT_OPTIONS if name in self.neuron]
        if idle and (wanted or own["gradient"]) == "surrogate":
            raise ValueError(f"neuron: {idle[0]!r} needs gradient='ddt', got gradient='surrogate'")
        return own


def _gradient_of(module: Any) -> dict[str, Any]:
    """The options of the gradient that ``spike_grad`` stands for."""
    function = module.spike_grad
    if isinstance(function, Surrogate):
        return {"gradient": "surrogate", "surrogate": function}
    if isinstance(function, RidgeSpike):
        ridge = {"lam": function.lam, "scale": function.scale, "surrogate": function.base}
        return {"gradient": "ddt", "target": "soft", "stats": "step", **ridge}
    if module.surrogate_disable:
        raise ValueError(
            "surrogate_disable=True: its spikes have no gradient; pass neuron=dict(surrogate=tbnn.surrogate.atan()), say"
        )
    maker = getattr(function, "__qualname__", "").removesuffix(".<locals>.inner")
    if getattr(function, "__module__", "") == "snntorch.surrogate" and maker in SURROGATES:
        make, names = SURROGATES[maker]
        numbers = inspect.getclosurevars(function).nonlocals
        if numbers.keys() == set(names):
            return {"gradient": "surrogate", "surrogate": make(*(float(numbers[name]) for name in names))}
    raise ValueError(
        f"spike_grad: expected snntorch's {', '.join(SURROGATES)} or a function of tbnn.surrogate, got {maker or function}; "
        "pass neuron=dict(surrogate=...) with the shape to train with"
    )


def _check(module: Any) -> None:
    """Raise ``ValueError`` for what a neuron of snntorch does and tbnn's do not."""
    if not module.reset_delay:
        raise ValueError("reset_delay=False: expected True, the reset one step after the spike")
    if module.inhibition:
        raise ValueError("inhibition=True: expected False; snntorch's losers reset without having spiked")
    if module.state_quant:
        raise ValueError("state_quant: expected False, real-valued membranes")
    factor = module.graded_spikes_factor
    if isinstance(factor, nn.Parameter) or bool((factor != 1).any()):
        raise ValueError(f"graded_spikes_factor: expected 1, not learned: spikes are bits, got {factor}")
    if module.reset_mechanism != _reset_of(module):
        raise ValueError(
            f"reset_mechanism={module.reset_mechanism!r}: set after the neuron was made, which goes on with "
            f"{_reset_of(module)!r}; make it with the one you mean"
        )


def _reset_of(module: Any) -> str:
    return RESETS[module.state_function.__name__]


def _decay(value: Tensor) -> Tensor:
    """A decay as snntorch uses it."""
    return value.detach().clamp(0, 1)


def _with_values(layer: Any, module: Any, names: list[str]) -> Any:
    """The layer in the dtype and on the device of the module, with its values; a learned decay may stand outside [0, 1]."""
    layer = layer.to(module.beta if module.beta.is_floating_point() else module.beta.device)
    for name in names:
        value = getattr(module, name)
        learned = isinstance(value, nn.Parameter)
        _take(layer, name, value if learned or name == "threshold" else _decay(value))
    return layer


@torch.no_grad()
def _take(layer: nn.Module, name: str, value: Tensor) -> None:
    """Copy a value into a layer's parameter or buffer, frozen if it was."""
    own = getattr(layer, name)
    own.copy_(value)
    if isinstance(own, nn.Parameter):
        own.requires_grad_(value.requires_grad or not isinstance(value, nn.Parameter))


def _flatten(module: nn.Flatten) -> nn.Module:
    """A flattening of steps (B, features...), for sequences."""
    start, end = (axis if axis < 0 else axis + 1 for axis in (module.start_dim, module.end_dim))
    if module.start_dim == 0 or module.end_dim == 0:
        raise ValueError(f"start_dim: expected an axis after the batch, got {module.start_dim}")
    return Flatten() if (start, end) == (2, -1) else nn.Flatten(start, end)


def _layers_of(net: nn.Module | Iterable[nn.Module]) -> list[tuple[str, nn.Module]]:
    """The layers in order, each with its name."""
    if isinstance(net, nn.Module):
        children = [(name, child) for name, child in net._modules.items() if child is not None]
        alone = not children or hasattr(net, "spike_grad")
        named = [(type(net).__name__.lower(), net)] if alone else children
    else:
        named = [(f"layers.{index}", module) for index, module in enumerate(net)]
    layers = [layer for name, module in named for layer in _flat(name, module)]
    if not layers:
        raise ValueError("from_snntorch: expected at least one layer, got none")
    seen = set()
    for name, module in layers:
        learns = next(module.parameters(), None) is not None or isinstance(module, nn.modules.batchnorm._BatchNorm)
        if id(module) in seen and (learns or getattr(module, "init_hidden", False)):
            raise ValueError(
                f"{name} ({type(module).__name__}): stands twice in the network; its copies would not share what it holds"
            )
        seen.add(id(module))
    return layers


def _flat(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A layer, or those of a container."""
    if not isinstance(module, nn.Module):
        raise ValueError(f"{name}: expected a torch.nn.Module, got {module!r}")
    if type(module) not in (nn.Sequential, nn.ModuleList):
        yield name, module
        return
    for inner, child in module._modules.items():
        if child is not None:
            yield from _flat(f"{name}.{inner}", child)


@torch.no_grad()
def _check_shapes(network: Network, names: list[str]) -> None:
    """Pass one step of zeros through; ``ValueError`` with the first layer that does not take its input."""
    trial = copy.deepcopy(network).eval()
    value = next((p for p in trial.parameters()), torch.zeros(()))
    x = value.new_zeros(1, 1, *(network.input_shape or ()))
    for name, layer in zip(names, trial.layers, strict=True):
        try:
            y, _ = Network([layer])(x)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{name} ({type(layer).__name__}): does not take steps of {tuple(x.shape[2:])} ({error}); a forward that "
                "pools or flattens by functions is not seen: pass the layers in order, with nn.MaxPool2d, nn.Flatten"
            ) from error
        x = y
