"""Draw figure.png from results.json.

python experiments/19_exact_gradients/figure.py
"""

import json
from pathlib import Path

from tbnn.files import replacing
from tbnn.report.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, new_figure, png, styled

HERE = Path(__file__).parent
SHOWN = {
    "atan(2)": (VERMILION, "s"), "fast_sigmoid(25)": (ORANGE, "^"), "sigmoid(25)": (PURPLE, "v"),
    "straight through": (GREY, "D"), "DDT soft, slope": (SKY, "P"), "DDT trace, slope": (BLUE, "o"),
    "DDT trace, λ = 1e-12": (GREEN, "X"),
}  # fmt: skip


@styled
def drawn(summary: list[dict]):
    """Two panels against the step: the norm's ratio to the exact gradient's, and the cosine with it."""
    figure = new_figure(7.2, 3.1)
    size, direction = figure.subplots(1, 2)
    for name, (colour, marker) in SHOWN.items():
        rows = sorted((r for r in summary if r["estimator"] == name), key=lambda r: r["dt"])
        steps = [1e3 * r["dt"] for r in rows]
        size.plot(steps, [r["ratio"] for r in rows], color=colour, marker=marker, label=name, markersize=4)
        direction.plot(steps, [r["cosine"] for r in rows], color=colour, marker=marker, markersize=4)
        low, high = zip(*(r["interval"] for r in rows), strict=True)
        direction.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
    size.axhline(1, color=GREY, linewidth=0.8, linestyle="--")
    size.set(xscale="log", yscale="log", ylabel="norm / exact norm")
    direction.set(xscale="log", ylabel="cosine with the exact gradient", ylim=(0.8, 1))
    for axis in (size, direction):
        axis.set_xlabel("time step (ms)")
        axis.set_xticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
        axis.minorticks_off()
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


if __name__ == "__main__":
    content = json.loads((HERE / "results.json").read_text())
    with replacing(HERE / "figure.png") as temporary:
        temporary.write_bytes(png(drawn(content["summary"]), 160))
