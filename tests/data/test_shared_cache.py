"""One cache for many: processes that make it at once, workers that read it, a writer that is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tbnn.data import Augment, AugmentedFrames, PackedFrames, collate, make

ROOT = Path(__file__).parents[2]

BUILD = """
import sys, time
from pathlib import Path
from torch.utils.data import DataLoader, Dataset
from tbnn.data import PackedFrames, make, store
toml, source, cache, go = sys.argv[1:]
write = store._write_split
def slow(*args):
    with open(Path(cache).parent / "writes", "a") as log:
        log.write("x")
    time.sleep(0.2)
    write(*args)
store._write_split = slow
class Building(Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, i):
        path = make(toml, source=source, cache=cache)
        return str(path), int(PackedFrames(path, "train").frames.astype("int64").sum())
Path(go + str(__import__("os").getpid())).touch()
while not Path(go).exists():
    time.sleep(0.005)
for item in DataLoader(Building(), batch_size=None, num_workers=2, multiprocessing_context="fork"):
    print(*item)
"""


def run(code: str, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.skipif(os.name != "posix", reason="fork")
def test_two_processes_with_two_workers_each_write_one_file(events_source, tmp_path):
    toml, folder = events_source
    go = tmp_path / "go"
    processes = [run(BUILD, toml, folder, tmp_path / "cache", go) for _ in range(2)]
    while len(list(tmp_path.glob("go?*"))) < 2 and all(p.poll() is None for p in processes):
        time.sleep(0.01)
    go.touch()
    outputs = [p.communicate(timeout=100) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    lines = [line for out, _ in outputs for line in out.splitlines()]
    assert len(lines) == 4
    assert len(set(lines)) == 1
    assert (tmp_path / "writes").read_text() == "xxx"  # train, validation, test: written once
    shared = Path(lines[0].split()[0])
    alone = make(toml, source=folder, cache=tmp_path / "alone")
    assert shared.read_bytes() == alone.read_bytes()
    assert sorted(p.name for p in shared.parent.iterdir()) == [f".{shared.name}.lock", shared.name]


KILLED = """
import os, signal, sys
from tbnn.data import make, store
write = store._write_split
def killed(group, *rest):
    write(group, *rest)
    group.file.flush()
    if group.name == "/test":
        os.kill(os.getpid(), signal.SIGKILL)
store._write_split = killed
make(sys.argv[1], source=sys.argv[2], cache=sys.argv[3])
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_what_a_killed_writer_leaves_is_not_trusted_and_cleared_away(events_source, tmp_path):
    toml, folder = events_source
    process = run(KILLED, toml, folder, tmp_path / "cache")
    _, errors = process.communicate(timeout=100)
    assert process.returncode == -signal.SIGKILL, errors
    left = list((tmp_path / "cache").glob(".*.tmp"))
    assert len(left) == 1
    assert not list((tmp_path / "cache").glob("[!.]*"))
    path = make(toml, source=folder, cache=tmp_path / "cache")
    assert sorted(p.name for p in path.parent.iterdir()) == [f".{path.name}.lock", path.name]
    alone = make(toml, source=folder, cache=tmp_path / "alone")
    assert path.read_bytes() == alone.read_bytes()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> PackedFrames:
    return PackedFrames(make("digits", cache=tmp_path_factory.mktemp("cache")), "validation")


def epoch_of(
    data: AugmentedFrames, order: list[int], workers: int, batch: int
) -> dict[int, tuple[list[int], list[float]]]:
    """Words and label of each sample, read in that order."""
    loader = DataLoader(
        data, batch, sampler=order, collate_fn=collate, num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
    )  # fmt: skip
    words, labels = zip(*loader, strict=True)
    together, target = torch.cat(words, 1).transpose(0, 1), torch.cat(labels)
    return {i: (w.flatten().tolist(), y.tolist()) for i, w, y in zip(order, together, target, strict=True)}


def test_the_same_variation_in_any_order_and_under_any_number_of_workers(digits):
    data = AugmentedFrames(digits, Augment(shift=2, drop=0.2, time_jitter=1, cut_mix=0.5), seed=3)
    data.epoch = 4
    first = epoch_of(data, list(range(40)), workers=0, batch=40)
    assert first == epoch_of(data, list(range(39, -1, -1)), workers=0, batch=7)
    assert first == epoch_of(data, list(range(0, 40)), workers=2, batch=9)
    data.epoch = 5
    other = epoch_of(data, list(range(40)), workers=0, batch=40)
    assert sum(first[i] != other[i] for i in range(40)) > 35


def test_workers_that_stay_see_the_next_epoch(digits):
    data = AugmentedFrames(digits, Augment(drop=0.5), seed=1)
    loader = DataLoader(
        data, 50, sampler=range(50), collate_fn=collate, num_workers=1,
        multiprocessing_context="forkserver", persistent_workers=True,
    )  # fmt: skip
    for epoch in (1, 2):
        data.epoch = epoch
        ((words, _),) = loader
        expected = collate(data.__getitems__(range(50)))[0]
        assert torch.equal(words, expected)


def test_shares_of_classes_say_what_was_mixed(digits):
    data = AugmentedFrames(digits, Augment(cut_mix=1.0), seed=1)
    words, shares = collate(data.__getitems__(range(60)))
    assert shares.shape == (60, 10)
    assert torch.allclose(shares.sum(1), torch.ones(60))
    own = shares[torch.arange(60), torch.from_numpy(digits.labels[:60])]
    assert 0.2 < own.mean() < 0.95
    assert (shares > 0).sum(1).max() == 2
    plain = collate(digits.__getitems__(range(60)))[0]
    assert not torch.equal(words, plain)


def test_without_variation_the_recordings_come_as_they_are(digits):
    words, labels = collate(AugmentedFrames(digits, Augment()).__getitems__([3, 1]))
    np.testing.assert_array_equal(words.numpy(), digits.frames[[3, 1]].swapaxes(0, 1))
    assert labels.tolist() == digits.labels[[3, 1]].tolist()
