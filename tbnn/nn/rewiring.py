"""Rewiring at a fixed number of synapses: DEEP R's step after the optimizer's."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tbnn.nn.weights import START_GAIN, BinaryWeight
from tbnn.nn.wiring import DeepR, part_of


@torch.no_grad()
def rewire(network: nn.Module, optimizer: Optimizer) -> dict[str, int]:
    """After ``optimizer.step()``: in each layer of a :class:`DeepR` wiring, move the synapses that fell to θ <= 0.

    For the active ones ``θ ← θ − lr·α + √(2·lr·T)·ν``, lr their parameter group's. Who then has θ <= 0 becomes dormant, and
    as many dormant synapses, drawn evenly, become active with a small θ; those of before are among them. The optimizer's
    averages of all dormant and new ones become 0. What is drawn depends on the wiring's seed and the count of steps that
    the layer's ``state_dict`` holds: a run that goes on from one draws the same. Frozen layers stay as they are.

    To have it done by itself: ``optimizer.register_step_post_hook(lambda own, *_: rewire(network, own))``.

    Args:
        network: any module.
        optimizer: of its weights; of its state, what has a weight's shape is averages.

    Returns:
        How many synapses moved, by the layers' names in the network.

    Raises:
        ValueError: a layer whose weights the optimizer does not have.

    Source: Bellec et al., ICLR 2018, algorithm 1.
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    moved: dict[str, int] = {}
    for name, layer in network.named_modules():
        if not isinstance(layer, BinaryWeight) or not layer.weight.requires_grad:
            continue
        how = part_of(layer.wiring, DeepR)
        if how is None:
            continue
        if id(layer.weight) not in groups:
            raise ValueError(f"rewire: expected the optimizer to have the parameter {f'{name}.weight'.strip('.')!r}")
        stayed, moved[name] = _moved(layer, how, float(groups[id(layer.weight)]["lr"]))
        for value in optimizer.state.get(layer.weight, {}).values():
            if isinstance(value, Tensor) and value.shape == layer.weight.shape:
                value.masked_fill_(~stayed, 0)
    return moved


def _moved(layer: Any, how: DeepR, lr: float) -> tuple[Tensor, int]:
    """Move a layer's synapses; which stay, bool of the weight's shape, and how many are new."""
    weight, mask, signs = layer.weight, layer.mask, layer.signs
    generator = np.random.default_rng([how.seed, 1, int(layer.rewirings)])
    layer.rewirings += 1
    theta = weight * signs - lr * how.l1
    if how.temperature:
        noise = torch.from_numpy(generator.standard_normal(tuple(weight.shape))).to(weight)
        theta = theta + math.sqrt(2 * lr * how.temperature) * noise
    lost = mask & (theta <= 0)  # what is not a number stays, to be seen
    stays = mask & ~lost
    born = _drawn(stays.cpu().numpy(), lost.cpu().numpy(), how.scope, generator).to(weight.device)
    count = int(stays.sum())
    mean = theta[stays].mean() if count else START_GAIN / math.sqrt(weight[0].numel())
    mask.copy_(stays | born)
    weight.copy_(torch.where(stays, theta, torch.where(born, how.birth * mean, 0)) * signs)
    return stays, int(born.sum())


def _drawn(stays: Any, lost: Any, scope: str, generator: np.random.Generator) -> Tensor:
    """As many places as are lost, among those that are not taken, in the layer or in each row."""
    groups = len(stays) if scope == "row" else 1
    taken, gone = stays.reshape(groups, -1), lost.reshape(groups, -1).sum(1)
    born = np.zeros_like(taken)
    for group in np.flatnonzero(gone):
        free = np.flatnonzero(~taken[group])
        born[group, generator.choice(free, gone[group], replace=False)] = True
    return torch.from_numpy(born.reshape(stays.shape))
