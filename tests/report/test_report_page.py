"""The page: self-contained, complete, escaped, deterministic, never half written."""

import re
from dataclasses import fields, replace
from html import unescape

import numpy as np
import pytest
from pages import Reader

from tbnn.report import ReportData, Sample, WeightPicture, page, render, wilson, write_page
from tbnn.report.sections import sections


@pytest.fixture(scope="module")
def html(report) -> str:
    return render(report)


@pytest.fixture(scope="module")
def reader(html) -> Reader:
    return Reader(html)


def test_it_loads_nothing(html, reader):
    assert not reader.all("script")
    assert not reader.all("link")
    assert not reader.all("iframe")
    addresses = [v for _, a in reader.tags for k, v in a.items() if k in ("src", "href", "srcset", "action", "data")]
    assert addresses
    assert all(a.startswith(("data:image/", "#")) for a in addresses)
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "@font-face" not in style
    assert not any(key.startswith("on") for _, a in reader.tags for key in a)


def test_the_figures_load_nothing(html):
    import base64

    drawings = [base64.b64decode(d).decode() for d in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", html)]
    assert len(drawings) == 11
    for drawing in drawings:
        assert drawing.startswith("<svg")
        references = re.findall(r'(?:href|src)="([^"]*)"', drawing)
        assert all(r.startswith(("#", "data:image/png")) for r in references)
        assert "<!DOCTYPE" not in drawing
        assert "<script" not in drawing


def test_it_is_well_formed(reader):
    assert not reader.open
    ids = [a["id"] for _, a in reader.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"] for a in reader.all("a")} <= {f"#{i}" for i in ids}
    assert all(a.get("alt") for a in reader.all("img"))


def test_key_numbers(report, reader):
    accuracy, samples = report.evaluation["accuracy"], report.evaluation["samples"]
    low, high = wilson(accuracy, samples)
    for expected in (
        f"test accuracy {100 * accuracy:.2f} %",
        f"{100 * low:.1f}–{100 * high:.1f} %, {samples} recordings, loss 0.31",
        "packed size 11.9 kB 28.2× smaller than float32 (335 kB)",
        "parity exact",
        "firing rate 9.1–13 %",
        "synops per inference 99.7 k 20.1× fewer than dense (2.01 M)",
    ):
        assert expected in reader.text


def test_every_number_given_appears(report, reader):
    shown = reader.text
    for row in report.storage:
        assert f"{row['weights']:,}" in shown
        assert str(row["bits_per_weight"]) in shown
    for row in report.counts:
        for key in ("dense_synops", "effective_synops", "spikes", "neuron_updates"):
            assert f"{row[key]:,}" in shown
        assert f"{100 * row['rate']:.2f} %" in shown
    for row in report.baselines:
        assert f"{row['name']} {100 * row['accuracy']:.2f} %" in shown
    for row in report.history:
        for key in ("train_accuracy", "validation_accuracy", "rate/layers.1", "rate/layers.3"):
            assert f"{100 * row[key]:.2f} %" in shown
        for key in ("train_loss", "validation_loss", "grad_norm", "grad_norm_max"):
            assert f"{row[key]:.4g}" in shown
    for rate in report.rates.values():
        assert f"{100 * rate:.2f} %" in shown
    for value in [
        *report.environment.values(),
        *report.verdict,
        *report.warnings,
        "1,098,240",
        "3,823",
        "24 steps of 4 ms",
    ]:
        assert value in shown
    assert "learning_rate: 0.004" in shown


def test_classes_one_by_one(change):
    confusion = np.array([[8, 2, 0], [0, 5, 5], [0, 0, 0]])
    data = change(classes=["a", "b", "never"], confusion=confusion, sample=None)
    shown = Reader(render(data)).text
    assert "a 10 80.00 % 100.00 % b (2×)" in shown
    assert "b 10 50.00 % 71.43 % never (5×)" in shown
    assert "never 0 – 0.00 % –" in shown
    assert "13 of 20 recordings" in shown


def test_special_characters_are_text(change, report):
    evil = "<script>alert('&')</script>$x_1$"
    data = change(
        title=evil,
        verdict=[evil],
        warnings=[evil],
        classes=[f"{i}{evil}" for i in range(10)],
        rates={evil: 0.1},
        dataset={**report.dataset, "source": evil, "title": evil},
        baselines=[{"name": evil, "weights": evil, "gradient": evil, "accuracy": 0.5, "samples": 10}],
        storage=[{**report.storage[0], "layer": evil}],
        counts=[{**report.counts[0], "layer": evil}],
        weights=[WeightPicture(evil, np.ones((3, 4), np.int8))],
        parity={"ok": True, "equal": False, "summary": evil, "layers": {evil: {"different": 3}}},
        config_yaml=evil,
        environment={evil: evil},
        evaluation={**report.evaluation, "split": evil},
    )
    html = render(data)
    assert "<script" not in html
    shown = Reader(html).text
    assert shown.count(evil) >= 20
    assert unescape(html).count(evil) >= shown.count(evil)


EMPTY_PARTS = {
    "baselines": ({"baselines": []}, "Comparison"),
    "learning": ({"history": []}, "Learning"),
    "confusion": ({"confusion": np.zeros((0, 0), int)}, "Mistakes"),
    "sample": ({"sample": None}, "One recording"),
    "weights": ({"weights": []}, "Weights"),
    "storage": ({"storage": []}, "Storage"),
    "counts": ({"counts": []}, "Operations"),
    "neurobench": ({"neurobench": {}}, "NeuroBench"),
    "energy": ({"energy": {}}, "Energy"),
    "parity": ({"parity": {}}, "Parity"),
    "dataset": ({"dataset": {}}, "Data"),
    "config": ({"config_yaml": "\n"}, "Configuration"),
    "environment": ({"environment": {}}, "Environment"),
    "rates": ({"rates": {}, "history": []}, "Firing rates"),
}


@pytest.mark.parametrize("key", EMPTY_PARTS)
def test_a_part_alone_brings_only_its_section(report, key):
    name = next(iter(EMPTY_PARTS[key][0]))
    alone = ReportData("alone", classes=report.classes, **{name: getattr(report, name)})
    found = sections(alone)
    assert [s.title for s in found if s.id == key] == [EMPTY_PARTS[key][1]]
    assert {s.id for s in found} == ({"learning", "rates"} if name == "history" else {key})
    assert all(s.pictures or s.tables or s.source or s.id == "parity" for s in found)


def test_neurobench_and_energy_of_one_inference(report, reader):
    assert "Footprint ConnectionSparsity ActivationSparsity Dense Effective_MACs Effective_ACs" in reader.text
    assert "11.9 kB 3.71 % 89.13 % 2,006,016 0 99,651 4,081" in reader.text
    assert "12,768 multiplications by the weights' scales" in reader.text
    assert report.energy["text"] in unescape(reader.text)
    assert "layers.0 8.4 nJ 42 nJ – 25 nJ 3.1 nJ – 78.5 nJ 8.5 µJ" in reader.text
    assert "total 8.4 nJ 42 nJ 13 nJ 25 nJ 3.47 nJ 23 nJ 115 nJ 8.5 µJ" in reader.text


def test_a_section_left_out_leaves_no_heading(report):
    gone = {key: value for key, value in EMPTY_PARTS.items() if key not in ("rates", "config")}
    changes = {name: value for parts, _ in gone.values() for name, value in parts.items()}
    html = render(replace(report, **changes))
    assert re.findall(r">([^<]*)</h2>", html) == ["Firing rates", "Configuration"]
    assert not [key for key in gone if f'id="{key}' in html or f'href="#{key}' in html]
    assert not re.search(r"<(table|tbody|ul|dl|figure|pre)[^>]*>\s*</\1>", html)


def test_only_a_title():
    reader = Reader(render(ReportData("bare")))
    assert not reader.all("section")
    assert not reader.all("h2")
    assert not reader.all("nav")
    assert not reader.all("dl")
    for sentence in ("was not evaluated", "No other network was trained", "not compared with", "were not counted"):
        assert sentence in reader.text


def test_what_is_there_is_not_called_missing(reader):
    for sentence in ("was not evaluated", "No other network was trained", "not compared with", "were not counted"):
        assert sentence not in reader.text


@pytest.mark.parametrize(
    ("parity", "word", "mood"),
    [
        ({"ok": False, "equal": False}, "broken", "bad"),
        ({"ok": True, "equal": False}, "kept", "good"),
        ({"ok": True, "equal": True}, "exact", "good"),
    ],
)
def test_parity_card(report, parity, word, mood):
    card = next(c for c in page.cards(replace(report, parity=parity)) if c.name == "parity")
    assert (card.value, card.mood) == (word, mood)


@pytest.mark.parametrize(("rate", "mood"), [(0.0005, "bad"), (0.1, ""), (0.95, "bad")])
def test_an_unhealthy_rate_is_marked(report, rate, mood):
    card = next(c for c in page.cards(replace(report, rates={"a": 0.2, "b": rate})) if c.name == "firing rate")
    assert card.mood == mood


def test_the_same_data_give_the_same_bytes(report, html):
    assert render(report) == html


def test_other_settings_of_matplotlib_change_nothing(report):
    import matplotlib as mpl

    plain = replace(report, sample=None, history=[], storage=[], counts=[], baselines=[])
    expected = render(plain)
    with mpl.rc_context({"font.size": 20, "svg.hashsalt": "other", "axes.facecolor": "black"}):
        assert render(plain) == expected


def test_write_page(tmp_path):
    target = tmp_path / "new" / "report.html"
    for title in ("old", "naïve ×"):
        write_page(ReportData(title), target)
        assert target.read_text("utf-8") == render(ReportData(title))
    assert [p.name for p in target.parent.iterdir()] == ["report.html"]


def test_a_failure_leaves_the_old_page(tmp_path, report, monkeypatch):
    target = tmp_path / "report.html"
    target.write_text("old")
    bad_unit = replace(report, dataset={**report.dataset, "time_unit": "fortnight"})
    with pytest.raises(ValueError, match="fortnight"):
        write_page(bad_unit, target)

    def torn(path, _):
        raise OSError("no space left")

    monkeypatch.setattr(page, "render", lambda data: "half")
    monkeypatch.setattr("pathlib.Path.replace", torn)
    with pytest.raises(OSError, match="no space"):
        write_page(report, target)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_large_network_stays_below_four_megabytes(change, make_sample):
    rng = np.random.default_rng(0)
    data = change(
        sample=make_sample(steps=64, layers=(512, 512, 512)),
        weights=[
            WeightPicture(f"layers.{i}", rng.integers(0, 2, (512, 512)).astype(np.int8) * 2 - 1) for i in range(3)
        ],
    )
    assert len(render(data)) < 4_000_000


def test_every_part_of_the_data_is_described():
    documented = ReportData.__doc__ or ""
    assert all(f"        {f.name}: " in documented for f in fields(ReportData))


def test_parts_that_do_not_fit_are_refused(report, make_sample):
    with pytest.raises(ValueError, match="confusion matrix of 10 classes, got \\(3, 3\\)"):
        replace(report, confusion=np.eye(3, dtype=int))
    with pytest.raises(ValueError, match="readout of 10 classes, got 4"):
        replace(report, sample=make_sample(classes=4))
    with pytest.raises(ValueError, match=r"layers.1 of shape \(24, N\), got \(23, 96\)"):
        replace(report.sample, spikes={"layers.1": np.zeros((23, 96), np.uint8)})
    with pytest.raises(ValueError, match=r"frames \(T, C, H, W\)"):
        Sample(0, 0, 0, np.zeros((2, 3)), {}, np.zeros((2, 2)))
    with pytest.raises(ValueError, match="expected 6 inputs in input_shape"):
        WeightPicture("a", np.ones((2, 6), np.int8), input_shape=(1, 2, 2))
    with pytest.raises(ValueError, match='"forward" or "recurrent", got "sideways"'):
        WeightPicture("a", np.ones((2, 6), np.int8), "sideways")
