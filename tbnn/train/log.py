"""What a run writes and shows while it trains: CSV, JSON lines, TensorBoard, and a progress display."""

import csv
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tbnn.files import replacing


class MetricsLog:
    """One row of numbers an epoch, in metrics.jsonl, metrics.csv and tensorboard/."""

    def __init__(self, folder: Path, resume_epoch: int = 0) -> None:
        """Start a log; with ``resume_epoch`` keep the rows of the epochs before it."""
        from torch.utils.tensorboard.writer import SummaryWriter  # slow to import

        self.folder = folder
        kept = [row for row in read_metrics(folder) if row["epoch"] <= resume_epoch] if resume_epoch else []
        self.rows: list[dict[str, float]] = kept
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_epoch + 1 if resume_epoch else None)
        self._write()

    def add(self, row: dict[str, float]) -> None:
        """Log one epoch."""
        self.rows.append(row)
        self._write()
        for name, value in row.items():
            if name != "epoch":
                self._board.add_scalar(name, value, int(row["epoch"]))
        self._board.flush()

    def _write(self) -> None:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with replacing(self.folder / "metrics.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        with replacing(self.folder / "metrics.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(self.rows)

    def close(self) -> None:
        """Close the TensorBoard file."""
        self._board.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl, empty if there is none; ``ValueError`` if it is damaged."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON lines ({error})") from None


class Display:
    """A bar over the batches of the run on a terminal; one plain line an epoch elsewhere."""

    def __init__(self, epochs: int, batches: int, done_epochs: int, quiet: bool) -> None:
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        self.epochs, self.batches = epochs, batches
        self._progress: Progress | None = None
        self._task = TaskID(0)
        if self.console.is_terminal and not quiet:
            columns = (
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            loss = TextColumn("loss {task.fields[loss]:.3f}")
            progress = Progress(*columns, loss, console=self.console, transient=True)
            self._task = progress.add_task(
                "", total=epochs * batches, completed=done_epochs * batches, epoch=1, loss=0.0
            )
            progress.start()
            self._progress = progress

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.console.print(line, markup=False)

    def batch(self, epoch: int, loss: float) -> None:
        """One batch is done."""
        if self._progress is not None:
            self._progress.update(self._task, advance=1, epoch=epoch, loss=loss)

    def epoch(self, row: dict[str, Any], best: bool) -> None:
        """One epoch is done."""
        rates = " ".join(f"{value:.1%}" for name, value in row.items() if name.startswith("rate/"))
        self.say(
            f"epoch {row['epoch']:3d}/{self.epochs}  loss {row['train_loss']:.3f}  accuracy {row['train_accuracy']:.3f}  "
            f"validation {row['validation_accuracy']:.3f}{' *' if best else '  '}  gradient {row['grad_norm']:.2g}  "
            f"firing {rates}  {row['seconds']:.1f} s"
        )

    def close(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()
