"""A layer of binary weights and the spiking neurons after it, without the current of the whole sequence."""

import torch
from torch import Tensor

from tbnn.ops.layer_lif.function import layer_lif_fused
from tbnn.ops.layer_lif.plan import SHARES, Memory, kept_bytes, plan_of, share_of
from tbnn.ops.layer_lif.reference import layer_lif_reference
from tbnn.ops.layer_lif.weighted import Convolution, Norm, WeightedSpikes, Weights, packed_spikes
from tbnn.ops.lif import LifOutput, LifState, Second, SpikeGradient, Statistics, check_rule, check_state, check_trace
from tbnn.ops.lif.cell import Cell, Rule

__all__ = [
    "SHARES", "Convolution", "Memory", "Norm", "WeightedSpikes", "Weights", "kept_bytes", "layer_lif", "layer_lif_reference",
    "packed_spikes", "plan_of", "share_of",
]  # fmt: skip


def layer_lif(
    weighted: WeightedSpikes,
    beta: Tensor | float,
    threshold: Tensor | float = 1.0,
    state: LifState | None = None,
    *,
    second: Second | None = None,
    reset: str = "subtract",
    refractory: int = 0,
    winners: int | None = None,
    gradient: SpikeGradient | None = None,
    lengths: Tensor | None = None,
    joined: bool = False,
) -> LifOutput:
    """Run packed spikes through a layer of weights and the neurons after it: :func:`tbnn.ops.lif.lif` of their product.

    The same spikes and states, bit for bit (behind a norm, but for its rounding), and the same gradients. Time goes by in chunks: packed products, their currents,
    the neurons. For backward stay the packed spikes that entered and left, checkpoints of the state, the sums of the ridge
    regression, and the states themselves of the share of steps that ``weighted.memory`` says; the others are worked out
    again from the checkpoints, segment by segment. Of plain neurons behind a norm, whole numbers stay in place of states,
    two bytes a neuron and step (:mod:`tbnn.ops.layer_lif.tiled`). ``weighted.emitted`` holds the spikes that left, packed, which the next
    layer may take: both then keep the same memory.

    On a GPU (:mod:`tbnn.ops.layer_lif.gpu`) the weights are a linear layer's, float32, without a norm, and no neurons
    compete as ``winners``.

    Args:
        weighted: the spikes and the weights, see :class:`WeightedSpikes`.
        beta, threshold, state, second, reset, refractory, winners, lengths, joined: as in :func:`tbnn.ops.lif.lif`.
        gradient: likewise, but for emit="denoised".

    Raises:
        ValueError: as :func:`tbnn.ops.lif.lif`; emit="denoised"; a norm in training that sees one value a channel; weights that are neither float32 nor float64; on a GPU what has no kernel there.

    Source: checkpoints in back-propagation through time: Gruslys et al., "Memory-efficient backpropagation through time",
    NeurIPS 2016.
    """
    gradient = gradient if gradient is not None else SpikeGradient()
    if gradient.emit != "bits":
        raise ValueError(f"layer_lif: expected emit='bits', got {gradient.emit!r}")
    if weighted.dtype not in (torch.float32, torch.float64) or weighted.device.type not in ("cpu", "cuda"):
        raise ValueError(
            "layer_lif: expected float32 or float64 weights on the CPU or a CUDA device, got "
            f"{weighted.dtype} on {weighted.device}"
        )
    check_rule(reset, refractory, winners)
    rule = Rule(reset, refractory, winners)
    current = weighted.weights.weight.detach().new_empty(1).expand(weighted.shape)  # its shape; it is never worked out
    spread = None if second is None else Second(*(_per_feature(n, c, current) for n, c in second._asdict().items()))
    cell = Cell(_per_feature("beta", beta, current), _per_feature("threshold", threshold, current), spread)
    if gradient.uses_trace:
        check_trace(cell, reset)
    state = check_state(state, current, with_trace=gradient.uses_trace, with_second=second is not None, rule=rule)
    alive = None if lengths is None else _alive(lengths, current)
    statistics = Statistics(weighted.shape[2], alive, joined)
    if weighted.device.type == "cuda":
        from tbnn.ops.layer_lif.gpu import layer_lif_gpu as run
    else:
        run = layer_lif_fused
    result = run(weighted, cell, state.flat(), rule, gradient, statistics)
    return LifOutput(result.out.reshape(weighted.shape), result.state.shaped(weighted.shape[1:]), None)


def _alive(lengths: Tensor, current: Tensor) -> Tensor:
    steps, batch = current.shape[:2]
    if lengths.shape != (batch,) or lengths.dtype != torch.int64:
        raise ValueError(f"lengths: expected torch.int64 ({batch},), got {lengths.dtype} {tuple(lengths.shape)}")
    lengths = lengths.to(current.device)
    if bool(((lengths < 0) | (lengths > steps)).any()):
        raise ValueError(
            f"lengths: expected values in [0, {steps}], got {lengths.min().item()} to {lengths.max().item()}"
        )
    return (torch.arange(steps, device=current.device).unsqueeze(1) < lengths).to(current.dtype)


def _per_feature(name: str, value: Tensor | float, current: Tensor) -> Tensor:
    """A parameter spread over the flattened features, (F,)."""
    features = current.shape[2:]
    tensor = torch.as_tensor(value, dtype=current.dtype, device=current.device)
    try:
        return tensor.expand(features).reshape(-1)
    except RuntimeError:
        raise ValueError(
            f"{name}: expected a shape that broadcasts to {tuple(features)}, got {tuple(tensor.shape)}"
        ) from None
