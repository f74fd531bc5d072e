"""Other libraries' neurons, where they are installed: the same equation, their own loop."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from suite import BETA
from torch import Tensor

SNNTORCH, SPIKINGJELLY = "snntorch, fp32", "SpikingJelly, fp32"
RATE_BOUND = 0.1  # SpikingJelly's reset is β·θ, not θ: it fires a little more


def snntorch_neurons() -> Callable[[Iterable[Tensor]], Tensor]:
    """snntorch's neuron, step by step over currents (B, N), from rest -> spikes (T, B, N)."""
    import snntorch

    neuron: Any = snntorch.Leaky(BETA)

    def run(currents: Iterable[Tensor]) -> Tensor:
        v, out = None, []
        for current in currents:
            spikes, v = neuron(current, torch.zeros_like(current) if v is None else v)
            out.append(spikes)
        return torch.stack(out)

    return run


def snntorch_loop(weight: Tensor, bias: Tensor | None, x: Tensor) -> Callable[[], Tensor]:
    """One matmul for all steps, then snntorch's neuron step by step over ``unbind(0)``: the best its user can write."""
    neurons = snntorch_neurons()
    return lambda: neurons(torch.nn.functional.linear(x, weight, bias).unbind(0))


def spikingjelly_neurons() -> Callable[[Tensor], Tensor] | None:
    """SpikingJelly's multi-step node on currents (T, B, N), from rest; None, and a note, where it cannot be imported.

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

    def run(currents: Tensor) -> Tensor:
        node.reset()
        return node(currents)

    return run


def spikingjelly_node(weight: Tensor, bias: Tensor | None, x: Tensor) -> Callable[[], Tensor] | None:
    """The same matmul as :func:`snntorch_loop`, then SpikingJelly's node, where it is."""
    neurons = spikingjelly_neurons()
    return neurons and (lambda: neurons(torch.nn.functional.linear(x, weight, bias)))


def check_rates(shape: str, rates: dict[str, float], ours: str) -> None:
    """End the program where a side fires much more or less than ours."""
    for name, rate in rates.items():
        if abs(rate - rates[ours]) > RATE_BOUND * rates[ours]:
            raise SystemExit(f"{shape}: {name} fires at {rate:.4f}, {ours} at {rates[ours]:.4f}")
