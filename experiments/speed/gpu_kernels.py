"""The Triton kernels against the torch references on a CUDA device: neurons forward and backward, and the quantiser.

    python experiments/speed/gpu_kernels.py

Correctness first (spikes and codes equal, gradients to 1e-3), then times: both sides in one process, in turn, the device
synchronised after every run. Results go to results/gpu_kernels.DEVICE.json. Without a CUDA device nothing is measured.
"""

import re
import sys
from collections.abc import Callable

import torch
from timing import alternate, row, save

from tbnn.ops.lif import SpikeGradient, lif
from tbnn.ops.quantize import quantize, quantize_with_codes

BETA = 0.875  # dyadic, so that spikes are comparable in every dtype
LIF = tuple((steps, 64, 65536) for steps in (4, 8, 16, 32))  # float16, as published figures have it
LIFC = ((500, 16, 512), (100, 128, 1024))
WEIGHTS = ((4096, 4096), (1024, 700))
SETTINGS = (
    {"bits": 1, "dim": 1},
    {"bits": 1, "dim": 1, "block": 128},
    {"bits": 4, "dim": 1, "sparsity": 0.99},
    {"bits": 1},
)
NO_DEVICE = 2

Side = Callable[[], tuple[torch.Tensor, torch.Tensor]]


def synchronised(run: Side) -> Side:
    """The same, waited for."""

    def wait() -> tuple[torch.Tensor, torch.Tensor]:
        result = run()
        torch.cuda.synchronize()
        return result

    return wait


def gate(name: str, sides: dict[str, Side], equal: bool) -> float:
    """Refuse to time what is not the same; the gradients' largest difference."""
    (out, grad), (their_out, their_grad) = (run() for run in sides.values())
    if equal and not torch.equal(out, their_out):
        raise SystemExit(f"{name}: {int((out != their_out).sum())} of {out.numel()} spikes or codes differ")
    error = ((grad - their_grad).abs().max() / their_grad.abs().max()).item()
    if not error <= (1e-3 if grad.dtype == torch.float32 else 5e-2):
        raise SystemExit(f"{name}: gradients differ by {error:.2g}")
    return error


def neurons(shape: tuple[int, int, int], dtype: torch.dtype, gradient: SpikeGradient) -> dict[str, Side]:
    """Forward and backward; each returns spikes and the gradient of a weighted sum of them."""
    g = torch.Generator("cuda").manual_seed(0)
    x = ((torch.randn(shape, generator=g, device="cuda") * 0.5 * 64).round() / 64).to(dtype)
    weights = torch.linspace(-1, 1, shape[2], device="cuda", dtype=dtype)

    def run(backend: str | None) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = x.detach().requires_grad_()
        spikes = lif(leaf, BETA, gradient=gradient, backend=backend).out
        (grad,) = torch.autograd.grad(spikes, leaf, weights.expand_as(spikes))
        return spikes.detach(), grad

    return {"triton": synchronised(lambda: run(None)), "torch reference": synchronised(lambda: run("reference"))}


def weights(shape: tuple[int, int], how: dict[str, object]) -> dict[str, Side]:
    """Forward and backward of the quantiser."""
    x, g = (torch.randn(shape, generator=torch.Generator("cuda").manual_seed(s), device="cuda") for s in (0, 1))

    def run(backend: str | None) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = x.detach().requires_grad_()
        y = quantize(leaf, backend=backend, **how)  # pyright: ignore[reportArgumentType]
        return y.detach(), torch.autograd.grad(y, leaf, g)[0]

    codes = [quantize_with_codes(x, backend=b, **how)[1].values for b in (None, "reference")]  # pyright: ignore[reportArgumentType]
    if not torch.equal(*codes):
        raise SystemExit(f"quantize {shape} {how}: codes differ")
    return {"triton": synchronised(lambda: run(None)), "torch reference": synchronised(lambda: run("reference"))}


def measure(name: str, sides: dict[str, Side], equal: bool, rounds: int, repeats: int) -> dict[str, object]:
    """One row: correct, then timed, then the peak memory of each side."""
    error = gate(name, sides, equal)
    times = alternate(sides, rounds, repeats)
    peaks = {}
    for side, run in sides.items():
        torch.cuda.reset_peak_memory_stats()
        run()
        peaks[side] = torch.cuda.max_memory_allocated() / 2**20
    spread = {side: [1e3 * min(t), 1e3 * max(t)] for side, t in times.items()}
    return {
        "shape": name,
        "gradient_error": error,
        "peak_MiB": peaks,
        "ms_min_max": spread,
        **row(times, "triton", "torch reference"),
    }


def main() -> None:
    """Measure all and write results/gpu_kernels.DEVICE.json."""
    if not torch.cuda.is_available():
        print("no CUDA device: nothing measured")
        sys.exit(NO_DEVICE)
    estimators = {
        "surrogate": SpikeGradient("surrogate"),
        "ddt": SpikeGradient(),
        "trace": SpikeGradient(target="trace"),
    }
    rows = []
    for label, gradient in estimators.items():
        for shape in LIFC:
            rows.append(measure(f"LIFc {shape} {label}", neurons(shape, torch.float32, gradient), True, 5, 3))
    for shape in LIF:
        # the reference keeps its states in float16, so spikes may differ there: float32 is what is compared
        gate(f"LIF {shape}", neurons(shape, torch.float32, estimators["surrogate"]), True)
        torch.cuda.empty_cache()
        sides = neurons(shape, torch.float16, estimators["surrogate"])
        times = alternate(sides, 5, 3)
        rows.append({"shape": f"LIF {shape} fp16 surrogate", **row(times, "triton", "torch reference")})
        torch.cuda.empty_cache()
    for size in WEIGHTS:
        for how in SETTINGS:
            rows.append(measure(f"quantize {size} {how}", weights(size, dict(how)), False, 5, 11))
    device = re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name(0).lower()).strip("_")
    print(save(f"gpu_kernels.{device}", rows))


if __name__ == "__main__":
    main()
