"""Train, evaluate, pack and simulate every set with three seeds, beside the same network with float weights and atan.

    python experiments/01_first_light/run.py [SET ...]

Each run is a `tbnn train --config experiments/01_first_light/SET.yaml --seed S` in a process of one thread, as many at
once as there are cores. Figures go into results.json.
"""

import statistics
import sys
from itertools import product
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from common import in_parallel, read, save, tbnn  # noqa: E402

RUNS = Path("runs/01_first_light")
SETS = ("digits", "nmnist_small", "braille7")
SEEDS = (0, 1, 2)
VARIANTS = {
    "binary": [],
    "float": ["--model.weights", "float", "--model.gradient", "surrogate", "--model.surrogate", "atan"],
}


def run(job: tuple[str, str, int]) -> dict[str, Any]:
    """One trained network: what it measured on validation and test."""
    name, variant, seed = job
    folder = RUNS / f"{name}-{variant}-{seed}"
    config = str(HERE / f"{name}.yaml")
    tbnn(
        "train",
        "--config",
        config,
        "--seed",
        str(seed),
        "--output",
        str(folder),
        "--overwrite",
        "true",
        *VARIANTS[variant],
    )
    tbnn("evaluate", str(folder))
    measured = read(folder, "evaluation.test.json")
    best = read(folder, "best.json")
    result = {
        "seed": seed,
        "test_accuracy": measured["accuracy"],
        "validation_accuracy": best["best_accuracy"],
        "best_epoch": best["best_epoch"],
        "rates": measured["rates"],
        "samples": measured["samples"],
    }
    if variant == "binary":
        tbnn("pack", str(folder))
        tbnn("simulate", str(folder))
        simulated = read(folder, "simulation.json")
        result["packed_test_accuracy"] = simulated["accuracy"]
        result["parity"] = {key: simulated["parity"][key] for key in ("ok", "equal", "summary")}
        result["tbnn_file_bytes"] = (folder / "model.tbnn").stat().st_size
    return result


def main() -> None:
    """Run what is asked for and merge it into results.json."""
    sets = sys.argv[1:] or list(SETS)
    jobs = list(product(sets, VARIANTS, SEEDS))
    results = in_parallel(run, jobs)
    merged: dict[str, Any] = {}
    for name, variant in product(sets, VARIANTS):
        runs = [result for job, result in zip(jobs, results, strict=True) if job[:2] == (name, variant)]
        accuracies = [r["test_accuracy"] for r in runs]
        print(f"{name:14} {variant:7} test {statistics.mean(accuracies):.4f} {accuracies}")
        merged.setdefault(name, {})[variant] = {"mean_test_accuracy": statistics.mean(accuracies), "runs": runs}
    save(HERE / "results.json", merged)


if __name__ == "__main__":
    main()
