"""A network as a configuration: plain values that JSON can hold."""

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tbnn import surrogate
from tbnn.nn.activity import TargetRate, Winners
from tbnn.nn.network import Network
from tbnn.nn.recorded import LAYERS, arguments_of, known_arguments
from tbnn.nn.wiring import Dale, DeepR, Distance, FixedWiring, GivenWiring
from tbnn.ops.quantize.estimators import Ddt, Ewgs, Pege, Qgait, Reste, Ste

Config = dict[str, Any]

TORCH = {
    f"torch.nn.{kind.__name__}": kind
    for kind in (
        nn.Linear, nn.Conv1d, nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm,
        nn.Dropout, nn.Identity, nn.Flatten, nn.ReLU,
    )
}  # fmt: skip
"""Torch's layers that a configuration may name; their arguments are their attributes."""

VALUES: dict[str, Callable[..., Any]] = {
    kind.__name__: kind
    for kind in (
        *surrogate.SHAPES, Winners, TargetRate, Ddt, Ste, Ewgs, Reste, Qgait, Pege, Dale, Distance, FixedWiring, DeepR,
        GivenWiring,
    )
}  # fmt: skip
"""Dataclasses that stand as arguments of layers."""


def network_to_config(network: Network) -> Config:
    """The layers of a network and the arguments they were made with, without their weights, as plain values.

    Each layer is ``{"layer": name, argument: value, ...}`` with every argument, so that later defaults change nothing.
    :func:`network_from_config` makes the same architecture again; ``state_dict`` carries what it learned.

    Raises:
        ValueError: a layer, or an argument of one, that a configuration cannot hold; it names it.

    >>> network_to_config(Network([BinaryLinear(8, 2, bias=False)]))["layers"][0]["out_features"]
    2
    """
    if not isinstance(network, Network):
        raise ValueError(f"network_to_config: expected a tbnn.nn.Network, got {type(network).__name__}")
    return _encode(network, "network")


def network_from_config(config: Config) -> Network:
    """The network of a configuration; see :func:`network_to_config`. "layer": "Network" may be left out.

    Raises:
        ValueError: an unknown layer or argument, by name, with those that are known; a missing argument; values that
            the layer refuses, after the layer's place.

    >>> network_from_config({"layers": [{"layer": "BinaryLinear", "in_features": 8, "out_features": 2}]})
    """
    if not isinstance(config, dict):
        raise ValueError(f"network_from_config: expected a dict, got {type(config).__name__}")
    network = _decode({"layer": "Network", **config}, "network")
    if not isinstance(network, Network):
        raise ValueError(f"network_from_config: expected the layer 'Network', got {config['layer']!r}")
    return network


def _encode(value: Any, place: str) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, (list, tuple, nn.ModuleList)):
        return [_encode(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, nn.Module):
        name, arguments = _described(value, place)
        return {"layer": name, **{key: _encode(item, f"{place}.{key}") for key, item in arguments.items()}}
    if is_dataclass(value) and VALUES.get(type(value).__name__) is type(value):
        name = type(value).__name__
        return {"value": name, **{f.name: _encode(getattr(value, f.name), place) for f in fields(value)}}
    raise ValueError(f"{place}: expected a value that a configuration can hold, got {value!r}")


def _described(module: nn.Module, place: str) -> tuple[str, dict[str, Any]]:
    """A layer's name and arguments."""
    name = f"torch.nn.{type(module).__name__}"
    if TORCH.get(name) is not type(module):
        try:
            return type(module).__name__, arguments_of(module)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    arguments: dict[str, Any] = {}
    for parameter in _torch_arguments(type(module)):
        value = getattr(module, parameter)
        arguments[parameter] = value is not None if parameter == "bias" else value
    return name, arguments


def _torch_arguments(cls: type) -> list[str]:
    skipped = {"device", "dtype", "args", "kwargs"}
    return [name for name in inspect.signature(cls).parameters if name not in skipped]


def _decode(value: Any, place: str) -> Any:
    if isinstance(value, list):
        items = [_decode(item, f"{place}[{index}]") for index, item in enumerate(value)]
        return items if any(isinstance(item, nn.Module) for item in items) else tuple(items)
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return torch.tensor(value["tensor"], dtype=getattr(torch, value.get("dtype", "float32")))
    kind = "layer" if "layer" in value else "value"
    known: dict[str, Any] = LAYERS | TORCH if kind == "layer" else VALUES
    name = value.get(kind)
    if name not in known:
        raise ValueError(f"{place}: expected a {kind} of {', '.join(sorted(known))}, got {name!r}")
    cls = known[name]
    accepted = _torch_arguments(cls) if name in TORCH else known_arguments(cls)
    arguments = {}
    for key, item in value.items():
        if key != kind:
            if key not in accepted:
                raise ValueError(
                    f"{place}: {name} has no argument {key!r}, expected some of {', '.join(accepted) or 'none'}"
                )
            arguments[key] = _decode(item, f"{place}.{key}")
    try:
        return cls(**arguments)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{place}: {name}: {error}") from error
