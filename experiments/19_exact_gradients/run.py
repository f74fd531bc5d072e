"""Gradients on a time grid against exact ones of the same network in continuous time, as the step shrinks.

    python experiments/19_exact_gradients/run.py [--quick]

A layer of 30 leaky neurons with synapses (20 and 5 ms) between 20 inputs and 4 classes, float weights as drawn, 16 recordings
of 100 ms. Nothing is trained and nothing is chosen. Exact gradients are those of the spike times. Writes results.json.
"""

import argparse
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tbnn import surrogate
from tbnn.compare.eventprop import EventNetwork, agreement
from tbnn.compare.statistics import interval

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from common import save  # noqa: E402

SEEDS = range(10)
STEPS = (2e-3, 1e-3, 5e-4, 2e-4, 1e-4)  # seconds
INPUTS, HIDDEN, CLASSES, BATCH, SPIKES = 20, 30, 4, 16, 3
TINY = 1e-12
SLOPE = {"differentiate_stats": False}
GRADIENTS: dict[str, dict[str, Any]] = {
    **{
        name: {"gradient": "surrogate", "surrogate": shape}
        for name, shape in {
            "atan(2)": surrogate.atan(2.0), "fast_sigmoid(25)": surrogate.fast_sigmoid(25.0),
            "fast_sigmoid(100)": surrogate.fast_sigmoid(100.0), "sigmoid(25)": surrogate.sigmoid(25.0),
            "straight through": surrogate.straight_through_estimator(),
        }.items()
    },
    "DDT soft, slope": {"target": "soft", **SLOPE},
    "DDT soft, slope, λ = 1e-12": {"target": "soft", "lam": TINY, **SLOPE},
    "DDT trace, slope": {"target": "trace", **SLOPE},
    "DDT trace, slope, λ = 1e-12": {"target": "trace", "lam": TINY, **SLOPE},
    "DDT trace, slope, λ = 1e-12, a layer a block": {"target": "trace", "lam": TINY, "per_channel": False, **SLOPE},
    "DDT trace, λ = 1e-12": {"target": "trace", "lam": TINY},
}  # fmt: skip


def drawn(seed: int) -> tuple[EventNetwork, Tensor, Tensor]:
    """A network that fires a few times a neuron, inputs and labels."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    hidden = 1.5 + 3 * normal(HIDDEN, INPUTS)
    network = EventNetwork(hidden, normal(CLASSES, HIDDEN))
    inputs = 0.09 * torch.rand((BATCH, INPUTS, SPIKES), generator=generator, dtype=torch.float64)
    return network, inputs, torch.randint(CLASSES, (BATCH,), generator=generator)


def row(name: str, dt: float, seed: int) -> dict[str, Any]:
    """One network, one estimator, one step."""
    network, inputs, labels = drawn(seed)
    found = agreement(network, inputs, labels, dt, **GRADIENTS[name])
    cosine, ratio = found.cosine["hidden"], found.ratio["hidden"]
    return {
        "estimator": name, "dt": dt, "seed": seed, "loss_exact": round(found.losses[0], 6),
        "loss_grid": round(found.losses[1], 6), "cosine": None if math.isnan(cosine) else round(cosine, 4),
        "ratio": float(f"{ratio:.4g}"),
    }  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By estimator and step: mean cosine with its interval over networks, median ratio of norms."""
    table = []
    for name, dt in dict.fromkeys((r["estimator"], r["dt"]) for r in rows):
        own = [r for r in rows if (r["estimator"], r["dt"]) == (name, dt)]
        cosines = [r["cosine"] for r in own if r["cosine"] is not None]
        table.append({
            "estimator": name, "dt": dt, "networks": len(cosines),
            "cosine": statistics.mean(cosines) if cosines else None,
            "interval": list(interval(cosines)) if len(cosines) > 1 else None,
            "ratio": statistics.median(r["ratio"] for r in own),
        })  # fmt: skip
    return table


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description="Gradients on a time grid against exact ones.")
    parser.add_argument("--quick", action="store_true", help="one network, coarse steps, nothing saved")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    start = time.process_time()
    steps, seeds = (STEPS[:2], SEEDS[:1]) if quick else (STEPS, SEEDS)
    rows = [row(name, dt, seed) for name in GRADIENTS for dt in steps for seed in seeds]
    table = summary(rows)
    for line in table:
        cosine = "none" if line["cosine"] is None else f"{line['cosine']:.3f}"
        print(f"{line['estimator']:46} dt {line['dt']:<7g} cosine {cosine}  ratio {line['ratio']:.3g}", flush=True)
    if not quick:
        save(
            HERE / "results.json",
            {"cpu_seconds": round(time.process_time() - start, 1), "summary": table, "rows": rows},
        )


if __name__ == "__main__":
    main()
