"""The packed product at every density of spikes: dense, event-driven, the choice between them, and what torch takes.

    python experiments/speed/density.py          # writes results/density.cpu.json
    python experiments/speed/density.py --fit    # prints the constants of tbnn/ops/binary_linear/choice.py for this machine

Correctness first (all sides equal), then times on one thread: all sides in one process, in turn. The weights' columns
are made beforehand, once per layer; what they cost is a row of its own. torch's sparse product gets the spikes as CSR
made beforehand too.
"""

import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timing import alternate, row, save

from tbnn.bits import pack_bits_numpy, wide_words
from tbnn.ops.binary_linear.choice import active_columns, binary_product_cpu, choose
from tbnn.ops.binary_linear.counters import BLOCK
from tbnn.ops.binary_linear.cpu import FEW_ROWS, binary_counts_cpu
from tbnn.ops.binary_linear.events import WeightColumns, binary_events_cpu, strip_width, weight_columns
from tbnn.ops.binary_linear.tile import STRIP
from tbnn.ops.binary_linear.vectors import LANES

DENSITIES = (0.005, 0.01, 0.05, 0.1, 0.25, 0.3, 0.5)
SIZES = ((256, 4096, 1024), (16, 2048, 2048), (1, 1024, 1024), (320, 288, 64), (64, 2304, 128), (64, 1024, 256))
DENSE, EVENTS, CHOSEN = "dense packed", "event-driven", "the chosen one"
FP32, CSR = "torch fp32 matmul", "torch sparse CSR matmul"

Sides = dict[str, Callable[[], np.ndarray]]


def operands(m: int, k: int, n: int, density: float) -> tuple[np.ndarray, np.ndarray]:
    """0/1 spikes (m, k) and weight bits (n, k)."""
    rng = np.random.default_rng(0)
    return rng.random((m, k)) < density, rng.random((n, k)) < 0.5


def packed_sides(s: np.ndarray, w: np.ndarray) -> tuple[Sides, WeightColumns, np.ndarray]:
    """The three packed products, the columns, the spikes of each row."""
    spikes, signs = (wide_words(pack_bits_numpy(a)) for a in (s, w))
    columns, ones, out = weight_columns(signs), s.sum(1, dtype=np.int32), np.empty((len(s), len(w)), np.int32)
    shift, factor, work = -ones, np.int32(2), len(s) * w.size // 16

    def through(product: Callable[..., None], *arguments: Any, **options: Any) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            product(*arguments, factor, shift, False, out, **options)
            return out

        return run

    sides = {
        DENSE: through(binary_counts_cpu, spikes, signs, work=work),
        EVENTS: through(binary_events_cpu, spikes, ones, columns, work=work if len(s) > 1 else 1),
        CHOSEN: through(binary_product_cpu, spikes, signs, columns, ones),
    }
    return sides, columns, ones


def torch_sides(s: np.ndarray, w: np.ndarray) -> Sides:
    """What torch has for 0/1 times ±1 in float32."""
    a, b = torch.from_numpy(s).float(), (2 * torch.from_numpy(w).float() - 1).T.contiguous()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its CSR support a beta
        sparse = a.to_sparse_csr()
    return {FP32: lambda: (a @ b).numpy(), CSR: lambda: (sparse @ b).numpy()}


def measure(size: tuple[int, int, int], density: float) -> list[dict[str, Any]]:
    """Rows of ratios for one size and density."""
    m, k, n = size
    s, w = operands(m, k, n, density)
    packed, _, ones = packed_sides(s, w)
    sides = {**packed, **torch_sides(s, w)}
    expected = s.astype(np.int32) @ (2 * w.astype(np.int32) - 1).T
    for name, run in sides.items():
        if not np.array_equal(run(), expected):
            raise SystemExit(f"{size} at {density}: {name} differs from the sum")
    times = alternate(sides, rounds=9, repeats=15)
    about = {"shape": f"({m}x{k})({k}x{n}), {density:.1%} spikes, 1 thread", "density": density}
    best = min((DENSE, EVENTS), key=lambda name: np.median(times[name]))
    chosen = choose(ones, -(-k // 64), n)
    rows = [{**about, **row(times, EVENTS, DENSE)}]
    rows += [{**about, **row(times, CHOSEN, other), "chosen": chosen} for other in (FP32, CSR)]
    return [*rows, {**about, **row(times, CHOSEN, best), "chosen": chosen, "better": best}]


def measure_columns() -> list[dict[str, Any]]:
    """Turning the weights around, against one dense product."""
    m, k, n = SIZES[0]
    s, w = operands(m, k, n, 0.1)
    signs, (packed, _, _) = wide_words(pack_bits_numpy(w)), packed_sides(s, w)
    times = alternate({"columns": lambda: weight_columns(signs), DENSE: packed[DENSE]}, rounds=9, repeats=15)
    return [{"shape": f"columns of ({k}x{n}), once per layer", **row(times, "columns", DENSE)}]


def shortest(run: Callable[[], object], repeats: int = 15) -> float:
    """The least time of several runs, ns: what the model is about."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - start)
    return float(min(times))


def fit() -> None:
    """Print the constants that fit this machine, by non-negative least squares of relative errors."""
    terms: dict[str, list[tuple[list[float], float]]] = {"dense": [], "few rows": [], "events": []}
    for k in (64, 320, 1024, 4096):
        for n in (10, 64, 128, 256, 512, 768, 1024, 2048):
            for density in (0, 0.005, 0.02, 0.1, 0.3, 0.5):
                s, w = operands(64, k, n, density)
                sides, columns, ones = packed_sides(s, w)
                m, words, active = len(s), k // 64, active_columns(ones, k // 64)
                vectors, strips = strip_width(n) // LANES, len(columns.words)
                listed = float(np.sum(-(-np.minimum(ones, k - ones) // BLOCK) * BLOCK))
                x = [1.0, m, m * words, m * strips, vectors * strips * listed, active, m * -(-n // 64)]
                x.append(x[-1] * int(active / m).bit_length())
                terms["events"].append((x, shortest(sides[EVENTS])))
            per_strip = m * -(-n // STRIP)
            terms["dense"].append(([1.0, per_strip, per_strip * words], shortest(sides[DENSE])))
            few = FEW_ROWS // 2
            sides, _, _ = packed_sides(s[:few], w)
            terms["few rows"].append(([1.0, few * n, few * n * words], shortest(sides[DENSE])))
    names = {
        "dense": ("call", "ROW_STRIP", "ROW_STRIP_WORD"),
        "few rows": ("call", "OUTPUT", "OUTPUT_WORD"),
        "events": (
            *("call", "ROW", "ROW_WORD", "ROW_COLUMNS", "COLUMN_VECTOR", "ACTIVE"),
            *("OUTPUTS_64", "OUTPUTS_64_PLANE"),
        ),
    }
    for product, measured in terms.items():
        _print_fit(product, names[product], measured)


def _print_fit(product: str, names: tuple[str, ...], measured: list[tuple[list[float], float]]) -> None:
    from scipy.optimize import nnls

    x, y = (np.array(part, float) for part in zip(*measured, strict=True))
    constants, _ = nnls(x / y[:, None], np.ones(len(y)))
    low, high = np.percentile(x @ constants / y, (5, 95))
    print(f"{product}: model / measured {low:.2f}-{high:.2f} (5th to 95th percentile)")
    for name, value in zip(names, constants, strict=True):
        print(f"  {name} = {value:.3g}")


def main() -> None:
    """Measure and write results/density.cpu.json, or print the model's constants."""
    torch.set_num_threads(1)
    if sys.argv[1:] == ["--fit"]:
        fit()
        return
    rows = measure_columns()
    for size in SIZES:
        for density in DENSITIES:
            rows += measure(size, density)
    print(save("density.cpu", rows))


if __name__ == "__main__":
    main()
