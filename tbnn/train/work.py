"""What one does with a finished run: evaluate it, pack it, simulate it."""

from pathlib import Path
from typing import Any

import torch

from tbnn.data import PackedFrames, make
from tbnn.losses import logits
from tbnn.sim import PackedNetwork, check_parity, pack
from tbnn.sim.energy import energy
from tbnn.sim.neurobench import neurobench
from tbnn.train.batches import evaluation_loader, packed_file
from tbnn.train.evaluate import Evaluation, evaluate
from tbnn.train.run import Run, environment, load_run, write_json


def run_frames(run: Run, split: str) -> PackedFrames:
    """A split of the dataset a run was trained on, made again if need be.

    Raises ``ValueError`` when the recipe has changed since.
    """
    data = run.config.data
    frames = PackedFrames(packed_file(data), split)
    if frames.info.recipe_hash != run.facts["recipe_hash"]:
        raise ValueError(
            f"{run.folder}: trained on {data.dataset} of recipe {run.facts['recipe_hash'][:12]}, "
            f"which is now {frames.info.recipe_hash[:12]}"
        )
    return frames


def evaluate_run(run: Run, split: str) -> Evaluation:
    """Evaluate a run's network on a split and write evaluation.SPLIT.json into its folder."""
    frames = run_frames(run, split)
    classes = len(frames.info.classes)
    result = evaluate(run.network, evaluation_loader(frames), classes, run.config.optim.readout)  # pyright: ignore[reportArgumentType]
    write_json(run.folder / f"evaluation.{split}.json", {"split": split, **result.as_dict()})
    return result


def pack_run(run: Run, output: str | Path | None = None) -> tuple[Path, PackedNetwork]:
    """Pack a run's network into ``output`` (model.tbnn in its folder)."""
    provenance = {
        "dataset": run.facts["dataset"],
        "recipe_hash": run.facts["recipe_hash"],
        "classes": run.facts["classes"],
        "seed": run.config.seed,
        "epoch": run.checkpoint["epoch"],
        "readout": run.config.optim.readout,
        **environment(),
    }
    packed = pack(run.network, provenance=provenance)
    path = run.folder / "model.tbnn" if output is None else Path(output)
    packed.save(path)
    return path, packed


def simulate_run(folder: Path, split: str, device: str = "cpu") -> dict[str, Any]:
    """Simulate a run's model.tbnn on a split and device, check it against the trained network, and write simulation.json."""
    run = load_run(folder)
    packed = PackedNetwork.load(folder / "model.tbnn")
    frames = run_frames(run, split)
    words = frames.words().transpose(0, 1)
    parity = check_parity(run.network, packed, words)
    result = {
        **_simulated(packed, frames, split, run.config.optim.readout, device),
        "parity": {**parity.as_dict(), "summary": parity.summary()},
    }
    write_json(folder / "simulation.json", result)
    return result


def simulate_file(
    path: Path, dataset: str, split: str, source: str | None, cache: str | None, device: str = "cpu"
) -> dict[str, Any]:
    """Simulate a .tbnn file on a split of a dataset."""
    packed = PackedNetwork.load(path)
    frames = PackedFrames(make(dataset, source=source, cache=cache), split)
    if frames.info.bits != packed.in_features:
        raise ValueError(f"{path}: expects {packed.in_features} bits a step, got {dataset} with {frames.info.bits}")
    return _simulated(packed, frames, split, packed.provenance.get("readout", "mean"), device)


def _simulated(packed: PackedNetwork, frames: PackedFrames, split: str, readout: str, device: str) -> dict[str, Any]:
    result = packed.simulate(frames.words().transpose(0, 1), device=device)
    if result.readout is None:
        raise ValueError("simulate: expected a network that ends in a readout, got one that ends in spikes")
    predictions = logits(result.readout, readout).argmax(1)
    accuracy = (predictions == torch.from_numpy(frames.labels)).double().mean().item()
    counts = result.counts
    estimate = energy(packed, counts)
    return {
        "split": split,
        "accuracy": accuracy,
        "samples": len(frames),
        "steps": counts.steps,
        "counts": counts.table(),
        "neurobench": neurobench(packed, counts),
        "energy": {**estimate.as_dict(), "text": estimate.text()},
    }
