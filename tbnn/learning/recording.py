"""What goes on inside an online rule while one recording passes: membranes, eligibilities, learning signals."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tbnn.learning.alignment import borrowed
from tbnn.learning.eprop import Eligibility
from tbnn.learning.online import OnlineRule, StageState
from tbnn.learning.ostl import Influence
from tbnn.learning.ridge import RunningRidge
from tbnn.learning.rule import Rule
from tbnn.learning.stages import LINEAR

Curves = npt.NDArray[np.float64]
TRACED = ("ottt", "eprop", "ostl", "decolle", "fa", "dfa", "reward")


@dataclass(frozen=True, eq=False)
class Traces:
    """A few neurons of one layer under a rule, over the T steps of one recording; n neurons.

    Attributes:
        rule, layer: their names; the layer's is that of its weights.
        spikes: uint8 (T, N), of the whole layer.
        chosen: int64 (n,), the neurons that the rest is about.
        inputs: int64 (n,), where the synapse shown of each comes from; from ``fan_in`` on it is a neuron of the layer itself.
        fan_in: inputs of the layer.
        membrane, threshold: (T, n), the level that is compared, and what with.
        eligibility: (T, n), of that synapse: ψ·x̄; filtered as the readout filters under e-prop, ∂q/∂w under OSTL.
        signal: (T, n), the learning signal: what more of the neuron's spikes would add to the step's loss.
    """

    rule: str
    layer: str
    spikes: npt.NDArray[np.uint8]
    chosen: npt.NDArray[np.int64]
    inputs: npt.NDArray[np.int64]
    fan_in: int
    membrane: Curves
    threshold: Curves
    eligibility: Curves
    signal: Curves


@torch.no_grad()
def record_traces(rule: Rule, x: Tensor, target: Tensor, neurons: int | list[int] = 3, stage: int = 0) -> Traces:
    """Watch a rule learn one recording, and let it forget it: rule, network and gradients stay as they are.

    Of each neuron the synapse is shown that learns most: with the largest |Σ_t signal·eligibility|.

    Args:
        rule: one that keeps traces (``TRACED``).
        x: (T, 1, features...) of 0/1, or words.
        target: (1,), its class.
        neurons: how many, those whose spikes vary most over the recording, or which.
        stage: number of the layer, one of linear weights and spiking neurons.

    Raises:
        ValueError: another rule; more than one recording, or none; a layer or neurons that are not there.
    """
    if not isinstance(rule, OnlineRule):
        raise ValueError(f"record_traces: expected a rule that keeps traces, {', '.join(TRACED)}, got {rule.name!r}")
    if x.ndim < 3 or x.shape[1] != 1 or not len(x):
        raise ValueError(f"record_traces: expected one recording (T, 1, features...), got {tuple(x.shape)}")
    shown = [i for i, one in enumerate(rule.stages) if one.spikes and isinstance(one.weights, LINEAR)]
    if stage not in shown:
        raise ValueError(f"stage: expected a layer of linear weights that spikes, one of {shown}, got {stage}")
    spikes = _spikes(rule, x, stage)
    chosen = _chosen(spikes, neurons)
    levels, eligible, signals = [], [], []
    with borrowed(rule) as twin:
        heard: dict[int, Tensor] = {}
        _listen(twin, heard)
        state = None
        for x_t in x.unbind(0):
            heard.clear()
            state = twin.step(x_t, state)
            if twin.every is not None:
                twin.credit(target, 1 / len(x))
            now = state.traces[0][stage]
            levels.append(_level(twin, stage, now)[:, chosen])
            eligible.append(_eligibility(twin, stage, now)[chosen])
            signals.append(heard[stage].flatten(1)[0, chosen] * len(x) ** (twin.every is not None))
    each = torch.stack(eligible)  # (T, n, inputs + returning)
    heard_by = torch.stack(signals)
    places = torch.einsum("tn,tni->ni", heard_by, each).abs().argmax(1)
    level = torch.stack(levels).double().numpy()
    return Traces(
        rule.name,
        rule.stages[stage].name,
        spikes,
        chosen.numpy(),
        places.numpy(),
        int(getattr(rule.stages[stage].weights, "in_features", 0)),
        level[:, 0],
        level[:, 1],
        each[:, torch.arange(len(chosen)), places].double().numpy(),
        heard_by.double().numpy(),
    )


def _spikes(rule: OnlineRule, x: Tensor, stage: int) -> npt.NDArray[np.uint8]:
    """Of a layer, (T, N)."""
    rows = []
    with borrowed(rule) as twin:
        state = None
        for x_t in x.unbind(0):
            state = twin.step(x_t, state)
            rows.append(state.traces[0][stage].out.flatten(1)[0].byte())
    return torch.stack(rows).numpy()


def _chosen(spikes: npt.NDArray[np.uint8], neurons: int | list[int]) -> Tensor:
    count = spikes.shape[1]
    if isinstance(neurons, int):
        if neurons < 1:
            raise ValueError(f"neurons: expected at least 1, got {neurons}")
        return torch.from_numpy(np.sort(np.argsort(-spikes.std(0), kind="stable")[:neurons]))
    if not neurons or not all(0 <= j < count for j in neurons):
        raise ValueError(f"neurons: expected numbers from 0 to {count - 1}, got {neurons}")
    return torch.tensor(neurons)


def _listen(twin: Any, heard: dict[int, Tensor]) -> None:
    """Keep the learning signal that each stage is given."""
    name = (
        "_own" if twin.every is None else "assign"
    )  # rewards are heard at the end, signals meet eligibilities at once
    inner = getattr(twin, name)

    def outer(index: int, state: StageState, signal: Tensor) -> Any:
        heard[index] = signal
        return inner(index, state, signal)

    setattr(twin, name, outer)


def _level(twin: OnlineRule, stage: int, now: StageState) -> Tensor:
    """The membrane, less what raises its threshold, and θ: (2, N)."""
    neuron: Any = twin.stages[stage].neuron
    threshold = neuron.effective_threshold(now.out.shape[1:])
    return torch.stack([(now.seen.u + threshold)[0].flatten(), threshold.expand(now.out.shape[1:]).flatten()])  # pyright: ignore[reportOptionalMemberAccess]


def _eligibility(twin: OnlineRule, stage: int, now: StageState) -> Tensor:
    """Of each synapse (N, inputs + returning), the bias left out."""
    if isinstance(now.extra, Eligibility):
        return now.extra.value(getattr(twin, "kappa", 0.0))[0, :, :-1]
    if isinstance(now.extra, Influence):
        spike = now.extra.spike[0]
        return (spike if spike.ndim == 2 else spike.diagonal(dim1=0, dim2=1).permute(1, 0))[:, :-1]
    filter_, seen, ridge = twin.filters[stage], now.seen, twin.ridges[stage]
    slope: Any = seen.slope  # pyright: ignore[reportOptionalMemberAccess]
    if seen is not None and seen.x is not None and isinstance(ridge, RunningRidge):
        slope = slope * ridge.fitted(seen.x)
    parts = [filter_.level(now.inputs).flatten(1)]
    if now.returned is not None:
        parts.append(filter_.level(now.returned))
    return slope[0].flatten()[:, None] * torch.cat(parts, 1)
