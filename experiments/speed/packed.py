"""Packed simulation on the CPU against what one would run otherwise: fully connected, convolutional, one step at a time.

    python experiments/speed/packed.py

ON: Linear(N, N) and leaky neurons, B = 16, T = 500, 20 % input spikes, forward without gradients, against snntorch's loop (one
matmul for all steps, then a step at a time) and against the model itself in float32. CONV: the DVS Gesture net of the zoo
with 32 channels on 2x128x128 frames, T = 20, B = 16, 1 % input spikes, against the model. STEP: batch 1, one step at a time, against the model's step.
Spikes and readouts are compared first. Threads as torch has them: run it once with OMP_NUM_THREADS=1.
"""

from collections.abc import Callable
from typing import Any

import snntorch
import torch
from timing import alternate, row, save

from tbnn import pack_bits
from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network, calibrate
from tbnn.nn.zoo import dvsgesture_conv
from tbnn.sim import PackedNetwork, check_parity, pack

BETA = 0.95
ON = (512, 2048)


def checked(network: Network, x: torch.Tensor, name: str) -> PackedNetwork:
    """The packed network, after its spikes were compared with the model's on the first steps."""
    packed = pack(network)
    parity = check_parity(network, packed, x[:5])
    if not parity.ok:
        raise SystemExit(f"{name}: {parity.summary()}")
    return packed


@torch.no_grad()
def measure_on(neurons: int, threads: int) -> list[dict[str, Any]]:
    """One layer of N inputs and N neurons."""
    torch.manual_seed(0)
    network = Network([BinaryLinear(neurons, neurons, form="linear"), Leaky(BETA)]).eval()
    steps = 500
    x = (torch.rand(steps, 16, neurons) < 0.2).float()
    calibrate(network, x[:20])
    packed, words = checked(network, x, f"ON {neurons}"), pack_bits(x)
    weight, neuron = network.layers[0].quantized_weight(), snntorch.Leaky(BETA)
    bias = network.layers[0].bias

    def loop() -> torch.Tensor:
        v, out = torch.zeros(16, neurons), []
        for current in torch.nn.functional.linear(x, weight, bias).unbind(0):
            spikes, v = neuron(current, v)
            out.append(spikes)
        return torch.stack(out)

    sides: dict[str, Callable[[], object]] = {
        "packed": lambda: packed.simulate(words),
        "snntorch, fp32": loop,
        "the model, fp32": lambda: network(x),
    }
    times = alternate(sides, rounds=3, repeats=1)
    shape = f"ON N={neurons} T={steps} B=16, {threads} threads"
    return [{"shape": shape, **row(times, "packed", other)} for other in list(sides)[1:]]


@torch.no_grad()
def measure_conv(threads: int) -> list[dict[str, Any]]:
    """The conv net for DVS Gesture."""
    torch.manual_seed(0)
    network = dvsgesture_conv(32, input_shape=(2, 128, 128))
    x = (torch.rand(20, 16, 2, 128, 128) < 0.01).float()
    calibrate(network, x[:, :4])
    network.eval()
    packed, words = checked(network, x[:, :2], "CONV"), pack_bits(x.flatten(2))
    sides: dict[str, Callable[[], object]] = {
        "packed": lambda: packed.simulate(words),
        "the model, fp32": lambda: network(x),
    }
    times = alternate(sides, rounds=3, repeats=1)
    return [{"shape": f"CONV 2x128x128 T=20 B=16, {threads} threads", **row(times, "packed", "the model, fp32")}]


@torch.no_grad()
def measure_step(threads: int) -> list[dict[str, Any]]:
    """Batch 1, a step at a time: a keyword spotter's 700 -> 256 -> 20."""
    torch.manual_seed(0)
    network = Network([BinaryLinear(700, 256), Leaky(BETA), BinaryLinear(256, 20), LeakyIntegrator(BETA)])
    x = (torch.rand(200, 1, 700) < 0.02).float()
    calibrate(network, x)
    network.eval()
    packed, words = checked(network, x, "STEP"), pack_bits(x)

    def streamed() -> None:
        with packed.open_stream(1) as stream:
            for t in range(len(words)):
                stream.push(words[t : t + 1])

    def stepped() -> None:
        state = None
        for x_t in x.unbind(0):
            _, state = network.step(x_t, state)

    times = alternate({"packed stream": streamed, "the model's step": stepped}, rounds=3, repeats=3)
    return [{"shape": f"STEP 700-256-20 B=1, {threads} threads", **row(times, "packed stream", "the model's step")}]


def main() -> None:
    """Run all and write results/packed.cpu.json."""
    threads = torch.get_num_threads()
    rows = measure_step(threads)
    for neurons in ON:
        rows += measure_on(neurons, threads)
    rows += measure_conv(threads)
    print(save(f"packed.cpu.{threads}", rows))


if __name__ == "__main__":
    main()
