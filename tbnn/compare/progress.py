"""What a comparison shows while it runs: a bar with the time left on a terminal, a line a run elsewhere."""

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class Display:
    """Runs done of all, the last one's accuracy, and the time left: the work left over the pace of this call's runs."""

    def __init__(self, total: int, done: int, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.description}"),
        )
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal or quiet)
        self.total, self.before, self.start = total, done, time.monotonic()
        self.row = self.bar.add_task("", total=total, completed=done, left="")

    def __enter__(self) -> "Display":
        self.bar.start()
        if self.before:
            self.console.print(f"{self.before} of {self.total} runs were finished before")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def finished(self, job: Any, row: dict[str, Any], done: int) -> None:
        """Show a finished run."""
        accuracy = row.get("test_accuracy", row["validation_accuracy"])
        how = f"{accuracy:.3f}" if row["diverged"] is None else f"diverged at step {row['diverged']}"
        left = time_left(time.monotonic() - self.start, done - self.before, self.total - done)
        self.bar.update(self.row, completed=done, left=left, description=f"{job.title}: {how}")
        if self.bar.disable:
            self.console.print(f"{done}/{self.total} {job.title}: {how} ({row['seconds']:.0f} s; {left})", markup=False)


def time_left(elapsed: float, done: int, left: int) -> str:
    """A phrase: how long the rest takes at the pace so far.

    >>> time_left(60, 3, 9)
    '3 min left'
    """
    if done < 1:
        return ""
    seconds = elapsed / done * left
    if seconds < 90:
        return f"{seconds:.0f} s left"
    return f"{seconds / 60:.0f} min left" if seconds < 5400 else f"{seconds / 3600:.1f} h left"
