"""Data on the CPU: events to frames against tonic's ToFrame, an epoch from the packed file against tonic's disk cache.

    python experiments/speed/data.py [SOURCE]        SOURCE: the folder that holds nmnist_small, default ../shared/data

Real N-MNIST recordings. Correctness first (equal bit for bit), then times: both sides in one process, in turn, one
thread. Also: bytes a recording on disk, and the share of its time that training waits for data. Needs tonic (tbnn[data]).
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import alternate, row, save
from torch.utils.data import DataLoader

from tbnn import unpack_bits
from tbnn.bits import unpack_bits_numpy
from tbnn.data import (
    Augment,
    AugmentedFrames,
    Events,
    FrameSpec,
    PackedFrames,
    collate,
    events_to_words,
    load_recipe,
    make,
)
from tbnn.data.sources import open_source
from tbnn.data.tonic import to_tonic
from tbnn.train import DataConfig, ModelConfig, OptimConfig, TrainConfig, train
from tbnn.train.log import read_metrics

BATCH = 64
RECORDINGS = 200


def measure_frames(source: Path) -> list[dict[str, Any]]:
    """N-MNIST recordings, and one recording of 128 x 128 pixels and a million events, to 20 frames."""
    from tonic.transforms import ToFrame

    recipe = load_recipe("nmnist_small")
    train = open_source(recipe, source / "nmnist_small")["train"]
    recordings = [train.read(i) for i in range(RECORDINGS)]
    rng = np.random.default_rng(0)
    x, y, p = rng.integers(0, [[128], [128], [2]], (3, 1_000_000))
    large = [Events(x=x, y=y, t=np.sort(rng.integers(0, 2_000_000, 1_000_000)), p=p)]
    rows = []
    for name, sensor, events, width in (
        ("N-MNIST", recipe.sensor, recordings, 16_000),
        ("128x128, 1 M events", (2, 128, 128), large, 100_000),
    ):
        spec = FrameSpec(bin_width=width, steps=20, late="cut")
        arrays = [to_tonic(e) for e in events]
        size = (sensor[2], sensor[1], sensor[0])
        theirs = ToFrame(size, time_window=width, start_time=0, end_time=20 * width)
        bits = sensor[0] * sensor[1] * sensor[2]
        for e, array in zip(events, arrays, strict=True):
            ours = unpack_bits_numpy(events_to_words(e, sensor, spec), bits).reshape(20, *sensor)
            if not np.array_equal(ours, np.minimum(theirs(array), 1)):
                raise SystemExit(f"{name}: frames differ from tonic's")
        sides: dict[str, Callable[[], object]] = {
            "tbnn": lambda events=events, sensor=sensor, spec=spec: [events_to_words(e, sensor, spec) for e in events],
            "tonic ToFrame": lambda arrays=arrays, theirs=theirs: [theirs(array) for array in arrays],
        }
        times = row(alternate(sides, rounds=5, repeats=3), "tbnn", "tonic ToFrame")
        total = sum(map(len, events))
        rows.append(
            {"shape": f"events to 20 frames, {name}", **times, "events_per_s": total / (times["ours_ms"] / 1e3)}
        )
    return rows


class Frames:
    """Recordings as tonic's datasets give them: int16 frames (T, C, H, W) and a label."""

    def __init__(self, frames: PackedFrames) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        if i >= len(self):
            raise IndexError(i)
        info = self.frames.info
        bits = unpack_bits_numpy(self.frames.frames[i], info.bits).reshape(info.steps, *info.sensor)
        return bits.astype(np.int16), int(self.frames.labels[i])


def batches_of(samples: Sequence[tuple[np.ndarray, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames (B, T, C, H, W), as tonic's users collate recordings of one length, and labels."""
    frames, labels = zip(*samples, strict=True)
    return torch.from_numpy(np.stack(frames)), torch.tensor([int(label) for label in labels])


def epoch(loader: "DataLoader[Any]", as_float: Callable[[torch.Tensor], torch.Tensor] | None = None) -> int:
    """Read every batch; how many samples there were."""
    seen = 0
    for x, labels in loader:
        if as_float is not None:
            as_float(x)
        seen += len(labels)
    return seen


def measure_epoch(source: Path, folder: Path) -> list[dict[str, Any]]:
    """An epoch of the 810 training recordings in batches of 64; packed bits, varied bits, float32 frames."""
    from tonic import DiskCachedDataset

    path = make("nmnist_small", source=source, cache=folder)
    small = make("nmnist_small", source=source, cache=folder / "gzip", compression="gzip")
    frames = PackedFrames(path, "train")
    cached = DiskCachedDataset(Frames(frames), str(folder / "tonic"))  # pyright: ignore[reportArgumentType]
    for i, (words, label) in enumerate(frames):
        theirs, target = cached[i]  # writes its cache
        bits = unpack_bits_numpy(words.numpy(), frames.info.bits).reshape(theirs.shape)
        if not np.array_equal(bits, theirs) or int(target) != label:
            raise SystemExit(f"recording {i} differs from tonic's")
    varied = AugmentedFrames(frames, Augment(shift=2, drop=0.1))
    packed, theirs = DataLoader(frames, BATCH, collate_fn=collate), DataLoader(cached, BATCH, collate_fn=batches_of)
    sides: dict[str, Callable[[], object]] = {
        "packed": lambda: epoch(packed),
        "packed, shifted and dropped": lambda: epoch(DataLoader(varied, BATCH, collate_fn=collate)),
        "packed, unpacked to float32": lambda: epoch(packed, lambda x: unpack_bits(x, frames.info.bits)),
        "tonic DiskCachedDataset": lambda: epoch(theirs),
        "tonic DiskCachedDataset, to float32": lambda: epoch(theirs, torch.Tensor.float),
    }
    times = alternate(sides, rounds=5, repeats=3)
    pairs = [(name, "tonic DiskCachedDataset") for name in list(sides)[:2]]
    pairs.append(("packed, unpacked to float32", "tonic DiskCachedDataset, to float32"))
    rows = [{"shape": f"epoch of N-MNIST, {ours}", **row(times, ours, other)} for ours, other in pairs]
    tonic_bytes = sum(file.stat().st_size for file in (folder / "tonic").iterdir()) / len(frames)
    recordings = sum(frames.info.splits.values())
    rows[0]["bytes"] = {
        "float32 frames": 4 * frames.info.bits * frames.info.steps,
        "tonic DiskCachedDataset": tonic_bytes,
        "packed file": path.stat().st_size / recordings,
        "packed file, gzip": small.stat().st_size / recordings,
    }
    return rows


def measure_waiting(source: Path, folder: Path) -> dict[str, float]:
    """The share of three epochs' time that training on N-MNIST waits for batches, the first epoch left out."""
    shares = {}
    for name, model in (
        ("dense 512", ModelConfig(hidden=(512,))),
        ("conv", ModelConfig(network="nmnist_conv", hidden=(16, 32, 128), stride=2)),
    ):
        config = TrainConfig(
            data=DataConfig("nmnist_small", str(source), str(folder), augment=Augment(shift=2, drop=0.1)),
            model=model,
            optim=OptimConfig(epochs=3, batch_size=32),
            output=str(folder / f"run {name}"),
            device="cpu",
        )
        shares[name] = max(r["waited"] for r in read_metrics(train(config, quiet=True))[1:])
    return shares


def main() -> None:
    """Run all and write results/data.cpu.json."""
    source = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_frames(source) + measure_epoch(source, Path(folder))
        rows[0]["waiting"] = measure_waiting(source, Path(folder))
    for name, value in rows[0]["waiting"].items():
        print(f"training, {name}: {value:.1%} of its time spent waiting for data")
    for name, value in rows[2]["bytes"].items():
        print(f"{name}: {value:,.0f} bytes a recording")
    print(save("data.cpu", rows))


if __name__ == "__main__":
    main()
