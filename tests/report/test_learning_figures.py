"""Figures of learning: what is drawn is what was measured."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from tbnn.cli import main
from tbnn.compare.mechanism import ALL as ALL_FLIPS
from tbnn.learning.alignment import ALL, Agreement
from tbnn.learning.recording import Traces
from tbnn.learning.retention import Retention
from tbnn.report import Sample, style
from tbnn.report.animation import MOST_PICTURES, animate_flips, animate_recording
from tbnn.report.bars import whites_to_blue
from tbnn.report.fields import fields_figure, most_varied
from tbnn.report.learning import alignment_figure, flips_figure, retention_figure, traces_figure
from tbnn.train import DataConfig


def drawn_line(axis: Any, name: str) -> Any:
    return next(line for line in axis.lines if line.get_label() == name)


def test_alignment_has_a_line_for_each_layer_of_weights_and_all() -> None:
    rows = [
        {"layers.0.weight": Agreement(0.5, 0.1), "layers.0.bias": Agreement(0.0, 1.0), ALL: Agreement(0.7, 0.5)},
        {"layers.0.weight": Agreement(float("nan"), float("inf")), ALL: Agreement(-0.2, 2.0)},
    ]
    figure = alignment_figure([0, 10], rows, "eprop")
    top, bottom = figure.axes
    assert_array_equal(drawn_line(top, "layers.0").get_ydata(), [0.5, np.nan])
    assert_array_equal(drawn_line(bottom, "layers.0").get_ydata(), [0.1, np.nan])
    assert_array_equal(drawn_line(top, "all parameters").get_ydata(), [0.7, -0.2])
    assert_array_equal(drawn_line(bottom, "all parameters").get_ydata(), [0.5, 2.0])
    assert [t.get_text() for t in figure.legends[0].texts] == ["layers.0", "all parameters"]
    assert figure.legends[0].get_title().get_text() == "updates of eprop"
    assert (top.get_ylim()[0], bottom.get_yscale()) == (-1, "log")
    style.svg_uri(figure)
    with pytest.raises(ValueError, match="expected a row a step, got 1 steps, 2 rows"):
        alignment_figure([0], rows)


def test_flips() -> None:
    shares = {"layers.0": [0.2, 0.1, 0.0], ALL_FLIPS: [0.1, 0.05, 0.0]}
    figure = flips_figure(shares)
    for name, values in shares.items():
        assert_array_equal(drawn_line(figure.axes[0], name).get_ydata(), values)
        assert_array_equal(drawn_line(figure.axes[0], name).get_xdata(), [1, 2, 3])
    style.svg_uri(figure)
    with pytest.raises(ValueError, match="at least one layer and epoch"):
        flips_figure({"layers.0": []})


@pytest.mark.parametrize("flips", [None, (0.2, 0.1, 0.05)])
def test_retention_is_the_matrix(flips: tuple[float, ...] | None) -> None:
    accuracy = torch.tensor([[0.9, 0.2, 0.3], [0.6, 0.8, 0.1], [0.5, 0.7, 1.0]])
    figure = retention_figure(Retention(accuracy, flips))
    matrix, *beside = cast(Any, figure.axes)
    assert_allclose(matrix.images[0].get_array(), accuracy)
    texts = {t.get_position(): t.get_text() for t in matrix.texts}
    assert texts == {(j, i): f"{100 * accuracy[i, j]:.0f}" for i in range(3) for j in range(3)}
    title = figure._suptitle.get_text()  # pyright: ignore[reportAttributeAccessIssue]
    assert title == "average in the end 73.3 %, forgetting 25.0 %"
    assert len(beside) == (flips is not None)
    if flips is not None:
        assert_allclose([bar.get_width() for bar in beside[0].patches], [20, 10, 5])
    style.svg_uri(figure)
    with pytest.raises(ValueError, match="expected 3 names of tasks, got 1"):
        retention_figure(Retention(accuracy, flips), ["one"])


def test_most_varied_neurons_come_first() -> None:
    counts = np.array([[0, 5, 9, 1], [0, 5, 0, 3], [0, 5, 9, 2]])
    assert_array_equal(most_varied(counts), [2, 3, 0, 1])
    assert_array_equal(most_varied(counts, 1), [2])


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_fields_are_the_weights(channels: int) -> None:
    weights = np.random.default_rng(0).normal(size=(10, channels * 3 * 4))
    figure = fields_figure(weights, (channels, 3, 4), [7, 2])
    for c, axis in enumerate(cast(Any, figure.axes[:channels])):
        sheet = axis.images[0].get_array()
        expected = weights.reshape(10, channels, 3, 4)[:, c]
        assert_allclose(sheet[:, :4], expected[7])
        assert_allclose(sheet[:, 5:], expected[2])
        low, high = axis.images[0].get_clim()
        assert low == -high  # white is 0
    middle = figure.axes[0].images[0].get_cmap()(0.5)
    assert min(middle[:3]) > 0.94
    style.svg_uri(figure)


@pytest.mark.parametrize("levels", [(-1, 1), (-1, 0, 1)])
def test_signs_have_a_colour_each(levels: tuple[int, ...]) -> None:
    weights = np.random.default_rng(0).choice(levels, (40, 16))
    figure = fields_figure(weights, (1, 4, 4), order="by chance")
    axis, bar = cast(Any, figure.axes)
    image = axis.images[0]
    assert len(levels) == image.get_cmap().N
    colours = {tuple(image.cmap(image.norm(level))) for level in levels}
    assert len(colours) == len(levels)
    assert [t.get_text() for t in bar.get_yticklabels()] == [{-1: "−1", 0: "0", 1: "+1"}[level] for level in levels]
    for tick, level in zip(bar.get_yticks(), levels, strict=True):
        assert tuple(image.cmap(image.norm(tick))) == tuple(image.cmap(image.norm(level)))
    assert axis.get_xlabel().startswith("32 of 40 neurons")
    assert figure._suptitle.get_text().endswith(", by chance")  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("weights", "shape", "neurons", "message"),
    [
        ((4, 12), (12, 1, 1), None, "an image of 1 to 4 channels, got 12 x 1 x 1"),
        ((4, 12), (1, 3, 3), None, r"expected weights \(4, 9\), got \(4, 12\)"),
        ((4, 9), (1, 3, 3), [4], "from 0 to 3"),
        ((4, 9), (1, 3, 3), [], "from 0 to 3"),
    ],
)
def test_what_is_no_field(weights: Any, shape: Any, neurons: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fields_figure(np.zeros(weights), shape, neurons)


def made_up_traces(n: int) -> Traces:
    rng = np.random.default_rng(3)
    curves = [rng.normal(size=(12, n)) for _ in range(4)]
    spikes = (rng.random((12, 20)) < 0.3).astype(np.uint8)
    return Traces("eprop", "layers.0", spikes, np.arange(n) * 2, np.array([3, 11] * 5)[:n], 10, *curves)


@pytest.mark.parametrize(("n", "shown"), [(1, 1), (2, 2), (8, 6)])
def test_traces(n: int, shown: int) -> None:
    traces = made_up_traces(n)
    figure = traces_figure(traces, bin_width=2000, time_unit="us")
    raster, *panels = cast(Any, figure.axes)
    assert len(panels) == 3 * shown
    times = 2 * (np.arange(12) + 1)
    for k in range(shown):
        membrane, eligibility, signal = panels[3 * k : 3 * k + 3]
        for axis, values in ((membrane, traces.membrane), (eligibility, traces.eligibility), (signal, traces.signal)):
            assert_array_equal(axis.lines[0].get_ydata(), values[:, k])
            assert_array_equal(axis.lines[0].get_xdata(), times)
        assert_array_equal(drawn_line(membrane, "threshold").get_ydata(), traces.threshold[:, k])
        fired = np.nonzero(traces.spikes[:, 2 * k])[0]
        assert_array_equal(drawn_line(membrane, "spike").get_xdata(), 2 * (fired + 0.5))
        assert_array_equal(raster.lines[k].get_xdata(), 2 * (fired + 0.5))
        assert membrane.get_title(loc="left") == f"neuron {2 * k}"
        came = "from input 3" if k % 2 == 0 else "from neuron 1 of the layer"
        assert eligibility.get_title(loc="left") == came
    assert panels[1].get_ylabel() == "filtered\neligibility"
    assert panels[2].get_xlabel() == "time (ms)"
    assert raster.collections[0].get_offsets().shape == (traces.spikes.sum(), 2)
    style.svg_uri(figure)


def pictures(path: Path) -> list[Any]:
    opened: Any = Image.open(io.BytesIO(path.read_bytes()))
    with opened as image:
        frames = []
        for i in range(image.n_frames):
            image.seek(i)
            frames.append((np.asarray(image.convert("RGB")).astype(int), image.info["duration"]))
    return frames


@pytest.mark.parametrize(("steps", "sensor"), [(3, (2, 20, 20)), (70, (24, 1, 1))])
def test_a_recording_in_motion(
    make_sample: Callable[..., Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, sensor: Any
) -> None:
    monkeypatch.setattr("tbnn.report.animation.MOST_PICTURES", 4)
    count = min(steps, 4)
    edges = np.linspace(0, steps, count + 1).round().astype(int)
    spikes = np.zeros((steps, 9), np.uint8)
    spikes[edges[-3], [1, 2]] = 1  # in the last picture but one
    spikes[edges[-2], [0, 4, 8]] = 1
    sample = replace(make_sample(steps=steps, layers=(9,), sensor=sensor), spikes={"layers.1": spikes})
    path = tmp_path / "a.gif"
    assert animate_recording(sample, [str(i) for i in range(10)], path, bin_width=1000, duration=50) == count
    frames = pictures(path)
    assert [duration for _, duration in frames] == [*[50] * (count - 1), 1200]
    # Whoever spikes is a dark square, and pale in the picture after it.
    dark = 255 * np.array(whites_to_blue()(1.0)[:3])
    pixels = [(np.abs(picture - dark).max(2) < 12).sum() for picture, _ in frames]
    if sensor[1] > 1:  # else inputs are squares of that colour too
        assert pixels[-1] / 3 == pytest.approx(pixels[-2] / 2, rel=0.05)
        assert pixels[-2] > 500
        assert pixels[0] < 100
    assert not np.array_equal(frames[0][0], frames[-1][0])
    assert list(tmp_path.iterdir()) == [path]


def test_pictures_are_bounded() -> None:
    assert MOST_PICTURES <= 64


def test_weights_that_turn(tmp_path: Path) -> None:
    moments = [{"layers.0": torch.ones(4, 5, dtype=torch.int8)} for _ in range(3)]
    moments[1]["layers.0"][1, 2] = moments[2]["layers.0"][1, 2] = -1
    path = tmp_path / "f.gif"
    assert animate_flips(moments, path, duration=30) == 2
    first, second = (picture for picture, _ in pictures(path))
    blue = np.array([0x00, 0x72, 0xB2])
    counts = [(np.abs(picture - blue).max(2) < 16).sum() for picture in (first, second)]
    assert counts[0] > 1000  # the square of the weight that turned to −1 beside the legend's
    assert 0 < counts[1] < 400  # the legend's alone


@pytest.mark.parametrize(
    ("moments", "options", "message"),
    [
        ([{"a": np.ones((2, 2))}], {}, "at two moments or more"),
        ([{"a": np.ones((2, 2))}, {"b": np.ones((2, 2))}], {}, "the same layers"),
        ([{"a": np.ones((2, 2))}] * 3, {"names": ["x"]}, "expected 2 names, got 1"),
        ([{"a": np.ones((2, 2))}] * 2, {"duration": 5}, "20 ms or more"),
    ],
)
def test_no_animation(moments: Any, options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        animate_flips(moments, tmp_path / "f.gif", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_gif_that_fails_half_way_leaves_nothing(
    make_sample: Callable[..., Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, path: Path, *_: Any, **__: Any) -> None:
        path.write_bytes(b"GIF89a")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        animate_recording(make_sample(steps=2, layers=(4,)), [str(i) for i in range(10)], tmp_path / "a.gif")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def runs(halves: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of an epoch, by e-prop and by back-propagation."""
    folder = tmp_path_factory.mktemp("plots")
    made = {}
    for rule in ("eprop", "bptt"):
        made[rule] = folder / rule
        data = [
            "--data.dataset",
            halves.dataset,
            "--data.source",
            str(halves.source),
            "--data.cache",
            str(halves.cache),
        ]
        given = ["--model.hidden", "[8]", "--optim.epochs", "2", "--learning.rule", rule, "--output", str(made[rule])]
        given += [] if rule == "bptt" else ["--learning.alignment", "true"]
        assert main(["train", *data, *given, "--device", "cpu"]) == 0
    return made


@pytest.mark.parametrize(
    ("kind", "start"),
    [*((kind, b"\x89PNG") for kind in ("fields", "learning", "flips", "alignment")), ("animation", b"GIF89a")],
)
def test_plots_of_a_run(runs: dict[str, Path], kind: str, start: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", kind, str(runs["eprop"]), "--sample", "2"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == runs["eprop"] / f"{kind}.{'gif' if kind == 'animation' else 'png'}"
    assert path.read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["learning", "bptt"],
            "learned by bptt, which keeps no traces; expected a run with --learning.rule ottt, eprop,",
        ),
        (["learning", "eprop", "--sample", "48"], "sample: expected a number from 0 to 47 in test, got 48"),
        (["animation", "eprop", "--sample", "-1"], "sample: expected a number from 0 to 47 in test, got -1"),
        (["alignment", "bptt"], "holds no alignment; expected a run with --learning.alignment true"),
        (["weights", "eprop"], "weights"),
    ],
)
def test_plots_refused(
    runs: dict[str, Path], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kind, rule, *more = arguments
    assert main(["plot", kind, str(runs[rule]), *more, "--output", str(tmp_path / "p")]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
