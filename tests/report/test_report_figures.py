"""Figures: what is drawn is what was given."""

import numpy as np
import pytest
from matplotlib.image import AxesImage
from numpy.testing import assert_allclose, assert_array_equal

from tbnn.report import WeightPicture, bars, curves, raster, raster_figure, style, weights


def drawn_line(axis, name):
    return next(line for line in axis.lines if line.get_label() == name)


def test_learning_curves(report):
    figure = curves.learning_curves(report.history, 16)
    loss, accuracy = figure.axes
    for axis, key in ((loss, "loss"), (accuracy, "accuracy")):
        for name, split in (("training", "train"), ("validation", "validation")):
            line = drawn_line(axis, name)
            assert_array_equal(line.get_xdata(), [row["epoch"] for row in report.history])
            assert_array_equal(line.get_ydata(), [row[f"{split}_{key}"] for row in report.history])
        assert_array_equal(drawn_line(axis, "best epoch (16)").get_xdata(), [16, 16])
    assert [t.get_text() for t in figure.legends[0].texts] == ["training", "validation", "best epoch (16)"]


def test_curves_survive_a_run_that_diverged():
    history = [{"epoch": 1, "train_loss": 2.0, "grad_norm": 1.0}, {"epoch": 2, "train_loss": np.inf, "grad_norm": 0.0}]
    figure = curves.learning_curves(history)
    assert_array_equal(drawn_line(figure.axes[0], "training").get_ydata(), [2.0, np.nan])
    assert [line.get_label() for line in figure.axes[0].lines] == ["training"]
    assert not figure.axes[1].lines
    gradient = curves.gradient_curves(history).axes[0]
    assert_array_equal(gradient.lines[0].get_ydata(), [1.0, np.nan])
    assert gradient.get_yscale() == "log"
    for drawn in (figure, gradient.figure):
        assert style.svg_uri(drawn).startswith("data:image/svg+xml;base64,")


def test_gradient_curves(report):
    norm, rate = curves.gradient_curves(report.history).axes
    assert_array_equal(drawn_line(norm, "largest").get_ydata(), [row["grad_norm_max"] for row in report.history])
    assert_array_equal(rate.lines[0].get_ydata(), [row["learning_rate"] for row in report.history])


def test_rate_curves_show_silence_at_the_bottom_and_both_bands():
    figure = curves.rate_curves([{"epoch": e, "rate/a": 0.1 * e, "rate/b": 0.0} for e in (1, 2, 3)])
    axis = figure.axes[0]
    assert_allclose(drawn_line(axis, "a").get_ydata(), [0.1, 0.2, 0.3])
    assert_array_equal(drawn_line(axis, "b").get_ydata(), [curves.LOWEST_RATE] * 3)
    bands = [(p.get_y(), p.get_y() + p.get_height()) for p in axis.patches]
    assert_allclose(bands, [(curves.LOWEST_RATE, 0.001), (0.9, 1.0)])


@pytest.mark.parametrize("n", [2, 10, 24])
def test_confusion_texts_are_the_matrix(n):
    matrix = np.random.default_rng(n).integers(0, 2000, (n, n))
    figure = bars.confusion_figure(matrix, [f"class {i}" for i in range(n)])
    texts = {t.get_position(): t.get_text() for t in figure.axes[0].texts}
    assert texts == {(j, i): f"{matrix[i, j]:,}" for i in range(n) for j in range(n)}
    assert_allclose(figure.axes[0].images[0].get_array(), matrix / matrix.sum(1, keepdims=True))


def test_confusion_of_many_classes_and_of_a_class_without_recordings():
    matrix = np.eye(30, dtype=int)
    matrix[3] = 0
    axis = bars.confusion_figure(matrix, [str(i) for i in range(30)]).axes[0]
    assert not axis.texts
    assert_array_equal(axis.images[0].get_array()[3], np.zeros(30))


def test_class_names_stand_on_the_axes_and_are_no_formulas():
    axis = bars.confusion_figure(np.eye(2, dtype=int), ["a $x$", "a very long name indeed"]).axes[0]
    for side in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert [t.get_text() for t in side] == [r"a \$x\$", "a very long n…"]


def test_accuracy_figure():
    rows = [{"name": "a", "accuracy": 0.5, "samples": 100}, {"name": "b", "accuracy": 0.9}]
    axis = bars.accuracy_figure(rows).axes[0]
    interval, first, second = axis.lines
    assert_allclose(interval.get_xdata(), [40.38315, 59.61685], atol=1e-4)
    assert (first.get_xdata()[0], second.get_xdata()[0]) == (50, 90)
    assert first.get_ydata()[0] > second.get_ydata()[0]


@pytest.mark.parametrize(
    ("draw", "rows", "keys", "ratios"),
    [
        (
            bars.storage_figure,
            "storage",
            ("float32_bytes", "packed_bytes"),
            ["30.8× smaller", "13.9× smaller", "21.7× smaller"],
        ),
        (
            bars.counts_figure,
            "counts",
            ("dense_synops", "effective_synops"),
            ["21.9× fewer", "11× fewer", "7.77× fewer"],
        ),
    ],
)
def test_bars(report, draw, rows, keys, ratios):
    axis = draw(getattr(report, rows)).axes[0]
    for container, key in zip(axis.containers, keys, strict=True):
        assert [bar.get_width() for bar in container] == [row[key] for row in getattr(report, rows)]
    assert [t.get_text() for t in axis.texts] == ratios


def test_bars_without_a_single_operation():
    figure = bars.counts_figure([{"layer": "a", "dense_synops": 0, "effective_synops": 0}])
    assert not figure.axes[0].texts
    style.svg_uri(figure)


def test_raster_has_a_dot_for_every_spike(make_sample):
    sample = make_sample(steps=25, layers=(96, 7))
    figure = raster_figure(sample, [str(i) for i in range(10)], bin_width=4000, time_unit="us")
    _, *layers, _ = figure.axes
    for axis, (name, spikes) in zip(layers, sample.spikes.items(), strict=True):
        dots = axis.collections[0].get_offsets()
        assert len(dots) == spikes.sum()
        times, neurons = np.nonzero(spikes)
        assert_allclose(dots, np.stack([(times + 0.5) * 4, neurons], 1))
        assert axis.get_title("left") == name
        assert f"{100 * spikes.mean():.1f}" in axis.get_title("right")
    assert figure.axes[-1].get_xlabel() == "time (ms)"
    assert figure.axes[-1].get_xlim() == (0, 100)


def test_raster_of_the_first_neurons(make_sample):
    sample = make_sample(layers=(96,))
    spikes = sample.spikes["layers.1"]
    axis = raster_figure(sample, [str(i) for i in range(10)], neurons={"layers.1": 16}).axes[1]
    assert len(axis.collections[0].get_offsets()) == spikes[:, :16].sum()
    assert f"{100 * spikes.mean():.1f}" in axis.get_title("right")


@pytest.mark.parametrize("predicted", [3, 8])
def test_readout_highlights_the_winner(make_sample, predicted):
    sample = make_sample(predicted=predicted)
    classes = [f"c{i}" for i in range(10)]
    figure = raster_figure(sample, classes)
    axis = figure.axes[-1]
    assert_array_equal(drawn_line(axis, f"predicted: c{predicted}").get_ydata(), sample.readout[:, predicted])
    assert len([line for line in axis.lines if len(line.get_xdata())]) == 10
    names = [t.get_text() for t in axis.get_legend().texts]
    assert ("true class: c3" in names) == (predicted != 3)
    assert ("wrong" in figure.get_suptitle()) == (predicted != 3)
    assert axis.get_xlabel() == "time step"


@pytest.mark.parametrize("steps", [1, 5, 24])
def test_event_slices_hold_all_events(make_sample, steps):
    sample = make_sample(steps=steps, sensor=(2, 12, 17))
    images = [child for child in raster_figure(sample, [""] * 10).axes[0].images if isinstance(child, AxesImage)]
    n = min(8, steps)
    edges = np.linspace(0, steps, n + 1).round().astype(int)
    assert len(images) == n
    for image, start, end in zip(images, edges[:-1], edges[1:], strict=True):
        seen = sample.frames[start:end].any((0, 1))
        assert_array_equal((image.get_array() < 1).any(-1), seen)


def test_event_colours():
    off, on = np.zeros((2, 2, 1, 1))
    off[0], on[1] = 1, 1
    blue, red = raster.event_colours(off)[0, 0], raster.event_colours(on)[0, 0]
    assert blue.argmax() == 2
    assert red.argmax() == 0
    assert_array_equal(raster.event_colours(np.zeros((2, 1, 1))), np.ones((1, 1, 3)))
    assert np.ptp(raster.event_colours(np.full((1, 1, 1), 0.5))) == 0


@pytest.mark.parametrize("sensor", [(40, 1, 1), (2, 1, 30), (1, 30, 1)])
def test_other_sensors_are_a_raster_of_channels(make_sample, sensor):
    sample = make_sample(sensor=sensor)
    axis = raster_figure(sample, [""] * 10).axes[0]
    assert len(axis.collections[0].get_offsets()) == sample.frames.sum()
    assert not axis.images


@pytest.mark.parametrize(
    ("width", "unit", "expected"), [(4000, "us", 4), (2, "ms", 2), (0.001, "s", 1), (500, "ns", 5e-4), (None, "?", 1)]
)
def test_milliseconds(width, unit, expected):
    assert raster.milliseconds(width, unit) == pytest.approx(expected)


def test_an_unknown_time_unit_is_refused():
    with pytest.raises(ValueError, match=r'expected one of .* got "h"'):
        raster.milliseconds(1, "h")


def test_receptive_fields_are_the_rows():
    sign = np.random.default_rng(0).integers(-1, 2, (11, 2 * 4 * 6)).astype(np.int8)
    axes = weights.weight_figure(WeightPicture("first", sign, input_shape=(2, 4, 6))).axes
    assert [axis.get_title("left") for axis in axes] == ["OFF inputs", "ON inputs"]
    for c, axis in enumerate(axes):
        sheet = axis.images[0].get_array()
        for i in range(11):
            y, x = (i // 8) * 5, (i % 8) * 7
            assert_array_equal(sheet[y : y + 4, x : x + 6], sign.reshape(11, 2, 4, 6)[i, c])
        assert np.ma.count_masked(np.ma.masked_invalid(sheet)) == sheet.size - 11 * 24


@pytest.mark.parametrize("shape", [None, (48, 1, 1), (3, 4, 4)])
def test_other_weights_are_a_matrix(shape):
    sign = np.random.default_rng(0).integers(-1, 2, (5, 48)).astype(np.int8)
    figure = weights.weight_figure(WeightPicture("w", sign, "recurrent", shape))
    assert_array_equal(figure.axes[0].images[0].get_array(), sign)
    legend = [t.get_text() for t in figure.legends[0].texts]
    assert legend == [f"{n}  ({100 * (sign == s).mean():.3g} %)" for s, n in ((1, "+1"), (0, "0"), (-1, "−1"))]
    assert figure.axes[0].get_xlabel() == "from neuron"


def test_a_large_matrix_is_cut_not_blurred():
    sign = np.ones((300, 700), np.int8)
    figure = weights.weight_figure(WeightPicture("w", sign))
    assert figure.axes[0].images[0].get_array().shape == (256, 256)


def test_no_global_figure_is_left():
    import sys

    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
