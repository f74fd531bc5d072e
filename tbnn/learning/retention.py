"""What is kept of earlier tasks while later ones are learned: permuted inputs, the matrix of accuracies, flips of signs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from tbnn.bits import check_words, pack_bits, unpack_bits
from tbnn.nn.weights import BinaryWeight

Task = TypeVar("Task")


def permutations(tasks: int, features: int, seed: int = 0) -> Tensor:
    """Orders of the input features, one a task: int64 (tasks, features). The first leaves them as they are.

    Source: Goodfellow et al., "An Empirical Investigation of Catastrophic Forgetting in Gradient-Based Neural Networks",
    2013 (arXiv 1312.6211): permuted MNIST.

    Raises:
        ValueError: fewer than one task or feature.
    """
    if tasks < 1 or features < 1:
        raise ValueError(f"permutations: expected tasks and features >= 1, got {tasks} and {features}")
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(features, generator=generator) for _ in range(tasks - 1)]
    return torch.stack([torch.arange(features), *drawn])


def permute(x: Tensor, order: Tensor) -> Tensor:
    """x with feature ``order[i]`` at place i: packed int32 words (..., ⌈features/32⌉), or numbers (..., features).

    Raises:
        ValueError: an order that is no permutation; an input of another width.
    """
    features = len(order)
    if not torch.equal(order.sort().values, torch.arange(features, device=order.device)):
        raise ValueError(f"order: expected a permutation of 0 … {features - 1}, got {tuple(order.shape)} other numbers")
    if x.dtype == torch.int32:
        check_words(x, features, "permute")
        return pack_bits(unpack_bits(x, features, torch.uint8)[..., order])
    if x.shape[-1] != features:
        raise ValueError(f"permute: expected (..., {features}), got {tuple(x.shape)}")
    return x[..., order]


def signs(network: nn.Module) -> dict[str, Tensor]:
    """The signs of all quantised weights as they are now, by layer: int8, 0 where pruned."""
    return {
        name: layer.codes().values.sign().to(torch.int8)
        for name, layer in network.named_modules()
        if isinstance(layer, BinaryWeight)
    }


def flips(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """The share of signs that differ between two moments, as :func:`signs` gives them.

    Raises:
        ValueError: of different layers or shapes, or of none.
    """
    shapes = [{name: tuple(t.shape) for name, t in moment.items()} for moment in (before, after)]
    if shapes[0] != shapes[1] or not shapes[0]:
        raise ValueError(f"flips: expected signs of the same layers, got {shapes[0]} and {shapes[1]}")
    changed = sum(int((after[name] != t).sum()) for name, t in before.items())
    return changed / sum(t.numel() for t in before.values())


def average_accuracy(accuracy: Tensor) -> float:
    """``A = (1/T)·Σ_j a[T, j]``, a (after task, on task) square (Chaudhry et al. 2018). Raises ``ValueError``."""
    return _square(accuracy, 1)[-1].mean().item()


def forgetting(accuracy: Tensor) -> float:
    """``F = 1/(T−1)·Σ_{j<T} (max_{l<T} a[l, j] − a[T, j])``, in [−1, 1]: how far below its best every earlier task is.

    Source: Chaudhry, Dokania, Ajanthan & Torr, "Riemannian Walk for Incremental Learning: Understanding Forgetting and
    Intransigence", ECCV 2018 (arXiv 1801.10112).

    Raises:
        ValueError: fewer than two tasks; a matrix that is not square.
    """
    a = _square(accuracy, 2)
    return (a[:-1, :-1].amax(0) - a[-1, :-1]).mean().item()


def backward_transfer(accuracy: Tensor) -> float:
    """``BWT = 1/(T−1)·Σ_{j<T} (a[T, j] − a[j, j])``: what later tasks did to earlier ones, below 0 if they spoilt them.

    Source: Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017 (arXiv 1706.08840).

    Raises:
        ValueError: fewer than two tasks; a matrix that is not square.
    """
    a = _square(accuracy, 2)
    return (a[-1, :-1] - a.diagonal()[:-1]).mean().item()


def _square(accuracy: Tensor, least: int) -> Tensor:
    if accuracy.ndim != 2 or accuracy.shape[0] != accuracy.shape[1] or len(accuracy) < least:
        raise ValueError(f"accuracy: expected (T, T) of T >= {least} tasks, got {tuple(accuracy.shape)}")
    return accuracy.double()


@dataclass(frozen=True)
class Retention:
    """What a network kept of a sequence of tasks.

    Attributes:
        accuracy: float64 (T, T): row k, after learning task k; column j, on task j, later ones too.
        flips: the share of signs that changed while each task was learned; None where nothing was watched.
    """

    accuracy: Tensor
    flips: tuple[float, ...] | None

    def summary(self) -> dict[str, float]:
        """Average accuracy, that of each task just learned, forgetting and backward transfer (of two tasks or more)."""
        told = {"average_accuracy": average_accuracy(self.accuracy), "learned": self.accuracy.diagonal().mean().item()}
        if len(self.accuracy) > 1:
            told |= {"forgetting": forgetting(self.accuracy), "backward_transfer": backward_transfer(self.accuracy)}
        return told


def retention(
    train_task: Callable[[Task], object],
    evaluate: Callable[[Task], float],
    tasks: Sequence[Task],
    network: nn.Module | None = None,
) -> Retention:
    """Learn tasks one after another, each without the data of the others, and see after each what all of them are worth.

    Args:
        train_task: learns a task, from where the last one left the network.
        evaluate: the accuracy on a task, without learning.
        tasks: whatever the two take, a permutation say.
        network: whose signs are compared before and after each task; None: no flips are counted.

    Raises:
        ValueError: no tasks; a network without quantised weights.
    """
    if not len(tasks):
        raise ValueError("retention: expected at least one task, got none")
    rows, changed = [], []
    for task in tasks:
        before = signs(network) if network is not None else {}
        train_task(task)
        if network is not None:
            changed.append(flips(before, signs(network)))
        rows.append([evaluate(other) for other in tasks])
    return Retention(torch.tensor(rows, dtype=torch.float64), tuple(changed) if network is not None else None)
