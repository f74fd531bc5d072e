"""The figures that README and ledger give of studies are those of the studies' results."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tbnn.compare import statistics

ROOT = Path(__file__).parents[1]
TEXTS = {name: (ROOT / name).read_text() for name in ("README.md", "experiments/README.md")}


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
