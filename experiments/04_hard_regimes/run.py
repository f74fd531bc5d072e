"""Four regimes that are hard for 1-bit networks, and who converges in them: DDT against STE with bare surrogates.

    python experiments/04_hard_regimes/run.py [--quick] [REGIME ...]

The learning rate is the default of `tbnn train`. Each estimator's gradient scale is chosen from SCALES on validation with
one seed of its own; five other seeds then share initial weights and data order between estimators. Finished runs lie in
runs/04_hard_regimes and are not repeated. Figures go into results.json.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tbnn import surrogate
from tbnn.bits import unpack_bits
from tbnn.data import PackedFrames, make
from tbnn.files import replacing
from tbnn.losses import cross_entropy, logits
from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network, Recurrent, Winners, calibrate
from tbnn.train.batches import epoch_generator
from tbnn.train.config import OptimConfig

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from common import save  # noqa: E402

RUNS = Path("runs/04_hard_regimes")
SOURCE = "../shared/data"
SEEDS = (0, 1, 2, 3, 4)
TUNING_SEED = 100
SCALES = (0.25, 1.0, 4.0)
CLIP_NORM = math.inf  # none: an exploding gradient must show

ESTIMATORS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # options of the weights and of the neurons
    "DDT, soft target": ({}, {}),
    "DDT, soft target, slope only": ({"form": "linear"}, {"differentiate_stats": False}),
    "DDT, trace target": ({}, {"target": "trace"}),
    "DDT, trace target, slope only, λ 5e-4": (
        {"form": "linear"},
        {"target": "trace", "differentiate_stats": False, "lam": 5e-4},  # λ in proportion to the variance of a trace
    ),
    "DDT weights, atan(2)": ({}, {"gradient": "surrogate", "surrogate": surrogate.atan()}),
    "STE, atan(2)": ({"estimator": "ste"}, {"gradient": "surrogate", "surrogate": surrogate.atan()}),
    "STE, fast_sigmoid(25)": ({"estimator": "ste"}, {"gradient": "surrogate", "surrogate": surrogate.fast_sigmoid()}),
}


@dataclass(frozen=True)
class Regime:
    """A network, its data and for how long it is trained."""

    title: str
    dataset: str
    epochs: int
    batch: int
    network: Callable[[Callable[..., BinaryLinear], Callable[..., Leaky], int], Network]
    step_of: Callable[[Tensor], Tensor] = lambda x: x


def deep(linear: Callable[..., BinaryLinear], leaky: Callable[..., Leaky], classes: int) -> Network:
    sizes = [2312] + [128] * 11
    hidden = [layer for pair in pairwise(sizes) for layer in (linear(*pair), leaky())]
    return Network([*hidden, linear(128, classes), LeakyIntegrator(0.9)])


def long(linear: Callable[..., BinaryLinear], leaky: Callable[..., Leaky], classes: int) -> Network:
    return Network(
        [linear(12, 128), Recurrent(leaky(beta=0.98), linear(128, 128)), linear(128, classes), LeakyIntegrator(0.99)]
    )


def sparse(linear: Callable[..., BinaryLinear], leaky: Callable[..., Leaky], classes: int) -> Network:
    first = linear(800, 1024, sparsity=0.999, scope="tensor")
    return Network([first, leaky(), linear(1024, classes, sparsity=0.99, scope="tensor"), LeakyIntegrator(0.9)])


def quiet(linear: Callable[..., BinaryLinear], leaky: Callable[..., Leaky], classes: int) -> Network:
    return Network([linear(2312, 512), leaky(activity=Winners(0.01)), linear(512, classes), LeakyIntegrator(0.9)])


def finer(x: Tensor) -> Tensor:
    """Braille frames of 4 steps x 12 taxels (64, B, 48) as 512 steps of 2.5 ms, every second one empty."""
    steps = x.unflatten(2, (4, 12)).transpose(1, 2).flatten(0, 1)  # (256, B, 12)
    return torch.stack([steps, torch.zeros_like(steps)], 1).flatten(0, 1)


REGIMES = {
    "depth": Regime("12 layers of weights, no normalisation, T = 20 (N-MNIST subset)", "nmnist_small", 12, 32, deep),
    "length": Regime("recurrent, T = 512 (Braille-7)", "braille7", 3, 64, long, finer),
    "sparsity": Regime("99.9 % of the hidden weights 0, 99 % of the readout's (digits)", "digits", 15, 32, sparse),
    "activity": Regime("at most 1 % of the neurons spike (N-MNIST subset)", "nmnist_small", 12, 32, quiet),
}


def split(regime: Regime, name: str) -> tuple[Tensor, Tensor]:
    """All recordings of a split: words (N, T, W) and labels (N,)."""
    frames = PackedFrames(make(regime.dataset, source=SOURCE), name)
    words, labels = zip(*(frames[i] for i in range(len(frames))), strict=True)
    return torch.stack([torch.as_tensor(w) for w in words]), torch.tensor(labels)


def run(job: tuple[str, str, float, int, bool]) -> dict[str, Any]:
    """One training run, or what a finished one measured."""
    name, estimator, scale, seed, quick = job
    path = RUNS / f"{name}-{estimator}-{scale:g}-{seed}{'-quick' if quick else ''}.json".replace(" ", "_")
    if path.exists():
        return json.loads(path.read_text())
    torch.set_num_threads(1)
    result = _train(REGIMES[name], estimator, scale, seed, quick)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(result))
    return result


def _build(regime: Regime, estimator: str, scale: float, classes: int) -> Network:
    of_weights, options = ESTIMATORS[estimator]

    def leaky(beta: float = 0.9, **more: Any) -> Leaky:
        given = {"scale": scale, **options, **more}
        if (
            given.get("target") == "trace"
        ):  # the study's λ are in units of a trace's q², Leaky's in those of the spikes'
            given["lam"] = given.get("lam", 0.01) * (1 + beta) / (1 - beta)
        return Leaky(beta, **given)

    def linear(inputs: int, outputs: int, **more: Any) -> BinaryLinear:
        return BinaryLinear(inputs, outputs, **of_weights, **more)

    return regime.network(linear, leaky, classes)


def _train(regime: Regime, estimator: str, scale: float, seed: int, quick: bool) -> dict[str, Any]:
    words, labels = split(regime, "train")
    bits = PackedFrames(make(regime.dataset, source=SOURCE), "train").info.bits

    def frames(rows: Tensor) -> Tensor:
        return regime.step_of(unpack_bits(rows.transpose(0, 1), bits))

    torch.manual_seed(seed)
    network = _build(regime, estimator, scale, int(labels.max()) + 1)
    calibrate(network, frames(words[: regime.batch]))
    optim = OptimConfig()
    epochs = 1 if quick else regime.epochs
    batches = len(words) // regime.batch
    optimizer = torch.optim.AdamW(network.parameters(), lr=optim.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, optim.learning_rate, total_steps=epochs * batches)
    norms, diverged = [], False
    for epoch in range(epochs):
        order = torch.randperm(len(words), generator=epoch_generator(seed, epoch))
        for rows in order[: batches * regime.batch].split(regime.batch):
            loss = cross_entropy(network(frames(words[rows]))[0], labels[rows])
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM).item()
            norms.append(norm)
            if not (math.isfinite(norm) and math.isfinite(loss.item())):
                diverged = True
                break
            optimizer.step()
            schedule.step()
        if diverged:
            break
    found = {part: _accuracy(network, *split(regime, part), frames) for part in ("validation", "test")}
    return {
        "estimator": estimator, "scale": scale, "seed": seed, "diverged": diverged,
        "median_norm": statistics.median(norms), "largest_norm": max(norms),
        "last_loss": loss.item(), **{f"{part}_accuracy": value for part, value in found.items()},
    }  # fmt: skip


@torch.no_grad()
def _accuracy(network: Network, words: Tensor, labels: Tensor, frames: Callable[[Tensor], Tensor]) -> float:
    network.eval()
    hits = 0
    for rows in torch.arange(len(words)).split(64):
        hits += int((logits(network(frames(words[rows]))[0]).argmax(1) == labels[rows]).sum())
    return hits / len(words)


def main() -> None:
    """Tune, run, print a table and write results.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("regimes", nargs="*", default=list(REGIMES), metavar="REGIME")
    parser.add_argument("--quick", action="store_true", help="one epoch, one seed, one scale: does it run")
    arguments = parser.parse_args()
    seeds, scales = ((0,), (1.0,)) if arguments.quick else (SEEDS, SCALES)
    results: dict[str, Any] = {}
    with ProcessPoolExecutor(2, mp_context=torch.multiprocessing.get_context("spawn")) as pool:
        for name in arguments.regimes:
            tuning = [(name, e, s, TUNING_SEED, arguments.quick) for e, s in product(ESTIMATORS, scales)]
            tuned = list(pool.map(run, tuning))
            best = {
                e: max((r for r in tuned if r["estimator"] == e), key=lambda r: (r["validation_accuracy"], -r["last_loss"]))["scale"]
                for e in ESTIMATORS
            }  # fmt: skip
            finals = list(
                pool.map(run, [(name, e, best[e], s, arguments.quick) for e, s in product(ESTIMATORS, seeds)])
            )
            results[name] = {
                "title": REGIMES[name].title,
                "epochs": REGIMES[name].epochs,
                "tuning": tuned,
                "runs": finals,
            }
            for e in ESTIMATORS:
                accuracies = [r["test_accuracy"] for r in finals if r["estimator"] == e]
                print(
                    f"{name:9} {e:38} scale {best[e]:<5g} test {statistics.mean(accuracies):.3f} {accuracies}",
                    flush=True,
                )
    if not arguments.quick:
        save(HERE / "results.json", results)


if __name__ == "__main__":
    main()
