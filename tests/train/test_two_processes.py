"""Two gloo processes on halves of a batch train what one process trains on the whole batch."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from tbnn.train import ModelConfig, OptimConfig, TrainConfig, train
from tbnn.train.log import read_metrics


def test_two_processes_equal_one_with_the_joined_batch(config: TrainConfig, tmp_path: Path) -> None:
    model = ModelConfig(hidden=(16,))
    optim = OptimConfig(epochs=2, batch_size=12, learning_rate=0.01, schedule="constant", calibrate=0)
    one = train(replace(config, model=model, optim=optim, output=str(tmp_path / "one")), quiet=True)
    data, two = config.data, tmp_path / "two"
    options = [
        "--data.dataset", data.dataset, "--data.source", str(data.source), "--data.cache", str(data.cache),
        "--model.hidden", "[16]", "--optim.epochs", "2",
        "--optim.batch_size", "6", "--optim.learning_rate", "0.01", "--optim.schedule", "constant",
        "--optim.calibrate", "0", "--device", "cpu", "--output", str(two),
    ]  # fmt: skip
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "tbnn.cli", "train", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert [row["epoch"] for row in read_metrics(two)] == [1, 2]
    whole, halves = load_file(one / "last.safetensors"), load_file(two / "last.safetensors")
    assert whole.keys() == halves.keys()
    for name, expected in whole.items():
        torch.testing.assert_close(halves[name], expected, rtol=1e-4, atol=1e-5)
