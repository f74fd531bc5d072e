"""What several studies say together: the estimators they share over all their tasks, and the ledger's block."""

import made_studies as made
import pytest

from tbnn.compare import statistics
from tbnn.compare.statistics import ranking
from tbnn.report.studies import report_studies
from tbnn.report.studies.across import across
from tbnn.report.studies.collect import Study, collect
from tbnn.report.studies.readme import BEGIN, END

PLACE = f"# The ledger\n\nbefore\n\n{BEGIN}\n{END}\n\nafter\n"


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "BOOTSTRAP", 199)
        statistics._interval.cache_clear()
        yield
    statistics._interval.cache_clear()


def without(results, *names):
    """A study that lacks some estimators."""
    kept = {name: entry for name, entry in results["estimators"].items() if name not in names}
    return {**results, "estimators": kept, "runs": [run for run in results["runs"] if run["estimator"] in kept]}


def study(path, name, results):
    return Study(path / name, results)


def test_shared_estimators_are_ranked_over_all_tasks(tmp_path):
    one = made.results(4)
    joined = across([study(tmp_path, "01_a", one), study(tmp_path, "02_b", one)])
    assert joined is not None
    assert list(joined["estimators"]) == ["atan", "atan, scale", "soft", "soft, scale"]  # no float
    assert list(joined["tasks"]) == ["01_a: one", "01_a: two", "02_b: one", "02_b: two"]
    apart, together = ranking(one), ranking(joined)
    assert together["mean_ranks"] == apart["mean_ranks"]  # each task twice
    assert together["critical_difference"] == pytest.approx(apart["critical_difference"] / 2**0.5)


def test_an_estimator_of_few_studies_is_left_out_and_so_is_a_study_of_few_estimators(tmp_path):
    whole = made.results(3)
    poor = without(whole, "soft")
    other = without(whole, "atan", "atan, scale", "soft")
    many = [study(tmp_path, f"0{i}_x", whole) for i in range(4)]
    joined = across([*many, study(tmp_path, "08_poor", poor), study(tmp_path, "09_other", other)])
    assert joined is not None
    # "soft, scale" is in all six; the next commonest are in five, those in four of six would cost more than a fifth.
    assert list(joined["estimators"]) == ["atan", "atan, scale", "soft, scale"]
    assert {task.partition(":")[0] for task in joined["tasks"]} == {"00_x", "01_x", "02_x", "03_x", "08_poor"}


def test_another_setting_is_another_estimator(tmp_path):
    one, two = made.results(3), made.results(3)
    for name in ("atan", "soft"):
        two["estimators"][name] = {**two["estimators"][name], "settings": {"model.scale": 3.0}}
    assert across([study(tmp_path, "01_a", one), study(tmp_path, "02_b", two)]) is None  # two names are too few
    assert across([study(tmp_path, "01_a", one)]) is None
    assert across([]) is None


def test_the_ledger_gets_a_block_and_keeps_its_text(tmp_path):
    for name in ("01_a", "02_b"):
        made.write(tmp_path / name, made.results(9))
    (tmp_path / "README.md").write_text(PLACE)
    report_studies(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(f"# The ledger\n\nbefore\n\n{BEGIN}\n")
    assert text.endswith(f"{END}\n\nafter\n")
    assert "| **all studies** | 4 |" in text
    assert "![ranks](ranks.png)" in text
    assert (tmp_path / "ranks.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text()
    assert "Ranks over the tasks of all studies" in page
    assert page.count("Mean ranks over the tasks of all studies") == 2  # alt text and caption, not the block again
    before = made.contents(tmp_path)
    report_studies(tmp_path)
    assert made.contents(tmp_path) == before


def test_a_ledger_without_a_place_is_left_alone(tmp_path):
    made.write(tmp_path / "01_a", made.results(3))
    (tmp_path / "README.md").write_text("# Mine\n")
    report_studies(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
    (tmp_path / "README.md").write_text(f"# Mine\n{BEGIN}\n")
    with pytest.raises(ValueError, match="expected one line"):
        report_studies(tmp_path)
    assert (tmp_path / "README.md").read_text() == f"# Mine\n{BEGIN}\n"


def test_one_study_alone_has_no_ranks_of_all(tmp_path):
    folder = made.write(tmp_path / "01_a", made.results(3))
    assert collect(folder).single
    report_studies(folder)
    assert "of all studies" not in (folder / "report.html").read_text()
