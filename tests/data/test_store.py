"""The packed file: round trips, and what a failed or killed write leaves."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_splits import random_splits
from torch.utils.data import DataLoader

from tbnn.bits import unpack_bits, unpack_bits_numpy
from tbnn.data import PackedFrames, collate, read_info, store
from tbnn.data.recipe import SPLITS, recipe_hash, recipe_json
from tbnn.data.store import write_store


@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    sensor=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    steps=st.integers(1, 5),
    sizes=st.tuples(*[st.integers(1, 6)] * 3),
    seed=st.integers(0, 100),
)
def test_round_trip(make_recipe, sensor, steps, sizes, seed):
    recipe = make_recipe(sensor, steps)
    bits, splits = random_splits(recipe, sizes, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "new" / "a.h5"
        write_store(path, recipe, splits)
        for name in SPLITS:
            read = PackedFrames(path, name)
            np.testing.assert_array_equal(unpack_bits_numpy(read.frames, recipe.frame_sensor.bits), bits[name])
            assert read.lengths.tolist() == [steps] * len(read)
            np.testing.assert_array_equal(read.events, bits[name].sum((1, 2)))
            np.testing.assert_array_equal(read.labels, splits[name].labels)
            np.testing.assert_array_equal(read.index, splits[name].index)
            assert len(read) == len(splits[name].labels)


def test_info_says_what_the_recipe_says(packed, recipe):
    info = read_info(packed)
    for field in ("name", "title", "classes", "sensor", "licence", "source", "citation"):
        assert getattr(info, field) == getattr(recipe, field)
    assert (info.steps, info.time_unit, info.bin_width, info.fingerprint) == (5, "us", 100, "")
    assert info.bits == 42
    assert info.splits == {"train": 7, "validation": 3, "test": 4}
    assert info.recipe_hash == recipe_hash(recipe)
    assert PackedFrames(packed, "test").info == info
    with h5py.File(packed) as file:
        assert file.attrs["recipe"].decode() == recipe_json(recipe)
        assert json.loads(file.attrs["classes"]) == ["left", "right"]


def test_batches_have_time_first(packed, recipe):
    bits, splits = random_splits(recipe)
    data = PackedFrames(packed, "train")
    order = [4, 0, 6]
    words, labels = collate(data.__getitems__(order))
    assert words.dtype == torch.int32
    assert labels.dtype == torch.int64
    expected = torch.from_numpy(bits["train"][order]).transpose(0, 1).float()
    assert torch.equal(unpack_bits(words, 42), expected)
    assert labels.tolist() == splits["train"].labels[order].tolist()
    batches = list(DataLoader(data, batch_size=3, collate_fn=collate))
    together = torch.cat([unpack_bits(words, 42) for words, _ in batches], dim=1)
    assert torch.equal(together, torch.from_numpy(bits["train"]).transpose(0, 1).float())
    assert torch.cat([labels for _, labels in batches]).tolist() == splits["train"].labels.tolist()


def test_index_beyond_the_end(packed):
    with pytest.raises(IndexError):
        PackedFrames(packed, "train")[7]


def test_two_writes_are_equal_byte_for_byte(packed, recipe, tmp_path):
    write_store(tmp_path / "again.h5", recipe, random_splits(recipe)[1])
    assert (tmp_path / "again.h5").read_bytes() == packed.read_bytes()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failed_write_leaves_the_old_file_and_nothing_else(packed, recipe, monkeypatch, error):
    before = packed.read_bytes()
    calls = []

    def fail_on_third(group, *_):
        calls.append(group.name)
        if len(calls) == 3:
            raise error

    monkeypatch.setattr(store, "_write_split", fail_on_third)
    with pytest.raises(error):
        write_store(packed, recipe, random_splits(recipe, seed=1)[1])
    assert calls == ["/train", "/validation", "/test"]
    assert [path.name for path in packed.parent.iterdir()] == ["tiny.h5"]
    assert packed.read_bytes() == before


KILLED = """
import os, signal, sys
sys.path[:0] = {paths!r}
from pathlib import Path
from conftest import tiny_recipe
from random_splits import random_splits
from tbnn.data import store
write = store._write_split
def killed(group, *rest):
    write(group, *rest)
    group.file.flush()
    if group.name == "/test":
        os.kill(os.getpid(), signal.SIGKILL)
store._write_split = killed
store.write_store(Path(sys.argv[1]), tiny_recipe(), random_splits(tiny_recipe())[1])
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_write_leaves_no_file_of_that_name(tmp_path, recipe):
    here = Path(__file__).parent
    path = tmp_path / "a.h5"
    code = KILLED.format(paths=[str(here), str(here.parents[1])])
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert not path.exists()
    write_store(path, recipe, random_splits(recipe)[1])
    assert read_info(path).name == "tiny"
