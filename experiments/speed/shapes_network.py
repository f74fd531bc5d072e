"""CONV, STEP and MEMORY: a convolutional network, one step at a time with batch 1, and the bytes of the weights."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from shapes_on import LARGE, NEURONS, random_network
from suite import BETA, Part, Settings
from timing import row
from torch import nn

from tbnn import pack_bits
from tbnn.nn import BinaryConv2d, BinaryLinear, Leaky, LeakyIntegrator, Network, Recurrent, calibrate
from tbnn.nn.zoo import dvsgesture_conv
from tbnn.sim import PackedNetwork, check_parity, pack

CONV_AIM = 10.0
MOST_PLANE_BITS = 1.05  # the aim: bits stored a weight, scales apart


def checked(network: Network, x: torch.Tensor, name: str) -> PackedNetwork:
    """The packed network, after its spikes and its readout were compared with the model's."""
    packed = pack(network)
    parity = check_parity(network, packed, x)
    if not parity.ok:
        raise SystemExit(f"{name}: {parity.summary()}")
    return packed


@torch.no_grad()
def measure_conv(settings: Settings) -> Part:
    """The conv net for DVS Gesture."""
    torch.manual_seed(0)
    channels, side, steps, batch = (4, 32, 3, 2) if settings.tiny else (32, 128, 20, 16)
    network = dvsgesture_conv(channels, input_shape=(2, side, side))
    x = (torch.rand(steps, batch, 2, side, side) < 0.01).float()
    calibrate(network, x[:, :4])
    network.eval()
    shape = f"CONV 2x{side}x{side} T={steps} B={batch}, {settings.label}"
    packed, words, floats = checked(network, x[:5, :2], shape), pack_bits(x.flatten(2)), in_floats(network)
    sides: dict[str, Callable[[], Any]] = {
        "packed": lambda: packed.simulate(words),
        "torch, fp32": lambda: floats(x),
        "the model": lambda: network(x),
    }
    times = settings.times(sides, rounds=3, repeats=1)
    found = [row(times, "packed", "torch, fp32", CONV_AIM), row(times, "packed", "the model")]
    return Part([{"shape": shape, **each} for each in found])


def in_floats(network: Network) -> Network:
    """The same network with torch's own layers, which hold the quantised weights in float32."""
    floats = copy.deepcopy(network)
    for i, layer in enumerate(floats.layers):
        if isinstance(layer, BinaryConv2d):
            sizes = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding
            plain = nn.Conv2d(*sizes, layer.dilation, layer.groups, bias=layer.bias is not None)  # pyright: ignore
        elif isinstance(layer, BinaryLinear):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        else:
            continue
        plain.weight.copy_(layer.quantized_weight())
        if plain.bias is not None:
            plain.bias.copy_(layer.bias)
        floats.layers[i] = plain
    return floats


@torch.no_grad()
def measure_step(settings: Settings) -> Part:
    """Batch 1, a step at a time: a keyword spotter's 700 -> 256 -> 20, and a recurrent one of 1024 neurons."""
    part = Part()
    wide = 64 if settings.tiny else 1024
    recurrent = Recurrent(Leaky(BETA), BinaryLinear(wide, wide, bias=False))
    for name, hidden, neurons in (("700-256-20", 256, Leaky(BETA)), (f"700-{wide}R-20", wide, recurrent)):
        torch.manual_seed(0)
        layers = [BinaryLinear(700, hidden), neurons, BinaryLinear(hidden, 20), LeakyIntegrator(BETA)]
        part.rows.append(_step_row(f"STEP {name} B=1, {settings.label}", Network(layers), settings))
    return part


def _step_row(shape: str, network: Network, settings: Settings) -> dict[str, Any]:
    """The stream, opened once, against the model's step, over the same input."""
    steps = 5 if settings.tiny else 200
    x = (torch.rand(steps, 1, 700) < 0.02).float()
    calibrate(network, x)
    network.eval()
    packed, words = checked(network, x, shape), pack_bits(x)

    def stepped() -> None:
        state = None
        for x_t in x.unbind(0):
            _, state = network.step(x_t, state)

    with packed.open_stream(1) as stream:

        def streamed() -> None:
            for t in range(steps):
                stream.push(words[t : t + 1])

        times = settings.times({"packed stream": streamed, "the model's step": stepped}, rounds=3, repeats=3)
    found = row(times, "packed stream", "the model's step")
    microseconds = {f"{side}_us_per_step": 1e3 * found[f"{side}_ms"] / steps for side in ("ours", "theirs")}
    print(f"{shape}: {microseconds['ours_us_per_step']:.1f} microseconds a step")
    return {"shape": shape, **found, **microseconds}


def measure_memory(_settings: Settings) -> Part:
    """Bits stored a weight of ON's layers: planes, and scales beside them."""
    found = []
    for neurons in (*NEURONS, LARGE):
        packed = random_network(neurons)
        layer: Any = packed.layers[0]
        bits, planes = packed.bits_per_weight, 8 * layer.planes.nbytes / packed.weights
        found.append({"neurons": neurons, "bits_per_weight": bits, "plane_bits": planes, "aim": MOST_PLANE_BITS})
        print(f"MEMORY N={neurons}: {bits:.3f} bits a weight, {planes:.3f} of them in planes; aim {MOST_PLANE_BITS}")
    return Part(facts={"memory": found})
