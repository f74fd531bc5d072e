"""The page about studies and what it leaves in their folders."""

import base64
import re
from dataclasses import replace
from html import escape

import made_studies as made
import pytest
from pages import Reader

from tbnn.compare import statistics
from tbnn.compare.plan import fingerprint
from tbnn.compare.tables import percent
from tbnn.report.studies import holds_studies, report_studies
from tbnn.report.studies.answers import QUESTIONS, answers, counted, in_words
from tbnn.report.studies.collect import collect, read_study
from tbnn.report.studies.drawings import MOST_BYTES, drawings
from tbnn.report.studies.ledger import rendered
from tbnn.report.studies.readme import BEGIN, END, block
from tbnn.report.style import svg_uri

LEDGER = """# The ledger

| a | b |
|---|---|
| one | <script>alert(1)</script> |

![inside](figure.png) ![outside](https://example.org/x.png) [link](01_first)
"""


def plain(text):
    return text.replace("\u00a0", " ")


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "BOOTSTRAP", 199)
        statistics._interval.cache_clear()
        yield
    statistics._interval.cache_clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("studies")
    axes = {f"s={s}, r={r}": {"optim.batch_size": s, "optim.learning_rate": r} for s in (1, 8) for r in (0.1, 0.2)}
    made.write(root / "01_first", made.results())
    made.write(root / "02_grid", made.results(4, axes, config={"tasks": {"base": {}}}, code="000000000000"))
    made.write(root / "03_older", '{"runs": [{"accuracy": 1}]}')
    (root / "04_planned").mkdir()
    (root / "04_planned" / "compare.yaml").write_text("title: later\n")
    (root / "notes").mkdir()
    (root / "README.md").write_text(LEDGER)
    (root / "figure.png").write_bytes(b"\x89PNG")
    report_studies(root)
    return root


@pytest.fixture(scope="module")
def reader(folder):
    return Reader((folder / "report.html").read_text())


def test_the_page_loads_nothing_and_is_well_formed(folder, reader):
    html = (folder / "report.html").read_text()
    assert reader.open == []
    assert not reader.all("script") + reader.all("link") + reader.all("iframe")
    assert all(str(image["src"]).startswith("data:image/") for image in reader.all("img"))
    assert "default-src 'none'" in html
    assert "<script" not in html
    links = [str(a["href"]) for a in reader.all("a")]
    places = {a["id"] for _, a in reader.tags if "id" in a}
    assert {link[1:] for link in links if link.startswith("#")} <= places
    assert [link for link in links if not link.startswith("#")] == ["01_first"]


def test_it_answers_the_question(folder, reader):
    assert "Does ridge denoising beat surrogate gradients?" in reader.text
    for name in ("01_first", "02_grid"):
        study = read_study(folder / name)
        for answer in study.answers:
            assert answer.question is not QUESTIONS[0] or plain(f"{answer.task}: {answer.sentence}") in reader.text
            assert all(plain(cell) in reader.text for cell in answer.cells)
    for text in ("Made up", "That it works.", "tbnn compare --config x.yaml", "a machine", "1.5 h", "tbnn report"):
        assert text in reader.text
    assert "04_planned not run" in reader.text
    assert "03_older has results of another kind" in reader.text
    assert "The ledger" in reader.text


def test_results_of_other_code_are_marked(folder, reader):
    doubt = "measured with other code, commit abcdef123456"
    assert reader.text.count(doubt) == 4
    assert f"02_grid: {doubt}" in reader.text
    assert "01_first: " not in reader.text
    assert read_study(folder / "01_first").doubts == []


def test_results_that_later_code_repeats_are_not(folder, monkeypatch):
    study = read_study(folder / "02_grid")
    again = {"code": fingerprint(), "runs": 4, "equal": 4, "largest_difference": 0.0}
    same = replace(study, results={**study.results, "rechecked": again})
    assert same.doubts == []
    assert same.standing == "nothing: complete, and 4 runs repeated with this code came out the same"
    differs = replace(study, results={**study.results, "rechecked": {**again, "equal": 3, "largest_difference": 0.012}})
    assert differs.doubts[0].endswith("; 1 of 4 runs repeated with this one differ, 1.2 points apart at most")
    older = replace(study, results={**study.results, "rechecked": {**again, "code": "0" * 12}})
    assert older.doubts == study.doubts


def test_the_best_by_validation_are_compared(folder):
    found = {(a.task, a.question.id): a for a in answers(made.results())}
    best = found["one", "best"]
    assert (best.ridge, best.surrogate, best.verdict) == ("soft, scale", "atan, scale", "worse")
    assert found["two", "best"].verdict == "better"
    assert (found["one", "untuned"].ridge, found["one", "untuned"].surrogate) == ("soft", "atan")
    assert found["one", "untuned"].verdict == "better"
    assert (found["one", "crossed"].ridge, found["one", "crossed"].surrogate) == ("soft", "atan, scale")
    assert found["one", "crossed"].verdict == "worse"
    compared = statistics.comparisons(made.results(), "atan, scale")["one"]["comparisons"]["soft, scale"]
    assert best.row == compared
    assert percent(abs(compared["difference"])) + " points below atan, scale (" in best.sentence
    assert f"p (Holm) = {compared['p_holm']:.3f}, 9 seeds" in plain(best.sentence)
    one = [a for a in found.values() if a.question.id == "best"]
    assert counted(one) == {"better": 1, "equal": 0, "undecided": 0, "worse": 1, "not compared": 0}
    assert in_words(one) == "better in 1, worse in 1 of 2 tasks"


def test_without_arms_there_is_one_question():
    found = made.results()
    for entry in found["estimators"].values():
        entry["search"] = [made.RATE]
    assert {answer.question.id for answer in answers(found)} == {"best"}


def test_too_few_seeds_and_missing_sides_are_said():
    few, alone = made.results(3), made.results()
    assert "so few seeds cannot pass 0.05, 8 could." in answers(few)[0].sentence
    alone["runs"] = [run for run in alone["runs"] if run["estimator"] not in ("soft", "soft, scale")]
    assert next((a.verdict, a.sentence) for a in answers(alone)) == ("not compared", "no ridge estimator has a run.")


def test_a_second_time_no_byte_changes(folder):
    before = made.contents(folder)
    report_studies(folder)
    assert made.contents(folder) == before


def test_the_last_digit_of_a_layout_changes_no_byte():
    from matplotlib.figure import Figure

    def drawn(shift):
        figure = Figure()
        figure.add_axes((0.1 + shift, 0.1, 0.4, 0.8)).plot([0, 1])
        figure.add_axes((0.6, 0.1, 0.3, 0.8)).plot([0, 2])
        return svg_uri(figure)

    assert drawn(0) == drawn(1e-13) != drawn(1e-2)
    drawing = base64.b64decode(drawn(0).split(",")[1]).decode()
    ends = [set(re.findall(pattern, drawing)) for pattern in (r'<clipPath id="(\w+)"', r"url\(#(\w+)\)")]
    assert ends == [{"clip0", "clip1"}] * 2


def test_figures_lie_beside_the_results(folder):
    names = {path.name for path in (folder / "02_grid").glob("*.png")}
    assert names == {"intervals.png", "curves.png", "curves-2.png", "stability.png", "ranks.png"}
    assert {path.name for path in (folder / "01_first").glob("*.png")} == {"intervals.png"}
    assert all(path.stat().st_size < MOST_BYTES for path in folder.rglob("*.png"))
    assert [d.kind for d in drawings(made.results())] == ["intervals", "tuning"]


def test_several_tasks_with_a_grid_have_curves_of_their_own():
    tasks = {f"{name}, b={size}": {"optim.batch_size": size} for name in "xy" for size in (1, 2)}
    found = made.results(2, tasks, config={"tasks": {"x": {}, "y": {}}})
    kinds = {drawing.name: drawing.caption for drawing in drawings(found) if drawing.kind == "curves"}
    assert [caption.endswith(f"Task: {name}.") for name, caption in zip("xy", kinds.values(), strict=True)] == [
        True
    ] * 2
    assert list(kinds) == ["curves", "curves-2"]


def test_a_configuration_of_a_scripts_own_is_no_list_of_tasks():
    assert [d.kind for d in drawings(made.results(config={"tasks": 3}))] == ["intervals", "tuning"]


def test_a_readme_is_made(folder):
    text = (folder / "02_grid" / "README.md").read_text()
    assert text.startswith(f"# Made up\n\nClaim: That it works.\n\n{BEGIN}\n")
    assert text.endswith(f"{END}\n")
    study = read_study(folder / "02_grid")
    assert block(study, drawings(study.results)) in text
    assert "other code" not in text  # that depends on who reads
    for path in re.findall(r"\]\(([^)]+)\)", text):
        assert (folder / "02_grid" / path).is_file()


def test_a_block_is_replaced_and_the_rest_kept(tmp_path):
    study = made.write(tmp_path / "01_x", made.results(3))
    for ending in ("\n", "\r\n"):
        before = f"# Mine\n\n{BEGIN}\nold\n{END}\nafter".replace("\n", ending).encode()
        (study / "README.md").write_bytes(before)
        report_studies(study)
        after = (study / "README.md").read_bytes()
        assert after.startswith(f"# Mine{ending}{ending}{BEGIN}{ending}".encode())
        assert after.endswith(f"{END}{ending}after".encode())
        assert b"old" not in after.split(b"after")[0].split(BEGIN.encode())[1].splitlines()
        assert after.count(b"\r\n") == (after.count(b"\n") if ending == "\r\n" else 0)


def test_a_readme_without_a_block_is_left_alone(tmp_path):
    study = made.write(tmp_path / "01_x", made.results(2))
    (study / "README.md").write_text("# Mine\n")
    _, lines = report_studies(tmp_path)
    assert (study / "README.md").read_text() == "# Mine\n"
    assert any("left alone" in line and "README.md" in line for line in lines)
    (study / "README.md").write_text(f"{END}\n{BEGIN}\n")
    with pytest.raises(ValueError, match=r"README\.md: expected one line <!-- results: begin -->"):
        report_studies(tmp_path)


def test_a_rehearsal_is_refused(tmp_path):
    made.write(tmp_path / "01_x", made.results(2, quick=True))
    with pytest.raises(ValueError, match=r"01_x.results\.json: results of a rehearsal \(--quick\)"):
        report_studies(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": 1, "tit', "not valid JSON"),
        (made.results(2, format=2), "format 1, got format 2"),
        ({"format": 1}, "expected the entry 'title' of type str"),
        (made.results(2, runs={}), "expected the entry 'runs' of type list .*, got dict"),
        (made.results(2, runs=[{"task": "one"}]), r"expected 'estimator', 'seed', 'code' in runs\[0\]"),
        (made.results(2, reference="gone"), "expected a reference among the estimators, got 'gone'"),
        (made.results(2) | {"tasks": {"one": {"axes": {}, "chance": 0.1}}}, "damaged results"),
    ],
)
def test_damaged_results_name_the_file(content, message, tmp_path):
    made.write(tmp_path / "01_x", content)
    with pytest.raises(ValueError, match=r"01_x.results\.json: .*" + message):
        report_studies(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_unfinished_and_mixed_results_are_marked(tmp_path):
    study = read_study(made.write(tmp_path / "01_x", made.results(2, complete=False, stale=3)))
    assert study.doubts == ["incomplete: runs are missing", "3 of 40 runs come from other code than the rest"]
    assert "> **Read with care**: incomplete: runs are missing." in block(study, [])


def test_names_are_text_everywhere(tmp_path):
    evil = "<img src=x onerror=alert(1)> | `a` $x$ {{ 7 }}"
    found = made.results(2, title=evil, claim=evil, command=evil)
    for part in ("tuning", "runs"):
        found[part] = [
            {**row, "estimator": evil if row["estimator"] == "soft" else row["estimator"]} for row in found[part]
        ]
    found["estimators"] = {evil if name == "soft" else name: entry for name, entry in found["estimators"].items()}
    study = made.write(tmp_path / "01_x", found)
    page, _ = report_studies(study)
    reader = Reader(page.read_text())
    assert evil in reader.text
    assert all(str(image["src"]).startswith("data:") for image in reader.all("img"))
    html = rendered((study / "README.md").read_text(), study)
    assert "<img src=x" not in html
    assert f"<p><code>{escape(evil, quote=False)}</code></p>" in html
    for table in html.split("<table>")[1:]:
        assert len({row.count("<td") + row.count("<th>") + row.count("<th ") for row in table.split("<tr>")[1:]}) == 1


def test_the_ledger_is_html_without_scripts(folder):
    html = rendered(LEDGER, folder)
    assert "<h3>The ledger</h3>" in html
    assert "<td>one</td>" in html
    assert "&lt;script&gt;" in html
    assert 'src="data:image/png;base64,iVBORw=="' in html
    assert "[picture: outside]" in html
    assert "example.org" not in html
    assert "[picture: up]" in rendered("![up](../figure.png)", folder / "01_first")


def test_which_folders_hold_studies(folder, tmp_path):
    assert holds_studies(folder)
    assert holds_studies(folder / "01_first")
    assert not holds_studies(folder / "notes")
    assert not holds_studies(folder / "none")
    made.write(tmp_path / "run", made.results(2))
    (tmp_path / "run" / "run.json").write_text("{}")
    assert not holds_studies(tmp_path / "run")
    assert collect(folder / "01_first").single
    found = collect(folder)
    assert ([s.id for s in found.studies], found.not_run, found.elsewhere) == (["01_first", "02_grid"], ["04_planned"], ["03_older"])  # fmt: skip


def test_the_command(folder, capsys):
    from tbnn.cli import main

    assert main(["report", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert f"report: {folder / 'report.html'}" in printed
    assert "01_first: better in 1, worse in 1 of 2 tasks" in printed
    assert main(["report", str(folder), "--sample", "3"]) == 2
    assert "--baseline and --sample go with a run's folder" in capsys.readouterr().err
