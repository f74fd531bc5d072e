"""Firing rates of a network's spiking layers, and what they say about its health."""

from types import TracebackType
from typing import Any

from torch import Tensor, nn

from tbnn.nn.neuron import Neuron
from tbnn.nn.recurrent import Recurrent
from tbnn.nn.weights import BinaryWeight

DEAD_BELOW = 0.001
SATURATED_ABOVE = 0.9


def emitted_spikes(layer: Neuron | Recurrent, out: Tensor) -> Tensor:
    """The spikes, as bool, in what left a layer in evaluation (T, B, features...), also with emit="denoised"."""
    neuron = layer.neuron if isinstance(layer, Recurrent) else layer
    if neuron.spike_gradient.emit == "bits":
        return out.detach() > 0
    a, b = neuron.emitted_affine()
    a, b = (t.reshape(-1, *[1] * (out.ndim - 3)) if t.numel() > 1 else t for t in (a, b))
    return out.detach() > b + a / 2


def firing_rate(layer: Neuron | Recurrent, out: Tensor) -> float:
    """Spikes per neuron and step in what left a layer in evaluation."""
    return emitted_spikes(layer, out).to(out.dtype).mean().item()


def spiking_layers(network: nn.Module) -> dict[str, Neuron | Recurrent]:
    """The layers that spike, by name; a recurrent layer counts as one."""
    found: dict[str, Neuron | Recurrent] = {}
    for name, module in network.named_modules():
        inside = any(name.startswith(outer + ".") for outer, m in found.items() if isinstance(m, Recurrent))
        if isinstance(module, (Neuron, Recurrent)) and not inside:
            found[name] = module
    return found


class FiringRates:
    """Collect the mean firing rate of every spiking layer over the sequences run inside the ``with`` block.

    >>> with FiringRates(network) as rates:
    ...     network(x)
    >>> rates.mean()
    {'layers.1': 0.08}
    """

    def __init__(self, network: nn.Module) -> None:
        self._layers = spiking_layers(network)
        self._seen: dict[str, list[tuple[float, int]]] = {name: [] for name in self._layers}
        self._hooks: list[Any] = []

    def __enter__(self) -> "FiringRates":
        for name, layer in self._layers.items():

            def hook(module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
                out = output[0]
                self._seen[name].append((firing_rate(module, out), out.numel()))  # pyright: ignore[reportArgumentType]

            self._hooks.append(layer.register_forward_hook(hook))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def mean(self) -> dict[str, float]:
        """The rate of each layer that ran, weighted by the size of its sequences."""
        return {
            name: sum(rate * n for rate, n in seen) / sum(n for _, n in seen)
            for name, seen in self._seen.items()
            if seen
        }


def health_warnings(rates: dict[str, float], network: nn.Module | None = None) -> list[str]:
    """One line for each layer that is dead (< 0.1 %) or saturated (> 90 %).

    With a network, also one for each layer with weight blocks whose codes are all alike: their variance is 0, so the
    affine reconstruction is the block's mean and says nothing about its input.
    """
    lines = []
    for name, rate in rates.items():
        if rate < DEAD_BELOW:
            lines.append(f"{name} is dead: it fires at {rate:.3%} (below {DEAD_BELOW:.1%})")
        elif rate > SATURATED_ABOVE:
            lines.append(f"{name} is saturated: it fires at {rate:.1%} (above {SATURATED_ABOVE:.0%})")
    for name, layer in network.named_modules() if network is not None else ():
        if isinstance(layer, BinaryWeight):
            constant, blocks = constant_blocks(layer)
            if constant:
                lines.append(
                    f"{name} has {constant} of {blocks} weight blocks of one value only (Var(q) = 0): "
                    "their weights are their mean"
                )
    return lines


def constant_blocks(layer: BinaryWeight) -> tuple[int, int]:
    """How many of a layer's weight blocks, of more than one weight, have one code only, and how many blocks there are."""
    rows = layer.codes()[0].flatten(1)
    runs = rows.split(layer.block or rows.shape[1], dim=1)
    constant = sum(int((run == run[:, :1]).all(1).sum()) for run in runs if run.shape[1] > 1)
    return constant, len(runs) * rows.shape[0]
