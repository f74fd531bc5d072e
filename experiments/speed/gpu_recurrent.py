"""The fused recurrent layer on a CUDA device against the loop that defines it: time forward and backward, and peak memory.

    python experiments/speed/gpu_recurrent.py

Not measured: no figure of it has been published yet, and the tiles and limits in tbnn/ops/recurrent_lif/gpu.py are estimates.
The last rows are there to set one of them: the fused layer with a program for all neurons of 16 samples and every step,
against programs that share the neurons and a launch a step.

Correctness first (spikes equal, gradients to 1e-3), then times: both sides in one process, in turn, the device
synchronised after every run. Results go to results/gpu_recurrent.DEVICE.json. Without a CUDA device nothing is measured.
"""

import re
import sys

import torch
from gpu_kernels import NO_DEVICE, Side, gate, measure, synchronised
from timing import alternate, row, save

from tbnn.ops.lif import SpikeGradient
from tbnn.ops.recurrent_lif import Feedback, gpu, recurrent_lif

BETA = 0.875
REC = ((100, 64, 256), (250, 128, 512), (500, 16, 512), (100, 256, 1024), (50, 64, 2048))  # T, B, N
LIMITS = ((100, 64, 512), (100, 64, 1024), (100, 64, 2048), (100, 1024, 1024))
ESTIMATORS = {
    "surrogate": SpikeGradient("surrogate", stats="step"),
    "ddt": SpikeGradient(stats="step"),
    "trace": SpikeGradient(target="trace", stats="step"),
}


def layers(shape: tuple[int, int, int], gradient: SpikeGradient) -> dict[str, Side]:
    """Forward and backward, to current and weights; each returns spikes and the gradient of a weighted sum of them."""
    g, n = torch.Generator("cuda").manual_seed(0), shape[2]
    current = 0.25 + 0.5 * torch.randn(shape, generator=g, device="cuda")
    values = (torch.randint(0, 2, (n, n), generator=g, device="cuda") * 2 - 1).float()
    scale = torch.full((n,), 0.5 / n**0.5, device="cuda")
    weights = torch.linspace(-1, 1, n, device="cuda")

    def run(backend: str | None) -> tuple[torch.Tensor, torch.Tensor]:
        leaf, weight = current.detach().requires_grad_(), (scale[:, None] * values).requires_grad_()
        spikes = recurrent_lif(leaf, Feedback(weight, values, scale), BETA, gradient=gradient, backend=backend).out
        dcurrent, dweight = torch.autograd.grad(spikes, (leaf, weight), weights.expand_as(spikes))
        return spikes.detach(), torch.cat([dcurrent.flatten(), dweight.flatten()])

    return {"triton": synchronised(lambda: run(None)), "torch reference": synchronised(lambda: run("reference"))}


def limited(side: Side, neurons: int) -> Side:
    """The same with another limit to the neurons of a program."""

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        before, gpu.ALONE = gpu.ALONE, neurons
        try:
            return side()
        finally:
            gpu.ALONE = before

    return run


def main() -> None:
    """Measure all and write results/gpu_recurrent.DEVICE.json."""
    if not torch.cuda.is_available():
        print("no CUDA device: nothing measured")
        sys.exit(NO_DEVICE)
    rows = []
    for label, gradient in ESTIMATORS.items():
        for shape in REC:
            rows.append(measure(f"REC {shape} {label}", layers(shape, gradient), True, 5, 3))
            torch.cuda.empty_cache()
    for shape in LIMITS:
        ours = layers(shape, ESTIMATORS["surrogate"])["triton"]
        sides = {"one program": limited(ours, 1 << 30), "shared": limited(ours, 0)}
        gate(f"REC {shape}", sides, True)
        rows.append({"shape": f"REC {shape} surrogate", **row(alternate(sides, 5, 3), "one program", "shared")})
    device = re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name(0).lower()).strip("_")
    print(save(f"gpu_recurrent.{device}", rows))


if __name__ == "__main__":
    main()
