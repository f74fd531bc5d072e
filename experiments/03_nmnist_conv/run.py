"""The conv net for 34x34 on the N-MNIST subset, one bit a weight in every layer: test accuracy of three seeds.

python experiments/03_nmnist_conv/run.py
"""

import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from tbnn import summary
from tbnn.train.run import load_run

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from common import in_parallel, read, save, tbnn  # noqa: E402

SEEDS = (0, 1, 2)
RUNS = Path("runs/03_nmnist_conv")


def run(seed: int) -> dict[str, Any]:
    """One trained network: its accuracies, and the best validation epoch, whose weights are those tested."""
    folder = RUNS / str(seed)
    config = str(HERE / "nmnist_small.yaml")
    tbnn("train", "--config", config, "--seed", str(seed), "--output", str(folder), "--overwrite", "true")
    tbnn("evaluate", str(folder))
    measured, best = read(folder, "evaluation.test.json"), read(folder, "best.json")
    return {
        "seed": seed,
        "test_accuracy": measured["accuracy"],
        "samples": measured["samples"],
        "rates": measured["rates"],
        "validation_accuracy": best["best_accuracy"],
        "best_epoch": best["best_epoch"],
    }


def main() -> None:
    """Run all seeds and write results.json."""
    runs = in_parallel(run, SEEDS)
    accuracies = [r["test_accuracy"] for r in runs]
    print(f"test {statistics.mean(accuracies):.3f} {accuracies}")
    total = summary(load_run(RUNS / "0").network, torch.zeros(2, 1, 2 * 34 * 34)).total
    weights = {"weights": total.weights, "bits_per_weight": total.bits_per_weight, "other_numbers": total.parameters}
    save(HERE / "results.json", {"runs": runs, "mean_test_accuracy": statistics.mean(accuracies), **weights})


if __name__ == "__main__":
    main()
