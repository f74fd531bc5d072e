"""Recipes: strict reading and a hash of everything in them."""

import dataclasses
import json
import re

import pytest

from tbnn.data import EventCamera, available, load_recipe
from tbnn.data import recipe as module
from tbnn.data.digits import Scene
from tbnn.data.events import Sensor
from tbnn.data.frames import FrameSpec
from tbnn.data.recipe import FILES, GENERATED, Layout, SourceFile, Split, recipe_hash, recipe_json
from tbnn.data.recipe_toml import recipes_folder


def shipped(name):
    return (recipes_folder() / f"{name}.toml").read_text()


NAMES = [
    "adding",
    "asldvs",
    "braille27",
    "braille7",
    "cifar10dvs",
    "delayed_xor",
    "digits",
    "digits_rows",
    "dvsgesture",
    "dvslip",
    "evidence",
    "moving_shapes",
    "ncaltech101",
    "ncars",
    "nmnist",
    "nmnist_small",
    "ntidigits",
    "pokerdvs",
    "randman",
    "shd",
    "smnist",
    "ssc",
]


def test_shipped_recipes():
    recipes = available()
    assert list(recipes) == NAMES
    assert {path.stem for path in recipes_folder().glob("*.toml")} == set(recipes)
    for name, recipe in recipes.items():
        assert load_recipe(name) == recipe
        assert recipe.licence
        assert recipe.citation or name in ("moving_shapes", "delayed_xor")  # ours
        assert recipe.description.strip()
        if recipe.format not in GENERATED:
            assert recipe.manual or all(file.urls for file in recipe.files) or name in ("nmnist_small", "braille7")
    assert recipes["nmnist_small"].frame_sensor.bits == 2312
    assert recipes["braille7"].frame_sensor == (48, 1, 1)
    assert recipes["digits"].scene == Scene(background=0.1, sweep=4.0, saccade=100_000, frame_interval=5_000)


MADE = ("shapes", "randman", "delayed_xor", "adding", "digits_rows", "evidence")


def test_two_recipes_of_one_name(tmp_path):
    (tmp_path / "a.toml").write_text(shipped("digits"))
    assert list(available(tmp_path)) == ["digits"]
    (tmp_path / "b.toml").write_text(shipped("digits"))
    with pytest.raises(ValueError, match=r"b\.toml: name: expected one of its own, got 'digits' as in .*a\.toml"):
        available(tmp_path)


def test_a_recipe_of_ones_own_may_not_bear_a_shipped_name(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(shipped("digits"))
    assert load_recipe(path) == load_recipe("digits")
    path.write_text(shipped("digits").replace("seed = 1", "seed = 2"))
    with pytest.raises(
        ValueError, match=r"mine\.toml: name: expected one of its own, got 'digits', the name of a shipped"
    ):
        load_recipe(path)
    path.write_text(path.read_text().replace('name = "digits"', 'name = "my_digits"'))
    assert load_recipe(path).split.seed == 2


def test_reads_what_is_written(events_source, recipe):
    read = load_recipe(events_source[0])
    assert read == dataclasses.replace(recipe, title="Tiny events", description="Made by a test.")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("digits", 'title = "', 'titel = "', "titel: unknown key; expected one of name, title, description"),
        ("digits", "steps = 20", "", "frames.steps: expected the number of frames with bin_width, got none"),
        ("digits", "steps = 20", 'steps = "20"', "frames.steps: expected an integer, got '20'"),
        ("digits", "steps = 20", "steps = 20.0", "frames.steps: expected an integer, got 20.0"),
        ("digits", "steps = 20", "steps = true", "frames.steps: expected an integer, got True"),
        ("digits", "steps = 20", "steps = 0", "frames.steps: expected at least 1, got 0"),
        ("digits", "steps = 20", "steps = 10", "frames.steps: expected frames for 300000 us, got 150000 us"),
        (
            "digits",
            "steps = 20",
            "steps = 20\nsize = [30, 3]",
            "size: expected at most the sensor's (20, 20), got (30, 3)",
        ),
        ("digits", "steps = 20", "steps = 20\nsize = [3]", "frames.size: expected a list of 2, got [3]"),
        (
            "digits",
            "steps = 20",
            "steps = 20\nbins = 3",
            "frames.bin_width, bins, count: expected exactly one of them, got",
        ),
        ("digits", "mismatch = 0.03", "mismatch = -0.03", "camera.mismatch: expected 0 or more, got -0.03"),
        ("digits", "mismatch = 0.03", "mismatch = nan", "camera.mismatch: expected a finite number, got nan"),
        ("digits", "mismatch = 0.03", "mismach = 0.03", "camera.mismach: unknown key; expected one of threshold_on"),
        ("digits", "height = 20\n", "", "sensor.height: expected this key, found it missing"),
        ("digits", "height = 20\n", "height = -2\n", "sensor.height: expected at least 1, got -2"),
        ("digits", "frame_interval = 5_000", "frame_interval = 3", "scene.frame_interval: expected a divisor of"),
        ("digits", "validation = 0.2", "validation = 1.0", "split.validation: expected a fraction in [0, 1), got 1.0"),
        ("digits", "validation = 0.2", "validation = 0", "split.validation: expected a fraction above 0, got 0.0"),
        ("digits", "seed = 1", 'seed = 1\nrule = "first"', "split.rule: expected random or hash, got 'first'"),
        ("digits", "seed = 1", "seed = 1\nby_group = 1", "split.by_group: expected true or false, got 1"),
        ("digits", "test = 0.167\n", "", "split.test: expected a fraction above 0, got 0.0"),
        ("digits", "seed = 1", "seed = -1", "split.seed: expected 0 or more, got -1"),
        ("digits", "[camera]", "[camara]", "camara: unknown key"),
        ("digits", '"0", "1"', '"0", 1', "classes[1]: expected text, got 1"),
        ("digits", '"0", "1"', '"0", "0"', "classes: expected two or more different names, got ['0', '0',"),
        ("digits", 'name = "digits"', 'name = "../x"', "name: expected letters, digits, '_' and '-', got '../x'"),
        ("digits", "classes = ", "stack = 2\nclasses = ", "stack, source_step: expected none for digits-camera"),
        ("digits", '"digits-camera"', '"video"', "format: expected one of events-hdf5, bits-hdf5, "),
        ("digits", "steps = 20", "steps = ", "Invalid value (at line"),
        ("digits", "[sensor]", '[layout]\ntrain = "x"\n[sensor]', "layout, files: expected none for digits-camera"),
        ("braille7", "stack = 4", "stack = 2", "frames: expected bin_width = source_step * stack and steps alone, got"),
        ("braille7", "source_step = 5_000\n", "", "bin_width, bins, count: expected exactly one of them, got none"),
        (
            "nmnist_small",
            'path = "',
            'path = "/',
            "files[0].path: expected a relative path below the dataset's folder, got '/n",
        ),
        (
            "nmnist_small",
            'train = "',
            'train = "../',
            "layout.train: expected a relative path below the dataset's folder, got '..",
        ),
        (
            "nmnist_small",
            'sha256 = "',
            'sha256 = "z',
            "files[0].sha256: expected 64 lower-case hexadecimal digits, got 'z",
        ),
        ("nmnist_small", "[sensor]", "[scene]\n[sensor]", "scene: expected no table for events-hdf5"),
        (
            "nmnist_small",
            "seed = 1",
            "seed = 1\ntest = 0.1",
            "split.test: expected 0, the source has its own set, got 0.1",
        ),
        ("nmnist_small", 'licence = "', 'licence = ""#', "licence: expected some text, got ''"),
        (
            "nmnist",
            'reader = "bin"',
            'reader = "bim"',
            "layout.reader: expected one of bin, aedat2, aedat3, aedat4, dat",
        ),
        ("nmnist", 'reader = "bin"', "", "layout.reader: expected it with format folders only, got format folders"),
        (
            "nmnist",
            'urls = ["https://',
            'urls = ["smb://',
            "files[0].urls: expected http, https or ftp addresses, got 'smb://",
        ),
    ],
)
def test_bad_recipe_names_file_and_key(tmp_path, name, old, new, message):
    text = shipped(name)
    assert old in text
    path = tmp_path / "bad.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match="^" + re.escape(f"{path}: ") + ".*" + re.escape(message)):
        load_recipe(path)


def test_unknown_name_lists_known_ones():
    with pytest.raises(
        ValueError, match="unknown dataset 'mnist': expected one of adding, asldvs, braille27, braille7, cifar10dvs, "
    ):
        load_recipe("mnist")


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.toml: expected a recipe, found no such file"):
        load_recipe(tmp_path / "no.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(ValueError, match=r"latin\.toml: .*utf-8"):
        load_recipe(tmp_path / "latin.toml")


def test_hash_sees_every_field():
    base = load_recipe("digits")
    others = {
        "name": "other",
        "title": "other",
        "description": "other",
        "source": "other",
        "licence": "other",
        "citation": "other",
        "manual": "other",
        "classes": base.classes[::-1],
        "sensor": Sensor(2, 20, 21),
        "frames": FrameSpec(bin_width=16_000, steps=20),
        "split": dataclasses.replace(base.split, seed=2),
        "camera": EventCamera(),
        "scene": Scene(sweep=5.0),
    }
    hashes = {recipe_hash(dataclasses.replace(base, **{key: value})) for key, value in others.items()}
    assert len(hashes | {recipe_hash(base)}) == len(others) + 1
    events, bits = load_recipe("nmnist_small"), load_recipe("braille7")
    for changed in (
        {"files": (SourceFile("nmnist_small.h5"),)},
        {"layout": Layout(train="nmnist_small.h5", test="x")},
        {"frames": dataclasses.replace(events.frames, planes=2)},
    ):
        assert recipe_hash(dataclasses.replace(events, **changed)) != recipe_hash(events)
    assert recipe_hash(dataclasses.replace(bits, stack=2, source_step=10_000)) != recipe_hash(bits)
    fields = {f.name for f in dataclasses.fields(base)}
    assert fields == {*others, "format", "files", "layout", "stack", "source_step", *MADE}


def test_tables_that_came_later_leave_other_hashes_alone():
    """Packed files of a recipe from before them are still found."""
    fields = json.loads(recipe_json(load_recipe("digits")))
    assert {"shapes", "randman"} <= set(fields)
    assert not {"delayed_xor", "adding", "digits_rows", "evidence"} & set(fields)
    for name in ("delayed_xor", "adding", "digits_rows", "evidence"):
        recipe = load_recipe(name)
        table = getattr(recipe, name)
        change = {"row": 10_000} if name == "digits_rows" else {"samples": 7}
        longer = dataclasses.replace(recipe.frames, steps=2_000)
        other = {name: dataclasses.replace(table, **change), "frames": longer}
        assert recipe_hash(dataclasses.replace(recipe, **other)) != recipe_hash(
            dataclasses.replace(recipe, frames=longer)
        )


def test_every_format_has_a_shipped_recipe():
    assert {recipe.format for recipe in available().values()} == {*FILES, *GENERATED}


def test_hash_ignores_the_writing(tmp_path):
    text = shipped("digits")
    head, *tables = re.split(r"(?m)^(?=\[)", text)
    lines = head.replace("15_000", "15000")
    rewritten = tmp_path / "same.toml"
    rewritten.write_text("# a comment\n" + lines + "".join(reversed(tables)))
    assert recipe_hash(load_recipe(rewritten)) == recipe_hash(load_recipe("digits"))


def test_hash_sees_the_schema(monkeypatch):
    before = recipe_hash(load_recipe("digits"))
    monkeypatch.setattr(module, "SCHEMA", module.SCHEMA + 1)
    assert recipe_hash(load_recipe("digits")) != before


def test_split_with_default_test_fraction():
    assert Split(validation=0.5, seed=0).test == 0.0


def test_the_recipe_of_the_manual_is_one(tmp_path):
    text = re.findall(r"```toml\n(.*?)```", (recipes_folder() / "README.md").read_text(), re.S)[0]
    (tmp_path / "gestures.toml").write_text(text)
    recipe = load_recipe(tmp_path / "gestures.toml")
    assert (recipe.name, recipe.frame_sensor, recipe.frames.bins) == ("gestures", (2, 60, 80), 20)
    documented = set(re.findall(r"^(\w+) =", text.split("[[files]]")[0], re.M))
    assert documented <= {field.name for field in dataclasses.fields(recipe)}
