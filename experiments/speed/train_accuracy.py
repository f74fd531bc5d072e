"""The accuracy beside E2E's speed: real recordings, the same binary network trained by tbnn and in snntorch's loop, 5 seeds.

    python experiments/speed/train_accuracy.py            # about an hour of one core, nearly all of it snntorch's

Both sides start from the same latent weights, quantise them by :func:`tbnn.quantize` (once a batch), see the same batches in
the same order, and minimise the same loss with the same optimizer for a fixed number of epochs; nothing is chosen, and the
test recordings are looked at once, after the last epoch. What differs is what the libraries do differently: snntorch's
network steps through time, its batch norms see a step where tbnn's see a sequence, its pools give a tie's gradient to one
place. Writes results/training_accuracy.cpu.json.
"""

import argparse
import json
import statistics
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import bootstrap
from suite import BETA
from torch import nn

from tbnn.compare.in_snntorch import InSnntorch, spike_grad
from tbnn.data import PackedFrames
from tbnn.files import replacing
from tbnn.nn import Network, calibrate
from tbnn.nn.zoo import braille_recurrent, nmnist_conv
from tbnn.train.batches import EpochOrder, evaluation_loader, packed_file, train_loader
from tbnn.train.config import DataConfig
from tbnn.train.run import environment

SEEDS = range(5)
OURS, SNNTORCH = "tbnn", "snntorch"
RESULTS = Path(__file__).parent / "results" / "training_accuracy.cpu.json"
NEURON = {"beta": BETA, "gradient": "surrogate"}
WITHIN = 0.005


class Case(NamedTuple):
    """A network, its data and how long it trains."""

    dataset: str
    epochs: int
    learning_rate: float


CASES = {"nmnist_conv": Case("nmnist_small", 12, 4e-3), "braille_recurrent": Case("braille7", 20, 1e-2)}
BATCH = 32


def build(case: str, sensor: tuple[int, ...], classes: int) -> Network:
    """The network of E2E."""
    if case == "nmnist_conv":
        return nmnist_conv(dropout=0, neuron=NEURON)
    return braille_recurrent((256,), classes, in_features=sensor[0] * sensor[1] * sensor[2], neuron=NEURON)


def run(job: tuple[str, str, int]) -> dict[str, Any]:
    """Train one side from a seed; its test accuracy after the last epoch."""
    name, side, seed = job
    case = CASES[name]
    torch.set_num_threads(1)
    packed = packed_file(DataConfig(case.dataset, source="../shared/data"))
    train, test = PackedFrames(packed, "train"), PackedFrames(packed, "test")
    torch.manual_seed(seed)
    network = build(name, train.info.sensor, len(train.info.classes))
    order = EpochOrder(len(train), seed)
    loader = train_loader(train, order, BATCH)
    calibrate(network, next(iter(loader))[0])
    model: nn.Module = network
    if side == SNNTORCH:
        model = InSnntorch(network, train.info.bits, spike_grad("atan", 2.0, 1.0))
    optimizer = torch.optim.AdamW(model.parameters(), case.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, case.learning_rate, total_steps=case.epochs * len(loader))

    model.train()
    for order.epoch in range(case.epochs):
        for words, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(words)[0].mean(0), labels).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        right = [(model(words)[0].mean(0).argmax(1) == labels).float() for words, labels in evaluation_loader(test)]
    accuracy = torch.cat(right).mean().item()
    print(f"{name} {side} seed {seed}: {accuracy:.4f}", flush=True)
    return {"case": name, "side": side, "seed": seed, "accuracy": accuracy, "recordings": len(test)}


def compared(runs: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The paired difference of accuracies, its 95 % bootstrap interval over seeds."""
    found = {s: [r["accuracy"] for r in runs if r["case"] == name and r["side"] == s] for s in (OURS, SNNTORCH)}
    differences = [a - b for a, b in zip(found[OURS], found[SNNTORCH], strict=True)]
    mean, interval = statistics.mean(differences), [differences[0]] * 2
    if len(set(differences)) > 1:
        ends = bootstrap((differences,), statistics.mean, vectorized=False, rng=0).confidence_interval
        interval = [float(ends.low), float(ends.high)]
    means = {side: statistics.mean(values) for side, values in found.items()}
    return {"case": name, **means, "difference": mean, "interval": interval, "within": mean >= -WITHIN}


def main() -> None:
    """Every case, both sides, all seeds, as many at once as asked for."""
    parser = argparse.ArgumentParser(description="Accuracy of the E2E networks against the same in snntorch.")
    parser.add_argument("--only", choices=CASES, help="one network")
    parser.add_argument("--side", choices=(OURS, SNNTORCH), help="one library; the other's runs stay as they were")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    names = [arguments.only] if arguments.only else list(CASES)
    sides = [arguments.side] if arguments.side else [OURS, SNNTORCH]
    jobs = [(name, side, seed) for name in names for seed in SEEDS for side in sides]
    with ProcessPoolExecutor(arguments.processes) as pool:
        runs = list(pool.map(run, jobs))
    before = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    runs = [r for r in before if r["case"] not in names or r["side"] not in sides] + runs
    both = [name for name in CASES if {r["side"] for r in runs if r["case"] == name} == {OURS, SNNTORCH}]
    results = {
        "date": datetime.now(UTC).date().isoformat(),
        "environment": environment(),
        "settings": {name: case._asdict() | {"batch": BATCH} for name, case in CASES.items()},
        "compared": [compared(runs, name) for name in both],
        "runs": runs,
    }
    with replacing(RESULTS) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")
    for c in results["compared"]:
        low, high = c["interval"]
        print(
            f"{c['case']}: {c[OURS]:.4f} {c[SNNTORCH]:.4f}, difference {c['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
        )


if __name__ == "__main__":
    main()
