"""Gather from a finished run what its report shows."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tbnn.bits import unpack_bits_numpy
from tbnn.data import PackedFrames
from tbnn.files import replacing
from tbnn.losses import logits
from tbnn.nn import BinaryConv2d, BinaryLinear, Recurrent, health_warnings
from tbnn.nn.health import emitted_spikes, spiking_layers
from tbnn.report.data import ReportData, Sample, WeightPicture
from tbnn.report.page import write_page
from tbnn.report.raster import raster_figure
from tbnn.sim import Counts, PackedNetwork, check_parity, pack
from tbnn.sim.energy import energy
from tbnn.sim.neurobench import neurobench
from tbnn.train.evaluate import Evaluation
from tbnn.train.log import read_metrics
from tbnn.train.run import Run
from tbnn.train.work import evaluate_run, run_frames

PARITY_SAMPLES = 128


def report_run(run: Run, baselines: list[Run], sample: int) -> tuple[Path, list[str]]:
    """Write report.html into a run's folder; returns its path and the lines that sum it up.

    The run and its baselines are evaluated on the test split, the network is packed (unless it has float weights)
    and simulated on up to 128 test recordings against the trained one.

    Raises:
        ValueError: baselines of another dataset, a sample number outside the split.
    """
    for other in baselines:
        if other.facts["recipe_hash"] != run.facts["recipe_hash"]:
            raise ValueError(
                f"{other.folder}: expected a run on {run.facts['dataset']}, got one on {other.facts['dataset']}"
            )
    frames = run_frames(run, "test")
    result = evaluate_run(run, "test")
    rows = [_baseline_row(other, evaluate_run(other, "test")) for other in baselines]
    packed, refusal = _packed(run)
    parity = _parity(run, packed, frames) if packed is not None else {}
    cost = _cost(packed, frames) if packed is not None else {}
    lines = _verdict(run, result, rows, packed, parity)
    data = ReportData(
        title=f"{frames.info.title}: {_weights_name(run)} weights, 1-bit spikes",
        verdict=lines,
        dataset=_dataset(frames),
        history=read_metrics(run.folder),
        evaluation={
            "split": "test",
            "accuracy": result.accuracy,
            "loss": result.loss,
            "samples": result.samples,
            "best_epoch": run.checkpoint["best_epoch"],
            "weights": _weights_name(run),
            "gradient": gradient_name(run),
        },
        confusion=np.array(result.confusion),
        classes=list(frames.info.classes),
        rates=result.rates,
        sample=record_sample(run, frames, sample),
        weights=_pictures(run, frames.info.sensor),
        storage=storage_rows(packed) if packed is not None else [],
        parity=parity,
        **cost,
        baselines=rows,
        config_yaml=(run.folder / "config.yaml").read_text(),
        environment=_environment(run),
        warnings=health_warnings(result.rates, run.network) + ([] if refusal is None else [refusal]),
    )
    path = run.folder / "report.html"
    write_page(data, path)
    return path, lines


def plot_raster(run: Run, split: str, sample: int, output: str | Path) -> None:
    """Draw one recording of a split on its way through a run's network, as a PNG."""
    frames = run_frames(run, split)
    info = frames.info
    figure = raster_figure(
        record_sample(run, frames, sample), list(info.classes), bin_width=info.bin_width, time_unit=info.time_unit
    )
    with replacing(output) as temporary:
        figure.savefig(temporary, dpi=150, format="png", facecolor="white")


@torch.no_grad()
def record_sample(run: Run, frames: PackedFrames, index: int) -> Sample:
    """Run one recording and keep its frames, every layer's spikes, and the readout."""
    if not 0 <= index < len(frames):
        raise ValueError(f"sample: expected a number from 0 to {len(frames) - 1} in {frames.split}, got {index}")
    words, label = frames[index]
    spikes: dict[str, Any] = {}
    hooks = []
    for name, layer in spiking_layers(run.network).items():

        def keep(module: Any, _args: Any, output: Any, name: str = name) -> None:
            spikes[name] = emitted_spikes(module, output[0])[:, 0].flatten(1).byte().numpy()

        hooks.append(layer.register_forward_hook(keep))
    try:
        readout = run.network(words.unsqueeze(1))[0]
    finally:
        for hook in hooks:
            hook.remove()
    info = frames.info
    return Sample(
        label=label,
        predicted=int(logits(readout, run.config.optim.readout).argmax()),
        index=index,
        frames=unpack_bits_numpy(frames.batch([index])[0], info.bits).reshape(info.steps, *info.sensor),
        spikes=spikes,
        readout=readout[:, 0].numpy(),
    )


def _packed(run: Run) -> tuple[PackedNetwork | None, str | None]:
    """The packed network of a binary run, or why there is none."""
    if run.config.model.weights == "float":
        return None, None
    try:
        return pack(run.network), None
    except ValueError as error:
        return None, f"Not packed: {error}"


def _weights_name(run: Run) -> str:
    model = run.config.model
    if model.weights == "float":
        return "float"
    return {0: "pruned", 1.58: "ternary"}.get(model.bits, f"{model.bits:g}-bit")


def gradient_name(run: Run) -> str:
    """How the spikes' gradient was estimated, in a few words."""
    model = run.config.model
    if model.gradient == "surrogate":
        return f"surrogate {model.surrogate}({model.spike_surrogate().parameter:g})" + (
            f" x {model.scale:g}" if model.scale != 1 else ""
        )
    slope = "" if model.differentiate_stats else ", slope only"
    return f"DDT, {model.target} target{slope}"


def _baseline_row(run: Run, result: Evaluation) -> dict[str, Any]:
    return {
        "name": run.folder.name,
        "weights": _weights_name(run),
        "gradient": gradient_name(run),
        "accuracy": result.accuracy,
        "samples": result.samples,
    }


def _verdict(
    run: Run, result: Evaluation, rows: list[dict[str, Any]], packed: PackedNetwork | None, parity: dict[str, Any]
) -> list[str]:
    name = f"{_weights_name(run)} weights, {gradient_name(run)}"
    lines = [f"Test accuracy {result.accuracy:.4f} with {name} ({result.samples} recordings)."]
    lines += [f"Test accuracy {row['accuracy']:.4f} with {row['weights']} weights, {row['gradient']}." for row in rows]
    if packed is not None:
        smaller = packed.float32_bytes / packed.packed_bytes
        lines.append(f"Packed size {packed.packed_bytes:,} bytes, {smaller:.1f} times smaller than in float32.")
        summary = parity["summary"]
        lines.append(f"{summary[0].upper()}{summary[1:]}.")
    return lines


def _dataset(frames: PackedFrames) -> dict[str, Any]:
    info = frames.info
    names = ("name", "title", "steps", "bin_width", "time_unit", "bits", "licence", "source", "citation", "splits")
    return {**{name: getattr(info, name) for name in names}, "classes": list(info.classes), "sensor": list(info.sensor)}


def _parity(run: Run, packed: PackedNetwork, frames: PackedFrames) -> dict[str, Any]:
    words = frames.words(PARITY_SAMPLES).transpose(0, 1)
    parity = check_parity(run.network, packed, words)
    return {**parity.as_dict(), "summary": parity.summary()}


def _cost(packed: PackedNetwork, frames: PackedFrames) -> dict[str, Any]:
    """What one inference takes, averaged over the first test recordings: counts, NeuroBench's metrics, energy."""
    words = frames.words(PARITY_SAMPLES).transpose(0, 1)
    counts = packed.simulate(words).counts
    estimate = energy(packed, counts)
    return {
        "counts": _counts(counts),
        "neurobench": {
            **neurobench(packed, counts),
            "scale_multiplies": counts.total.scale_multiplies / counts.batch,
        },
        "energy": {**estimate.as_dict(), "text": estimate.text()},
    }


def _counts(counts: Counts) -> list[dict[str, Any]]:
    """Operations of one inference, layer by layer."""
    return [
        {
            "layer": row.name,
            "dense_synops": row.dense_synops / counts.batch,
            "effective_synops": row.effective_synops / counts.batch,
            "spikes": row.spikes / counts.batch,
            "rate": row.firing_rate,
            "neuron_updates": row.neuron_updates / counts.batch,
            "bytes": row.bytes_moved / counts.batch,
        }
        for row in counts.layers
    ]


def storage_rows(packed: PackedNetwork) -> list[dict[str, Any]]:
    """What each layer of weights takes, and then the rest, so that the rows add up to the file's tensors."""
    rows: list[dict[str, Any]] = []
    for layer in packed.linear_layers:
        weights = layer.spec.in_features * layer.spec.out_features
        stored = sum(tensor.nbytes for tensor in layer.tensors().values())
        signs_and_scales = sum(tensor.nbytes for key, tensor in layer.tensors().items() if key != "bias")
        rows.append(
            {
                "layer": layer.spec.name,
                "shape": f"{layer.spec.in_features} x {layer.spec.out_features}",
                "weights": weights,
                "bits_per_weight": 8 * signs_and_scales / weights,
                "packed_bytes": stored,
                "float32_bytes": stored - signs_and_scales + 4 * weights,
            }
        )
    rest = packed.packed_bytes - sum(row["packed_bytes"] for row in rows)
    if rest:
        rows.append({"layer": "neurons", "weights": 0, "packed_bytes": rest, "float32_bytes": rest})
    return rows


def _pictures(run: Run, sensor: tuple[int, int, int]) -> list[WeightPicture]:
    """The signs of every layer of weights; the first layer's rows as images where the sensor is one."""
    pictures = []
    kinds = (BinaryLinear, BinaryConv2d, torch.nn.Linear, torch.nn.Conv2d)
    for number, (name, module) in enumerate((n, m) for n, m in run.network.named_modules() if isinstance(m, kinds)):
        weight = module.codes()[0] if isinstance(module, (BinaryLinear, BinaryConv2d)) else module.weight.detach()
        sign = weight.sign().flatten(1).to(torch.int8).numpy()
        recurrent = isinstance(run.network.get_submodule(name.rpartition(".")[0]), Recurrent)
        field = tuple(weight.shape[1:]) if weight.ndim == 4 else sensor
        is_image = number == 0 and min(field[1:]) > 1 and int(np.prod(field)) == sign.shape[1]
        shape = (field[0], field[1], field[2]) if is_image else None
        pictures.append(WeightPicture(name, sign, "recurrent" if recurrent else "forward", shape))
    return pictures


def _environment(run: Run) -> dict[str, str]:
    names = ("tbnn", "commit", "torch", "python", "machine", "device", "seed")
    return {name: str(run.facts[name]) for name in names if name in run.facts}
