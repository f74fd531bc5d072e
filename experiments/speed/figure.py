"""The benchmark of the packed simulator in one figure: roofline, ratios, densities, growth."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from products import CHOSEN, DENSE, EVENTS, FP32

# Okabe and Ito's colours, told apart by the colour-blind too; each kind has a marker of its own besides.
BLUE, ORANGE, GREEN, PURPLE, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#555555"
KINDS = {DENSE: (BLUE, "o"), EVENTS: (ORANGE, "^"), "whole network": (GREEN, "s")}
LINES = ((BLUE, "o", "-"), (ORANGE, "^", "--"), (GREEN, "s", "-."), (PURPLE, "D", ":"))
RATIO_PARTS = ("STEP", "BIN", "ON", "CONV")

Results = dict[str, Any]


def draw(results: Iterable[Results], path: Path) -> None:
    """The figure from the results of one machine, one for each number of threads; parts that are not there stay empty."""
    each = sorted(results, key=lambda r: r["threads"])
    if not each:
        raise SystemExit(f"{path.parent}: expected results simulation.cpu.*.json, got none")
    first = each[0]
    bars = max(len(ratios(r, RATIO_PARTS)) for r in each)
    figure, axes = plt.subplots(2, 2, figsize=(17, max(12.0, 0.24 * bars + 7)), height_ratios=(1.5, 1))
    roofline(axes[0, 0], first)
    ratio_bars(axes[0, 1], each, RATIO_PARTS)
    axes[0, 1].set_title("(b) Times as fast; lines: spread of the rounds; ticks: aims")
    axes[0, 1].set_xlabel("time of the other side / time of the packed simulation")
    densities(axes[1, 0], first)
    growth(axes[1, 1], first)
    date = max(r["date"] for r in each)
    figure.suptitle(f"Packed simulation on {first['cpu']}, torch {first['torch']}, {date}", fontsize=14)
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    figure.savefig(path, dpi=100)
    plt.close(figure)


def empty(axes: Axes, part: str) -> None:
    axes.text(0.5, 0.5, f"{part} was not measured", ha="center", va="center", transform=axes.transAxes, color=GREY)


def threads_of(result: Results) -> str:
    return "1 thread" if result["threads"] == 1 else f"{result['threads']} threads"


def roofline(axes: Axes, result: Results) -> None:
    """Bit-MACs a second against bit-MACs for each bit of memory, under the two ceilings."""
    axes.set_title(f"(a) Products under the core's ceilings, {threads_of(result)}")
    axes.set_xlabel("intensity: bit-MACs for each bit read or written")
    axes.set_ylabel("bit-MACs a second")
    ceilings = result["parts"].get("BIN", {}).get("ceilings")
    if ceilings is None:
        empty(axes, "BIN")
        return
    points = [p for part in result["parts"].values() for p in part["points"]]
    x = np.geomspace(min(0.5, *(p["intensity"] / 3 for p in points)), 4 * max(p["intensity"] for p in points), 50)
    for key, name, style in (("and_popcount", "AND, popcount", ":"), ("and_popcount_add", "AND, popcount, add", "-")):
        axes.axhline(ceilings[f"{key}_per_s"], color=GREY, ls=style, label=f"{name}: {ceilings[f'{key}_per_s']:.2g}/s")
    read = ceilings["read_bytes_per_s"]
    axes.plot(x, 8 * read * x, color=GREY, ls="--", label=f"reading memory: {read / 1e9:.0f} GB/s")
    for kind, (color, marker) in KINDS.items():
        mine = [p for p in points if p["kind"] == kind]
        where = ([p["intensity"] for p in mine], [p["bit_macs_per_s"] for p in mine])
        axes.scatter(*where, color=color, marker=marker, label=kind, zorder=3, alpha=0.8)
    _name_groups(axes, points)
    axes.set(xscale="log", yscale="log", xlim=(x[0], x[-1]))
    axes.set_ylim(min(p["bit_macs_per_s"] for p in points) / 2, 30 * max(p["bit_macs_per_s"] for p in points))
    axes.grid(alpha=0.3, which="both")
    axes.legend(
        fontsize=9, loc="upper left", title="weights that met no spike count too; small operands lie in the cache"
    )


def _name_groups(axes: Axes, points: list[dict[str, Any]]) -> None:
    """One name over the points of each intensity: those of a product at several densities share it."""
    groups: dict[float, list[dict[str, Any]]] = {}
    for p in points:
        groups.setdefault(p["intensity"], []).append(p)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.6, "pad": 0.5}
    for n, intensity in enumerate(sorted(groups)):
        group = groups[intensity]
        names = sorted({p["name"].split(",")[0] for p in group}, key=len)
        top = max(p["bit_macs_per_s"] for p in group)
        at = (0, 8 + 11 * (n % 3))
        axes.annotate(
            names[0], (intensity, top), xytext=at, textcoords="offset points", fontsize=8, ha="center", bbox=box
        )


def ratios(result: Results, parts: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of the bars, in the order of the parts."""
    return [row for part in parts for row in result["rows"] if row["part"] == part]


def ratio_bars(axes: Axes, each: list[Results], parts: Sequence[str]) -> None:
    """How many times as fast as the other side, its spread over the rounds, and the aim as a tick."""
    names: dict[str, None] = {}
    for result in each:
        for row in ratios(result, parts):
            names[_bar_name(row)] = None
    if not names:
        empty(axes, ", ".join(parts))
        return
    places = {name: -i for i, name in enumerate(names)}
    height = 0.8 / len(each)
    for i, result in enumerate(each):
        rows, shift = ratios(result, parts), 0.4 - height * (i + 0.5)
        y = np.array([places[_bar_name(row)] for row in rows]) + shift
        ratio = np.array([row["ratio"] for row in rows])
        error = np.array([[r["ratio"] - r["ratio_min"], r["ratio_max"] - r["ratio"]] for r in rows]).reshape(-1, 2).T
        color = (SKY, ORANGE, GREEN, PURPLE)[i % 4]
        axes.barh(y, ratio, height, color=color, label=threads_of(result))
        axes.errorbar(ratio, y, xerr=error, fmt="none", ecolor="black", elinewidth=1)
        for row, at in zip(rows, y, strict=True):
            beyond = max(row["ratio_max"], row.get("aim", 0))
            axes.text(beyond * 1.08, at, f"{row['ratio']:.1f}", va="center", fontsize=7)
            if "aim" in row:
                axes.plot([row["aim"]] * 2, [at - height / 2, at + height / 2], color="black", lw=3)
    axes.axvline(1, color=GREY, lw=1)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * 1.6)
    axes.set_yticks(list(places.values()), list(places), fontsize=8)
    axes.set_ylim(-len(names) + 0.4, 0.6)
    axes.grid(axis="x", alpha=0.3, which="both")
    axes.legend(fontsize=9, loc="lower right")


def _bar_name(row: dict[str, Any]) -> str:
    return f"{row['shape'].rsplit(', ', 1)[0]} | {row['theirs']}"


def densities(axes: Axes, result: Results) -> None:
    """Milliseconds of the largest product against the density of spikes, way by way."""
    axes.set_xlabel("input spikes, share of the inputs")
    axes.set_ylabel("milliseconds")
    rows = [row for row in result["rows"] if row["part"] == "DENS" and row.get("weight_density") == 1]
    if not rows:
        axes.set_title("(c) Densities")
        empty(axes, "DENS")
        return
    name = rows[0]["shape"].split(", ")[0]
    axes.set_title(f"(c) One product at every density, {name}, {threads_of(result)}")
    sides: dict[str, dict[float, float]] = {}
    for row in rows:
        if row["shape"].startswith(name):
            sides.setdefault(row["ours"], {})[row["density"]] = row["ours_ms"]
            sides.setdefault(row["theirs"], {})[row["density"]] = row["theirs_ms"]
    for side, (color, marker, style) in zip((DENSE, EVENTS, CHOSEN, FP32), LINES, strict=True):
        where = sorted(sides[side].items())
        axes.plot(*zip(*where, strict=True), color=color, marker=marker, ls=style, label=side)
    axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=9)


def growth(axes: Axes, result: Results) -> None:
    """Time a step of sparse recurrent networks against what grows, and the fitted exponents."""
    axes.set_title(f"(d) Growth of sparse recurrent networks, {threads_of(result)}")
    axes.set_ylabel("milliseconds a step")
    sweeps = result["parts"].get("REC", {}).get("sweeps", [])
    growth_lines(axes, [{**sweep, "seconds": sweep["seconds_per_step"]} for sweep in sweeps], "REC")


def growth_lines(axes: Axes, sweeps: list[dict[str, Any]], part: str) -> None:
    """Milliseconds against what grows, as times the smallest, and the fitted exponents."""
    axes.set_xlabel("times the smallest")
    if not sweeps:
        empty(axes, part)
        return
    for sweep, (color, marker, style) in zip(sweeps, LINES, strict=False):
        x, y = np.array(sweep["values"], float), 1e3 * np.array(sweep["seconds"])
        label = f"{sweep['grows']}: {x[0]:.3g} to {x[-1]:.3g}, time ~ {sweep['grows']}^{sweep['exponent']:.2f}"
        axes.plot(x / x[0], y, color=color, marker=marker, ls=style, label=label)
    axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=9)
