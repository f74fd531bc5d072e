"""DENS: the packed product at every density of spikes and weights, and the constants of the choice between its two ways.

    python experiments/speed/density.py --fit    # prints the constants of tbnn/ops/binary_linear/choice.py for this machine

As a part of simulation.py: correctness first (all sides equal), then dense, event-driven and chosen products against each
other and against torch's dense and CSR ones. What an event-driven product costs is fitted as a + b·spikes; the worst the
automatic choice loses against the better way is a figure of its own.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from products import (
    CHOSEN,
    CSR,
    CSR_WEIGHTS,
    DENSE,
    EVENTS,
    FP32,
    LISTS,
    Size,
    check,
    float_sides,
    list_side,
    operands,
    packed_sides,
    planes_of,
    sparse_sides,
)
from suite import Part, Settings, point
from timing import row

from tbnn.ops.binary_linear.choice import active_columns, choose
from tbnn.ops.binary_linear.counters import BLOCK
from tbnn.ops.binary_linear.cpu import FEW_ROWS
from tbnn.ops.binary_linear.events import strip_width, weight_columns
from tbnn.ops.binary_linear.tile import STRIP
from tbnn.ops.binary_linear.vectors import LANES

DENSITIES = (0.005, 0.01, 0.05, 0.1, 0.25, 0.3, 0.5)
WEIGHT_DENSITIES = (1.0, 0.1, 0.01)
SIZES: tuple[Size, ...] = (
    *((256, 4096, 1024), (16, 2048, 2048), (1, 1024, 1024)),
    *((320, 288, 64), (64, 2304, 128), (64, 1024, 256)),
)
SPARSE_SIZES = SIZES[:2]  # those that are measured with sparse weights too
TINY: tuple[Size, ...] = ((4, 100, 70), (1, 64, 64))
WORST_LOSS = 0.1  # the aim: the choice is never more than 10 % slower than the better way


def measure(settings: Settings) -> Part:
    """All sizes and densities."""
    part = Part()
    sizes = TINY if settings.tiny else SIZES
    for size in sizes:
        for weight_density in WEIGHT_DENSITIES if size in (*SPARSE_SIZES, TINY[0]) else (1.0,):
            _measure_size(size, weight_density, settings, part)
    part.rows += _measure_columns(sizes[0], settings)
    losses = [{"shape": r["shape"], "loss": 1 / r["ratio"] - 1} for r in part.rows if "better" in r]
    worst = max(losses, key=lambda entry: entry["loss"])
    part.facts["choice"] = {"worst_loss": worst["loss"], "at": worst["shape"], "aim": WORST_LOSS}
    print(f"the choice loses at most {worst['loss']:.0%} ({worst['shape']}); aim {WORST_LOSS:.0%}")
    return part


def _measure_size(size: Size, weight_density: float, settings: Settings, part: Part) -> None:
    """One size and density of weights at every density of spikes; the fit of the event-driven product's cost."""
    m, k, n = size
    name = f"({m}x{k})({k}x{n})" + ("" if weight_density == 1 else f", {weight_density:.0%} weights")
    seconds = []
    for density in (0.1, 0.5) if settings.tiny else DENSITIES:
        given = operands(size, density, weight_density)
        sides = {**packed_sides(given), FP32: float_sides(given)[FP32], **sparse_sides(given)}
        if weight_density < 1:
            sides |= list_side(given)
        shape = f"{name}, {density:.1%} spikes, {settings.label}"
        check(shape, sides, given.product)
        times = settings.times(sides, rounds=5, repeats=9)
        part.rows += _rows(shape, times, given.spikes.sum(1, dtype=np.int32), size, density, weight_density)
        seconds.append(np.median(times[EVENTS]))
        if density == 0.1 and weight_density == 1:
            part.points += [point(name, way, size, float(np.median(times[way]))) for way in (DENSE, EVENTS)]
    densities = (0.1, 0.5) if settings.tiny else DENSITIES
    part.facts.setdefault("cost_per_spike", []).append({"shape": name, **fitted(size, densities, seconds)})


def _rows(
    shape: str, times: dict[str, list[float]], ones: np.ndarray, size: Size, density: float, weight_density: float
) -> list[dict[str, Any]]:
    """The ratios of one shape: of the two ways, of the chosen one to torch, of the choice to the better way."""
    about = {"shape": shape, "density": density, "weight_density": weight_density}
    best = min((DENSE, EVENTS), key=lambda name: np.median(times[name]))
    chosen = choose(ones, -(-size[1] // 64), size[2])
    rows = [{**about, **row(times, EVENTS, DENSE)}]
    rows += [{**about, **row(times, CHOSEN, other)} for other in (FP32, CSR, CSR_WEIGHTS) if other in times]
    if LISTS in times:
        rows += [{**about, **row(times, LISTS, other)} for other in (CHOSEN, FP32, CSR_WEIGHTS)]
    return [*rows, {**about, **row(times, CHOSEN, best), "chosen": chosen, "better": best}]


def fitted(size: Size, densities: tuple[float, ...], seconds: list[float]) -> dict[str, float]:
    """a + b·spikes of the event-driven product up to half the inputs, by least squares of relative errors.

    ``constant_share``: what of the time at 1 % spikes (or the lowest density) does not depend on them.
    """
    m, k, _ = size
    spikes, y = np.array(densities) * m * k, np.array(seconds)
    terms = np.stack([np.ones_like(spikes), spikes], 1)
    (a, b), *_ = np.linalg.lstsq(terms / y[:, None], np.ones_like(y))
    at = max(0.01, densities[0]) * m * k
    return {
        "ns_without_spikes": 1e9 * float(a),
        "ns_per_spike": 1e9 * float(b),
        "worst_relative_error": float(np.abs(terms @ (a, b) / y - 1).max()),
        "constant_share": float(a / (a + b * at)),
    }


def _measure_columns(size: Size, settings: Settings) -> list[dict[str, Any]]:
    """Turning the weights around, once per layer, against one dense product."""
    given = operands(size, 0.1)
    signs, dense = planes_of(given.weights)[0].words, packed_sides(given)[DENSE]
    times = settings.times({"columns": lambda: weight_columns(signs), DENSE: dense}, rounds=5, repeats=9)
    return [{"shape": f"columns of ({size[1]}x{size[2]}), {settings.label}", **row(times, "columns", DENSE)}]


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
                _add_terms(terms, k, n, density)
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


def _add_terms(terms: dict[str, list[tuple[list[float], float]]], k: int, n: int, density: float) -> None:
    """What the model counts, and the time, of one size: of the event-driven product, and of the dense one at density 0.5."""
    given = operands((64, k, n), density)
    sides, ones = packed_sides(given), given.spikes.sum(1, dtype=np.int32)
    m, words, active = len(ones), k // 64, active_columns(ones, k // 64)
    vectors, strips = strip_width(n) // LANES, -(-n // (64 * strip_width(n)))
    listed = float(np.sum(-(-np.minimum(ones, k - ones) // BLOCK) * BLOCK))
    x = [1.0, m, m * words, m * strips, vectors * strips * listed, active, m * -(-n // 64)]
    x.append(x[-1] * int(active / m).bit_length())
    terms["events"].append((x, shortest(sides[EVENTS])))
    if density < 0.5:
        return
    per_strip = m * -(-n // STRIP)
    terms["dense"].append(([1.0, per_strip, per_strip * words], shortest(sides[DENSE])))
    few = FEW_ROWS // 2
    sides = packed_sides(given._replace(spikes=given.spikes[:few]))
    terms["few rows"].append(([1.0, few * n, few * n * words], shortest(sides[DENSE])))


def _print_fit(product: str, names: tuple[str, ...], measured: list[tuple[list[float], float]]) -> None:
    from scipy.optimize import nnls

    x, y = (np.array(part, float) for part in zip(*measured, strict=True))
    constants, _ = nnls(x / y[:, None], np.ones(len(y)))
    low, high = np.percentile(x @ constants / y, (5, 95))
    print(f"{product}: model / measured {low:.2f}-{high:.2f} (5th to 95th percentile)")
    for name, value in zip(names, constants, strict=True):
        print(f"  {name} = {value:.3g}")


def main() -> None:
    """Print the model's constants."""
    if sys.argv[1:] != ["--fit"]:
        raise SystemExit("density.py: expected --fit; measure with simulation.py --only DENS")
    torch.set_num_threads(1)
    fit()


if __name__ == "__main__":
    main()
