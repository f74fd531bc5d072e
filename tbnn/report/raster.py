"""One recording on its way through the network: event frames, spike rasters, readout, above one another."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tbnn.report import text
from tbnn.report.data import Sample
from tbnn.report.style import BLUE, GREEN, GREY, INK, VERMILION, label, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SLICES = 8
MILLISECONDS = {"s": 1e3, "ms": 1.0, "us": 1e-3, "µs": 1e-3, "ns": 1e-6}  # in one time unit

_WIDTH = 10.4  # inches
_PANEL = 8.8  # inches of that for the panels, about


@styled
def raster_figure(
    sample: Sample,
    classes: Sequence[str],
    *,
    bin_width: float | None = None,
    time_unit: str = "us",
    neurons: Mapping[str, int] | None = None,
) -> "Figure":
    """Draw a recording, the spikes it causes in each layer, and the readout that decides.

    Args:
        sample: the recording, its spikes and its readout.
        classes: names of the classes.
        bin_width: duration of a step in time units; without it the axis counts steps.
        time_unit: "s", "ms", "us" or "ns".
        neurons: at most this many neurons of a layer are drawn, the first ones; by default all.

    Raises:
        ValueError: on an unknown time unit.
    """
    step = milliseconds(bin_width, time_unit)
    steps, _, height, width = sample.frames.shape
    as_images = height > 1 and width > 1
    slot = _PANEL / min(SLICES, steps)
    frame_height = min(slot * height / width, 2.4) + 0.35 if as_images else _raster_height(sample.frames[0].size)
    heights = [frame_height, *[_raster_height(s.shape[1]) for s in sample.spikes.values()], 1.7]
    figure = new_figure(_WIDTH, sum(heights) + 0.3 * len(heights) + 0.5)
    axes = figure.subplots(len(heights), 1, height_ratios=heights, sharex=True)
    if as_images:
        _draw_slices(axes[0], sample.frames, step)
    else:
        draw_raster(axes[0], sample.frames.reshape(steps, -1), step, "input", "channel")
    for axis, (name, spikes) in zip(axes[1:-1], sample.spikes.items(), strict=True):
        draw_raster(axis, spikes[:, : (neurons or {}).get(name)], step, name, "neuron", rate=float(spikes.mean()))
    _draw_readout(axes[-1], sample, classes, step)
    axes[-1].set_xlabel("time (ms)" if bin_width else "time step")
    axes[-1].set_xlim(0, steps * step)
    right = sample.predicted == sample.label
    outcome = "correct" if right else "wrong"
    true, predicted = label(classes[sample.label]), label(classes[sample.predicted])
    figure.suptitle(
        f"recording {sample.index}: true class {true}, predicted {predicted} ({outcome})",
        fontsize=11.5, fontweight="bold", color=GREEN if right else VERMILION, x=0.012, ha="left",
    )  # fmt: skip
    return figure


def milliseconds(bin_width: float | None, time_unit: str) -> float:
    """The duration of a step in milliseconds; 1 when it is unknown, so that the axis counts steps.

    Raises ``ValueError`` on an unknown time unit.
    """
    if not bin_width:
        return 1.0
    if time_unit not in MILLISECONDS:
        raise ValueError(f'time_unit: expected one of {", ".join(MILLISECONDS)}, got "{time_unit}"')
    return bin_width * MILLISECONDS[time_unit]


def event_colours(rates: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Shares of steps with an event (C, H, W) as RGB (H, W, 3) on white.

    Two channels: the last, ON, is red and the first, OFF, blue; a pixel of both is violet. Otherwise the mean in grey.
    """
    ink = np.sqrt(rates)  # single events stay visible
    if len(rates) != 2:
        return np.repeat(1 - 0.88 * ink.mean(0)[..., None], 3, axis=-1)
    off, on = ink
    blue_takes, red_takes = np.array([1.0, 0.55, 0.3]), np.array([0.16, 0.85, 0.85])
    return np.clip(1 - off[..., None] * blue_takes - on[..., None] * red_takes, 0, 1)


def _raster_height(n: int) -> float:
    """Inches for the raster of n neurons: more for more, between bounds."""
    return float(np.clip(0.9 + n / 320, 1.2, 2.5))


def _draw_slices(axis: "Axes", frames: npt.NDArray[np.uint8], step: float) -> None:
    """The events of equal slices of time, side by side over the time axis they share with the rasters."""
    steps, channels, height, width = frames.shape
    n = min(SLICES, steps)
    edges = np.linspace(0, steps, n + 1).round().astype(int)
    slot = steps * step / n
    for i in range(n):
        left, right = (i + 0.03) * slot, (i + 0.97) * slot
        picture = event_colours(frames[edges[i] : edges[i + 1]].mean(0))
        axis.imshow(picture, extent=(left, right, 0, 1), aspect="auto", interpolation="nearest", origin="upper")
        axis.plot([left, right, right, left, left], [0, 0, 1, 1, 0], color="#cbd2d9", linewidth=0.8, clip_on=False)
    axis.set_ylim(0, 1)
    axis.set_box_aspect(min(height / width, 2.4 * n / _PANEL) / n)
    axis.set_yticks([])
    axis.tick_params(axis="x", length=0, labelbottom=False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_title("input events", loc="left")
    if channels == 2:
        for name, colour, offset in (("ON", (0.84, 0.15, 0.15), 0), ("OFF", (0.0, 0.45, 0.7), -24)):
            axis.annotate(
                name, (1, 1), xycoords="axes fraction", xytext=(offset, 5), textcoords="offset points",
                ha="right", fontsize=9.5, fontweight="bold", color=colour,
            )  # fmt: skip


def draw_raster(
    axis: "Axes", spikes: npt.NDArray[np.uint8], step: float, name: str, unit: str, rate: float | None = None
) -> None:
    """A tick for each spike: time to the right, neurons upwards."""
    from matplotlib.ticker import MaxNLocator

    steps, n = spikes.shape
    times, neurons = np.nonzero(spikes)
    row = 72 * 0.85 * _raster_height(n) / max(n, 1)  # points of height a neuron has
    width = 72 * _PANEL / steps
    axis.scatter(
        (times + 0.5) * step, neurons, s=float(np.clip(0.9 * row, 1.3, 9.0)) ** 2, marker="|", color=INK,
        linewidths=float(np.clip(0.4 * width, 0.7, 2.6)), rasterized=len(times) > 200, clip_on=True,
    )  # fmt: skip
    axis.set_ylim(-0.5 - 0.02 * n, n - 0.5 + 0.02 * n)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    axis.set_ylabel(unit)
    axis.set_title(label(name), loc="left")
    shown = float(spikes.mean()) if rate is None else rate
    axis.set_title(f"fires in {text.brief_share(shown)} of steps", loc="right", fontweight="normal", color=GREY)


def _draw_readout(axis: "Axes", sample: Sample, classes: Sequence[str], step: float) -> None:
    """The readout of every class; the winner in colour, and the true class too when it lost."""
    steps = len(sample.readout)
    times = (np.arange(steps) + 1) * step
    for c in range(sample.readout.shape[1]):
        if c not in (sample.predicted, sample.label):
            axis.plot(times, sample.readout[:, c], color="#b8c2cc", linewidth=1)
    if sample.predicted != sample.label:
        name = f"true class: {label(classes[sample.label])}"
        axis.plot(times, sample.readout[:, sample.label], color=VERMILION, linestyle="--", label=name)
    name = f"predicted: {label(classes[sample.predicted])}"
    axis.plot(times, sample.readout[:, sample.predicted], color=BLUE, linewidth=2.4, label=name)
    axis.plot([], [], color="#b8c2cc", label="other classes")
    axis.set_title("readout", loc="left")
    axis.set_ylabel("readout")
    axis.grid(axis="y")
    axis.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, borderpad=0, borderaxespad=0.2)
