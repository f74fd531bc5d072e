"""Figures of comparisons: what is drawn is what the results hold."""

import pytest
from compared import results, wide
from numpy.testing import assert_allclose

from tbnn.compare import figures, statistics
from tbnn.compare.fig_style import looks, wrapped

DRAW = {
    "intervals": figures.intervals,
    "critical difference": figures.critical_difference,
    "curves": lambda r: figures.curves(r, "optim.learning_rate"),
    "map": lambda r: figures.stability_map(r, "optim.learning_rate", "optim.batch_size"),
    "tuning": figures.tuning,
}


@pytest.fixture(scope="module")
def study():
    return wide(6, 9, 4)


def legend(figure):
    return [text.get_text() for text in figure.legends[0].texts]


def grid(values, axes, **kwargs):
    return results(
        {task: {"ste": [v, v], "ddt": [v + 0.1, v + 0.1]} for task, v in values.items()}, axes=axes, **kwargs
    )


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW.keys())
def test_equal_results_give_equal_files(draw, tmp_path):
    for suffix in ("png", "svg"):
        for name in "ab":
            figures.save(draw(wide(3, 3, 3)), tmp_path / f"{name}.{suffix}")
        one, other = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
        assert one == other
        assert len(one) > 4000


def test_files_of_another_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"x\.pdf: expected a name that ends in \.png or \.svg"):
        figures.save(figures.critical_difference(wide(3, 3, 2)), tmp_path / "x.pdf")


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW.keys())
def test_a_study_without_runs_still_gives_a_figure(draw, tmp_path):
    made = wide(3, 3, 2)
    made["runs"] = []
    figures.save(draw(made), tmp_path / "x.png")


def test_intervals_show_means_intervals_and_the_reference(study):
    figure = figures.intervals(study)
    found, compared = statistics.estimates(study), statistics.comparisons(study)
    names = list(study["estimators"])
    for axis, task in zip(figure.axes, study["tasks"], strict=True):
        assert axis.get_title(loc="left").replace("\n", " ") == task
        drawn = [(line.get_xdata(), line.get_ydata()) for line in axis.lines]
        for place, name in enumerate(names):
            one = found[task][name]
            low, _ = axis.get_xlim()
            ends = [x for x, y in drawn if list(y) == [place, place]]
            assert_allclose(ends, [[100 * end for end in one["interval"]]])
            means = [x[0] for x, y in drawn if len(x) == 1 and y[0] == place and x[0] != 0.02]
            assert_allclose(means, [100 * one["mean"]] if 100 * one["mean"] >= low else [])
        band = axis.patches[0]
        assert band.get_y() + 0.5 == names.index(compared[task]["reference"])
    assert [t.get_text().replace("\n", " ") for t in figure.axes[0].get_yticklabels()] == names
    assert figure.axes[-1].get_xlabel() == "test accuracy (%)"
    assert legend(figure)[1] == "mean, 95 % interval"


def test_what_lies_below_the_axis_is_written():
    runs = {"ste": [0.9, 0.91], "atan": [0.88, 0.92], "ddt": [0.8, 0.1], "none": [0.1, 0.11]}
    made = results({"task": runs}, {"none": "control"})
    made["runs"][5]["diverged"] = 5
    axis = figures.intervals(made).axes[0]
    assert axis.get_xlim()[0] > 75
    assert [t.get_text() for t in axis.texts] == ["45.0", "10.5"]


def test_where_most_are_below_nothing_is_cut():
    made = results({"task": {"ste": [0.9, 0.91], "ddt": [0.2, 0.1], "none": [0.1, 0.11]}}, {"none": "control"})
    axis = figures.intervals(made).axes[0]
    assert axis.get_xlim()[0] < 10
    assert not axis.texts


def test_critical_difference_shows_ranks_and_bars(study):
    found = statistics.ranking(study)
    axis = figures.critical_difference(study).axes[0]
    texts = {t.get_text().replace("\n", " ") for t in axis.texts}
    assert {*found["estimators"], f"CD = {found['critical_difference']:.2f}"} <= texts
    bars = [line for line in axis.lines if line.get_linewidth() > 3]
    assert len(bars) == len(found["cliques"])
    assert axis.get_title(loc="left").startswith("Friedman's test over 6 tasks: χ² = ")
    title = figures.critical_difference(wide(1, 3, 2)).axes[0].get_title(loc="left")
    assert title == "No test of ranks: got 1 complete tasks and 2 estimators, expected at least 2 and 3"


def test_curves_over_a_wide_axis_are_logarithmic():
    axes = {name: {"optim.batch_size": size} for name, size in (("c", 256), ("a", 1), ("b", 16))}
    figure = figures.curves(grid({"c": 0.7, "a": 0.5, "b": 0.6}, axes), "optim.batch_size")
    pane = figure.axes[0]
    lines = {line.get_label(): line for line in pane.lines}
    assert_allclose(lines["ddt"].get_xdata(), [1, 16, 256])
    assert_allclose(lines["ddt"].get_ydata(), [0.6, 0.7, 0.8])
    assert (pane.get_xscale(), pane.get_xlabel(), pane.get_ylabel()) == ("log", "batch size", "test accuracy")
    assert legend(figure) == ["ste", "ddt"]
    axes = {name: {"optim.batch_size": size} for name, size in (("a", 10), ("b", 300))}
    assert figures.curves(grid({"a": 0.5, "b": 0.6}, axes), "optim.batch_size").axes[0].get_xscale() == "linear"


def test_lists_count_by_their_length_and_other_axes_make_panels():
    axes = {
        "a": {"model.hidden": [8], "data.bins": 10}, "b": {"model.hidden": [8, 8], "data.bins": 10},
        "c": {"model.hidden": [8], "data.bins": 20}, "d": {"model.hidden": [8, 8, 8], "data.bins": 20},
    }  # fmt: skip
    made = grid({"a": 0.5, "b": 0.6, "c": 0.4, "d": 0.3}, axes)
    one, two = figures.curves(made, "model.hidden").axes
    assert [pane.get_title(loc="left") for pane in (one, two)] == ["bins 10", "bins 20"]
    assert_allclose(two.lines[0].get_xdata(), [1, 3])
    assert figures.numeric_axes(made) == ["model.hidden", "data.bins"]


def test_axes_that_cannot_be_drawn_are_named():
    made = grid({"a": 0.5, "b": 0.6}, {"a": {"x": 1, "name": "p"}, "b": {"x": 1, "name": "p"}})
    assert figures.numeric_axes(made) == []
    with pytest.raises(ValueError, match="name: expected numbers or lists, got 'p'"):
        figures.curves(made, "name")
    with pytest.raises(ValueError, match=r"axes: no task varies y, expected some of \['x', 'name'\]"):
        figures.curves(made, "y")
    with pytest.raises(ValueError, match="x: tasks 'a' and 'b' share the value 1"):
        figures.curves(made, "x")
    with pytest.raises(ValueError, match="axes: tasks 'a' and 'b' differ in neither x nor name"):
        figures.stability_map(made, "x", "name")


def test_maps_hold_the_means_and_mark_what_failed(study):
    figure = figures.stability_map(study, "optim.learning_rate", "optim.batch_size", "test")
    found = statistics.estimates(study)
    names = list(study["estimators"])
    for pane, name in zip(figure.axes, names, strict=False):
        values = pane.images[0].get_array()
        for task, entry in study["tasks"].items():
            row = [1, 4].index(entry["axes"]["optim.batch_size"])
            column = [1e-4, 1e-3, 1e-2].index(entry["axes"]["optim.learning_rate"])
            assert values[row, column] == pytest.approx(found[task][name]["mean"])
        marks = {(line.get_marker(), *line.get_xdata(), *line.get_ydata()) for line in pane.lines}
        crosses = {("x", 2, 0), ("x", 2, 1)} if name == "triangular" else set()
        dots = {("o", column, 0) for column in range(3)} if name == "ddt trace" else set()
        assert marks == crosses | dots
    assert figure.axes[len(names)].get_ylabel() == "mean test accuracy"
    limits = {pane.images[0].get_clim() for pane in figure.axes[: len(names)]}
    assert len(limits) == 1


def test_tuning_shows_every_trial_and_rings_the_chosen(study):
    figure = figures.tuning(study)
    assert legend(figure) == ["scale 1", "scale 4", "chosen", "diverged"]
    for pane, name in zip(figure.axes, study["estimators"], strict=True):
        trials = [t for t in study["tuning"] if t["estimator"] == name]
        assert len(pane.lines) == len(trials)
        assert sum(line.get_marker() == "x" for line in pane.lines) == sum(t["diverged"] is not None for t in trials)
        assert sum(line.get_markersize() == 4.2 for line in pane.lines) == len(study["tasks"])
    assert figure.axes[0].get_xscale() == "log"
    with pytest.raises(ValueError, match=r"optim\.momentum: no trial of the tuning has a number there"):
        figures.tuning(study, "optim.momentum")


def test_estimators_are_told_apart_by_colour_and_marker():
    found = looks(wide(1, 14, 2))
    assert len({(look.colour, look.marker) for look in found.values()}) == 14
    groups = {"ddt": "d", "surrogate": "s"}
    twenty = results(
        {"t": {f"{groups[g]}{i}": [0.5] for g in groups for i in range(10)}}, {f"s{i}": "surrogate" for i in range(10)}
    )
    drawn = looks(twenty)
    assert len({(look.colour, look.marker) for look in drawn.values()}) == 20
    assert not {drawn[f"s{i}"].colour for i in range(10)} & {drawn[f"d{i}"].colour for i in range(10)}


def test_long_names_wrap_and_are_no_formulas():
    assert wrapped("a very long name of an estimator", 16) == "a very long name\nof an estimator"
    assert wrapped("model_with_underscores_only", 14) == "model_with_\nunderscores_on…"
    assert wrapped("$x$") == r"\$x\$"
