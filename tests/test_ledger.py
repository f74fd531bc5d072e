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


SPEED_RESULTS = ROOT / "experiments/speed/results"


@pytest.mark.parametrize("path", sorted(SPEED_RESULTS.glob("simulation.cpu.*.json")), ids=lambda p: p.stem)
def test_simulation_figures(path: Path) -> None:
    results, ledger = json.loads(path.read_text()), TEXTS["experiments/README.md"]
    parts, cells = results["parts"], []
    for row in results["rows"]:
        if row["part"] in ("STEP", "BIN", "ON", "CONV"):
            cells.append(f"| {row['shape']} | {row['theirs']} | {row['ratio']:.1f} |")
        if row["part"] == "STEP":
            cells.append(f"| {row['shape']} | {row['ours_us_per_step']:.0f} | {row['theirs_us_per_step']:.0f} |")
    cells += [f"| {p['shape']} | {p['way']} | {p['share']:.2f} |" for p in parts["BIN"]["ceiling_shares"]]
    cells += [
        f"| {fit['shape']}, {results['threads']} | {fit['ns_per_spike']:.1f} | {fit['constant_share']:.2f} |"
        for fit in parts["DENS"]["cost_per_spike"]
    ]
    cells += [f"| {m['neurons']:,} | {m['bits_per_weight']:.3f} |" for m in parts["MEMORY"]["memory"]]
    cells += [f"| {s['grows']}, {results['threads']} | {s['exponent']:.2f} |" for s in parts["REC"]["sweeps"]]
    ceilings, large = parts["BIN"]["ceilings"], parts["REC"]["large"]
    cells.append(f"{ceilings['and_popcount_add_per_s'] / 1e12:.2f} T bit-MAC/s")
    cells.append(f"{100 * parts['DENS']['choice']['worst_loss']:.0f} %")
    cells.append(f"{large['seconds']:.1f} s")
    cells.append(f"{large['peak_bytes'] / 2**20:.0f} MiB")
    missing = [cell for cell in cells if cell not in ledger]
    assert missing == []


@pytest.mark.parametrize("path", sorted(SPEED_RESULTS.glob("training.cpu.*.json")), ids=lambda p: p.stem)
def test_training_figures(path: Path) -> None:
    results, ledger = json.loads(path.read_text()), TEXTS["experiments/README.md"]
    parts, threads = results["parts"], results["threads"]
    cells = [f"| {r['shape']} | {r['ours']} | {r['theirs']} | {r['ratio']:.2f} |" for r in results["rows"]]
    cells += [f"| {c['what']} | {c['value']:.3g} | {c['aim']} |" for p in parts.values() for c in p.get("claims", ())]
    cells += [f"| {s['shape']} | {s['tbnn']:.0f} | {s['snntorch']:.0f} |" for s in parts["E2E"]["samples_per_s"]]
    cells += [
        f"| {sweep['side']}, {threads} | {p['steps']:,} | {p['saved_bits']:.2f} | {p['grown_bits']:.2f} | "
        f"{p['peak_bytes'] / 2**20:.1f} |"
        for sweep in parts["MEM"]["sweeps"]
        for p in sweep["points"]
    ]
    missing = [cell for cell in cells if cell not in ledger]
    assert missing == []


def test_training_accuracies() -> None:
    results = json.loads((SPEED_RESULTS / "training_accuracy.cpu.json").read_text())
    ledger = " ".join(TEXTS["experiments/README.md"].split())
    for c in results["compared"]:
        assert f"{c['tbnn']:.3f} in tbnn and {c['snntorch']:.3f} in snntorch's loop" in ledger
        low, high = c["interval"]
        assert f"difference {c['difference']:+.3f}, 95 % interval [{low:+.3f}, {high:+.3f}]" in ledger


# The columns of the ledger's two tables of products: ours and theirs.
BY_DENSITY = (("event-driven", "dense packed"), ("the chosen one", "torch fp32 matmul"))
BY_LISTS = tuple(
    ("index lists", theirs) for theirs in ("the chosen one", "torch fp32 matmul", "torch matmul of CSR weights")
)


def test_density_figures() -> None:
    rows = json.loads((SPEED_RESULTS / "simulation.cpu.1.json").read_text())["rows"]
    pattern = r"\| \(\d+x\d+\)\(\d+x\d+\), (\d+% weights, )?[\d.]+% \|"
    lines = [line for line in TEXTS["experiments/README.md"].splitlines() if re.match(pattern, line)]
    assert len(lines) >= 16
    for line in lines:
        name, *figures = (cell.strip() for cell in line.strip("|").split("|"))
        mine = [row for row in rows if row["shape"] == f"{name} spikes, 1 thread"]
        ratios = {(row["ours"], row["theirs"]): row["ratio"] for row in mine}
        pairs, digits = (BY_DENSITY, 1) if len(figures) == 2 else (BY_LISTS, 2)
        assert figures == [f"{ratios[pair]:.{digits}f}" for pair in pairs]


def test_readme_speeds() -> None:
    rows = [
        row
        for name in ("simulation.cpu.1", "simulation.cpu.2", "training.cpu.1", "training.cpu.2")
        for row in json.loads((SPEED_RESULTS / f"{name}.json").read_text())["rows"]
    ]
    printed = {f"{row['ratio']:.1f} [{row['ratio_min']:.1f}, {row['ratio_max']:.1f}]" for row in rows}
    heads = {"| packed simulation of |": 8, "| forward and backward of |": 18}
    for head, count in heads.items():
        table = TEXTS["README.md"].split(head)[1].split("\n\n")[0]
        cells = re.findall(r"[\d.]+ \[[\d.]+, [\d.]+\]", table)
        assert len(cells) == count
        assert set(cells) <= printed


def test_stdp_figures() -> None:
    rows = json.loads((SPEED_RESULTS / "stdp.cpu.json").read_text())["rows"]
    assert len(rows) == 12
    for row in rows:
        cells = f"| {row['shape']} | {row['ratio']:.1f} | {row['ratio_min']:.1f}, {row['ratio_max']:.1f} |"
        assert cells in TEXTS["experiments/README.md"]
    assert [row["shape"] for row in rows if row["ratio"] < 10] == ["change, every step, 2312->100, T=20, B=1, 1 thread"]


def test_online_learning_figures() -> None:
    found = json.loads((ROOT / "experiments/speed/results/learning.cpu.1.json").read_text())
    ledger = TEXTS["experiments/README.md"]
    section = ledger[ledger.index("## Online learning") : ledger.index("## Packed simulation")]
    rules = list(dict.fromkeys(row["shape"].split(",")[0] for row in found["rows"]))
    assert len(rules) == 7
    for rule in rules:
        line = next(line for line in section.splitlines() if line.startswith(f"| {rule} |"))
        costs = [
            f"{1 / row['ratio']:.1f} [{1 / row['ratio_max']:.1f}, {1 / row['ratio_min']:.1f}]"
            for row in found["rows"]
            if row["shape"].startswith(f"{rule},")
        ]
        held = [f"{one['bytes'] / 2**20:.1f}" for one in found["memory"] if one["rule"] == rule]
        assert [cell.strip() for cell in line.strip("|").split("|")[1:]] == [*costs, *held]
