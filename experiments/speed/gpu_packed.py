"""Packed products and the packed simulator on a CUDA device, against torch in bfloat16 and against what the device can do.

    python experiments/speed/gpu_packed.py

BIN: one product of 16384³ bits. ON: 16384 inputs to 16384 leaky neurons. RECURRENT: 700 -> 1024 with feedback -> 20 readouts
over 1000 steps, batch 256 and 1. Correctness first, then times: all sides in one process, in turn, the device synchronised
after every run. Ceilings measured beside them: memory copied, AND + popcount in registers, int8 products of cuBLAS. Results go
to results/gpu_packed.DEVICE.json. Without a CUDA device nothing is measured.
"""

import re
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from timing import alternate, row, save
from torch import Tensor

from tbnn import pack_bits, unpack_bits
from tbnn.ops.binary_linear import binary_counts_reference, binary_linear
from tbnn.sim import PackedNetwork
from tbnn.sim.layers import (
    IntegratorSpec,
    LeakySpec,
    LinearSpec,
    PackedIntegrator,
    PackedLayer,
    PackedLeaky,
    PackedLinear,
)

NO_DEVICE = 2
LARGE = 16384
BETA, RATE = 0.875, 0.2
ON_SIZE = (20, 64)  # steps, batch
RECURRENT = (700, 1024, 20, 1000)  # inputs, neurons, readouts, steps
ROUNDS, REPEATS = 5, 5
OURS = "packed"
BF16, BF16_LOOP, BF16_GRAPH = "torch bf16, the product alone", "torch bf16, a loop", "torch bf16, a CUDA graph"
COPIED = 1 << 30  # bytes
CHAIN, CHAINS = 4096, 1 << 20  # popcounts one after the other, and how many such rows


def synchronised(run: Callable[[], object]) -> Callable[[], None]:
    """The same, waited for."""

    def wait() -> None:
        run()
        torch.cuda.synchronize()

    return wait


def seconds(run: Callable[[], object]) -> float:
    """Median time of a run."""
    return statistics.median(alternate({"": synchronised(run)}, ROUNDS, REPEATS)[""])


def popcount_chains() -> Callable[[], object]:
    """CHAINS rows of CHAIN times AND, popcount and addition, in registers alone."""
    from gpu_chains import BLOCK, chains

    from tbnn.ops.ddt.gpu import launch

    x = torch.randint(-(2**31), 2**31, (CHAINS,), dtype=torch.int32, device="cuda")
    out = torch.empty_like(x)
    return lambda: launch(chains, CHAINS // BLOCK, x, out, CHAIN, BLOCK=BLOCK, num_warps=8)


def ceilings() -> dict[str, float]:
    """Bytes a second, and bit-MACs a second of popcounts and of int8 products."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    a, b = (torch.ones((LARGE, LARGE), dtype=torch.int8, device="cuda") for _ in range(2))
    return {
        "copied_bytes_per_s": 2 * COPIED / seconds(lambda: target.copy_(source)),
        "popcount_bit_macs_per_s": 32 * CHAIN * CHAINS / seconds(popcount_chains()),
        "int8_bit_macs_per_s": LARGE**3 / seconds(lambda: torch._int_mm(a, b.T)),  # pyright: ignore[reportPrivateImportUsage]
    }


def measure(
    shape: str, sides: dict[str, Callable[[], object]], macs: int, most: dict[str, float]
) -> list[dict[str, Any]]:
    """A row against each other side, with our share of both product ceilings."""
    times = alternate({name: synchronised(run) for name, run in sides.items()}, ROUNDS, REPEATS)
    rate = macs / statistics.median(times[OURS])
    shares = {f"share_of_{way}": rate / most[f"{way}_bit_macs_per_s"] for way in ("popcount", "int8")}
    return [{"shape": shape, **shares, **row(times, OURS, other)} for other in sides if other != OURS]


def random_words(*shape: int, rate: float = 0.5, seed: int = 0) -> Tensor:
    """Packed bits (..., words), a share ``rate`` of them set, a slice at a time, on the device."""
    generator = torch.Generator("cuda").manual_seed(seed)
    rows = torch.Size(shape[:-1]).numel()
    parts = [
        pack_bits(torch.rand((min(1024, rows - lo), shape[-1]), generator=generator, device="cuda") < rate)
        for lo in range(0, rows, 1024)
    ]
    return torch.cat(parts).reshape(*shape[:-1], -1)


def measure_bin(most: dict[str, float]) -> list[dict[str, Any]]:
    """BIN."""
    spikes, signs = random_words(LARGE, LARGE, rate=RATE), random_words(LARGE, LARGE, seed=1)
    some = binary_linear(spikes, signs, LARGE)[:64]
    counted = (
        2 * binary_counts_reference(spikes[:64], signs, LARGE) - unpack_bits(spikes[:64], LARGE).sum(-1).int()[:, None]
    )
    if not torch.equal(some, counted):
        raise SystemExit("BIN: the packed product differs from the reference")
    s, w = unpack_bits(spikes, LARGE, torch.bfloat16), 2 * unpack_bits(signs, LARGE, torch.bfloat16) - 1
    sides: dict[str, Callable[[], object]] = {OURS: lambda: binary_linear(spikes, signs, LARGE), BF16: lambda: s @ w.T}
    return measure(f"BIN ({LARGE}x{LARGE})({LARGE}x{LARGE})", sides, LARGE**3, most)


def linear(name: str, inputs: int, outputs: int, scale: float, seed: int) -> PackedLinear:
    """Random signs, one scale."""
    spec = LinearSpec(name, inputs, outputs, block=inputs, offset=False, bias=False)
    return PackedLinear(spec, random_words(outputs, inputs, seed=seed).cpu()[None], torch.full((outputs, 1), scale))


def leaky(name: str, neurons: int, feedback: PackedLinear | None = None) -> PackedLeaky:
    """Plain neurons of threshold 1."""
    inner = None if feedback is None else feedback.spec
    spec = LeakySpec(name, neurons, "subtract", 1, 1, feedback=inner, rest_bias=False)
    return PackedLeaky(spec, torch.tensor([BETA]), torch.ones(1), feedback)


def check(network: PackedNetwork, words: Tensor) -> None:
    """A few steps of a few samples, equal to the CPU's bit for bit."""
    some = words[:5, :4].contiguous()
    expected, got = network.simulate(some.cpu()), ran(network, some)()
    output = expected.readout if expected.output_spikes is None else expected.output_spikes
    if output is None or not torch.equal(got[network.layers[-1].spec.name].cpu(), output):
        raise SystemExit(f"{network.layers[0].spec.name}: the device's simulation differs from the CPU's")


def ran(network: PackedNetwork, words: Tensor) -> Callable[[], dict[str, Tensor]]:
    """The network on words (T, B, words), a chunk of time; the weights wait on the device."""
    from tbnn.sim.gpu import run_chunk_gpu, start_gpu

    runs = start_gpu(network.layers, words.shape[1], (None,) * len(network.layers), words.device)
    return lambda: run_chunk_gpu(runs, words)


def weights_of(layer: PackedLinear) -> Tensor:
    """As bfloat16 on the device, transposed: scale·value, exact."""
    return (layer.values() * layer.scale).to("cuda", torch.bfloat16).T


def neurons_in_torch(v: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
    """One step: membranes and spikes."""
    v = BETA * v + current - (v > 1).to(v.dtype)
    return v, (v > 1).to(v.dtype)


def measure_on(most: dict[str, float]) -> list[dict[str, Any]]:
    """ON."""
    (steps, batch), words = ON_SIZE, random_words(*ON_SIZE, LARGE, rate=RATE)
    layers: tuple[PackedLayer, ...] = linear("in", LARGE, LARGE, 2.0**-7, 1), leaky("hidden", LARGE)
    network = PackedNetwork(layers, LARGE)
    check(network, words)
    x, w = unpack_bits(words, LARGE, torch.bfloat16), weights_of(layers[0])  # pyright: ignore[reportArgumentType]

    def loop() -> Tensor:
        v, spikes = x.new_zeros(batch, LARGE), []
        for current in (x.flatten(0, 1) @ w).unflatten(0, (steps, batch)).unbind(0):
            v, fired = neurons_in_torch(v, current)
            spikes.append(fired)
        return torch.stack(spikes)

    sides: dict[str, Callable[[], object]] = {
        OURS: ran(network, words),
        BF16_LOOP: loop,
        BF16: lambda: x.flatten(0, 1) @ w,
    }
    return measure(f"ON N={LARGE} T={steps} B={batch}", sides, steps * batch * LARGE**2, most)


def graphed(run: Callable[[], object]) -> Callable[[], object]:
    """The same as a CUDA graph; what it returns stays in place."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def measure_recurrent(batch: int, most: dict[str, float]) -> list[dict[str, Any]]:
    """RECURRENT, with microseconds a step."""
    inputs, neurons, outputs, steps = RECURRENT
    words = random_words(steps, batch, inputs, rate=0.05)
    back = linear("hidden.back", neurons, neurons, 2.0**-6, 2)
    first, last = linear("in", inputs, neurons, 2.0**-3, 1), linear("out", neurons, outputs, 2.0**-5, 3)
    readout = PackedIntegrator(IntegratorSpec("readout", outputs, 1), torch.tensor([BETA]))
    network = PackedNetwork((first, leaky("hidden", neurons, back), last, readout), inputs)
    check(network, words)
    x = unpack_bits(words, inputs, torch.bfloat16)
    w_in, w_back, w_out = (weights_of(layer) for layer in (first, back, last))

    def loop() -> Tensor:
        v = fired = x.new_zeros(batch, neurons)
        y, readouts = x.new_zeros(batch, outputs), []
        for current in (x.flatten(0, 1) @ w_in).unflatten(0, (steps, batch)).unbind(0):
            v, fired = neurons_in_torch(v, current + fired @ w_back)
            y = BETA * y + fired @ w_out
            readouts.append(y)
        return torch.stack(readouts)

    sides: dict[str, Callable[[], object]] = {OURS: ran(network, words), BF16_LOOP: loop, BF16_GRAPH: graphed(loop)}
    macs = steps * batch * (inputs * neurons + neurons * neurons + neurons * outputs)
    rows = measure(f"RECURRENT {inputs}-{neurons}R-{outputs} T={steps} B={batch}", sides, macs, most)
    alone = seconds(ran(network, words[:1].contiguous()))
    return [{**r, "us_a_step": 1e3 * r["ours_ms"] / steps, "us_a_step_pushed_alone": 1e6 * alone} for r in rows]


@torch.no_grad()
def main() -> None:
    """Measure all and write results/gpu_packed.DEVICE.json."""
    if not torch.cuda.is_available():
        print("no CUDA device: nothing measured")
        sys.exit(NO_DEVICE)
    most = ceilings()
    rows = [*measure_bin(most), *measure_on(most)]
    torch.cuda.empty_cache()
    for batch in (256, 1):
        rows += measure_recurrent(batch, most)
    device = re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name(0).lower()).strip("_")
    print({name: f"{value:.3g}" for name, value in most.items()})
    print(save(f"gpu_packed.{device}", [{**r, "ceilings": most} for r in rows]))


if __name__ == "__main__":
    main()
