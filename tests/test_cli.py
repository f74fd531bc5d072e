"""The command line: the whole way once, and every bad input in one line with exit code 2."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tbnn.cli import main
from tbnn.sim import PackedNetwork
from tbnn.sim.energy import joules
from tbnn.sim.file import VERSION
from tbnn.train import DataConfig

Run = Callable[..., str]


@pytest.fixture(scope="module")
def finished(halves: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained and packed run."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(train_arguments(halves, folder, "--optim.epochs", "12")) == 0
    assert main(["pack", str(folder)]) == 0
    return folder


def train_arguments(data: DataConfig, folder: Path, *more: str) -> list[str]:
    return [
        "train", "--data.dataset", data.dataset, "--data.source", str(data.source), "--data.cache", str(data.cache),
        "--model.hidden", "[16]", "--optim.batch_size", "8", "--optim.learning_rate", "0.005", "--output", str(folder),
        "--device", "cpu", *more,
    ]  # fmt: skip


@pytest.fixture
def tbnn(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that must succeed; returns what it printed."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        code = main(list(arguments))
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that must be refused; returns its one line."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        code = main(list(arguments))
        error = capsys.readouterr().err
        assert code == 2
        assert error.startswith("tbnn: error: ")
        assert error.count("\n") == 1
        return error

    return run


def test_evaluate_pack_simulate_agree(tbnn: Run, finished: Path) -> None:
    evaluated = tbnn("evaluate", str(finished))
    simulated = tbnn("simulate", str(finished))
    accuracy = json.loads((finished / "evaluation.test.json").read_text())["accuracy"]
    assert accuracy > 0.9
    assert f"test accuracy {accuracy:.4f} (48 recordings)" in evaluated
    assert f"test accuracy {accuracy:.4f} (48 recordings), from packed bits" in simulated
    assert "equal bit for bit: 0 of 4,608 spikes differ" in simulated
    result = json.loads((finished / "simulation.json").read_text())
    assert result["parity"]["equal"] is True
    assert result["counts"][-1]["spikes"] == sum(row["spikes"] for row in result["counts"][:-1]) > 0
    operations = result["neurobench"]["SynapticOperations"]
    assert (
        f"Dense {operations['Dense']:,.0f}, Effective_MACs 0, Effective_ACs {operations['Effective_ACs']:,.0f}"
        in simulated
    )
    assert f"Footprint {PackedNetwork.load(finished / 'model.tbnn').packed_bytes:,} bytes" in simulated
    assert f"energy: about {joules(result['energy']['total']['total'])} a recording" in simulated
    assert all(len(line) <= 120 for line in simulated.splitlines())


def test_energy_by_layer_with_its_source(tbnn: Run, finished: Path) -> None:
    shown = tbnn("simulate", str(finished), "--energy", "true")
    energy = json.loads((finished / "simulation.json").read_text())["energy"]
    rows = {line.split()[0]: line for line in shown[shown.index("energy a recording") :].splitlines() if line}
    for row in [*energy["layers"], energy["total"]]:
        assert joules(row["total"]) in rows[row["name"]]
    assert energy["text"] in " ".join(shown.split())
    assert "Horowitz" in energy["technology"]["source"]
    assert all(len(line) <= 120 for line in shown.splitlines())


def test_packed_file_runs_without_its_run(tbnn: Run, finished: Path, halves: DataConfig) -> None:
    folders = ["--source", str(halves.source), "--cache", str(halves.cache)]
    printed = tbnn("simulate", str(finished / "model.tbnn"), "--dataset", halves.dataset, *folders)
    accuracy = json.loads((finished / "evaluation.test.json").read_text())["accuracy"]
    assert f"accuracy {accuracy:.4f}" in printed
    assert "model.tbnn" not in tbnn("info", str(finished / "model.tbnn"))


def test_report_and_raster(tbnn: Run, finished: Path, tmp_path: Path) -> None:
    printed = tbnn("report", str(finished), "--baseline", str(finished))
    page = (finished / "report.html").read_text()
    assert f"report: {finished / 'report.html'}" in printed
    assert "Two halves" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    tbnn("plot", "raster", str(finished), "--sample", "3", "--output", str(tmp_path / "r.png"))
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_info_says_what_runs_and_what_files_hold(tbnn: Run, finished: Path, halves: DataConfig) -> None:
    assert "numba kernels" in tbnn("info")
    assert "BinaryLinear(24, 16" in tbnn("info", str(finished))
    packed = PackedNetwork.load(finished / "model.tbnn")
    held = tbnn("info", str(finished / "model.tbnn"))
    assert f"{packed.weights:,} weights" in held
    assert re.search(r"layers\.0 +linear +24 -> 16 +384 +[\d.]+ +0\.0% +\d+  1 bit; (dense|events)\n", held)
    assert re.search(r"layers\.1 +leaky +16 +8  beta 0\.9, theta 1, subtract\n", held)
    assert re.search(
        rf"total +network +24 -> 2 +416 +{packed.bits_per_weight:.2f} +0\.0% +{packed.packed_bytes:,}\n", held
    )
    assert re.search(r"\ndataset +halves\n", held)
    assert re.search(r"\nclasses +left, right\n", held)
    store = next(Path(str(halves.cache)).glob("*.h5"))
    assert "Two halves: 36 train, 12 validation, 48 test" in tbnn("info", str(store))


def test_datasets(tbnn: Run, halves: DataConfig, tmp_path: Path) -> None:
    listed = tbnn("datasets", "list")
    assert {"digits", "nmnist_small", "braille7"} <= {line.split()[0] for line in listed.splitlines()}
    folders = ["--source", str(halves.source), "--cache", str(tmp_path / "c")]
    made = tbnn("datasets", "make", halves.dataset, *folders)
    assert "Two halves: 36 train, 12 validation, 48 test; 6 steps of 10 us; 2x3x4 bits a step" in made
    other = tbnn("datasets", "make", halves.dataset, *folders, "--compression", "gzip", "--force", "true")
    assert made.splitlines()[0] == other.splitlines()[0]
    info = tbnn("datasets", "info", made.splitlines()[0])
    assert re.search(r"train: 2[5-9]\.\d\d% of the bits set", info)  # half of them at 50 %, half at 5 %
    assert "classes: left 18, right 18" in info
    shown = tbnn("datasets", "show", halves.dataset, *folders, "--output", str(tmp_path / "look")).splitlines()
    assert [Path(line).name for line in shown] == ["contact_sheet.png", "statistics.png", "0_left.gif", "1_right.gif"]
    assert all(Path(line).stat().st_size > 100 for line in shown)


def test_frames_of_the_command_line_reach_the_file_and_the_run(tbnn: Run, tmp_path: Path) -> None:
    cache = ["--cache", str(tmp_path)]
    made = tbnn("datasets", "make", "digits", *cache, "--bins", "4", "--size", "[10, 5]", "--polarity", "merge")
    assert "4 steps; 1x10x5 bits a step" in made
    assert "4 steps; 2x10x10 bits a step" in tbnn("datasets", "make", "digits", *cache, "--bins", "4", "--size", "10")
    run = ["--data.cache", str(tmp_path), "--output", str(tmp_path / "run"), "--device", "cpu", "--model.hidden", "[8]"]
    frames = ["--data.frames.bins", "4", "--data.frames.size", "10", "--data.augment.shift", "1", "--optim.epochs", "1"]
    tbnn("train", *run, *frames)
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert facts["sensor"] == [2, 10, 10]
    assert "test accuracy" in tbnn("evaluate", str(tmp_path / "run"))


def test_options_override_the_config_file(halves: DataConfig, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("model: {hidden: [5], beta: 0.5}\noptim: {epochs: 1}\n")
    arguments = train_arguments(halves, tmp_path / "run")
    assert main([arguments[0], "--config", str(config), *arguments[1:]]) == 0
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert saved["model"]["hidden"] == [16]
    assert saved["model"]["beta"] == 0.5
    assert saved["optim"]["epochs"] == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["train", "--optim.epochs", "many"], "optim.epochs"),
        (["train", "--model.hidden", "[0]"], "model.hidden: expected at least one layer"),
        (["train", "--model.colour", "red"], "colour"),
        (["train", "--data.dataset", "nothing"], "digits"),
        (["train", "--data.dataset", "nmnist_small", "--data.cache", "."], "--source"),
        (["train", "--config", "absent.yaml"], "absent.yaml"),
        (["train", "--model.target", "trace", "--model.reset_mechanism", "zero"], "reset 'subtract' only"),
        (["evaluate", "absent"], "absent: not a training run"),
        (["pack", "."], "run.json is missing"),
        (["simulate", "absent.tbnn", "--dataset", "digits"], "absent.tbnn"),
        (["simulate", "absent.tbnn"], "expected --dataset"),
        (["datasets", "show"], "expected a name"),
        (
            ["datasets", "make", "digits", "--bins", "3", "--count", "9"],
            "expected exactly one of them, got bins, count",
        ),
        (["datasets", "make", "digits", "--size", "40"], "size: expected at most the sensor's (20, 20), got (40, 40)"),
        (["datasets", "make", "digits", "--late", "drop"], "late"),
        (["datasets", "info", "absent.h5"], "absent.h5"),
        (["plot", "raster", "absent"], "absent"),
        (["juggle"], "juggle"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments(
    refused: Run, arguments: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert complaint in refused(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_bad_files(refused: Run, finished: Path, tmp_path: Path) -> None:
    model = (finished / "model.tbnn").read_bytes()
    (tmp_path / "cut.tbnn").write_bytes(model[:-20])
    (tmp_path / "newer.tbnn").write_bytes(model.replace(b'\\"version\\": %d' % VERSION, b'\\"version\\": 9'))
    (tmp_path / "foreign.h5").write_bytes(b"not HDF5 at all")
    assert model != (tmp_path / "newer.tbnn").read_bytes()
    assert "cut.tbnn" in refused("info", str(tmp_path / "cut.tbnn"))
    newer = refused("simulate", str(tmp_path / "newer.tbnn"), "--dataset", "digits")
    assert "newer.tbnn" in newer
    assert "version" in newer
    assert "foreign.h5" in refused("datasets", "info", str(tmp_path / "foreign.h5"))


def test_run_on_another_dataset_is_no_baseline(refused: Run, finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in finished.iterdir():
        if path.is_file():
            (other / path.name).write_bytes(path.read_bytes())
    facts = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps({**facts, "recipe_hash": "0" * 64}))
    assert "expected a run on halves" in refused("report", str(finished), "--baseline", str(other))
    assert "of recipe 000000000000" in refused("evaluate", str(other))


def test_a_device_that_is_not_there(refused: Run, finished: Path) -> None:
    assert "device: expected 'cpu', 'cuda' or 'cuda:N', got 'gpu0'" in refused(
        "simulate", str(finished), "--device", "gpu0"
    )
    if not torch.cuda.is_available():
        assert "device: " in refused("simulate", str(finished), "--device", "cuda")


def test_sample_outside_the_split(refused: Run, finished: Path, tmp_path: Path) -> None:
    error = refused("plot", "raster", str(finished), "--sample", "48", "--output", str(tmp_path / "r.png"))
    assert "expected a number from 0 to 47" in error
    assert list(tmp_path.iterdir()) == []


def test_as_a_program_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tbnn.cli", "evaluate", "absent"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "tbnn: error: absent: not a training run, run.json is missing\n"
    assert done.stdout == ""
