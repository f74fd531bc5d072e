"""From a configuration to a network."""

import math
from collections.abc import Callable
from typing import Any, cast

from torch import nn

from tbnn.learning import EquilibriumNetwork
from tbnn.nn import (
    Adaptive,
    AdLIF,
    BinaryLinear,
    Dale,
    DeepR,
    Distance,
    FixedWiring,
    Leaky,
    LeakyIntegrator,
    Network,
    Neuron,
    Recurrent,
    Synaptic,
    TargetRate,
    Winners,
    zoo,
)
from tbnn.nn.wiring import Wiring
from tbnn.train.config import ModelConfig

FLOAT_LAM = 1e-6  # of full-precision weights in a binary layer, whose ridge would shrink them
NEURONS = {"leaky": Leaky, "synaptic": Synaptic, "adaptive": Adaptive, "adlif": AdLIF}


def build_network(model: ModelConfig, sensor: tuple[int, int, int], classes: int) -> Network:
    """The network of a configuration: (T, B, C·H·W) -> (T, B, classes), for a sensor of (C, H, W).

    Raises ``ValueError`` for settings the layers refuse, and for a sensor too small for a convolutional net.
    """
    if model.network == "equilibrium":
        return cast("Network", _equilibrium(model, math.prod(sensor), classes))  # of the same contract
    network = _network(model, sensor, classes)
    network.memory = model.memory
    return network


def _equilibrium(model: ModelConfig, width: int, classes: int) -> EquilibriumNetwork:
    weights: dict[str, Any] = {"bits": None, "form": "linear", "lam": FLOAT_LAM}
    if model.weights == "binary":
        weights = {k: v for k, v in _weights(model).items() if k not in ("scope", "sparsity")}
        weights["sparsity"] = model.sparsity
    return EquilibriumNetwork(
        (width, *model.hidden, classes), neurons=model.units, readout="linear", gain=0.5, **weights
    )


def _network(model: ModelConfig, sensor: tuple[int, int, int], classes: int) -> Network:
    channels, height, width = sensor
    if model.network == "dense":
        return _dense(model, channels * height * width, classes)
    options: dict[str, Any] = {"weights": _weights(model), "neuron": lambda: _neuron(model)}
    if model.recurrent and model.network != "nmnist_conv":
        raise ValueError(f"model.recurrent: expected false for the network {model.network!r}, got true")
    options["input_shape"] = sensor
    if model.network == "dvsgesture_conv":
        return zoo.dvsgesture_conv(model.hidden[0], classes, dropout=model.dropout, **options)
    options["beta_readout"] = model.beta_readout
    if model.network == "vgg11":
        return zoo.vgg11(classes, dropout=model.dropout, **options)
    if model.network == "spiking_resnet":
        return zoo.spiking_resnet(model.hidden, classes, **options)
    return zoo.nmnist_conv(
        model.hidden, classes, stride=model.stride, recurrent=model.recurrent, dropout=model.dropout, **options
    )


def _dense(model: ModelConfig, width: int, classes: int) -> Network:
    """Hidden layers of neurons, each feeding back on itself if so configured."""
    layers: list[nn.Module] = []
    for hidden in model.hidden:
        layers.append(_linear(model, width, hidden))
        neuron = _neuron(model)
        layers.append(Recurrent(neuron, _linear(model, hidden, hidden)) if model.recurrent else neuron)
        if model.dropout:
            layers.append(nn.Dropout(model.dropout))
        width = hidden
    return Network([*layers, _linear(model, width, classes, readout=True), LeakyIntegrator(model.beta_readout)])


def _linear(model: ModelConfig, width: int, out: int, *, readout: bool = False) -> nn.Module:
    weights = _weights(model)
    if weights == "float":
        return nn.Linear(width, out)
    return BinaryLinear(width, out, **weights, wiring=_wiring(model, readout) or None)


def _wiring(model: ModelConfig, readout: bool) -> tuple[Wiring, ...]:
    """Which synapses a layer has, and what signs they keep: a readout has all of them."""
    places: dict[str, Callable[[], Wiring]] = {
        "fixed": lambda: FixedWiring(model.wiring_share),
        "distance": lambda: Distance(model.wiring_length),
        "deep_r": lambda: DeepR(model.wiring_share),
    }
    signs = () if model.inhibitory is None else (Dale(model.inhibitory),)
    return signs if readout or model.wiring == "all" else (*signs, places[model.wiring]())


def _weights(model: ModelConfig) -> Any:
    """The options of binary layers, or "float"."""
    if model.weights == "float":
        return "float"
    sparsity = model.sparsity if model.n_of_m is None else tuple(model.n_of_m)
    names = ("scope", "estimator", "form", "lam", "block")
    return {"bits": model.bits or None, "sparsity": sparsity, **{name: getattr(model, name) for name in names}}


def _neuron(model: ModelConfig) -> Neuron:
    own = {"synaptic": {"alpha": model.alpha}, "adaptive": {"rho": model.rho}, "adlif": {"rho": model.rho}}
    activity = {"free": lambda _: None, "winners": Winners, "rate": TargetRate}[model.activity](model.activity_rate)
    return NEURONS[model.neuron](
        beta=model.beta,
        threshold=model.threshold,
        **own.get(model.neuron, {}),
        learn_beta=model.learn_beta,
        learn_threshold=model.learn_threshold,
        gradient=model.gradient,
        surrogate=model.spike_surrogate(),
        target=model.target,
        emit=model.emit,
        stats=model.stats,
        per_channel=model.per_channel,
        differentiate_stats=model.differentiate_stats,
        reset_mechanism=model.reset_mechanism,
        lam=model.lam if model.spike_lam is None else model.spike_lam,
        scale=model.scale,
        floor=model.floor,
        refractory=model.refractory,
        activity=activity,
    )
