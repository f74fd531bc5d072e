"""Whether everything that meets in a call is on one device."""

from typing import Any

import torch
from torch import Tensor, nn


def check_devices(module: nn.Module, x: Tensor, state: Any = None, mask: Tensor | None = None) -> None:
    """Raise ``ValueError`` unless the input, the state and the mask are on the device of the module's parameters.

    A module without parameters has that of its buffers, or the input's. The first parameter speaks for all.

    >>> check_devices(nn.Linear(2, 3), torch.ones(5, 1, 2, device="meta"))
    Traceback (most recent call last):
    ValueError: Linear: expected x on cpu, where its parameters are, got x on meta
    """
    own = _first_tensor(module)
    device = x.device if own is None else own.device
    if x.device == device and _is_on(device, mask) and _is_on(device, state):
        return
    where = "where x is" if own is None else "where its parameters are"
    for name, other in _named_devices((("x", x), ("state", state), ("mask", mask))):
        if other != device:
            raise ValueError(f"{type(module).__name__}: expected {name} on {device}, {where}, got {name} on {other}")


def _first_tensor(module: nn.Module) -> Tensor | None:
    """The module's first parameter, else its first buffer, in a fifth of the time that ``module.parameters()`` takes."""
    parameter = _first(module, "_parameters")
    return _first(module, "_buffers") if parameter is None else parameter


def _first(module: nn.Module, kind: str) -> Tensor | None:
    for tensor in module.__dict__[kind].values():
        if tensor is not None:
            return tensor
    for child in module._modules.values():
        found = None if child is None else _first(child, kind)
        if found is not None:
            return found
    return None


def _is_on(device: torch.device, value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.device == device
    return not isinstance(value, tuple) or all(_is_on(device, part) for part in value)


def _named_devices(arguments: Any) -> list[tuple[str, torch.device]]:
    """The device of each tensor among the arguments, tuples entered: ("state[1].v", device)."""
    found: list[tuple[str, torch.device]] = []
    for name, value in arguments:
        if isinstance(value, Tensor):
            found.append((name, value.device))
        elif isinstance(value, tuple):
            fields = getattr(value, "_fields", None)
            names = [f"[{i}]" for i in range(len(value))] if fields is None else [f".{field}" for field in fields]
            found += _named_devices((name + part, inner) for part, inner in zip(names, value, strict=True))
    return found
