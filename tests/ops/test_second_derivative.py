"""A gradient of a gradient is refused, not silently wrong."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import tbnn
from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator

OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "ddt": lambda x: tbnn.ddt(x, x * x),
    "quantize": lambda x: tbnn.quantize(x),
    "lif": lambda x: Leaky(0.9)(x)[0],
    "integrate": lambda x: LeakyIntegrator(0.9)(x)[0],
    "linear": lambda x: BinaryLinear(4, 3)(x),
    "surrogate": lambda x: tbnn.surrogate.atan()(x),
    "ridge": lambda x: tbnn.surrogate.ddt()(x),
}


@pytest.mark.parametrize("name", OPS)
def test_double_backward_is_refused(name: str) -> None:
    x = torch.randn(5, 2, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(OPS[name](x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (gradient * x).sum().backward()
