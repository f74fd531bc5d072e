"""Training runs: configuration, loop, checkpoints, logs, evaluation."""

from tbnn.train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from tbnn.train.evaluate import Evaluation, evaluate
from tbnn.train.loop import Diverged, train
from tbnn.train.run import Run, load_run

__all__ = [
    "DataConfig",
    "Diverged",
    "Evaluation",
    "ModelConfig",
    "OptimConfig",
    "Run",
    "TrainConfig",
    "evaluate",
    "load_run",
    "train",
]
