"""Other libraries' neurons, where they are installed: the same equation, their own loop."""

from collections.abc import Callable
from typing import Any

import torch
from suite import BETA
from torch import Tensor

SNNTORCH, SPIKINGJELLY = "snntorch, fp32", "SpikingJelly, fp32"


def snntorch_loop(weight: Tensor, bias: Tensor | None, x: Tensor) -> Callable[[], Tensor]:
    """One matmul for all steps, then snntorch's neuron step by step over ``unbind(0)``: the best its user can write."""
    import snntorch

    neuron: Any = snntorch.Leaky(BETA)

    def run() -> Tensor:
        v, out = torch.zeros(x.shape[1], weight.shape[0]), []
        for current in torch.nn.functional.linear(x, weight, bias).unbind(0):
            spikes, v = neuron(current, v)
            out.append(spikes)
        return torch.stack(out)

    return run


def spikingjelly_node(weight: Tensor, bias: Tensor | None, x: Tensor) -> Callable[[], Tensor] | None:
    """The same matmul, then SpikingJelly's multi-step node; None, and a note, where it cannot be imported.

    Its soft reset takes the threshold off before the decay, not after it: ``v ← β·(v − θ·q) + I``. So spike trains differ a
    little, and rates are compared.
    """
    try:
        from spikingjelly.activation_based import neuron, surrogate  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        print(f"SpikingJelly: left out: {error}")
        return None
    node: Any = neuron.LIFNode(
        tau=1 / (1 - BETA),
        decay_input=False,
        v_threshold=1.0,
        v_reset=None,
        surrogate_function=surrogate.ATan(alpha=2.0),
        detach_reset=True,
        step_mode="m",
    )

    def run() -> Tensor:
        node.reset()
        return node(torch.nn.functional.linear(x, weight, bias))

    return run
