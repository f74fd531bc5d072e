"""What each learning rule keeps of earlier tasks: digits whose pixels are permuted anew for each of three tasks.

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python experiments/22_forgetting/run.py [--quick] [--seeds N]

A network for the embedded digits (800-128-10, one bit a spike and a weight) learns one permutation of its inputs after another
(Goodfellow et al. 2013), none of them seen again, without being told which it is at. What is compared is the accuracy over all
tasks after the last. Each rule's learning rate is chosen from the points of study 20 on validation, with one seed of its own;
other seeds then share initial weights, permutations and the order of the data between rules, and look at test once.
"""

import argparse
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tbnn.compare.config import CompareConfig, EstimatorConfig, Space, TuningConfig
from tbnn.compare.mechanism import control
from tbnn.compare.plan import fingerprint, points_of, resolve
from tbnn.data import PackedFrames
from tbnn.learning.binary import BinaryOptimizer, bits_per_synapse
from tbnn.learning.retention import permutations, permute, retention
from tbnn.nn import calibrate
from tbnn.train.batches import EpochOrder, packed_file
from tbnn.train.build import build_network
from tbnn.train.evaluate import evaluate
from tbnn.train.step import learner, optimizer_of

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from common import save  # noqa: E402

TASK, TASKS, EPOCHS, BATCH, PROCESSES, SEEDS, TUNING_SEED = "permuted digits", 3, 5, 32, 2, 5, 1000
RATE = "optim.learning_rate"
BASE = {
    "data.dataset": "digits", "model.hidden": [128], "model.form": "linear", "model.beta": 0.9, "model.beta_readout": 0.9,
    "optim.batch_size": BATCH, "optim.loss": "tet", "optim.tet_lambda": 0, "optim.schedule": "constant",
}  # fmt: skip
TRACE = {"spikes": "trace_slope"}
METAPLASTIC = {"optim.optimizer": "metaplastic"}
ESTIMATORS = {
    "BPTT, DDT": EstimatorConfig(**TRACE, weights="ddt"),
    "BPTT, atan, STE": EstimatorConfig("atan"),
    "OTTT, DDT": EstimatorConfig(**TRACE, weights="ddt", rule="ottt"),
    "e-prop symmetric, DDT": EstimatorConfig(**TRACE, weights="ddt", rule="eprop"),
    "e-prop random, DDT": EstimatorConfig(
        **TRACE, weights="ddt", rule="eprop", settings={"learning.feedback": "random"}
    ),
    "DECOLLE, DDT": EstimatorConfig(**TRACE, weights="ddt", rule="decolle"),
    "BPTT, Bop": EstimatorConfig(**TRACE, settings={"optim.optimizer": "bop"}),
    "OTTT, Bop": EstimatorConfig(**TRACE, rule="ottt", settings={"optim.optimizer": "bop"}),
    "BPTT, metaplastic": EstimatorConfig(**TRACE, settings=METAPLASTIC),
    "OTTT, metaplastic": EstimatorConfig(**TRACE, rule="ottt", settings=METAPLASTIC),
    "readout only": EstimatorConfig("atan", control="readout"),
}
TUNING = TuningConfig(trials=4, search={RATE: Space(low=3e-4, high=3e-2)})


def words_of(frames: PackedFrames) -> tuple[Tensor, Tensor]:
    return torch.stack([torch.as_tensor(frames[i][0]) for i in range(len(frames))], 1), torch.as_tensor(frames.labels)


def run(job: tuple[str, float, int, bool]) -> dict[str, Any]:
    """One network through all tasks: a row as those of ``tbnn compare``."""
    name, rate, seed, quick = job
    torch.set_num_threads(1)
    began, how = time.process_time(), ESTIMATORS[name]
    config = resolve({**BASE, **how.model, RATE: rate})
    file = packed_file(config.data)
    splits = {split: words_of(PackedFrames(file, split)) for split in ("train", "validation", "test")}
    info = PackedFrames(file, "train").info
    orders = permutations(TASKS, info.bits, seed=seed)
    torch.manual_seed(seed)
    network = build_network(config.model, info.sensor, len(info.classes))
    calibrate(network, splits["train"][0][:, :BATCH], rate=config.optim.calibrate)
    if how.control != "none":
        control(network, how.control)
    rule = learner(network, config.optim, config.learning, seed)
    optimizer = optimizer_of(network, config.optim, rule.parameters())
    x, y = splits["train"]
    order, losses = EpochOrder(len(y), seed), []

    def change() -> None:
        optimizer.step()
        optimizer.zero_grad()

    def train(pixels: Tensor) -> None:
        network.train()
        seen = permute(x, pixels)
        for _ in range(1 if quick else EPOCHS):
            order.epoch += 1
            told = [
                rule.sequence(seen[:, batch], y[batch], change).loss for batch in torch.tensor(list(order)).split(BATCH)
            ]
            losses.append(statistics.mean(told))

    def accuracy(split: str, pixels: Tensor) -> float:
        words, labels = splits[split]
        return evaluate(network, [(permute(words, pixels), labels)], len(info.classes), config.optim.readout).accuracy

    found = retention(train, lambda pixels: accuracy("validation", pixels), list(orders), network)
    row = {
        "task": TASK, "estimator": name, "seed": seed, "settings": {RATE: rate}, "diverged": None, "steps": len(losses),
        "losses": [round(loss, 5) for loss in losses], "train_loss": losses[-1], "validation_loss": None,
        "validation_accuracy": found.summary()["average_accuracy"], "code": fingerprint(),
        "retention": {key: round(value, 4) for key, value in found.summary().items()},
        "flips": [round(share, 4) for share in found.flips or ()],
        "bits_per_synapse": bits_per_synapse(optimizer) if isinstance(optimizer, BinaryOptimizer) else None,
    }  # fmt: skip
    if seed != TUNING_SEED:
        row |= {"test_accuracy": statistics.mean(accuracy("test", pixels) for pixels in orders), "test_loss": None}
    return row | {"seconds": round(time.process_time() - began, 2)}


def main() -> None:
    """Tune, run, print a table and write results.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="an epoch a task, one seed, one rate: does it run")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"final seeds of each rule (default: {SEEDS})")
    arguments = parser.parse_args()
    rates = [point[RATE] for point in points_of(CompareConfig(tuning=TUNING, estimators=ESTIMATORS, tasks={TASK: {}}))]
    seeds, rates = (1, rates[:1]) if arguments.quick else (arguments.seeds, rates)
    began = time.perf_counter()
    with ProcessPoolExecutor(PROCESSES, mp_context=torch.multiprocessing.get_context("spawn")) as pool:
        tuned = list(pool.map(run, [(e, rate, TUNING_SEED, arguments.quick) for e, rate in product(ESTIMATORS, rates)]))
        chosen = {e: _best([row for row in tuned if row["estimator"] == e]) for e in ESTIMATORS}
        finals = list(pool.map(run, [(e, chosen[e], s, arguments.quick) for e, s in product(ESTIMATORS, range(seeds))]))
    for e, rate in chosen.items():
        own = [row for row in finals if row["estimator"] == e]
        kept, lost = (
            statistics.mean(values)
            for values in ([r["test_accuracy"] for r in own], [r["retention"]["forgetting"] for r in own])
        )
        print(
            f"{e:22} rate {rate:<8g} test {kept:.3f} forgetting (validation) {lost:.3f} {sum(r['seconds'] for r in own):.0f} s"
        )
    if not arguments.quick:
        command = " ".join(["python experiments/22_forgetting/run.py", *sys.argv[1:]])
        save(HERE / "results.json", results(tuned, rates, chosen, finals, command, time.perf_counter() - began))


def _best(rows: list[dict[str, Any]]) -> float:
    return max(rows, key=lambda row: row["validation_accuracy"])["settings"][RATE]


def results(
    tuned: list[dict[str, Any]], rates: list[float], chosen: dict[str, float], finals: list[dict[str, Any]], command: str,
    wall: float,
) -> dict[str, Any]:  # fmt: skip
    """What the common statistics and figures read."""
    frames = {
        split: len(PackedFrames(packed_file(resolve(BASE).data), split)) for split in ("train", "validation", "test")
    }
    return {
        "format": 1,
        "title": "Forgetting: three permutations of the digits, one after another",
        "claim": "Weights that resist change keep more of earlier tasks, under online rules as under back-propagation.",
        "command": command, "code": fingerprint(), "processes": PROCESSES, "wall_seconds": round(wall, 1),
        "cpu_seconds": round(sum(row["seconds"] for row in (*tuned, *finals)), 1),
        "config": {**BASE, "permutations": TASKS, "epochs of a task": EPOCHS, "learning_rates": rates},
        "tasks": {TASK: {"axes": {}, "classes": 10, "recordings": frames, "chance": 0.1}},
        "estimators": {
            name: {"library": "tbnn", "group": how.heading, "search": [RATE], "settings": how.model}
            for name, how in ESTIMATORS.items()
        },
        "margin": 0.02, "converged": 0.5, "complete": True, "stale": 0, "quick": False, "reference": "BPTT, DDT",
        "chosen": {TASK: {name: {RATE: rate} for name, rate in chosen.items()}},
        "tuning": [{**row, "trial": rates.index(row["settings"][RATE])} for row in tuned],
        "runs": finals,
    }  # fmt: skip


if __name__ == "__main__":
    main()
