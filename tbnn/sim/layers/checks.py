"""What every packed layer is checked for when it is made."""

import torch
from torch import Tensor

Shapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Dtype and shape of each tensor, by its name inside the layer."""


def present(**tensors: Tensor | None) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


LARGEST = 2**31 - 1
"""No size of a layer is larger: sizes and counts are int32."""

LONGEST = 2**16
"""No delay is longer, in steps: so many steps of bits would be kept."""


def check_sizes(name: str, **sizes: int) -> None:
    for what, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: {what}: expected at least 1, got {size}")
        if size > LARGEST:
            raise ValueError(f"{name}: {what}: expected at most {LARGEST}, got {size}")


def check_delay(name: str, **steps: int) -> None:
    for what, number in steps.items():
        if not 0 <= number <= LONGEST:
            bound = "0 or more" if number < 0 else f"at most {LONGEST} steps"
            raise ValueError(f"{name}: {what}: expected {bound}, got {number}")


def check_shared(name: str, features: int, **sizes: int) -> None:
    for what, size in sizes.items():
        if size not in (1, features):
            raise ValueError(f"{name}: {what}: expected 1 or {features} values, got {size}")


def check_beta(name: str, beta: Tensor) -> None:
    if not bool(((beta >= 0) & (beta <= 1)).all()):
        raise ValueError(f"{name}.beta: expected values in [0, 1], got {beta.min().item():g} to {beta.max().item():g}")


def check_tensors(name: str, tensors: dict[str, Tensor], shapes: Shapes) -> None:
    if tensors.keys() != shapes.keys():
        raise ValueError(f"{name}: expected the tensors {', '.join(shapes)}, got {', '.join(tensors)}")
    for key, (dtype, shape) in shapes.items():
        tensor = tensors[key]
        if tensor.dtype != dtype or tensor.shape != shape or tensor.device.type != "cpu":
            raise ValueError(
                f"{name}.{key}: expected {dtype} {shape} on cpu, "
                f"got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{name}.{key}: expected finite values, got {tensor[~tensor.isfinite()][0].item()}")
