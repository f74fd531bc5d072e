"""One run of a comparison: train a network, evaluate it, and say what happened on the way."""

import hashlib
import itertools
import math
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from tbnn.compare.in_snntorch import InSnntorch, spike_grad
from tbnn.compare.mechanism import control
from tbnn.compare.observer import Observer
from tbnn.compare.plan import Job, fingerprint
from tbnn.data import AugmentedFrames, PackedFrames, StoreInfo
from tbnn.nn import Network, calibrate, progress
from tbnn.train.batches import EpochOrder, evaluation_loader, first_batch, packed_file, train_loader
from tbnn.train.build import build_network
from tbnn.train.config import ModelConfig
from tbnn.train.evaluate import Evaluation, evaluate
from tbnn.train.step import Diverged, check_finite, learner, matched, optimizer_of, schedule_of

QUICK_BATCHES = 3
OBSERVED = 64  # validation recordings on which a mechanism is measured
SPLITS = {"tuning": ("validation",), "final": ("validation", "test")}


@dataclass
class History:
    """What a run went through."""

    losses: list[float] = field(default_factory=list)
    """Mean training loss of each epoch."""
    norms: list[float] = field(default_factory=list)
    """Norm of the gradient at each step, before clipping."""
    diverged: int | None = None
    """The step at which the loss, or the gradient, was no longer finite."""


def run_job(job: Job) -> dict[str, Any]:
    """Train and evaluate one network; the row of the results (see :mod:`tbnn.compare.results`).

    A run that diverges ends there and is evaluated as it stands. Trials see the training and the validation split only.

    Raises:
        FileNotFoundError: the recordings are missing.
        ValueError: a setting that the layers, or snntorch, refuse.
    """
    torch.set_num_threads(1)
    start = time.process_time()
    config = job.train
    packed = packed_file(config.data)
    frames = PackedFrames(packed, "train")
    torch.manual_seed(config.seed)
    network = _drawn(config.model, frames.info)
    initial = _digest(network)
    order = EpochOrder(len(frames), config.seed)
    varied = AugmentedFrames(frames, config.data.augment, config.seed)
    loader = train_loader(varied, order, config.optim.batch_size)
    first = first_batch(frames, config.seed, config.optim.batch_size)
    if config.optim.calibrate and isinstance(network, Network):
        calibrate(network, first, rate=config.optim.calibrate)
    model: nn.Module = network
    if job.how.control != "none":
        control(network, job.how.control)
    if job.how.library == "snntorch":
        scaled = spike_grad(job.how.spikes, config.model.surrogate_width, config.model.scale)
        model = InSnntorch(network, frames.info.bits, scaled)
    observer = None
    if job.mechanism and model is network:
        words, labels = next(iter(evaluation_loader(PackedFrames(packed, "validation"))))
        observer = Observer(network, words[:, :OBSERVED], labels[:OBSERVED], config.optim, job.smoothed)
    history = _train(model, loader, order, varied, job, observer, first)
    row = {
        "task": job.task,
        "estimator": job.estimator,
        "seed": config.seed,
        "settings": job.settings,
        "diverged": history.diverged,
        "steps": len(history.norms),
        "losses": [_number(loss) for loss in history.losses],
        "train_loss": _number(history.losses[-1]) if history.losses else None,
        "grad_norm": _norms(history.norms),
        "initial": initial,
        "code": fingerprint(),
    }
    if observer is not None:
        row["mechanism"] = observer.report()
    for split in SPLITS[job.phase]:
        result = _evaluate(model, PackedFrames(packed, split), job)
        row |= {f"{split}_accuracy": result.accuracy, f"{split}_loss": _number(result.loss)}
        if split == "validation":
            row["rates"] = {name: round(rate, 5) for name, rate in result.rates.items()}
    return row | {"seconds": round(time.process_time() - start, 2)}


def _drawn(model: ModelConfig, info: StoreInfo) -> Network:
    """The network with the latent weights that the seed gives to all; float weights start from them too."""
    network = build_network(replace(model, weights="binary"), info.sensor, len(info.classes))
    if model.weights == "binary":
        return network
    plain = build_network(model, info.sensor, len(info.classes))
    latent = dict(network.named_parameters())
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(latent[name])
    return plain


def _train(
    model: nn.Module, loader: Any, order: EpochOrder, varied: AugmentedFrames, job: Job, observer: Observer | None,
    first: Tensor,
) -> History:  # fmt: skip
    """Train for the epochs of the configuration, or until a number is not finite."""
    optim, learning, history = job.train.optim, job.train.learning, History()
    rule = learner(model, optim, learning, job.train.seed)
    optimizer = optimizer_of(model, optim, rule.parameters())
    schedule = schedule_of(optimizer, optim, len(loader))
    norms: list[float] = []

    def change() -> None:
        parameters = [*model.parameters(), *rule.parameters()]
        norms.append(nn.utils.clip_grad_norm_(parameters, optim.clip_norm or math.inf).item())
        check_finite("the norm of the gradient", norms[-1])
        if observer is not None:
            observer.step()
        optimizer.step()
        optimizer.zero_grad()

    model.train()
    for epoch in range(1, optim.epochs + 1):
        order.epoch = varied.epoch = epoch
        progress(model, (epoch - 1) / max(optim.epochs - 1, 1))
        matched(model, first, job.train.model)
        losses, seen = 0.0, 0
        for words, labels in _few(loader, job.quick):
            optimizer.zero_grad()
            try:
                outcome = rule.sequence(words, labels, change, steps=learning.update_every)
                check_finite("the loss", outcome.loss)
            except Diverged:
                history.diverged = len(history.norms) + 1
                return history
            schedule.step()
            history.norms.append(max(norms))
            norms.clear()
            losses, seen = losses + outcome.loss * len(labels), seen + len(labels)
        history.losses.append(losses / seen)
        if observer is not None:
            observer.epoch()
    return history


def _evaluate(model: nn.Module, frames: PackedFrames, job: Job) -> Evaluation:
    batches = itertools.islice(evaluation_loader(frames), 1) if job.quick else evaluation_loader(frames)
    return evaluate(model, batches, len(frames.info.classes), job.train.optim.readout)


def _few(batches: Iterable[Any], quick: bool) -> Iterable[Any]:
    return itertools.islice(batches, QUICK_BATCHES) if quick else batches


def _digest(network: nn.Module) -> str:
    """Of the parameters as drawn: equal for estimators that start from the same weights."""
    digest = hashlib.sha256()
    for parameter in network.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()[:12]


def _norms(norms: list[float]) -> dict[str, float] | None:
    if not norms:
        return None
    figures = {"first": norms[0], "median": statistics.median(norms), "largest": max(norms)}
    return {name: float(f"{value:.4g}") for name, value in figures.items()}


def _number(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
