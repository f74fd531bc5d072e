"""The training loop: a learning rule, back-propagation through time or another, over a packed dataset."""

import copy
import math
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tbnn.data import AugmentedFrames, PackedFrames
from tbnn.files import replacing
from tbnn.learning import Rule
from tbnn.losses import logits
from tbnn.nn import Network, calibrate, detect_nonfinite, health_warnings, progress
from tbnn.train.batches import EpochOrder, Waiting, evaluation_loader, first_batch, packed_file, train_loader
from tbnn.train.build import build_network
from tbnn.train.config import TrainConfig
from tbnn.train.evaluate import evaluate
from tbnn.train.log import Display, MetricsLog
from tbnn.train.parse import config_from_file
from tbnn.train.run import load_weights, run_facts, save_weights, write_config, write_json
from tbnn.train.step import Diverged, check_finite, learner, matched, optimizer_of, schedule_of
from tbnn.train.watch import Watch

RESULTS = ("simulation.json", "model.tbnn", "report.html")  # what later commands write into a run's folder


@dataclass
class Progress:
    """Where a run stands: what the checkpoints' JSON holds."""

    epoch: int = 0
    best_epoch: int = 0
    best_accuracy: float = -1.0


def train(config: TrainConfig, *, quiet: bool = False) -> Path:
    """Train a network as ``config`` says and return the run's folder (see :mod:`tbnn.train.run`).

    The weights kept as "best" are those of the epoch with the highest validation accuracy (the later one of equals); the
    test split is not read.

    Raises:
        FileNotFoundError: the recordings, or the checkpoint to resume from, are missing.
        ValueError: the folder holds a run and neither ``resume`` nor ``overwrite`` is set; a bad setting or file.
        Diverged: the loss or the gradient is no longer finite.
        FloatingPointError: with ``optim.detect_nonfinite``, the layer and the time step where that comes from.
    """
    folder = Path(config.output)
    accelerator = Accelerator(cpu=config.device == "cpu")
    if accelerator.is_main_process:
        _check_folder(folder, config)
    accelerator.wait_for_everyone()
    packed = packed_file(config.data)
    frames, validation = PackedFrames(packed, "train"), PackedFrames(packed, "validation")
    varied = AugmentedFrames(frames, config.data.augment, config.seed)
    torch.manual_seed(config.seed)
    network = build_network(config.model, frames.info.sensor, len(frames.info.classes))
    order = EpochOrder(len(frames), config.seed)
    loader = train_loader(varied, order, config.optim.batch_size, config.data.workers)
    first = first_batch(frames, config.seed, config.optim.batch_size)
    if config.optim.calibrate and not config.resume and isinstance(network, Network):
        calibrate(network, first, rate=config.optim.calibrate)
    if config.learning.rule != "bptt" and accelerator.num_processes > 1:
        raise ValueError(
            f"learning.rule: {config.learning.rule!r} runs in one process, got {accelerator.num_processes}"
        )
    network.to(accelerator.device)  # a rule's own matrices go where the weights are
    rule = learner(network, config.optim, config.learning, config.seed, accelerator.backward)
    optimizer = optimizer_of(network, config.optim, rule.parameters())
    schedule = schedule_of(optimizer, config.optim, len(loader))
    progress = _resume(folder, network, rule, optimizer, schedule) if config.resume else Progress()
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        if config.overwrite:
            _clear(folder)
        write_config(folder, config)
        write_json(folder / "run.json", run_facts(folder, config, frames.info, str(accelerator.device), packed))
    model, optimizer, loader, schedule = accelerator.prepare(network, optimizer, loader, schedule)
    rule.network = model
    trainer = _Trainer(
        config,
        folder,
        accelerator,
        model,
        rule,
        optimizer,
        schedule,
        loader,
        order,
        varied,
        validation,
        progress,
        first,
    )
    trainer.run(quiet=quiet or not accelerator.is_main_process)
    return folder


def _check_folder(folder: Path, config: TrainConfig) -> None:
    holds_run = (folder / "run.json").exists()
    if config.resume and not (folder / "last.json").exists():
        raise FileNotFoundError(f"{folder}: resume needs a checkpoint, last.json is missing")
    if holds_run and not config.resume and not config.overwrite:
        raise ValueError(f"{folder} holds a run already; expected --resume true, --overwrite true or another --output")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output: expected a folder, got the file {folder}")
    if config.resume:
        _check_same(config, config_from_file(folder / "config.yaml"), folder)


def _check_same(config: TrainConfig, saved: TrainConfig, folder: Path) -> None:
    """Raise ``ValueError`` unless a resumed run has the settings it was started with (where data lie may change)."""
    same_place = {"source": None, "cache": None}
    for part in ("data", "model", "optim", "learning", "seed"):
        got, expected = getattr(config, part), getattr(saved, part)
        if part == "data":
            got, expected = replace(got, **same_place), replace(expected, **same_place)
        if got != expected:
            raise ValueError(
                f"{folder}: resume goes on with the settings of the run; {part}: expected {expected}, got {got}"
            )


def _clear(folder: Path) -> None:
    """Remove what an earlier run left: nothing of it may pass for the new one's."""
    for old in ("best", "last"):
        for ending in ("json", "safetensors", "optimizer.pt"):
            (folder / f"{old}.{ending}").unlink(missing_ok=True)
    for old in (
        *folder.glob("evaluation.*.json"),
        *folder.glob("tensorboard/events.*"),
        *(folder / name for name in RESULTS),
    ):
        old.unlink(missing_ok=True)


def _resume(folder: Path, network: Network, rule: Rule, optimizer: Optimizer, schedule: LRScheduler) -> Progress:
    facts = load_weights(folder / "last.safetensors", network)
    path = folder / "last.optimizer.pt"
    try:
        saved = torch.load(path, weights_only=True)
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        rule.load_state_dict(saved.get("rule", {}))
        return Progress(facts["epoch"], facts["best_epoch"], facts["best_accuracy"])
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a damaged archive makes torch raise
        raise ValueError(f"{path}: not the optimizer state of this run ({str(error).splitlines()[0]})") from None


class _Trainer:
    """The loop itself, once everything is prepared."""

    def __init__(
        self, config: TrainConfig, folder: Path, accelerator: Accelerator, model: Any, rule: Rule, optimizer: Any, schedule: Any,
        loader: Any, order: EpochOrder, frames: AugmentedFrames, validation: PackedFrames, progress: Progress, first: Tensor,
    ) -> None:  # fmt: skip
        self.config, self.folder, self.accelerator = config, folder, accelerator
        self.model, self.rule, self.optimizer, self.schedule = model, rule, optimizer, schedule
        self.loader, self.order = loader, order
        self.frames, self.validation, self.progress = frames, validation, progress
        self.first = first.to(accelerator.device)
        self.readout = config.optim.readout
        aligned = (rule, validation) if config.learning.alignment else None
        self.watch = Watch(accelerator.unwrap_model(model), aligned)

    def run(self, quiet: bool) -> None:
        """Train the epochs that are left."""
        epochs = self.config.optim.epochs
        log = MetricsLog(self.folder, self.progress.epoch) if self.accelerator.is_main_process else None
        self._compile()
        display = Display(epochs, len(self.loader), self.progress.epoch, quiet)
        try:
            for epoch in range(self.progress.epoch + 1, epochs + 1):
                row = self._epoch(epoch, display)
                best = row["validation_accuracy"] >= self.progress.best_accuracy
                self.progress.epoch = epoch
                if best:
                    self.progress.best_epoch, self.progress.best_accuracy = epoch, row["validation_accuracy"]
                if log is not None:
                    self._save(row, best)
                    log.add(row)
                display.epoch(row, best)
                rates = {name.removeprefix("rate/"): value for name, value in row.items() if name.startswith("rate/")}
                for line in health_warnings(rates, self.accelerator.unwrap_model(self.model)):
                    display.say(f"warning: {line}")
        finally:
            display.close()
            if log is not None:
                log.close()

    def _compile(self) -> None:
        """Run one small batch on a copy, so that compiling kernels is not counted as training."""
        words, labels = next(iter(self.loader))
        twin = copy.deepcopy(self.accelerator.unwrap_model(self.model))
        with suppress(Diverged):  # the run itself will say where
            learner(twin, self.config.optim, self.config.learning).sequence(words, labels)

    def _epoch(self, epoch: int, display: Display) -> dict[str, float]:
        """Train one epoch and validate; the row of the log."""
        start = time.perf_counter()
        self.order.epoch = self.frames.epoch = epoch
        self.model.train()
        progress(self.model, (epoch - 1) / max(self.config.optim.epochs - 1, 1))
        matched(self.accelerator.unwrap_model(self.model), self.first, self.config.model)
        losses, correct, seen, norms = 0.0, 0, 0, []
        batches = Waiting(self.loader)
        for number, (words, labels) in enumerate(batches, 1):
            loss, hits, norm = self._watched_batch(words, labels, f"epoch {epoch}, step {number}")
            losses, correct, seen = losses + loss * len(labels), correct + hits, seen + len(labels)
            norms.append(norm)
            display.batch(epoch, loss)
        seconds = time.perf_counter() - start
        network = self.accelerator.unwrap_model(self.model)
        held_out = (
            (w.to(self.accelerator.device), y.to(self.accelerator.device))
            for w, y in evaluation_loader(self.validation)
        )
        result = evaluate(network, held_out, len(self.validation.info.classes), self.readout)
        return {
            "epoch": epoch,
            "train_loss": losses / seen,
            "train_accuracy": correct / seen,
            "validation_loss": result.loss,
            "validation_accuracy": result.accuracy,
            "learning_rate": self.schedule.get_last_lr()[0],
            "grad_norm": sorted(norms)[len(norms) // 2],
            "grad_norm_max": max(norms),
            "seconds": seconds,
            "waited": batches.seconds / seconds,
            **{f"rate/{name}": rate for name, rate in result.rates.items()},
            **self.watch.epoch(),
        }

    def _watched_batch(self, x: Tensor, labels: Tensor, where: str) -> tuple[float, int, float]:
        """:meth:`_batch`; on request, with the name of the layer that gives something not finite."""
        if not self.config.optim.detect_nonfinite:
            return self._batch(x, labels, where)
        try:
            with detect_nonfinite(self.accelerator.unwrap_model(self.model)):
                return self._batch(x, labels, where)
        except FloatingPointError as error:
            raise FloatingPointError(f"{self.folder}: {where}: {error}") from None

    def _batch(self, x: Tensor, labels: Tensor, where: str) -> tuple[float, int, float]:
        """What the rule learns from a batch: loss, correct answers, the largest norm of a gradient."""
        norms: list[float] = []

        def change() -> None:
            parameters = [*self.model.parameters(), *self.rule.parameters()]
            norm = self.accelerator.clip_grad_norm_(parameters, self.config.optim.clip_norm or math.inf)
            norms.append(math.nan if norm is None else float(norm))
            check_finite("the norm of the gradient", 0.0 if norm is None else norms[-1])
            self.optimizer.step()
            self.optimizer.zero_grad()

        self.optimizer.zero_grad()
        try:
            outcome = self.rule.sequence(x, labels, change, steps=self.config.learning.update_every)
            check_finite("the loss", outcome.loss)
        except Diverged as error:
            raise Diverged(
                f"{self.folder}: {error} in {where}; try a lower optim.learning_rate or optim.clip_norm; "
                "--optim.detect_nonfinite true names the layer"
            ) from None
        self.schedule.step()
        classes = labels if labels.ndim == 1 else labels.argmax(1)  # of a mixed sample: the larger share's
        hits = int((logits(outcome.readout, self.readout).argmax(1) == classes).sum())
        return outcome.loss, hits, max(norms)

    def _save(self, row: dict[str, float], best: bool) -> None:
        """Write the checkpoints; last.json, written last, vouches for what lies beside it."""
        network = self.accelerator.unwrap_model(self.model)
        facts = {**vars(self.progress), "metrics": row}
        if best:
            save_weights(self.folder / "best.safetensors", network, facts)
        with replacing(self.folder / "last.optimizer.pt") as temporary:
            parts = {"optimizer": self.optimizer, "schedule": self.schedule, "rule": self.rule}
            torch.save({name: part.state_dict() for name, part in parts.items()}, temporary)
        save_weights(self.folder / "last.safetensors", network, facts)
