"""The figures in README and ledger are those of the committed results."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tbnn.compare import statistics

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


def test_exact_gradient_figures() -> None:
    summary = json.loads((ROOT / "experiments/19_exact_gradients/results.json").read_text())["summary"]
    found = {(row["estimator"], row["dt"]): row for row in summary}
    steps = sorted({row["dt"] for row in summary}, reverse=True)
    texts = [TEXTS["experiments/README.md"], (ROOT / "experiments/19_exact_gradients/README.md").read_text()]
    for name in dict.fromkeys(row["estimator"] for row in summary):
        rows = [found[name, dt] for dt in steps]
        ends = [f"{r['cosine']:.2f} [{r['interval'][0]:.2f}, {r['interval'][1]:.2f}]" for r in (rows[0], rows[-1])]
        line = "| " + " | ".join([name, *(f"{r['ratio']:.2g}" for r in rows), *ends]) + " |"
        assert all(line in text for text in texts), line
    ratios = [found["DDT trace, slope", dt]["ratio"] for dt in steps]
    assert 0.95 < min(ratios) < max(ratios) < 1.45  # "between once and 1.4 times"
    atan = [found["atan(2)", dt]["ratio"] for dt in (steps[0], steps[-1])]
    assert (round(atan[0]), round(atan[1])) == (6, 102)


@pytest.fixture
def _all_resamples() -> Iterator[None]:
    """The tests of comparisons take fewer, in the same process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "BOOTSTRAP", 9999)
        statistics._interval.cache_clear()
        yield
    statistics._interval.cache_clear()


@pytest.mark.usefixtures("_all_resamples")
def test_braille_figures() -> None:
    from tbnn.compare.statistics import estimates
    from tbnn.compare.tables import with_interval

    results = json.loads((ROOT / "experiments/07_braille/results.json").read_text())
    (found,) = estimates(results).values()
    shown = {name: with_interval(one["mean"], one["interval"]) for name, one in found.items()}
    lines = [line for line in SECTIONS["07"].splitlines() if "| learning rate" in line]
    assert len(lines) == 12
    for line in lines:
        name, _, cell = (part.strip() for part in line.strip("|").split("|"))
        assert cell == shown[name]
    norms = {
        n: [r["grad_norm"]["median"] for r in results["runs"] if r["estimator"] == n] for n in ("atan", "DDT trace")
    }
    atan, trace = (sorted(values) for values in norms.values())
    assert f"{(atan[4] + atan[5]) / 2:,.0f} against {(trace[4] + trace[5]) / 2:.1f}" in TEXTS["experiments/README.md"]
    for name in (
        "DDT trace", "DDT trace, slope", "DDT trace, slope, scale tuned", "DDT soft", "fast_sigmoid", "fast_sigmoid, scale tuned",
        "atan", "atan, scale tuned", "readout only",
    ):  # fmt: skip
        assert f"| {shown[name]} % |" in TEXTS["README.md"]


SECTIONS = dict(re.findall(r"^## (\d\d) [^\n]*\n(.*?)(?=^## )", TEXTS["experiments/README.md"], re.S | re.M))
COMPARED = {
    folder.name[:2]: folder
    for folder in sorted((ROOT / "experiments").glob("[0-9][0-9]_*"))
    if (folder / "results.json").is_file() and "format" in json.loads((folder / "results.json").read_text())
}


@pytest.mark.usefixtures("_all_resamples")
@pytest.mark.parametrize("number", sorted(COMPARED.keys() & SECTIONS.keys()))
def test_every_interval_of_a_section_is_of_its_study(number: str) -> None:
    from tbnn.compare.statistics import comparisons, estimates
    from tbnn.compare.tables import with_interval

    results = json.loads((COMPARED[number] / "results.json").read_text())
    known = {
        with_interval(one["mean"], one["interval"]) for task in estimates(results).values() for one in task.values()
    }
    for task in comparisons(results, results["reference"]).values():
        known |= {
            with_interval(row["difference"], row["interval"], signed=True) for row in task["comparisons"].values()
        }
    shown = re.findall(r"[+−]?\d+\.\d \[[^\]]*\]", SECTIONS[number])
    assert len(shown) >= 4
    assert set(shown) <= known


OVERVIEW = {
    "Braille letters, recurrent, 64 steps": ("07", "base"),
    "digits row by row, recurrent, 40 steps": ("18", "rows"),
    "N-MNIST subset, conv net, 20 steps": ("06", "N-MNIST subset"),
    "N-MNIST subset, at most 0.5 % of the neurons spike": ("17", "activity_rate=0.005"),
    "at most 2 %": ("17", "activity_rate=0.02"),
    "at most 5 %": ("17", "activity_rate=0.05"),
    "at most 20 %": ("17", "activity_rate=0.2"),
}


@pytest.mark.usefixtures("_all_resamples")
@pytest.mark.parametrize("row", OVERVIEW)
def test_the_readmes_overview(row: str) -> None:
    from tbnn.compare.statistics import estimates
    from tbnn.compare.tables import with_interval

    number, task = OVERVIEW[row]
    found = estimates(json.loads((COMPARED[number] / "results.json").read_text()))
    figures = found.get(task) or next(iter(found.values()))
    tuned = max(
        (figures[name] for name in ("atan, scale tuned", "fast_sigmoid, scale tuned")), key=lambda one: one["mean"]
    )
    shown = (figures["DDT trace, slope"], tuned, figures["atan"])
    cells = [with_interval(one["mean"], one["interval"]) for one in shown]
    assert f"| {row} | {' | '.join(cells)} |" in TEXTS["README.md"]
    results = json.loads((COMPARED[number] / "results.json").read_text())

    def p_against(reference: str) -> float:
        tasks = statistics.comparisons(results, reference)
        compared = tasks.get(task) or next(iter(tasks.values()))
        return compared["comparisons"]["DDT trace, slope"]["p_holm"]

    assert p_against("atan, scale tuned") >= 0.05, "the README says: not beyond doubt"
    sure = row in ("Braille letters, recurrent, 64 steps", "digits row by row, recurrent, 40 steps", "at most 2 %")
    assert (p_against("atan") < 0.05) == sure


def test_every_study_has_its_section_and_its_verdict() -> None:
    ledger = TEXTS["experiments/README.md"]
    for number, folder in COMPARED.items():
        assert f"| [{folder.name}]({folder.name}) |" in ledger
        assert number in SECTIONS


@pytest.mark.usefixtures("_all_resamples")
def test_figures_outside_spikes() -> None:
    from tbnn.compare.statistics import comparisons, estimates
    from tbnn.compare.tables import with_interval

    results = json.loads((ROOT / "experiments/16_outside_spikes/results.json").read_text())
    ledger = TEXTS["experiments/README.md"]
    for name, one in estimates(results)["language"].items():
        assert f"| {name} | {with_interval(one['mean'], one['interval'])} |" in ledger
    row = comparisons(results)["language"]["comparisons"]["DDT affine"]
    assert f"{-100 * row['difference']:.1f} points above DDT affine (p = {row['p_holm']:.3f})" in ledger
    assert f"{results['config']['parameters']:,} parameters" in ledger


def test_norms_over_depth() -> None:
    from statistics import median

    runs = json.loads((ROOT / "experiments/09_depth/results.json").read_text())["runs"]
    told = {"atan": "3.5e+02", "DDT trace, slope": "2.3e-04", "sigmoid": "1.9e+06", "fast_sigmoid": "9.1e-10"}
    for name, shown in {**told, "DDT trace, slope, λ = 1e-5": "2.8e-04"}.items():
        own = [run for run in runs if (run["task"], run["estimator"]) == ("16 layers", name) and "mechanism" in run]
        norms = [list(run["mechanism"]["layer_norms"].values()) for run in own]
        assert f"{median(first / last for first, *_, last in norms):.1e}" == shown
        assert shown in SECTIONS["09"]


def test_stored_bits_of_a_weight() -> None:
    import torch

    from tbnn import summary
    from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network

    cells = []
    for bits in (1, 1.58, 2, 4, 8, None):
        layers = [
            BinaryLinear(2312, 256, bits=bits),
            Leaky(0.9),
            BinaryLinear(256, 10, bits=bits),
            LeakyIntegrator(0.9),
        ]
        stored = summary(Network(layers, input_shape=(2312,)), torch.zeros(2, 1, 2312)).total.bits_per_weight
        cells.append(f"{stored:.2f}")
    name = f"bits stored a weight, constants counted (float: {cells.pop()})"
    assert f"| {name} | {' | '.join(cells)} |" in TEXTS["experiments/README.md"]


def test_alignment_figures() -> None:
    rows = json.loads((ROOT / "experiments/21_alignment/results.json").read_text())["rows"]

    def mean(rule: str, slope: str, size: float | None, name: str) -> float:
        own = [row[name] for row in rows if (row["rule"], row["slope"], row["size"]) == (rule, slope, size)]
        assert len(own) == 3
        return sum(own) / 3

    slopes = {row["slope"] for row in rows}
    assert len(slopes) == 4
    for slope in slopes:
        cells = [
            f"{mean('eprop', slope, size, 'cosine'):.3f}, {mean('eprop', slope, size, 'ratio'):.2f}"
            for size in (None, 0.5, 1.0, 2.0)
        ]
        assert f"| {slope} | {' | '.join(cells)} |" in TEXTS["experiments/README.md"]
        for size in (None, 0.5, 1.0, 2.0):
            assert abs(mean("eprop", slope, size, "cosine") - mean("ottt", slope, size, "cosine")) < 0.01
            assert 8 <= 1 / mean("ottt", slope, size, "ratio") < 17.5


@pytest.mark.usefixtures("_all_resamples")
def test_learning_rules_figures() -> None:
    from tbnn.compare.statistics import estimates
    from tbnn.compare.tables import with_interval

    folder = ROOT / "experiments/20_learning_rules"
    found = estimates(json.loads((folder / "results.json").read_text()))
    cost = {row["estimator"]: row for row in json.loads((folder / "cost.json").read_text())["rows"]}
    for name in next(iter(found.values())):
        cells = " | ".join(with_interval(row[name]["mean"], row[name]["interval"]) for row in found.values())
        line = next(line for line in SECTIONS["20"].splitlines() if line.startswith(f"| {name} | {cells} |"))
        if name in cost:
            assert line.endswith(f"| {cost[name]['synapse_bits']:.0f} | {cost[name]['kept_bits'] / 1000:,.0f} |")
        if name in ("BPTT, DDT", "BPTT, atan, STE", "OTTT, atan", "DECOLLE, DDT", "readout only"):
            assert f" | {cells} |" in TEXTS["README.md"]
    for row in found.values():  # "95 % of back-propagation's accuracy"
        means = {name: one["mean"] or 0.0 for name, one in row.items()}
        online = max(mean for name, mean in means.items() if not name.startswith(("BPTT", "readout")))
        assert online >= 0.95 * means["BPTT, DDT"]


def test_forgetting_figures() -> None:
    from statistics import mean

    runs = json.loads((ROOT / "experiments/22_forgetting/results.json").read_text())["runs"]
    for name in {run["estimator"] for run in runs}:
        own = [run for run in runs if run["estimator"] == name]
        learned, lost = (100 * mean(run["retention"][key] for run in own) for key in ("learned", "forgetting"))
        turned = ", ".join(f"{100 * mean(run['flips'][task] for run in own):.1f}" for task in range(3))
        line = next(line for line in SECTIONS["22"].splitlines() if line.startswith(f"| {name} |"))
        assert line.endswith(f"| {learned:.1f} | {lost:.1f} | {turned} |")


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
