"""ON: a binary layer of N inputs and N leaky neurons, forward, against the same neurons in snntorch and SpikingJelly."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from peers import SNNTORCH, SPIKINGJELLY, check_rates, snntorch_loop, spikingjelly_node
from suite import BETA, Part, Settings, point
from timing import row
from torch import Tensor

from tbnn import pack_bits, unpack_bits
from tbnn.nn import BinaryLinear, Leaky, Network, calibrate
from tbnn.sim import PackedLinear, PackedNetwork, check_parity, pack
from tbnn.sim.layers import LinearSpec

INPUT_RATE = 0.2
NEURONS, LARGE = (512, 2048, 4096), 16384
AIMS = {(2048, SNNTORCH): 35.0}
PACKED, MODEL = "packed", "the model, fp32"
FP32_ALONE, BF16_ALONE = "torch fp32, the product alone", "torch bf16, the product alone"
MOST_DIFFERENT = 1e-3  # a float32 sum in another order moves a membrane across its threshold now and then


class Spikes(NamedTuple):
    """Input of rate INPUT_RATE, as frames (T, B, N) and as words."""

    frames: Tensor
    words: Tensor


def spikes_in(steps: int, batch: int, neurons: int) -> Spikes:
    """Random input."""
    frames = torch.rand(steps, batch, neurons, generator=torch.Generator().manual_seed(0)) < INPUT_RATE
    return Spikes(frames.float(), pack_bits(frames))


def random_network(neurons: int) -> PackedNetwork:
    """Packed at once, without the gigabytes of its float weights: ±2^-j, so that float32 sums are exact."""
    torch.manual_seed(0)
    j = round(np.log2(np.sqrt(neurons * INPUT_RATE) / 0.4))  # currents of about 0.4
    spec = LinearSpec("layers.0", neurons, neurons, block=neurons, offset=False, bias=False)
    words = torch.randint(-(2**31), 2**31, (1, neurons, neurons // 32), dtype=torch.int32)
    layer = PackedLinear(spec, words, torch.full((neurons, 1), 2.0**-j))
    neuron = pack(Network([BinaryLinear(1, neurons), Leaky(BETA)])).layers[1]
    return PackedNetwork((layer, neuron), neurons)


@torch.no_grad()
def measure(settings: Settings) -> Part:
    """Every N."""
    part = Part(facts={"firing_rates": []})
    for neurons in (64,) if settings.tiny else NEURONS:
        _measure(neurons, settings, part)
    _measure_large(128 if settings.tiny else LARGE, settings, part)
    return part


def _measure(neurons: int, settings: Settings, part: Part) -> None:
    """The whole comparison of one N."""
    steps = 10 if settings.tiny else 500
    torch.manual_seed(0)
    network = Network([BinaryLinear(neurons, neurons, form="linear"), Leaky(BETA)]).eval()
    x = spikes_in(steps, 16, neurons)
    calibrate(network, x.frames[:20])
    packed, shape = pack(network), f"ON N={neurons} T={steps} B=16, {settings.label}"
    parity = check_parity(network, packed, x.words[:5])
    if not parity.ok:
        raise SystemExit(f"{shape}: {parity.summary()}")
    linear: Any = network.layers[0]
    weight, bias = linear.quantized_weight(), linear.bias
    sides: dict[str, Callable[[], Any]] = {
        PACKED: lambda: packed.simulate(x.words).output_spikes,
        SNNTORCH: snntorch_loop(weight, bias, x.frames),
    }
    jelly = spikingjelly_node(weight, bias, x.frames)
    if jelly is not None:
        sides[SPIKINGJELLY] = jelly
    part.facts["firing_rates"].append({"shape": shape, **compared(shape, sides, neurons)})
    sides |= {MODEL: lambda: network(x.frames), **products_alone(weight, x.frames)}
    _time(shape, neurons, steps, sides, settings, part)


def _measure_large(neurons: int, settings: Settings, part: Part) -> None:
    """An N whose float weights are a gigabyte: against the float products alone, where there is room for them."""
    steps = 5 if settings.tiny else 20
    packed, x = random_network(neurons), spikes_in(steps, 16, neurons)
    shape = f"ON N={neurons} T={steps} B=16, {settings.label}"
    if free_bytes() < 16 * neurons**2:
        print(f"{shape}: left out: it takes {16 * neurons**2 / 2**30:.0f} GiB to compare")
        return
    linear: Any = packed.layers[0]
    signs = unpack_bits(linear.planes[0], neurons, torch.bfloat16).mul_(2).sub_(1)
    weight = signs.mul_(linear.scale.bfloat16()).float()
    expected = Leaky(BETA)(torch.nn.functional.linear(x.frames, weight))[0]
    out: Any = packed.simulate(x.words).output_spikes
    if not torch.equal(out, pack_bits(expected)):
        raise SystemExit(f"{shape}: the packed network's spikes differ from the float network's")
    part.facts["firing_rates"].append({"shape": shape, "rates": {PACKED: expected.mean().item()}})
    sides: dict[str, Callable[[], Any]] = {PACKED: lambda: packed.simulate(x.words)}
    _time(shape, neurons, steps, sides | products_alone(weight, x.frames), settings, part)


def _time(
    shape: str, neurons: int, steps: int, sides: dict[str, Callable[[], Any]], settings: Settings, part: Part
) -> None:
    """Rows of all sides against the packed one, and its place on the roofline."""
    times = settings.times(sides, rounds=3, repeats=1)
    part.rows += [
        {"shape": shape, **row(times, PACKED, other, AIMS.get((neurons, other)))} for other in list(sides)[1:]
    ]
    size = (steps * 16, neurons, neurons)
    part.points.append(point(f"ON N={neurons}", "whole network", size, float(np.median(times[PACKED])), out_bits=1))


def compared(shape: str, sides: dict[str, Callable[[], Any]], neurons: int) -> dict[str, Any]:
    """Firing rates of all sides, and the share of spikes in which snntorch's differ; ends the program where they should not."""
    ours = unpack_bits(sides[PACKED](), neurons)
    rates, different = {PACKED: ours.mean().item()}, 0.0
    for name, run in list(sides.items())[1:]:
        theirs = run()
        rates[name] = theirs.mean().item()
        if name == SNNTORCH:
            different = (ours != theirs).float().mean().item()
    if different > MOST_DIFFERENT:
        raise SystemExit(f"{shape}: {different:.2%} of the spikes differ from snntorch's")
    check_rates(shape, rates, PACKED)
    print(f"{shape}: {different:.1e} of the spikes differ from snntorch's; rates {rates}")
    return {"rates": rates, "differ_from_snntorch": different}


def products_alone(weight: Tensor, frames: Tensor) -> dict[str, Callable[[], Any]]:
    """The matmul for all steps, without neurons, in float32 and bfloat16."""
    weight16, frames16 = weight.bfloat16(), frames.bfloat16()
    return {
        FP32_ALONE: lambda: torch.nn.functional.linear(frames, weight),
        BF16_ALONE: lambda: torch.nn.functional.linear(frames16, weight16),
    }


def free_bytes() -> int:
    """Memory that can be had without swapping."""
    import psutil  # comes with accelerate

    return psutil.virtual_memory().available
