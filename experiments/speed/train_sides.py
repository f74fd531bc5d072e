"""What the training benchmark's parts share: exact weights, a step of training, and the gate every side passes first."""

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from suite import BETA
from torch import Tensor, nn

from tbnn.nn import BinaryConv2d, BinaryLinear, Leaky, Network, to_snntorch

MODES = ("speed", "balanced", "minimal")
MOST_DIFFERENT = 1e-3  # a float32 sum in another order moves a membrane across its threshold now and then
GRADIENT_BOUND = 1e-3
EXACT: dict[str, Any] = {
    "form": "linear",
    "lam": 0.0,
}  # weights ±|w|, whose sums over spikes are exact where |w| is 2^-j
CURRENT = 0.4  # the currents' standard deviation that the weights are drawn for


class Outcome(NamedTuple):
    """What a side's forward and backward gave."""

    spikes: Tensor
    gradients: tuple[Tensor, ...]


def modes() -> tuple[str, ...]:
    """What ``Network`` may be asked to keep for backward; ("speed",) where it cannot be asked."""
    return MODES if "memory" in inspect.signature(Network.__init__).parameters else MODES[:1]


def network_of(layers: Iterable[nn.Module], mode: str = MODES[0]) -> Network:
    """The layers as a network that keeps for backward what ``mode`` says."""
    options: dict[str, Any] = {"memory": mode} if len(modes()) > 1 else {}
    return Network(layers, **options)


def neuron() -> Leaky:
    """The neuron of every side: snntorch's default, atan(2), subtract reset."""
    return Leaky(BETA, gradient="surrogate")


def binary(inputs: int, outputs: int, active: float, bias: bool = True) -> BinaryLinear:
    """A layer of weights ±2^-j, for ``active`` of its inputs spiking at a time on average."""
    layer = BinaryLinear(inputs, outputs, bias, **EXACT)
    size = 2.0 ** -round(math.log2(math.sqrt(max(inputs * active, 1)) / CURRENT))
    with torch.no_grad():
        layer.weight.copy_(layer.weight.sign().where(layer.weight != 0, 1.0) * size)
    return layer


def spikes_in(steps: int, batch: int, neurons: int, rate: float) -> Tensor:
    """Random input (T, B, N) of 0 and 1."""
    return (torch.rand(steps, batch, neurons, generator=torch.Generator().manual_seed(0)) < rate).float()


def trained(run: Callable[[], Tensor], parameters: Iterable[Tensor]) -> Outcome:
    """Forward and backward of the sum of what ``run`` gives."""
    own = list(parameters)
    for parameter in own:
        parameter.grad = None
    out = run()
    out.sum().backward()
    return Outcome(out.detach(), tuple(p.grad for p in own if p.grad is not None))


def pulled(network: nn.Module, theirs: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pairs of gradients of latent weights: ours, and ``theirs`` of the quantised weights taken back to the latent ones."""
    layers = [layer for layer in network.modules() if isinstance(layer, (BinaryLinear, BinaryConv2d))]
    pairs = []
    for layer, given in zip(layers, theirs, strict=True):
        (back,) = torch.autograd.grad(layer.quantized_weight(), layer.weight, given)
        if layer.weight.grad is None:
            raise SystemExit("the gate: a layer's weights got no gradient")
        pairs.append((layer.weight.grad, back))
    return pairs


def weight_gradients(exported: nn.Module) -> list[Tensor]:
    """The gradients of the weights of a network of snntorch, in order."""
    layers = [layer for layer in exported.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    return [layer.weight.grad for layer in layers if layer.weight.grad is not None]


def check(
    shape: str, ours: Tensor, theirs: Tensor, gradients: Iterable[tuple[Tensor, Tensor]], against: str
) -> dict[str, Any]:
    """How many spikes and by how much gradients differ; ends the program where that is more than rounding."""
    different, total = int((ours != theirs).sum()), ours.numel()
    if different > MOST_DIFFERENT * total:
        raise SystemExit(f"{shape}: {different} of {total} spikes differ from {against}")
    if not 0 < int(ours.sum()) < total:
        raise SystemExit(f"{shape}: nothing to compare: {int(ours.sum())} spikes of {total}")
    error = max(((a - b).abs().max() / b.abs().max()).item() for a, b in gradients)
    if not error <= GRADIENT_BOUND:  # also where it is NaN
        raise SystemExit(f"{shape}: gradients differ from {against} by {error:.2g} of the largest")
    print(f"{shape}: {different} of {total} spikes differ from {against}, gradients by {error:.1e} of the largest")
    return {"shape": shape, "against": against, "different": different, "spikes": total, "gradient_error": error}


def hidden_spikes(network: Any, layers: int, x: Tensor) -> Tensor:
    """What leaves the first layers of a network, or of one exported to snntorch."""
    with torch.no_grad():
        return type(network)(list(network.layers)[:layers])(x)[0]


def in_snntorch(network: Network) -> Any:
    """The same network of snntorch's neurons and its own surrogate, quantised weights as float weights that train."""
    from snntorch import surrogate

    exported: Any = to_snntorch(network)
    for layer in exported.layers:
        if hasattr(layer, "spike_grad"):
            layer.spike_grad = surrogate.atan(alpha=2.0)
    return exported


def check_networks(shape: str, network: Network, x: Tensor, spiking: int, last_only: bool = False) -> dict[str, Any]:
    """Gate a network against the same in snntorch: spikes after ``spiking`` layers, gradients of the sum of the output.

    ``last_only``: of the last weights only, where pools give their gradients to other inputs of equal maxima.
    """
    exported = in_snntorch(network)
    trained(lambda: network(x)[0], network.parameters())
    trained(lambda: exported(x)[0], exported.parameters())
    pairs = pulled(network, weight_gradients(exported))
    ours, theirs = (hidden_spikes(n, spiking, x) for n in (network, exported))
    return check(shape, ours, theirs, pairs[-1:] if last_only else pairs, "snntorch's")
