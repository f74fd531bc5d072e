"""LIFc and BIN on the CPU: the fused neuron against snntorch's loop, the packed product against torch's fp32 matmul.

    python experiments/speed/first_light.py

LIFc has two loops: over ``x.unbind(0)``, the best a user of snntorch can write, and over ``x[t]``, as its tutorials
write it, whose backward fills a gradient of the whole input every step.

Correctness first (spikes equal, gradients to 1e-5; products equal), then times: both sides in one process, in turn.
"""

from collections.abc import Callable, Iterable

import snntorch
import torch
from timing import alternate, row, save

from tbnn import pack_bits
from tbnn.nn import Leaky
from tbnn.ops.binary_linear import binary_linear

BETA = 0.95
LIFC = ((500, 16, 512), (100, 128, 1024))
BIN = (256, 4096, 1024)


def lif_sides(steps: int, batch: int, neurons: int) -> dict[str, Callable[[], tuple[torch.Tensor, torch.Tensor]]]:
    """Forward and backward of the same neurons; each returns spikes and the gradient of their sum."""
    x = torch.randn(steps, batch, neurons, generator=torch.Generator().manual_seed(0)) * 0.5
    ours, theirs = Leaky(BETA, gradient="surrogate"), snntorch.Leaky(BETA)

    def fused() -> tuple[torch.Tensor, torch.Tensor]:
        leaf = x.detach().requires_grad_()
        spikes, _ = ours(leaf)
        spikes.sum().backward()
        return spikes.detach(), leaf.grad

    def loop(steps_of: Callable[[torch.Tensor], Iterable[torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = x.detach().requires_grad_()
        v, out = torch.zeros(batch, neurons), []
        for current in steps_of(leaf):
            spike, v = theirs(current, v)
            out.append(spike)
        spikes = torch.stack(out)
        spikes.sum().backward()
        return spikes.detach(), leaf.grad

    return {
        "tbnn": fused,
        "snntorch loop over x.unbind(0)": lambda: loop(lambda leaf: leaf.unbind(0)),
        "snntorch loop over x[t]": lambda: loop(lambda leaf: (leaf[t] for t in range(steps))),
    }


def measure_lif(threads: int) -> list[dict[str, object]]:
    """LIFc, forward and backward."""
    rows = []
    for shape in LIFC:
        sides = lif_sides(*shape)
        (spikes, gradient), (their_spikes, their_gradient), _ = (run() for run in sides.values())
        if not torch.equal(spikes, their_spikes):
            raise SystemExit(f"LIFc {shape}: spikes differ from snntorch's")
        error = ((gradient - their_gradient).abs().max() / their_gradient.abs().max()).item()
        if error > 1e-5:
            raise SystemExit(f"LIFc {shape}: gradients differ from snntorch's by {error:.2g}")
        times = alternate(sides, rounds=5, repeats=3)
        about = {"shape": f"LIFc {shape} fwd+bwd, {threads} threads", "gradient_error": error}
        rows += [{**about, **row(times, "tbnn", name)} for name in sides if name != "tbnn"]
    return rows


def measure_bin() -> list[dict[str, object]]:
    """BIN, one thread."""
    m, k, n = BIN
    g = torch.Generator().manual_seed(0)
    spikes, signs = torch.rand(m, k, generator=g) < 0.3, torch.rand(n, k, generator=g) < 0.5
    a, b = spikes.float(), (2 * signs.float() - 1).T.contiguous()
    a16, b16 = a.bfloat16(), b.bfloat16()
    packed_spikes, packed_signs = pack_bits(spikes), pack_bits(signs)
    sides = {
        "packed": lambda: binary_linear(packed_spikes, packed_signs, k),
        "fp32 matmul": lambda: a @ b,
        "bf16 matmul": lambda: a16 @ b16,
    }
    if not torch.equal(sides["packed"](), (a @ b).int()):
        raise SystemExit("BIN: the packed product differs from the matmul")
    times = alternate(sides, rounds=7, repeats=21)
    shape = f"BIN ({m}x{k})({k}x{n}), 1 thread"
    return [{"shape": shape, **row(times, "packed", other)} for other in ("fp32 matmul", "bf16 matmul")]


def main() -> None:
    """Run both and write results/first_light.cpu.json."""
    threads = torch.get_num_threads()
    rows = measure_lif(threads)
    torch.set_num_threads(1)
    rows += measure_bin()
    print(save("first_light.cpu", rows))


if __name__ == "__main__":
    main()
