"""DDT against the straight-through estimator where DDT was published: no spikes, one bit an activation and a weight (A1W1).

    python experiments/16_outside_spikes/run.py [--quick] [--seeds N]

A residual perceptron reads 32 bytes of text and says the next one. Every linear layer but the head multiplies activations and
weights that tbnn.quantize has brought to one bit, in blocks of 128 along the inputs, with a layer norm before. Published, for
another network and another text (arXiv 2409.09245, C4, accuracy): DDT affine .3751, DDT linear .3547, STE linear .3399, STE
affine .3397, with λ = 0.01, and STE oscillates or reaches NaN at high learning rates. What is held against it is the order.

Each estimator's learning rate is chosen from RATES on validation with one seed of its own; other seeds then share initial
weights and the order of the data between estimators, and look at test once. Forward, DDT and STE are the same. Finished runs
lie in runs/16_outside_spikes and are not repeated as long as the code is the same. Figures go into results.json.
"""

import argparse
import hashlib
import json
import math
import platform
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tbnn import quantize
from tbnn.files import replacing

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from common import save  # noqa: E402

RUNS = Path("runs/16_outside_spikes")
TASK = "language"
RATES = (1e-3, 4e-3, 1.6e-2)
TUNING_SEED = 1000
SEEDS = 5
PROCESSES = 2
ESTIMATORS: dict[str, dict[str, Any] | None] = {  # options of tbnn.quantize; None: not quantised
    "DDT affine": {"estimator": "ddt", "form": "affine"},
    "DDT linear": {"estimator": "ddt", "form": "linear"},
    "STE affine": {"estimator": "ste", "form": "affine"},
    "STE linear": {"estimator": "ste", "form": "linear"},
    "float": None,
}
# The statistics take validation's best of the group "surrogate" as the reference; a float network is an upper bound.
GROUPS = {name: "float" if how is None else "ddt" if how["estimator"] == "ddt" else "surrogate" for name, how in ESTIMATORS.items()}  # fmt: skip
PUBLISHED = {"DDT affine": 0.3751, "DDT linear": 0.3547, "STE affine": 0.3397, "STE linear": 0.3399}

CONTEXT, EMBEDDING, WIDTH, HIDDEN, DEPTH, BYTES = 32, 32, 256, 512, 2, 256
BLOCK, LAM = 128, 0.01
STEPS, QUICK_STEPS, WARMUP, BATCH, WEIGHT_DECAY = 1000, 8, 0.05, 128, 0.01
PARTS = 40  # of the loss curve


class OneBitLinear(nn.Linear):
    """A linear layer whose inputs and weights are of one bit, or floats; before it a layer norm."""

    def __init__(self, inputs: int, outputs: int, how: dict[str, Any] | None) -> None:
        super().__init__(inputs, outputs)
        self.norm, self.how = nn.LayerNorm(inputs), how

    def forward(self, input: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs)."""
        return functional.linear(self._bits(self.norm(input)), self._bits(self.weight), self.bias)

    def _bits(self, x: Tensor) -> Tensor:
        return x if self.how is None else quantize(x, bits=1, lam=LAM, dim=-1, block=BLOCK, **self.how)


class Residual(nn.Module):
    """x + narrow(gelu(wide(x)))."""

    def __init__(self, how: dict[str, Any] | None) -> None:
        super().__init__()
        self.wide, self.narrow = OneBitLinear(WIDTH, HIDDEN, how), OneBitLinear(HIDDEN, WIDTH, how)

    def forward(self, x: Tensor) -> Tensor:
        """(B, WIDTH) -> (B, WIDTH)."""
        return x + self.narrow(functional.gelu(self.wide(x)))


def language_model(how: dict[str, Any] | None) -> nn.Sequential:
    """Bytes (B, CONTEXT) -> logits (B, 256) of the next one; embedding and head stay floats."""
    return nn.Sequential(
        nn.Embedding(BYTES, EMBEDDING), nn.Flatten(), OneBitLinear(CONTEXT * EMBEDDING, WIDTH, how),
        *(Residual(how) for _ in range(DEPTH)), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, BYTES),
    )  # fmt: skip


def text() -> tuple[bytes, dict[str, Any]]:
    """Python's own documentation, each paragraph once (topics share many), and what it is; it differs between versions."""
    from pydoc_data.topics import topics

    whole = [topics[name] for name in sorted(topics)]
    paragraphs = dict.fromkeys(paragraph for topic in whole for paragraph in topic.split("\n\n") if paragraph.strip())
    used, everything = "\n\n".join(paragraphs).encode(), "\n".join(whole).encode()
    return used, {
        "text": "pydoc_data.topics, each paragraph once", "python": platform.python_version(),
        "bytes": len(used), "sha256": hashlib.sha256(used).hexdigest(),
        "bytes_with_repetitions": len(everything), "sha256_with_repetitions": hashlib.sha256(everything).hexdigest(),
    }  # fmt: skip


def splits() -> dict[str, Tensor]:
    """The first 80 %, the next 10 % and the last 10 % of the bytes, int64 windows (N, CONTEXT + 1) within each."""
    data = torch.frombuffer(bytearray(text()[0]), dtype=torch.uint8)
    ends = [0, int(0.8 * len(data)), int(0.9 * len(data)), len(data)]
    parts = (data[a:b].unfold(0, CONTEXT + 1, 1) for a, b in pairwise(ends))
    return dict(zip(("train", "validation", "test"), parts, strict=True))


def code() -> str:
    """12 hex digits over what decides a run: this file, the operators and the text."""
    import tbnn.ops

    ops = Path(tbnn.ops.__file__).parent
    sources = [
        Path(__file__),
        ops / "kernels.py",
        *sorted(p for op in ("ddt", "quantize") for p in (ops / op).glob("*.py")),
    ]
    return hashlib.sha256(b"".join([*(path.read_bytes() for path in sources), text()[0]])).hexdigest()[:12]


def run(job: tuple[str, float, int, bool]) -> dict[str, Any]:
    """One training run, or what a finished one measured."""
    name, rate, seed, quick = job
    path = RUNS / f"{name}-{rate:g}-{seed}{'-quick' if quick else ''}.json".replace(" ", "_")
    if path.exists() and (found := json.loads(path.read_text()))["code"] == code():
        return found
    torch.set_num_threads(1)
    row = train(name, rate, seed, QUICK_STEPS if quick else STEPS)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(row))
    return row


def train(name: str, rate: float, seed: int, steps: int) -> dict[str, Any]:
    """Train one network; test is looked at only with a seed that does not tune. Seconds are of the processor."""
    began = time.process_time()
    data = splits()
    torch.manual_seed(seed)
    model = language_model(ESTIMATORS[name])
    initial = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()[:12]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
    warmup = max(1, round(WARMUP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min((k + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * (k - warmup) / (steps - warmup)))
    )
    order = torch.randint(len(data["train"]), (steps, BATCH), generator=torch.Generator().manual_seed(seed))
    losses: list[float] = []
    norms: list[float] = []
    diverged = None
    for step, rows in enumerate(order):
        windows = data["train"][rows].long()
        loss = functional.cross_entropy(model(windows[:, :-1]), windows[:, -1])
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item()
        if not (math.isfinite(loss.item()) and math.isfinite(norm)):
            diverged = step
            break
        losses.append(loss.item())
        norms.append(norm)
        optimizer.step()
        schedule.step()
    measured = {"validation": evaluate(model, data["validation"], steps)}
    if seed != TUNING_SEED:
        measured["test"] = evaluate(model, data["test"], steps)
    curve = [statistics.mean(losses[i : i + -(-steps // PARTS)]) for i in range(0, len(losses), -(-steps // PARTS))]
    return {
        "task": TASK, "estimator": name, "seed": seed, "settings": {"optim.learning_rate": rate},
        **{f"{split}_accuracy": accuracy for split, (accuracy, _) in measured.items()},
        **{f"{split}_loss": loss for split, (_, loss) in measured.items()},
        "train_loss": curve[-1] if curve else None, "diverged": diverged, "steps": len(losses),
        "seconds": round(time.process_time() - began, 2), "code": code(), "initial": initial,
        "stability": {
            # Oscillation: how far the loss, averaged over a fortieth of the steps, rises above what it had reached, nats.
            "largest_rise": max((now - min(curve[:i]) for i, now in enumerate(curve) if i), default=0.0),
            "median_gradient_norm": statistics.median(norms) if norms else None,
            "largest_gradient_norm": max(norms, default=None),
        },
        "curve": [round(value, 4) for value in curve],
    }  # fmt: skip


@torch.no_grad()
def evaluate(model: nn.Module, windows: Tensor, steps: int) -> tuple[float, float | None]:
    """Share of the next bytes that are right, and the mean loss in nats, over all windows (a quick run: over 512)."""
    hits, total = 0, 0.0
    windows = windows[:512] if steps == QUICK_STEPS else windows
    for part in windows.split(1024):
        out, target = model(part[:, :-1].long()), part[:, -1].long()
        hits += int((out.argmax(1) == target).sum())
        total += functional.cross_entropy(out, target, reduction="sum").item()
    loss = total / len(windows)
    return hits / len(windows), loss if math.isfinite(loss) else None


def best(rows: list[dict[str, Any]]) -> float:
    """The learning rate of the best trial: finite before diverged, then validation accuracy, then loss."""

    def merit(row: dict[str, Any]) -> tuple[bool, float, float]:
        loss = row["validation_loss"]
        return row["diverged"] is None, row["validation_accuracy"], -math.inf if loss is None else -loss

    return max(rows, key=merit)["settings"]["optim.learning_rate"]


def main() -> None:
    """Tune, run, print a table and write results.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps, one seed, one rate: does it run")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"final seeds of each estimator (default: {SEEDS})")
    arguments = parser.parse_args()
    seeds, rates = (range(1), RATES[:1]) if arguments.quick else (range(arguments.seeds), RATES)
    began = time.perf_counter()
    with ProcessPoolExecutor(PROCESSES, mp_context=torch.multiprocessing.get_context("spawn")) as pool:
        tuned = list(pool.map(run, [(e, rate, TUNING_SEED, arguments.quick) for e, rate in product(ESTIMATORS, rates)]))
        chosen = {e: best([row for row in tuned if row["estimator"] == e]) for e in ESTIMATORS}
        finals = list(pool.map(run, [(e, chosen[e], seed, arguments.quick) for e, seed in product(ESTIMATORS, seeds)]))
    for e, rate in chosen.items():
        own = [row for row in finals if row["estimator"] == e]
        accuracies = [round(row["test_accuracy"], 4) for row in own]
        print(
            f"{e:11} rate {rate:<6g} test {statistics.mean(accuracies):.4f} {accuracies} published {PUBLISHED.get(e, '-')}"
            f" diverged {sum(row['diverged'] is not None for row in own)} largest rise"
            f" {max(row['mechanism']['largest_rise'] for row in own):.3f} {sum(row['seconds'] for row in own):.0f} s"
        )
    if not arguments.quick:
        command = " ".join(["python experiments/16_outside_spikes/run.py", *sys.argv[1:]])
        save(HERE / "results.json", results(tuned, chosen, finals, command, time.perf_counter() - began))


def results(
    tuned: list[dict[str, Any]], chosen: dict[str, float], finals: list[dict[str, Any]], command: str, wall: float
) -> dict[str, Any]:
    """What the common statistics and figures read."""
    data = splits()
    trials = {rate: number for number, rate in enumerate(RATES)}
    config = {
        "data": text()[1], "context": CONTEXT, "embedding": EMBEDDING, "width": WIDTH, "hidden": HIDDEN, "depth": DEPTH,
        "bits": 1, "block": BLOCK, "lam": LAM, "steps": STEPS, "warmup": WARMUP, "batch": BATCH, "schedule": "cosine to 0",
        "optimizer": "AdamW", "weight_decay": WEIGHT_DECAY, "learning_rates": RATES, "tuning_seed": TUNING_SEED,
        "parameters": sum(p.numel() for p in language_model(None).parameters()), "published": PUBLISHED,
    }  # fmt: skip
    return {
        "format": 1,
        "title": "Outside spikes: one bit an activation and a weight",
        "claim": "At A1W1 in blocks of 128, DDT affine > DDT linear > STE linear ~ STE affine (arXiv 2409.09245)",
        "command": command, "code": code(), "processes": PROCESSES, "wall_seconds": round(wall, 1),
        "cpu_seconds": round(sum(row["seconds"] for row in (*tuned, *finals)), 1), "config": config,
        "tasks": {
            TASK: {
                "axes": {}, "classes": BYTES, "recordings": {name: len(part) for name, part in data.items()},
                "chance": int(data["test"][:, -1].bincount().max()) / len(data["test"]),
            }
        },
        "estimators": {
            name: {
                "library": "tbnn", "group": GROUPS[name], "search": ["optim.learning_rate"],
                "settings": {f"model.{key}": value for key, value in (how or {"bits": "float"}).items()},
            }
            for name, how in ESTIMATORS.items()
        },
        "margin": 0.005, "converged": 0.5, "complete": True, "stale": 0, "quick": False, "reference": None,
        "chosen": {TASK: {name: {"optim.learning_rate": rate} for name, rate in chosen.items()}},
        "tuning": [{**row, "trial": trials[row["settings"]["optim.learning_rate"]]} for row in tuned],
        "runs": finals,
    }  # fmt: skip


if __name__ == "__main__":
    main()
