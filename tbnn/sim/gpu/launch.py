"""How the simulator's kernels are launched: tiles, and which of them are tried out on a device."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from tbnn.bits import WORD_BITS, words_for
from tbnn.ops.binary_linear.gpu import COMPILED
from tbnn.ops.ddt.gpu import launch
from tbnn.sim.gpu.kernels import layer_scan, packed_scan, scale_rows

LANES = 256  # neurons and samples of a program that scans
RESIDENT_WORDS = 64  # of a row of weights that stays on chip while time passes
TILE_VALUES = 1 << 14  # samples × neurons × words that a program looks at together
FUSED_WORK = 1 << 31  # words met by words: above, tensor cores save more than it costs to move their integers

# Samples and neurons of a program, and its warps.
TILES = ((1, 32, 1), (1, 32, 4), (1, 64, 4), (4, 32, 4), (4, 64, 4), (8, 32, 4), (8, 64, 8), (16, 32, 8), (16, 64, 8))
INTERPRETED_TILE = {"BB": 2, "BF": 64}


class Neurons(NamedTuple):
    """Plain neurons on a device."""

    beta: Tensor  # (N,)
    threshold: Tensor  # (N,)
    reset: int


class Weights(NamedTuple):
    """A block of weights on a device: ``scale·(Σ_j factors[j]·popcount(s ∧ P_j) + constant·popcount(s)) + offset·popcount(s)``."""

    planes: Tensor  # (P, N, W)
    factors: Tensor  # (P,)
    constant: int
    scale: Tensor  # (N,)
    offset: Tensor | None  # (N,)


def _fitting(configurations: list[triton.Config], arguments: dict[str, Any], **options: Any) -> list[triton.Config]:
    """The configurations whose tiles are no larger than the layer and fit on chip."""
    samples = triton.next_power_of_2(arguments["batch"])

    def fits(tile: dict[str, int]) -> bool:
        return tile["BB"] <= samples and tile["BB"] * tile["BF"] * options["BW"] <= TILE_VALUES

    return [c for c in configurations if fits(c.kwargs)]


_layer_scan: Any = (
    triton.autotune(
        [triton.Config({"BB": b, "BF": f}, num_warps=warps) for b, f, warps in TILES],
        key=["batch", "features", "in_words", "plane_count"],
        prune_configs_by={"early_config_prune": _fitting},
    )(layer_scan)
    if COMPILED
    else layer_scan
)


def scale(product: Tensor, ones: Tensor, weights: Weights, bias: Tensor | None, y: Tensor, *, first: bool) -> None:
    """Add a block's currents to y (M, N), or with ``first`` fill it: product (M, N) and ones (M,) int32."""
    rows, columns = product.shape
    if product.numel() == 0:
        return
    across = min(triton.next_power_of_2(columns), LANES)
    together = min(triton.next_power_of_2(rows), max(1, 4 * LANES // across))
    launch(
        scale_rows, triton.cdiv(rows, together) * triton.cdiv(columns, across),
        product, ones, weights.scale, weights.offset, bias, y, rows, columns,
        FIRST=first, OFFSET=weights.offset is not None, BIAS=bias is not None, BM=together, BN=across,
    )  # fmt: skip


def scan(
    source: Tensor, neurons: Neurons, v: Tensor, ones: Tensor | None = None, weights: Weights | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Packed spikes (T, B, words) and the membranes after them, from v (B, N), which stays.

    ``source`` (T, B, N) holds currents; or with ``weights`` their integer products, and ``ones`` (T·B,) the spikes that came in.
    """
    steps, batch, features = source.shape
    words, last = words_for(features), torch.empty_like(v)
    out = torch.empty((steps, batch, words), dtype=torch.int32, device=source.device)
    across = min(max(WORD_BITS, triton.next_power_of_2(features)), LANES)
    together = min(triton.next_power_of_2(batch), LANES // across)
    offset = None if weights is None else weights.offset
    launch(
        packed_scan, triton.cdiv(batch, together) * triton.cdiv(features, across),
        source.contiguous(), ones, None if weights is None else weights.scale, offset, bias, neurons.beta, neurons.threshold,
        v, last, out, steps, batch, features, words,
        RESET=neurons.reset, PRODUCT=weights is not None, OFFSET=offset is not None, BIAS=bias is not None,
        BB=together, BF=across,
    )  # fmt: skip
    return out, last


def fuses(words: Tensor, weights: Weights) -> bool:
    """Whether a layer of weights and its neurons run in one kernel: where products are too few to pay for their way to memory."""
    planes, columns, width = weights.planes.shape
    return words.shape[0] * words.shape[1] * planes * columns * width <= FUSED_WORK


def fused_scan(
    spikes: Tensor, weights: Weights, bias: Tensor | None, neurons: Neurons, v: Tensor
) -> tuple[Tensor, Tensor]:
    """Packed spikes (T, B, in_words) through a layer of weights and its neurons: as :func:`scan`."""
    steps, batch, _ = spikes.shape
    features = weights.scale.shape[0]
    out = torch.empty((steps, batch, words_for(features)), dtype=torch.int32, device=spikes.device)
    last = torch.empty_like(v)
    arguments, options = _layer_arguments(spikes, weights, bias, neurons, None, v, last, out)
    _layer_scan[lambda tile: (triton.cdiv(batch, tile["BB"]) * triton.cdiv(features, tile["BF"]),)](
        *arguments, **options, enable_fp_fusion=False, **({} if COMPILED else INTERPRETED_TILE)
    )
    return out, last


def fused_step(
    spikes: Tensor, weights: Weights, bias: Tensor | None, neurons: Neurons, current: Tensor, v: Tensor, out: Tensor
) -> None:
    """One step of neurons that hear their own spikes (B, words) besides current (B, N): v (B, N) in place, out (B, words)."""
    batch, features = v.shape
    arguments, options = _layer_arguments(
        spikes.unsqueeze(0), weights, bias, neurons, current.unsqueeze(0), v, v, out.unsqueeze(0)
    )
    together = min(triton.next_power_of_2(batch), max(1, TILE_VALUES // 2 // (WORD_BITS * options["BW"])))
    launch(
        layer_scan, triton.cdiv(batch, together) * triton.cdiv(features, WORD_BITS),
        *arguments, **options, BB=together, BF=WORD_BITS,
    )  # fmt: skip


def _layer_arguments(
    spikes: Tensor, weights: Weights, bias: Tensor | None, neurons: Neurons, current: Tensor | None, v: Tensor, last: Tensor,
    out: Tensor,
) -> tuple[tuple[Any, ...], dict[str, Any]]:  # fmt: skip
    (steps, batch, in_words), (planes, features, _) = spikes.shape, weights.planes.shape
    arguments = (
        spikes, weights.planes, weights.factors, weights.scale, weights.offset, bias, neurons.beta, neurons.threshold,
        current, v, last, out, steps, batch, features, in_words, out.shape[-1], planes, weights.constant,
    )  # fmt: skip
    across = min(triton.next_power_of_2(in_words), RESIDENT_WORDS)
    options = {
        "RESET": neurons.reset, "OFFSET": weights.offset is not None, "BIAS": bias is not None,
        "CURRENT": current is not None, "RESIDENT": planes == 1 and in_words <= across, "BW": across,
    }  # fmt: skip
    return arguments, options
