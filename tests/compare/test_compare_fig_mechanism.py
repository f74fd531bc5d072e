"""Figures of mechanisms: the medians of what the runs hold, and nothing where nothing was measured."""

import numpy as np
import pytest
from compared import results
from numpy.testing import assert_allclose

from tbnn.compare import figures
from tbnn.compare.fig_mechanism import mechanism, observed_tasks

SEEDS = 3


def entry(seed, layers=2, smoothed=True):
    names = [f"layers.{2 * i + 1}" for i in range(layers)]
    look = {
        "rates": {name: 0.1 * (i + 1) + 0.01 * seed for i, name in enumerate(names)},
        "silent": dict.fromkeys(names, 0.2 + 0.01 * seed),
        "over_time": {name: [10.0**-t * (seed + 1) ** 2 for t in range(4)] for name in names},
    }
    agreement = {"cosine": {"a": 0.9, "all": 0.1 * (seed + 1)}, "cosine_ceiling": {"a": 0.9, "all": 0.5}}
    return {
        "layer_norms": {
            f"layers.{2 * i}": None if (i, seed) == (0, 1) else 10.0 * (i + 1) * (seed + 1) ** 2 for i in range(layers + 1)
        },
        "flips": [0.3 + 0.01 * seed, 0.2] if seed else [0.3],
        "start": {**look, **(agreement if smoothed else {})},
        "end": {**look, **(agreement if smoothed else {})},
    }  # fmt: skip


def made(**kwargs):
    found = results({t: {"ste": [0.5] * SEEDS, "ddt": [0.6] * SEEDS, "other": [0.7] * SEEDS} for t in ("seen", "not")})
    for run in found["runs"]:
        if run["task"] == "seen" and run["estimator"] != "other":
            run["mechanism"] = entry(run["seed"], **kwargs)
    return found


def titles(figure):
    return [axis.get_title(loc="left").replace("\n", " ") for axis in figure.axes]


def pane(figure, title):
    return figure.axes[titles(figure).index(title)]


def test_every_measure_has_its_panel():
    assert titles(mechanism(made(), "seen")) == [
        "Gradient by layer", "Gradient over time, first layer, at the start", "Gradient over time, last layer, at the start",
        "Gradient over time, first layer, at the end", "Gradient over time, last layer, at the end", "Weights flipped",
        "Firing rate at the end", "Silent neurons at the end", "Cosine with the smoothed gradient",
    ]  # fmt: skip
    assert titles(mechanism(made(layers=1, smoothed=False), "seen")) == [
        "Gradient by layer", "Gradient over time, at the start", "Gradient over time, at the end", "Weights flipped",
        "Firing rate", "Silent neurons",
    ]  # fmt: skip


def test_lines_are_medians_over_the_seeds_that_have_a_number():
    figure = mechanism(made(), "seen")
    norms = pane(figure, "Gradient by layer")
    assert norms.get_yscale() == "log"
    for line in norms.lines:
        assert_allclose(line.get_xdata(), [1, 2, 3])
        assert_allclose(line.get_ydata(), [50.0, 80.0, 120.0])
    assert len(norms.lines) == 2
    course = pane(figure, "Gradient over time, last layer, at the end").lines[0]
    assert_allclose(course.get_xdata(), [12.5, 37.5, 62.5, 87.5])
    assert_allclose(course.get_ydata(), [4.0, 0.4, 0.04, 0.004])
    assert_allclose(pane(figure, "Weights flipped").lines[0].get_ydata(), [0.31, 0.2])
    rates = pane(figure, "Firing rate at the end").lines
    assert_allclose(rates[0].get_ydata(), [0.11, 0.21])
    assert len(rates) == 3  # two estimators, and the start


def test_bars_at_the_start_and_the_end_and_their_ceilings():
    bars = pane(mechanism(made(layers=1), "seen"), "Cosine with the smoothed gradient")
    assert_allclose([bar.get_width() for bar in bars.patches], [0.2] * 4)
    ticks = [line for line in bars.lines if list(line.get_xdata()) == [0.5, 0.5]]
    assert len(ticks) == 4
    assert [text.get_text() for text in bars.get_yticklabels()] == ["ste", "ddt"]


def test_what_is_zero_or_missing_is_a_gap():
    found = made(layers=1)
    for run in found["runs"]:
        if "mechanism" in run:
            run["mechanism"]["end"]["over_time"] = {"layers.1": [0.0, None, 1.0]}
    course = pane(mechanism(found, "seen"), "Gradient over time, at the end").lines[0].get_ydata()
    assert np.isnan(course[:2]).all()
    assert course[2] == 1


def test_tasks_without_runs_that_looked_are_refused():
    assert observed_tasks(made()) == ["seen"]
    with pytest.raises(ValueError, match="not: expected runs with an entry 'mechanism', got none"):
        mechanism(made(), "not")
    found = made()
    for run in found["runs"]:
        run |= {"mechanism": {"layer_norms": {}, "start": {}, "end": {}}} if "mechanism" in run else {}
    with pytest.raises(ValueError, match="seen: the entries 'mechanism' hold nothing that can be drawn"):
        mechanism(found, "seen")


def test_equal_results_give_equal_files(tmp_path):
    for name in "ab":
        figures.save(mechanism(made(), "seen"), tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
