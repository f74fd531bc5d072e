"""The pictures of ``tbnn plot``: of a finished run, each by its name."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tbnn.data import PackedFrames
from tbnn.files import replacing
from tbnn.learning.alignment import Agreement
from tbnn.learning.recording import TRACED, record_traces
from tbnn.nn.health import emitted_spikes, spiking_layers
from tbnn.nn.weights import BinaryWeight
from tbnn.report.animation import animate_recording
from tbnn.report.collect import plot_raster, record_sample
from tbnn.report.fields import fields_figure, most_varied
from tbnn.report.learning import alignment_figure, flips_figure, traces_figure
from tbnn.train.log import read_metrics
from tbnn.train.run import Run
from tbnn.train.step import learner
from tbnn.train.watch import COSINE, FLIPS, RATIO
from tbnn.train.work import run_frames

KINDS = ("raster", "fields", "learning", "animation", "flips", "alignment")
LOOKED_AT = 64  # recordings that tell which neurons vary most
_DOTS = 150  # an inch


def plot(kind: str, run: Run, split: str = "test", sample: int = 0, output: str | Path | None = None) -> Path:
    """Draw one of ``KINDS`` of a run; returns the file, by default ``KIND.png`` (``animation.gif``) in the run's folder.

    Raises:
        ValueError: another kind; a recording outside the split; a run without what is asked for.
    """
    if kind not in KINDS:
        raise ValueError(f"plot: expected one of {', '.join(KINDS)}, got {kind!r}")
    path = Path(output) if output else run.folder / (f"{kind}.gif" if kind == "animation" else f"{kind}.png")
    if kind == "raster":
        plot_raster(run, split, sample, path)
        return path
    frames = run_frames(run, split)
    info = frames.info
    time: dict[str, Any] = {"bin_width": info.bin_width, "time_unit": info.time_unit}
    if kind == "animation":
        animate_recording(record_sample(run, frames, sample), list(info.classes), path, **time)
        return path
    drawn = {
        "fields": lambda: _fields(run, frames),
        "learning": lambda: _learning(run, frames, sample, time),
        "flips": lambda: _flips(run),
        "alignment": lambda: _alignment(run),
    }
    figure = drawn[kind]()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=_DOTS, format="png", facecolor="white")
    return path


def _fields(run: Run, frames: PackedFrames) -> Any:
    """The receptive fields of the first layer of weights."""
    weighted = (BinaryWeight, torch.nn.Linear, torch.nn.Conv2d)
    name, layer = next((n, m) for n, m in run.network.named_modules() if isinstance(m, weighted))
    values: Any = layer.codes().values if isinstance(layer, BinaryWeight) else layer.weight
    values = values.detach().numpy()
    if values.ndim == 4:
        return fields_figure(values, values.shape[1:], name=f"{name}, its kernels")
    chosen = most_varied(_counts(run, frames))
    return fields_figure(values, frames.info.sensor, chosen.tolist(), name, "the most varied neurons first")


@torch.no_grad()
def _counts(run: Run, frames: PackedFrames) -> np.ndarray[Any, Any]:
    """Spikes of the first spiking layer's neurons, (recordings, neurons)."""
    seen: list[Any] = []
    layer = next(iter(spiking_layers(run.network).values()))

    def keep(module: Any, _args: Any, output: Any) -> None:
        seen.append(emitted_spikes(module, output[0]).flatten(2).sum(0).numpy())

    hook = layer.register_forward_hook(keep)
    try:
        run.network(frames.words(LOOKED_AT).transpose(0, 1))
    finally:
        hook.remove()
    return seen[0]


def _learning(run: Run, frames: PackedFrames, index: int, time: dict[str, Any]) -> Any:
    """Traces of one recording under the run's rule."""
    config = run.config
    if config.learning.rule not in TRACED:
        raise ValueError(
            f"{run.folder}: learned by {config.learning.rule}, which keeps no traces; expected a run with --learning.rule "
            f"{', '.join(TRACED)}"
        )
    if not 0 <= index < len(frames):
        raise ValueError(f"sample: expected a number from 0 to {len(frames) - 1} in {frames.split}, got {index}")
    words, target = frames[index]
    rule = learner(run.network, config.optim, config.learning, config.seed)
    return traces_figure(record_traces(rule, words.unsqueeze(1), torch.tensor([target])), **time)


def _flips(run: Run) -> Any:
    """The share of signs that turned in each epoch."""
    shares = _logged(run, FLIPS)
    if not shares:
        raise ValueError(f"{run.folder}: metrics.jsonl holds no flips; expected a run with quantised weights")
    return flips_figure({name: list(rows.values()) for name, rows in shares.items()})


def _alignment(run: Run) -> Any:
    """How far the rule's updates agreed with the gradient after each epoch."""
    cosines, ratios = _logged(run, COSINE), _logged(run, RATIO)
    epochs = sorted({epoch for rows in cosines.values() for epoch in rows})
    if not epochs:
        raise ValueError(
            f"{run.folder}: metrics.jsonl holds no alignment; expected a run with --learning.alignment true"
        )
    rows = [
        {name: Agreement(cosines[name][epoch], ratios[name][epoch]) for name in cosines if epoch in cosines[name]}
        for epoch in epochs
    ]
    return alignment_figure(epochs, rows, run.config.learning.rule, "epoch")


def _logged(run: Run, start: str) -> dict[str, dict[int, float]]:
    """The entries of the log that begin so, by the rest of their name and by epoch."""
    found: dict[str, dict[int, float]] = {}
    for row in read_metrics(run.folder):
        for name, value in row.items():
            if name.startswith(start):
                found.setdefault(name.removeprefix(start), {})[int(row["epoch"])] = value
    return found
