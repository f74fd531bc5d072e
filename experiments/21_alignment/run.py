"""Do the updates of online rules agree with back-propagation's gradient better where spikes have ridge-denoised slopes?

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python experiments/21_alignment/run.py [--source FOLDER]

A recurrent net for Braille letters (48-64r-7, one bit a weight), untrained, calibrated to 10 % firing; one batch of 32 recordings
of 64 steps, three seeds. Each estimator of the spikes' slope at its own size, and at sizes where e-prop's update of the first
layer has 1/2, 1 and 2 times the norm that the trace target's has. Writes results.json beside this file.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tbnn import unpack_bits
from tbnn.data import PackedFrames, make
from tbnn.files import replacing
from tbnn.learning import Eprop, Ottt
from tbnn.learning.alignment import alignment
from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network, Recurrent, calibrate
from tbnn.surrogate import atan, fast_sigmoid
from tbnn.train.run import environment

SLOPES: dict[str, dict[str, Any]] = {
    "trace": {"target": "trace", "differentiate_stats": False, "stats": "step"},
    "soft": {"target": "soft", "differentiate_stats": False, "stats": "step"},
    "atan(2)": {"gradient": "surrogate", "surrogate": atan()},
    "fast_sigmoid(25)": {"gradient": "surrogate", "surrogate": fast_sigmoid()},
}
SIZES = (0.5, 1.0, 2.0)
SEEDS, BATCH, HIDDEN, PART = 3, 32, 64, "layers.1.recurrent_layer.weight"


def network_of(seed: int, x: Tensor, slope: str, scale: float) -> Network:
    torch.manual_seed(seed)
    feedback = BinaryLinear(HIDDEN, HIDDEN, form="linear")
    layers = [
        BinaryLinear(x.shape[2], HIDDEN, form="linear"),
        Recurrent(Leaky(0.9, scale=scale, **SLOPES[slope]), feedback),
        BinaryLinear(HIDDEN, 7, form="linear"),
        LeakyIntegrator(0.9),
    ]
    network = Network(layers)
    calibrate(network, x)
    return network


def update_norm(network: Network, x: Tensor, labels: Tensor) -> float:
    """Of e-prop's update of the first layer, which is proportional to the scale."""
    network.zero_grad()
    Eprop(network).sequence(x, labels)
    gradient = network.layers[0].weight.grad
    return gradient.norm().item()  # pyright: ignore[reportOptionalMemberAccess]


def measure(source: str) -> list[dict[str, Any]]:
    frames = PackedFrames(make("braille7", source=source), "train")
    rows = []
    for seed in range(SEEDS):
        order = torch.randperm(len(frames), generator=torch.Generator().manual_seed(seed))[:BATCH]
        recordings = [frames[int(i)] for i in order]
        words = torch.stack([torch.as_tensor(words) for words, _ in recordings], 1)
        labels = torch.tensor([int(label) for _, label in recordings])
        x = unpack_bits(words, frames.info.bits)
        norms = {slope: update_norm(network_of(seed, x, slope, 1.0), x, labels) for slope in SLOPES}
        for slope in SLOPES:
            for size in (None, *SIZES):
                scale = 1.0 if size is None else size * norms["trace"] / norms[slope]
                network = network_of(seed, x, slope, scale)
                for rule in (Eprop(network), Ottt(network)):
                    found = alignment(rule, x, labels)[PART]
                    row = {"seed": seed, "slope": slope, "size": size, "scale": scale, "rule": rule.name}
                    rows.append({**row, "cosine": found.cosine, "ratio": found.ratio})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="../shared/data")
    torch.set_num_threads(1)
    rows = measure(parser.parse_args().source)
    path = Path(__file__).parent / "results.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
    for rule in ("eprop", "ottt"):
        for slope in SLOPES:
            for size in (None, *SIZES):
                own = [r for r in rows if (r["rule"], r["slope"], r["size"]) == (rule, slope, size)]
                cosine, ratio = (sum(r[name] for r in own) / len(own) for name in ("cosine", "ratio"))
                print(f"| {rule} | {slope} | {'own' if size is None else size} | {cosine:.3f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
