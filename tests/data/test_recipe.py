"""Recipes: strict reading and a hash of everything in them."""

import dataclasses
import re

import pytest

from tbnn.data import EventCamera, available, load_recipe
from tbnn.data import recipe as module
from tbnn.data.digits import Scene
from tbnn.data.events import Sensor
from tbnn.data.recipe import Split, recipe_hash, recipes_folder


def shipped(name):
    return (recipes_folder() / f"{name}.toml").read_text()


def test_shipped_recipes():
    recipes = available()
    assert list(recipes) == ["braille7", "digits", "nmnist_small"]
    assert {path.stem for path in recipes_folder().glob("*.toml")} == set(recipes)
    for name, recipe in recipes.items():
        assert load_recipe(name) == recipe
        assert recipe.licence
        assert recipe.citation
        assert bool(recipe.sha256) == bool(recipe.file)
    assert recipes["nmnist_small"].sensor.bits == 2312
    assert recipes["braille7"].sensor == (48, 1, 1)
    assert recipes["digits"].scene == Scene(background=0.1, sweep=4.0, saccade=100_000, frame_interval=5_000)


def test_reads_what_is_written(events_source, recipe):
    read = load_recipe(events_source[0])
    assert read == dataclasses.replace(recipe, title="Tiny events", description="Made by a test.")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("digits", 'title = "', 'titel = "', "titel: unknown key; expected one of name, title, description"),
        ("digits", "steps = 20", "", "steps: expected this key, found it missing"),
        ("digits", "steps = 20", 'steps = "20"', "steps: expected an integer, got '20'"),
        ("digits", "steps = 20", "steps = 20.0", "steps: expected an integer, got 20.0"),
        ("digits", "steps = 20", "steps = true", "steps: expected an integer, got True"),
        ("digits", "steps = 20", "steps = 0", "steps: expected at least 1, got 0"),
        ("digits", "steps = 20", "steps = 10", "steps: expected frames for 300000 us, got 10 of 15000 us"),
        ("digits", "mismatch = 0.03", "mismatch = -0.03", "camera.mismatch: expected 0 or more, got -0.03"),
        ("digits", "mismatch = 0.03", "mismatch = nan", "camera.mismatch: expected a finite number, got nan"),
        ("digits", "mismatch = 0.03", "mismach = 0.03", "camera.mismach: unknown key; expected one of threshold_on"),
        ("digits", "height = 20\n", "", "sensor.height: expected this key, found it missing"),
        ("digits", "height = 20\n", "height = -2\n", "sensor.height: expected at least 1, got -2"),
        ("digits", "frame_interval = 5_000", "frame_interval = 3", "scene.frame_interval: expected a divisor of"),
        ("digits", "validation = 0.2", "validation = 1.0", "split.validation: expected a fraction in (0, 1), got 1.0"),
        ("digits", "test = 0.167\n", "", "split.test: expected a fraction above 0, got 0.0"),
        ("digits", "seed = 1", "seed = -1", "split.seed: expected 0 or more, got -1"),
        ("digits", "[camera]", "[camara]", "camara: unknown key"),
        ("digits", 'time_unit = "us"', 'time_unit = "ms"', "time_unit: expected 'us', got 'ms'"),
        ("digits", '"0", "1"', '"0", 1', "classes: expected a list of text, got ['0', 1,"),
        ("digits", '"0", "1"', '"0", "0"', "classes: expected two or more different names, got ['0', '0',"),
        ("digits", 'name = "digits"', 'name = "../x"', "name: expected letters, digits, '_' and '-', got '../x'"),
        ("digits", "steps = 20", "stack = 2\nsteps = 20", "stack, source_step: expected none for digits-camera"),
        ("digits", '"digits-camera"', '"video"', "format: expected one of events-hdf5, bits-hdf5, digits-camera, got"),
        ("digits", "steps = 20", "steps = ", "Invalid value (at line"),
        ("braille7", "stack = 4", "stack = 5", "stack: expected a divisor of 48 channels, got 5"),
        ("braille7", "stack = 4", "stack = 2", "bin_width: expected source_step * stack = 10000, got 20000"),
        ("braille7", "source_step = 5_000\n", "", "bin_width: expected source_step * stack = 0, got 20000"),
        ("nmnist_small", 'file = "', 'file = "/', "file: expected a relative path below the source folder, got '/nm"),
        ("nmnist_small", 'file = "', 'file = "../', "file: expected a relative path below the source folder, got '.."),
        ("nmnist_small", 'sha256 = "', 'sha256 = "z', "sha256: expected 64 lower-case hexadecimal digits, got 'z"),
        ("nmnist_small", "[sensor]", "[scene]\n[sensor]", "scene: expected no table for events-hdf5"),
        (
            "nmnist_small",
            "seed = 1",
            "seed = 1\ntest = 0.1",
            "split.test: expected 0, the source has a test set, got 0.1",
        ),
        ("nmnist_small", 'licence = "', 'licence = ""#', "licence: expected some text, got ''"),
    ],
)
def test_bad_recipe_names_file_and_key(tmp_path, name, old, new, message):
    text = shipped(name)
    assert old in text
    path = tmp_path / "bad.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match="^" + re.escape(f"{path}: {message}")):
        load_recipe(path)


def test_unknown_name_lists_known_ones():
    with pytest.raises(ValueError, match="unknown dataset 'mnist': expected one of braille7, digits, nmnist_small, or"):
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
        "classes": base.classes[::-1],
        "sensor": Sensor(2, 20, 21),
        "bin_width": 16_000,
        "steps": 21,
        "split": dataclasses.replace(base.split, seed=2),
        "camera": EventCamera(),
        "scene": Scene(sweep=5.0),
    }
    hashes = {recipe_hash(dataclasses.replace(base, **{key: value})) for key, value in others.items()}
    assert len(hashes | {recipe_hash(base)}) == len(others) + 1
    events, bits = load_recipe("nmnist_small"), load_recipe("braille7")
    assert recipe_hash(dataclasses.replace(events, sha256="")) != recipe_hash(events)
    assert recipe_hash(dataclasses.replace(events, file="x")) != recipe_hash(events)
    assert recipe_hash(dataclasses.replace(bits, stack=2, source_step=10_000)) != recipe_hash(bits)
    fields = {f.name for f in dataclasses.fields(base)}
    assert fields == {*others, "format", "time_unit", "file", "sha256", "stack", "source_step"}


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
