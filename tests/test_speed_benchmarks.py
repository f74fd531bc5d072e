"""The benchmark of the packed simulator runs, in tiny, and what it computes from times is right."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest_plugins = ["tests.speed_modules"]
PARTS = ("MEMORY", "STEP", "BIN", "CONV", "ON", "DENS", "REC")


def test_the_whole_suite_in_tiny(speed: Any, tmp_path: Path) -> None:
    simulation, settings = speed("simulation").SUITE, speed("suite").Settings(threads=1, tiny=True)
    path = simulation.measure(settings, None, tmp_path)
    found = json.loads(path.read_text())
    assert path.name == "simulation.cpu.1.json"
    assert tuple(found["parts"]) == PARTS
    assert {row["part"] for row in found["rows"]} == {"STEP", "BIN", "CONV", "ON", "DENS"}
    for row in found["rows"]:
        assert 0 < row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
        assert row["shape"].endswith("1 thread")
    parts = found["parts"]
    assert [entry["neurons"] for entry in parts["MEMORY"]["memory"]] == [512, 2048, 4096, 16384]
    assert all(1 <= entry["plane_bits"] <= 1.05 for entry in parts["MEMORY"]["memory"])
    assert {sweep["grows"] for sweep in parts["REC"]["sweeps"]} == {"neurons", "synapses", "activity"}
    assert parts["REC"]["large"]["peak_bytes"] > parts["REC"]["large"]["packed_bytes"]
    assert all(rate > 0 for entry in parts["ON"]["firing_rates"] for rate in entry["rates"].values())
    assert simulation.draw(tmp_path).read_bytes().startswith(b"\x89PNG")

    # One part anew: the others stay, unless they are another machine's.
    simulation.measure(settings, ["MEMORY"], tmp_path)
    again = json.loads(path.read_text())
    assert again["rows"] == found["rows"]
    assert set(again["parts"]) == set(PARTS)
    path.write_text(json.dumps({**again, "cpu": "another"}))
    simulation.measure(settings, ["MEMORY"], tmp_path)
    assert json.loads(path.read_text())["rows"] == []


def test_an_unknown_part_is_named(speed: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"MEMORY, STEP.*got BON"):
        speed("simulation").SUITE.measure(speed("suite").Settings(threads=1), ["BON"], tmp_path)


@pytest.mark.parametrize("weight_density", [1.0, 0.2])
@pytest.mark.parametrize("size", [(3, 70, 65), (20, 300, 130), (1, 64, 1)])
def test_every_side_is_the_product_and_a_wrong_one_is_found(
    speed: Any, size: tuple[int, int, int], weight_density: float
) -> None:
    products = speed("products")
    given = products.operands(size, 0.3, weight_density)
    expected = given.spikes.astype(int) @ given.weights.T.astype(int)
    np.testing.assert_array_equal(given.product, expected)
    sides = {**products.packed_sides(given), **products.float_sides(given), **products.int8_side(given)}
    sides |= products.sparse_sides(given) | products.list_side(given)
    products.check("right", sides, expected)
    expected[0, 0] += 1
    for name, side in sides.items():
        if name != products.BF16:
            with pytest.raises(SystemExit, match=f"wrong: {name} differs"):
                products.check("wrong", {name: side}, expected)


def test_the_ceilings_loops_do_all_their_work(speed: Any) -> None:
    ceilings, seed, turns = speed("ceilings"), np.uint64(12345), 7
    lanes = np.array([(ceilings.ODD * (lane + 1)) % 2**64 for lane in range(8)], np.uint64)
    masks = np.stack([seed * (lanes + np.uint64(2 * i + 1)) for i in range(ceilings.CHAINS)])
    x, sums, alone = masks[1].copy(), np.zeros_like(masks), masks.copy()
    for _ in range(turns):
        sums += np.bitwise_count(x & masks)
        alone = np.bitwise_count(alone & masks).astype(np.uint64)
        x += masks[0]
    assert ceilings._count_and_add(seed, turns) == np.bitwise_xor.reduce([x, *sums], axis=None)
    assert ceilings._count(seed, turns) == np.bitwise_xor.reduce(alone, axis=None)
    assert ceilings._read(np.arange(1000, dtype=np.uint64)) == 499500
    with ceilings.ceiling(1, 10 * ceilings.CHAINS * ceilings.VECTOR_BITS) as at_most:
        assert at_most.run() == ceilings._count_and_add(1, 10)
        assert at_most.longer == 1
    with ceilings.ceiling(2, 10 * ceilings.CHAINS * ceilings.VECTOR_BITS) as at_most:
        half = 10 * at_most.longer // 2
        assert at_most.run() == [ceilings._count_and_add(i, half) for i in (1, 2)]


def test_ratios_and_aims(
    speed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timing = speed("timing")
    times = {"a": [1.0, 2.0, 4.0], "b": [10.0, 10.0, 10.0]}
    found = timing.row(times, "a", "b", aim=6)
    assert (found["ratio"], found["ratio_min"], found["ratio_max"]) == (5, 2.5, 10)
    assert (found["ours_ms"], found["theirs_ms"]) == (2000, 10000)
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    path = timing.save("x", [{"shape": "S", **found}, {"shape": "R", **timing.row(times, "a", "b", aim=5)}])
    missed, met = capsys.readouterr().out.splitlines()
    assert missed.endswith("aim 6: missed")
    assert met.endswith("aim 5: met")
    assert [row["aim"] for row in json.loads(path.read_text())["rows"]] == [6, 5]
    assert "aim" not in timing.line(timing.row(times, "a", "b"))


def test_fits_find_what_they_are_given(speed: Any) -> None:
    density, growth = speed("density"), speed("growth")
    densities = (0.01, 0.1, 0.5)
    fit = density.fitted((10, 100, 7), densities, [1e-6 + 2e-9 * 1000 * d for d in densities])
    assert fit["ns_without_spikes"] == pytest.approx(1000)
    assert fit["ns_per_spike"] == pytest.approx(2)
    assert fit["constant_share"] == pytest.approx(1000 / 1020)
    assert fit["worst_relative_error"] < 1e-9
    assert growth.exponent([1, 10, 100], [3, 3 * 10**0.5, 30]) == pytest.approx(0.5)
    points = [(n, e, 1e-9 * (500 + 2 * n + 3 * e)) for n, e in ((10, 0), (1000, 50), (20, 4000), (7, 900))]
    model = growth.fitted(points)
    assert [model[f"ns_a_{name}"] for name in ("step", "neuron", "synaptic_event")] == pytest.approx([500, 2, 3])


def test_intensity_counts_every_bit_once(speed: Any) -> None:
    found = speed("suite").point("p", "k", (2, 3, 5), 0.5, out_bits=32)
    assert found.intensity == 30 / (6 + 15 + 320)
    assert found.bit_macs_per_s == 60
