"""A layer of weights and its neurons as one function on a CUDA device, forward and backward, against the layers apart.

    python experiments/speed/gpu_layer.py

ON: 16384 inputs to 16384 leaky neurons, 20 steps, batch 64, in the memory modes. LIF: 65536 neurons, batch 64, 4 to 128 steps,
neurons alone, float32, against SpikingJelly's Triton and torch backends where it can be imported. Correctness first (spikes
equal, gradients to 1e-3; of SpikingJelly, whose reset differs a little, the firing rates), then times: all sides in one process,
in turn, the device synchronised after every run; the peak memory of each side stands beside them. Results go to
results/gpu_layer.DEVICE.json. Without a CUDA device nothing is measured.
"""

import re
import sys
from collections.abc import Callable
from typing import Any

import torch
from gpu_kernels import NO_DEVICE, Side, gate, synchronised
from gpu_packed import random_words
from peers import check_rates
from timing import alternate, row, save
from torch import Tensor

from tbnn.nn import BinaryLinear, Leaky, Network
from tbnn.ops.lif import SpikeGradient, lif

BETA = 0.875
ON = (20, 64, 16384)  # steps, batch, inputs and neurons
LIF_STEPS = (4, 8, 16, 32, 64, 128)
LIF_LAYER = (64, 65536)  # batch, neurons
RATE = 0.2
MODES = ("speed", "balanced", "minimal")
APART, OURS, REFERENCE = "layers apart", "triton", "torch reference"
JELLY = "SpikingJelly, "
ROUNDS, REPEATS = 5, 3


def layer_sides(gradient: SpikeGradient) -> dict[str, Side]:
    """Forward and backward of ON in each memory mode, and of its layers apart: spikes and the weights' gradient."""
    steps, batch, size = ON
    torch.manual_seed(0)
    with torch.device("cuda"):
        net = Network([BinaryLinear(size, size), Leaky(BETA, gradient=gradient.gradient, target=gradient.target)])
    words, along = random_words(steps, batch, size, rate=RATE), torch.linspace(-1, 1, size, device="cuda")
    linear, neuron = net.layers
    weight: Any = linear.weight

    def fused(mode: str) -> tuple[Tensor, Tensor]:
        net.memory = mode
        spikes, _ = net(words)
        return spikes.detach(), torch.autograd.grad(spikes, weight, along.expand_as(spikes))[0]

    def apart() -> tuple[Tensor, Tensor]:
        spikes, _ = neuron(linear(net.unpacked(words)))
        return spikes.detach(), torch.autograd.grad(spikes, weight, along.expand_as(spikes))[0]

    sides: dict[str, Side] = {mode: synchronised(lambda mode=mode: fused(mode)) for mode in MODES}
    return {**sides, APART: synchronised(apart)}


def jelly_neurons(backend: str) -> Callable[[Tensor], Tensor] | None:
    """SpikingJelly's multi-step node of a backend, from rest; None, and a note, where it is not to be had."""
    try:
        from spikingjelly.activation_based import neuron, surrogate  # pyright: ignore[reportMissingImports]

        node: Any = neuron.LIFNode(
            tau=1 / (1 - BETA), decay_input=False, v_threshold=1.0, v_reset=None, detach_reset=True, step_mode="m",
            surrogate_function=surrogate.ATan(alpha=2.0), backend=backend,
        )  # fmt: skip
    except (ImportError, NotImplementedError, ValueError) as error:
        print(f"SpikingJelly, {backend}: left out: {error}")
        return None

    def run(current: Tensor) -> Tensor:
        node.reset()
        return node(current)

    return run


def neuron_sides(steps: int) -> dict[str, Side]:
    """Forward and backward of LIF with a bare surrogate gradient: spikes and the currents' gradient."""
    shape, generator = (steps, *LIF_LAYER), torch.Generator("cuda").manual_seed(0)
    x = (torch.randn(shape, generator=generator, device="cuda") * 32).round() / 64
    along = torch.linspace(-1, 1, shape[2], device="cuda")

    def side(neurons: Callable[[Tensor], Tensor]) -> Side:
        def run() -> tuple[Tensor, Tensor]:
            leaf = x.detach().requires_grad_()
            spikes = neurons(leaf)
            return spikes.detach(), torch.autograd.grad(spikes, leaf, along.expand_as(spikes))[0]

        return synchronised(run)

    gradient = SpikeGradient("surrogate")
    sides = {
        OURS: side(lambda current: lif(current, BETA, gradient=gradient).out),
        REFERENCE: side(lambda current: lif(current, BETA, gradient=gradient, backend="reference").out),
    }
    peers = {backend: jelly_neurons(backend) for backend in ("triton", "torch")}
    return sides | {JELLY + name: side(neurons) for name, neurons in peers.items() if neurons is not None}


def peak(run: Side) -> float:
    """MiB at most while it runs."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() / 2**20


def measure(shape: str, sides: dict[str, Side], pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """A row for each pair of sides (ours, theirs)."""
    peaks, times = {name: peak(run) for name, run in sides.items()}, alternate(sides, ROUNDS, REPEATS)
    return [{"shape": shape, "peak_MiB": {name: peaks[name] for name in pair}, **row(times, *pair)} for pair in pairs]


def measure_on() -> list[dict[str, Any]]:
    """ON."""
    estimators = (
        ("surrogate", SpikeGradient("surrogate")),
        ("ddt", SpikeGradient()),
        ("trace", SpikeGradient(target="trace")),
    )
    rows = []
    for label, gradient in estimators:
        sides, shape = layer_sides(gradient), f"ON N={ON[2]} T={ON[0]} B={ON[1]} {label}"
        for mode in MODES:
            gate(f"{shape} {mode}", {mode: sides[mode], APART: sides[APART]}, True)
        rows += measure(shape, sides, [(mode, APART) for mode in MODES])
        torch.cuda.empty_cache()
    return rows


def measure_lif() -> list[dict[str, Any]]:
    """LIF."""
    rows = []
    for steps in LIF_STEPS:
        sides, shape = neuron_sides(steps), f"LIF T={steps} B={LIF_LAYER[0]} N={LIF_LAYER[1]} fp32 surrogate"
        gate(shape, {name: sides[name] for name in (OURS, REFERENCE)}, True)
        rates = {n: run()[0].mean().item() for n, run in sides.items() if n == OURS or n.startswith(JELLY)}
        check_rates(shape, rates, OURS)
        rows += measure(shape, sides, [(OURS, name) for name in sides if name != OURS])
        torch.cuda.empty_cache()
    return rows


def main() -> None:
    """Measure all and write results/gpu_layer.DEVICE.json."""
    if not torch.cuda.is_available():
        print("no CUDA device: nothing measured")
        sys.exit(NO_DEVICE)
    rows = measure_on() + measure_lif()
    device = re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name(0).lower()).strip("_")
    print(save(f"gpu_layer.{device}", rows))


if __name__ == "__main__":
    main()
