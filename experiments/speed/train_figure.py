"""The benchmark of training in one figure: ratios, memory against steps, growth."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from figure import LINES, Results, empty, growth_lines, plt, ratio_bars, ratios, threads_of
from matplotlib.axes import Axes

PARTS = ("LIFC", "ON", "REC", "E2E")


def draw(results: Iterable[Results], path: Path) -> None:
    """The figure from the results of one machine, one for each number of threads; parts that are not there stay empty."""
    each = sorted(results, key=lambda r: r["threads"])
    if not each:
        raise SystemExit(f"{path.parent}: expected results training.cpu.*.json, got none")
    first = each[0]
    against = [{**r, "rows": [row for row in r["rows"] if not row["theirs"].startswith("tbnn")]} for r in each]
    bars = max(len(ratios(r, PARTS)) for r in against)
    figure = plt.figure(figsize=(17, max(11.0, 0.3 * bars + 4)))
    grid = figure.add_gridspec(2, 2, width_ratios=(1.25, 1))
    left = figure.add_subplot(grid[:, 0])
    left.set_title("(a) Times as fast; lines: spread of the rounds; ticks: aims")
    left.set_xlabel("time of the other side / our time, forward and backward (E2E: whole steps)")
    ratio_bars(left, against, PARTS)
    memory(figure.add_subplot(grid[0, 1]), first)
    growth(figure.add_subplot(grid[1, 1]), first)
    date = max(r["date"] for r in each)
    figure.suptitle(f"Training on {first['cpu']}, torch {first['torch']}, {date}", fontsize=14)
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    figure.savefig(path, dpi=100)
    plt.close(figure)


def memory(axes: Axes, result: Results) -> None:
    """Peak, and what is kept for backward, against the steps, side by side."""
    axes.set_xlabel("T, steps")
    axes.set_ylabel("MiB beyond network and input")
    sweeps: list[dict[str, Any]] = [s for s in result["parts"].get("MEM", {}).get("sweeps", []) if s["points"]]
    if not sweeps:
        axes.set_title("(b) Memory of training")
        empty(axes, "MEM")
        return
    axes.set_title(f"(b) Memory of training, 3 layers of {sweeps[0]['neurons']} neurons, B = {sweeps[0]['batch']}")
    for sweep, (color, marker, _) in zip(sweeps, LINES, strict=False):
        steps = [p["steps"] for p in sweep["points"]]
        for kind, style in (("peak", "-"), ("saved", ":")):
            mebibytes = [p[f"{kind}_bytes"] / 2**20 for p in sweep["points"]]
            label = f"{sweep['side']}: {'at most' if kind == 'peak' else 'kept for backward'}"
            axes.plot(steps, mebibytes, color=color, marker=marker, ls=style, label=label)
    axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=9)


def growth(axes: Axes, result: Results) -> None:
    """Time of forward and backward against what grows, and the fitted exponents."""
    axes.set_title(f"(c) Growth of forward and backward, {threads_of(result)}")
    axes.set_ylabel("milliseconds")
    growth_lines(axes, result["parts"].get("GROWTH", {}).get("sweeps", []), "GROWTH")
