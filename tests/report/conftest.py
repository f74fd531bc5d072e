"""A made-up network whose report has every part."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tbnn.report import ReportData, Sample, WeightPicture
from tbnn.sim.energy import TECHNOLOGIES, Energy, LayerEnergy

CLASSES = [f"{digit}" for digit in range(10)]


def made_up_sample(
    rng: np.random.Generator,
    *,
    steps: int = 24,
    sensor: tuple[int, int, int] = (2, 20, 20),
    layers: tuple[int, ...] = (96, 64),
    classes: int = 10,
    predicted: int = 3,
) -> Sample:
    """A blob that crosses the sensor, spikes at about 8 %, and a readout in which ``predicted`` wins."""
    _, height, width = sensor
    rows, columns = np.mgrid[:height, :width]
    frames = np.zeros((steps, *sensor), np.uint8)
    if min(height, width) == 1:
        frames[:] = rng.random(frames.shape) < 0.04
    for t in range(steps if min(height, width) > 1 else 0):
        centre = width * (0.2 + 0.6 * t / steps)
        ring = np.abs(np.hypot(rows - height / 2, columns - centre) - height / 4) < 1.2
        for c in range(sensor[0]):
            side = columns >= centre if c else columns < centre
            frames[t, c] = ring & side & (rng.random((height, width)) < 0.5)
    spikes = {
        f"layers.{2 * i + 1}": (rng.random((steps, n)) < rng.random(n) * 0.16).astype(np.uint8)
        for i, n in enumerate(layers)
    }
    readout = rng.normal(0, 0.3, (steps, classes)).cumsum(0)
    readout[:, predicted] += np.linspace(0, 6, steps)
    return Sample(3, predicted, 17, frames, spikes, readout)


def made_up_history(rng: np.random.Generator, epochs: int = 20) -> list[dict[str, float]]:
    """A run that learns and slowly overfits."""
    rows = []
    for epoch in range(1, epochs + 1):
        progress = 1 - np.exp(-epoch / 4)
        rows.append(
            {
                "epoch": epoch,
                "train_loss": 2.3 - 2.1 * progress,
                "train_accuracy": 0.1 + 0.88 * progress,
                "validation_loss": 2.3 - 1.9 * progress + 0.01 * epoch,
                "validation_accuracy": 0.1 + 0.83 * progress + rng.normal(0, 0.01),
                "learning_rate": 0.004 * (1 + np.cos(np.pi * epoch / epochs)) / 2,
                "grad_norm": 1.7 * np.exp(rng.normal(0, 0.2)),
                "grad_norm_max": 9.0 * np.exp(rng.normal(0, 0.5)),
                "seconds": 4.2,
                "rate/layers.1": 0.12 - 0.03 * progress,
                "rate/layers.3": 0.08 + 0.05 * progress,
            }
        )
    return rows


def made_up_energy() -> dict[str, Any]:
    """As of a network of two layers, on the chip that everyone uses."""
    weights = LayerEnergy("layers.0", "linear", 8.4e-9, 4.2e-8, 0.0, 2.5e-8, 3.1e-9, 0.0, 8.5e-6)
    neurons = LayerEnergy("layers.1", "leaky", 0.0, 0.0, 1.3e-8, 0.0, 3.7e-10, 2.3e-8)
    made = Energy(TECHNOLOGIES["45nm"], (weights, neurons))
    return {**made.as_dict(), "text": made.text()}


def made_up_report(seed: int = 0) -> ReportData:
    """Every part filled in."""
    rng = np.random.default_rng(seed)
    confusion = np.diag(rng.integers(40, 60, 10)) + rng.poisson(0.4, (10, 10))
    samples = int(confusion.sum())
    sign = np.where(rng.random((96, 800)) < 0.5, -1, 1).astype(np.int8)
    blobs = sign.reshape(96, 2, 20, 20).copy()
    blobs[:, :, 6:14, 6:14] = 1
    return ReportData(
        title="Handwritten digits, seen by an event camera",
        verdict=[
            "With one bit a weight the network reaches the accuracy of its full-precision twin within the interval.",
            "It takes 31 times less memory and one operation in fourteen.",
        ],
        dataset={
            "name": "dvs-digits",
            "title": "Moving digits through a simulated event camera",
            "classes": CLASSES,
            "sensor": (2, 20, 20),
            "steps": 24,
            "bin_width": 4000,
            "time_unit": "us",
            "bits": 800,
            "licence": "CC BY 4.0",
            "source": "https://archive.example.org/digits",
            "citation": "E. Alpaydin, C. Kaynak: Optical recognition of handwritten digits. UCI, 1998.",
            "splits": {"train": 3823, "validation": 674, "test": samples},
        },
        history=made_up_history(rng),
        evaluation={
            "split": "test",
            "accuracy": float(np.trace(confusion)) / samples,
            "loss": 0.31,
            "samples": samples,
            "best_epoch": 16,
        },
        confusion=confusion,
        classes=CLASSES,
        rates={"layers.1": 0.0913, "layers.3": 0.1287},
        sample=made_up_sample(rng),
        weights=[
            WeightPicture("layers.0", blobs.reshape(96, 800), "forward", (2, 20, 20)),
            WeightPicture("layers.2", rng.integers(-1, 2, (64, 96)).astype(np.int8)),
            WeightPicture("layers.3", rng.integers(0, 2, (64, 64)).astype(np.int8) * 2 - 1, "recurrent"),
        ],
        storage=[
            {
                "layer": "layers.0",
                "shape": (96, 800),
                "weights": 76800,
                "bits_per_weight": 1,
                "packed_bytes": 9984,
                "float32_bytes": 307584,
            },
            {
                "layer": "layers.2",
                "shape": (64, 96),
                "weights": 6144,
                "bits_per_weight": 1.58,
                "packed_bytes": 1792,
                "float32_bytes": 24832,
            },
            {
                "layer": "layers.4",
                "shape": (10, 64),
                "weights": 640,
                "bits_per_weight": 1,
                "packed_bytes": 120,
                "float32_bytes": 2600,
            },
        ],
        counts=[
            {
                "layer": "layers.0",
                "dense_synops": 1843200,
                "effective_synops": 84211,
                "spikes": 877,
                "rate": 0.0457,
                "neuron_updates": 2304,
                "bytes": 239616,
            },
            {
                "layer": "layers.2",
                "dense_synops": 147456,
                "effective_synops": 13463,
                "spikes": 210,
                "rate": 0.0913,
                "neuron_updates": 1536,
                "bytes": 43008,
            },
            {
                "layer": "layers.4",
                "dense_synops": 15360,
                "effective_synops": 1977,
                "spikes": 198,
                "rate": 0.1287,
                "neuron_updates": 240,
                "bytes": 2880,
            },
        ],
        neurobench={
            "Footprint": 11896,
            "ConnectionSparsity": 0.0371,
            "ActivationSparsity": 0.8913,
            "SynapticOperations": {"Dense": 2006016.0, "Effective_MACs": 0.0, "Effective_ACs": 99651.0},
            "MembraneUpdates": 4081.0,
            "scale_multiplies": 12768.0,
        },
        energy=made_up_energy(),
        parity={
            "ok": True,
            "equal": True,
            "summary": "497 recordings, 1,098,240 spikes, none differs.",
            "layers": [
                {"layer": "layers.1", "spikes": 1098240, "different": 0, "equal": True},
                {"layer": "layers.3", "spikes": 9481, "different": 0, "equal": True},
            ],
        },
        baselines=[
            {
                "name": "full precision",
                "weights": "float32",
                "gradient": "surrogate atan",
                "accuracy": 0.942,
                "samples": samples,
            },
            {
                "name": "straight-through signs",
                "weights": "1 bit",
                "gradient": "surrogate atan",
                "accuracy": 0.887,
                "samples": samples,
            },
        ],
        config_yaml="model:\n  hidden: [96, 64]\n  bits: 1\ntrain:\n  epochs: 20\n  learning_rate: 0.004\n",
        environment={
            "tbnn": "0.1.0",
            "torch": "2.13.0",
            "python": "3.11.7",
            "commit": "bf7331d",
            "device": "cpu",
            "seed": "0",
            "date": "2026-01-31",
        },
        warnings=["layers.3 is close to saturation: it fires at 12.9 %"],
    )


@pytest.fixture(scope="session")
def report() -> ReportData:
    """The made-up report."""
    return made_up_report()


@pytest.fixture
def make_sample() -> Callable[..., Sample]:
    """Samples of other sizes: steps, sensor, layers, classes, predicted."""
    return lambda **changes: made_up_sample(np.random.default_rng(1), **changes)


@pytest.fixture
def change(report: ReportData) -> Callable[..., ReportData]:
    """The made-up report with some parts replaced."""

    def changed(**parts: Any) -> ReportData:
        return replace(report, **parts)

    return changed
