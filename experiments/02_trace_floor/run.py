"""How far below zero the trace target should be clipped: gradient norm and validation accuracy at three floors.

python experiments/02_trace_floor/run.py
"""

import json
import statistics
import sys
from itertools import product
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from common import in_parallel, save, tbnn  # noqa: E402

FLOORS = (-0.5, -0.05, 0.0)
SEEDS = (0, 1, 2)


def run(job: tuple[float, int]) -> dict[str, Any]:
    """One training run: best validation accuracy and the largest gradient norm of its last epoch."""
    floor, seed = job
    folder = Path("runs/02_trace_floor") / f"{floor}-{seed}"
    options = ["--model.floor", str(floor), "--seed", str(seed), "--output", str(folder), "--overwrite", "true"]
    tbnn("train", "--config", str(HERE / "braille7.yaml"), *options)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "floor": floor,
        "seed": seed,
        "validation_accuracy": max(row["validation_accuracy"] for row in rows),
        "grad_norm_max": max(row["grad_norm_max"] for row in rows),
    }


def main() -> None:
    """Run all and write results.json."""
    runs = in_parallel(run, list(product(FLOORS, SEEDS)))
    for floor in FLOORS:
        mine = [r for r in runs if r["floor"] == floor]
        accuracy = statistics.mean(r["validation_accuracy"] for r in mine)
        print(
            f"floor {floor:5}: validation {accuracy:.3f}, largest gradient norms {[round(r['grad_norm_max'], 1) for r in mine]}"
        )
    save(HERE / "results.json", {"runs": runs})


if __name__ == "__main__":
    main()
