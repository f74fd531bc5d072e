"""The figures in README and ledger are those of the committed results."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXTS = {name: (ROOT / name).read_text() for name in ("README.md", "experiments/README.md")}


def first_light() -> dict[str, dict[str, dict[str, object]]]:
    results = json.loads((ROOT / "experiments/01_first_light/results.json").read_text())
    return {name: part for name, part in results.items() if isinstance(part, dict) and "binary" in part}


@pytest.mark.parametrize("text", TEXTS, ids=str)
def test_first_light_accuracies(text: str) -> None:
    results = first_light()
    assert set(results) == {"digits", "nmnist_small", "braille7"}
    for name, variants in results.items():
        row = next(line for line in TEXTS[text].splitlines() if line.startswith("|") and f"(`{name}`)" in line)
        found = [tuple(map(float, cell)) for cell in re.findall(r"(\d\.\d+) \[(\d\.\d+), (\d\.\d+)\]", row)]
        expected = []
        for variant in ("binary", "float"):
            accuracies = [run["test_accuracy"] for run in variants[variant]["runs"]]  # pyright: ignore
            assert len(accuracies) == 3
            mean, low, high = sum(accuracies) / 3, min(accuracies), max(accuracies)
            expected.append((round(mean, 3), round(low, 3), round(high, 3)))
        assert found == expected


def test_trace_floor_figures() -> None:
    results = json.loads((ROOT / "experiments/02_trace_floor/results.json").read_text())["runs"]
    ledger = TEXTS["experiments/README.md"]
    for floor in (-0.5, -0.05, 0.0):
        runs = [run for run in results if run["floor"] == floor]
        accuracy = sum(run["validation_accuracy"] for run in runs) / len(runs)
        norm = sorted(run["grad_norm_max"] for run in runs)[len(runs) // 2]
        assert f"| {floor:g} | {accuracy:.3f} | {norm:.2g} |" in ledger


def test_speed_ratios() -> None:
    rows = json.loads((ROOT / "experiments/speed/results/first_light.cpu.json").read_text())["rows"]
    for row in rows:
        assert f"| {row['shape']} | {row['theirs']} | {row['ratio']:.1f} |" in TEXTS["experiments/README.md"]


def spread(values: list[float]) -> str:
    return f"{sum(values) / len(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def test_nmnist_conv_figures() -> None:
    results = json.loads((ROOT / "experiments/03_nmnist_conv/results.json").read_text())
    row = spread([run["test_accuracy"] for run in results["runs"]])
    assert len(results["runs"]) == 3
    assert f"| {results['weights']:,} | {results['bits_per_weight']:.2f} | {row} |" in TEXTS["experiments/README.md"]
    assert row in TEXTS["README.md"]


def test_hard_regime_figures() -> None:
    regimes = json.loads((ROOT / "experiments/04_hard_regimes/results.json").read_text())
    names = [name for name, part in regimes.items() if isinstance(part, dict) and "runs" in part]
    assert set(names) == {"depth", "length", "sparsity", "activity"}
    estimators = {run["estimator"] for run in regimes["depth"]["runs"]}
    for name, estimator in ((name, estimator) for name in names for estimator in estimators):
        runs = [run for run in regimes[name]["runs"] if run["estimator"] == estimator]
        assert len(runs) == 5
        accuracies = [run["test_accuracy"] for run in runs]
        norm = sorted(run["median_norm"] for run in runs)[2]
        cells = f"| {name} | {estimator} | {runs[0]['scale']:g} | {spread(accuracies)} | {norm:.2g} |"
        assert cells in TEXTS["experiments/README.md"], cells


def test_quantisation_ratios() -> None:
    rows = json.loads((ROOT / "experiments/speed/results/quantize.cpu.json").read_text())["rows"]
    for row in rows:
        time = f"{1 / row['ratio']:.2f}"
        memory = f"{row['memory_of_theirs']:.2f}" if "memory_of_theirs" in row else ""
        assert f"| {row['shape']} | {row['theirs']} | {time} | {memory} |" in TEXTS["experiments/README.md"]


def test_data_figures() -> None:
    rows = json.loads((ROOT / "experiments/speed/results/data.cpu.json").read_text())["rows"]
    ledger = TEXTS["experiments/README.md"]
    for row in rows:
        assert f"| {row['shape']} | {row['theirs']} | {row['ratio']:.1f} |" in ledger
        if "events_per_s" in row:
            assert f"{row['events_per_s'] / 1e6:.0f} " in ledger
    for size in rows[2]["bytes"].values():
        assert f"{size:,.0f} " in ledger
    for share in rows[0]["waiting"].values():
        assert f"{100 * share:.1f} %" in ledger


@pytest.mark.parametrize("threads", [1, 2])
def test_packed_figures(threads: int) -> None:
    rows = json.loads((ROOT / f"experiments/speed/results/packed.cpu.{threads}.json").read_text())["rows"]
    assert len(rows) == 6
    for row in rows:
        assert f"| {row['shape']} | {row['theirs']} | {row['ratio']:.1f} |" in TEXTS["experiments/README.md"]


def test_density_figures() -> None:
    rows = json.loads((ROOT / "experiments/speed/results/density.cpu.json").read_text())["rows"]
    lines = [
        line for line in TEXTS["experiments/README.md"].splitlines() if re.match(r"\| \(\d+x\d+\)\(\d+x\d+\), ", line)
    ]
    assert len(lines) == 16
    for line in lines:
        name, events, chosen = (cell.strip() for cell in line.strip("|").split("|"))
        mine = [row for row in rows if row["shape"] == f"{name} spikes, 1 thread"]
        ratios = {(row["ours"], row["theirs"]): f"{row['ratio']:.1f}" for row in mine}
        assert ratios["event-driven", "dense packed"] == events
        assert ratios["the chosen one", "torch fp32 matmul"] == chosen
