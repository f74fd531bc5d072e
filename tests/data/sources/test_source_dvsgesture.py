"""DVS Gesture: trials cut into recordings by their tables."""

import re

import numpy as np
import pytest
from write_sources import a_recipe, random_events, write_aedat3, write_table

from tbnn.data.recipe import Layout
from tbnn.data.sources import dvsgesture, open_source

SENSOR = (2, 128, 128)
LAYOUT = Layout(train="DvsGesture/trials_to_train.txt", test="DvsGesture/trials_to_test.txt")


@pytest.fixture
def recipe():
    return a_recipe("dvsgesture", SENSOR, ("clap", "wave", "roll"), LAYOUT)


@pytest.fixture
def release(tmp_path):
    """Three trials; the second table's rows overlap, as those of user22_led do."""
    folder = tmp_path / "DvsGesture"
    folder.mkdir()
    rng = np.random.default_rng(0)
    tables = {
        "user01_led": [(1, 5_000_000, 5_100_000), (3, 5_100_000, 5_150_000), (3, 5_200_000, 5_300_000)],
        "user22_fluorescent_led": [(2, 10_000, 90_000), (1, 60_000, 140_000)],
        "user24_lab": [(2, 2_000, 200_000)],
    }
    trials = {}
    for name, rows in tables.items():
        trials[name] = random_events(rng, SENSOR, 800, start=rows[0][1] - 500)
        write_aedat3(folder / f"{name}.aedat", trials[name])
        write_table(folder / f"{name}_labels.csv", rows)
    (folder / "trials_to_train.txt").write_text("user01_led.aedat\r\nuser22_fluorescent_led.aedat\r\n\r\n")
    (folder / "trials_to_test.txt").write_text("user24_lab.aedat")
    return tmp_path, trials, tables


def test_each_row_is_a_recording(release, recipe):
    folder, trials, tables = release
    found = open_source(recipe, folder)
    train, test = found["train"], found["test"]
    assert train.labels.tolist() == [0, 2, 2, 1, 0]
    assert train.groups.tolist() == [1, 1, 1, 22, 22]
    assert train.index.tolist() == [0, 1, 2, 3, 4]
    assert train.names[3] == "DvsGesture/user22_fluorescent_led.aedat: row 1"
    assert (test.labels.tolist(), test.groups.tolist()) == ([1], [24])
    cuts = [(name, start, end) for name in ("user01_led", "user22_fluorescent_led") for _, start, end in tables[name]]
    for i, (name, start, end) in enumerate(cuts):
        trial, got = trials[name], train.read(i)
        inside = (trial.t >= start) & (trial.t < end)
        assert 0 < inside.sum() < len(trial)
        for key, offset in (("x", 0), ("y", 0), ("t", start), ("p", 0)):
            np.testing.assert_array_equal(getattr(got, key), getattr(trial, key)[inside] - offset)


def test_reading_in_order_decodes_each_trial_once(release, recipe, monkeypatch):
    folder, _, _ = release
    decoded = []
    decode = dvsgesture.read_aedat3
    monkeypatch.setattr(dvsgesture, "read_aedat3", lambda path, **kw: decoded.append(path.stem) or decode(path, **kw))
    train = open_source(recipe, folder)["train"]
    assert decoded == []
    for i in range(len(train)):
        train.read(i)
    assert decoded == ["user01_led", "user22_fluorescent_led"]
    train.read(0)
    assert decoded[2:] == ["user01_led"]


HEADER = "class,startTime_usec,endTime_usec\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the columns class,startTime_usec,endTime_usec, got ''"),
        ("class,start,end\n1,2,3\n", "expected the columns class,startTime_usec,endTime_usec, got 'class,start,end'"),
        (HEADER + "1,10\n", "row 1: expected three whole numbers, got '1,10'"),
        (HEADER + "1,10,20.5\n", "row 1: expected three whole numbers"),
        (HEADER + "1,10,99999999999999999999\n", "row 1: expected three whole numbers"),
        (HEADER + "1,10,20\n4,20,30\n", r"row 2: expected a class of 1\.\.3, got 4"),
        (HEADER + "0,10,20\n", r"row 1: expected a class of 1\.\.3, got 0"),
        (HEADER + "1,20,20\n", "row 1: expected a start before the end 20, got 20"),
        (HEADER + "1,30,40\n2,10,20\n", "row 2: expected rows in time order, got 10 after 30"),
    ],
)
def test_defects_of_a_table(release, recipe, text, message):
    folder, _, _ = release
    table = folder / "DvsGesture/user22_fluorescent_led_labels.csv"
    table.write_text(text)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(table))}: {message}"):
        open_source(recipe, folder)


@pytest.mark.parametrize("name", ["../user01_led.aedat", "user01_led.npy", "/user01_led.aedat", "user_led.aedat"])
def test_listed_names_stay_in_the_folder(release, recipe, name):
    folder, _, _ = release
    (folder / "DvsGesture/trials_to_test.txt").write_text(f"user24_lab.aedat\n{name}\n")
    with pytest.raises(ValueError, match=r"trials_to_test\.txt: line 2: expected a name such as user01_led\.aedat"):
        open_source(recipe, folder)


@pytest.mark.parametrize("name", ["trials_to_test.txt", "user24_lab.aedat", "user24_lab_labels.csv"])
def test_missing_files(release, recipe, name):
    folder, _, _ = release
    (folder / "DvsGesture" / name).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(folder / "DvsGesture" / name))):
        open_source(recipe, folder)


def test_defects_of_a_trial(release, recipe):
    folder, trials, _ = release
    path = folder / "DvsGesture/user01_led.aedat"
    end = int(trials["user01_led"].t[-1])
    write_table(path.with_name("user01_led_labels.csv"), [(1, end + 1, end + 2)])
    train = open_source(recipe, folder)["train"]
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(path))}: row 1: expected events from {end + 1} to {end + 2} us"
    ):
        train.read(0)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: "):
        open_source(recipe, folder)["train"].read(0)
    (folder / "DvsGesture/trials_to_train.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"trials_to_train\.txt: expected at least one recording"):
        open_source(recipe, folder)
    (folder / "DvsGesture/trials_to_train.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"trials_to_train\.txt: expected text"):
        open_source(recipe, folder)
