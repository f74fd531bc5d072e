"""What the studies' folders show is what their results say: figures and tables are those of `tbnn report experiments`."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tbnn.compare import CompareConfig, statistics
from tbnn.compare.plan import final_jobs, points_of, resolve, tasks_of
from tbnn.data import load_recipe
from tbnn.data.make import with_frames
from tbnn.report.studies.collect import CONFIG, RESULTS, TEXT, collect, read_study
from tbnn.report.studies.drawings import MOST_BYTES, drawings
from tbnn.report.studies.overview import overview
from tbnn.report.studies.readme import BEGIN, END, block, kept
from tbnn.train.parse import Parser, add_arguments, configured
from tbnn.train.run import read_json

ROOT = Path(__file__).parents[1] / "experiments"
FOLDERS = sorted(path for path in ROOT.glob("[0-9][0-9]_*") if path.is_dir())
STUDIES = [path for path in FOLDERS if (path / RESULTS).is_file() and "format" in read_json(path / RESULTS)]


@pytest.fixture(autouse=True)
def _all_resamples() -> Iterator[None]:
    """The tests of comparisons take fewer, in the same process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "BOOTSTRAP", 9999)
        statistics._interval.cache_clear()
        yield
    statistics._interval.cache_clear()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_every_study_says_how_it_is_run(folder: Path) -> None:
    assert (folder / "compare.yaml").is_file() or (folder / "run.py").is_file()


def differences(folder: Path) -> list[str]:
    """What is wrong with a study's folder."""
    study = read_study(folder)  # refuses rehearsals
    found = [] if study.results["complete"] else ["incomplete"]
    text = (folder / TEXT).read_text(encoding="utf-8") if (folder / TEXT).is_file() else ""
    drawn = kept(drawings(study.results))
    if BEGIN not in text or END not in text:
        found.append("README.md has no block of results")
    elif block(study, drawn) != text[text.index(BEGIN) : text.index(END) + len(END)]:
        found.append("README.md shows other results; run `tbnn report experiments`")
    pictures = [folder / f"{drawing.name}.png" for drawing in drawn]
    found += [f"{path.name} is missing or large" for path in pictures if not 0 < size_of(path) < MOST_BYTES]
    return found


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


@pytest.mark.parametrize("folder", STUDIES, ids=lambda path: path.name)
def test_a_study_shows_its_results(folder: Path) -> None:
    assert differences(folder) == []


def test_the_ledger_shows_all_studies_together() -> None:
    block, drawn = overview(collect(ROOT))
    assert block in (ROOT / TEXT).read_text(encoding="utf-8"), "run `tbnn report experiments`"
    assert drawn is not None
    assert (ROOT / f"{drawn.name}.png").is_file()


@pytest.mark.parametrize("folder", [path for path in FOLDERS if (path / CONFIG).is_file()], ids=lambda path: path.name)
def test_every_configuration_can_be_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimators and tasks are ones that training takes, and frames ones that the recordings can be cut into."""
    monkeypatch.chdir(ROOT.parent)
    parser = Parser()
    add_arguments(parser, CompareConfig)
    config = configured(parser, parser.parse_args([f"--config={folder / CONFIG}"]), CompareConfig)
    for name, task in tasks_of(config).items():
        for estimator in config.estimators:
            assert final_jobs(config, name, estimator, (points_of(config) or [{}])[0])
        data = resolve(task.settings).data
        with_frames(load_recipe(data.dataset), **data.frames.changes())


def test_a_difference_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "report"))
    import made_studies as made

    from tbnn.report.studies import report_studies

    folder = made.write(tmp_path / "01_x", made.results(3))
    assert differences(folder) == ["README.md has no block of results", "intervals.png is missing or large"]
    report_studies(folder)
    assert differences(folder) == []
    text = (folder / TEXT).read_text()
    figure = re.search(r"\d\d\.\d \[", text)
    assert figure is not None
    (folder / TEXT).write_text(text.replace(figure[0], "99.9 [", 1))
    assert differences(folder) == ["README.md shows other results; run `tbnn report experiments`"]
    made.write(folder, made.results(3, complete=False))
    assert differences(folder)[0] == "incomplete"
