"""The hidden layer's weights, as STDP changes them: real ones, or codes that flip."""

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tbnn.learning.plasticity.learn import Updates, learn_pairs_
from tbnn.learning.plasticity.stochastic import (
    Moves,
    check_probability,
    flips,
    post_moves,
    pre_moves,
    recent,
    window_moves,
)
from tbnn.learning.plasticity.traces import check_finite
from tbnn.learning.plasticity.triplets import Triplets, triplet_step
from tbnn.learning.plasticity.windows import Pairs, pair_step
from tbnn.nn import BinaryLinear
from tbnn.ops.quantize import Codes


class Synapses(Protocol):
    """What learns from one step's spikes of both its sides."""

    def learn(self, pre: Tensor, post: Tensor, traces: Any) -> tuple[Any, Updates]:
        """pre (B, N), post (B, M) and the traces of the step before -> the traces, and what was written."""
        ...


class RealSynapses:
    """Real weights that move by ``rate``/B·dW within [low, high]: those of a torch.nn.Linear, or a binary layer's latent ones.

    Raises ``ValueError`` for a frozen layer, bounds in the wrong order or infinite, a rate that is not finite.
    """

    def __init__(self, layer: nn.Module, window: Pairs | Triplets, rate: float, low: float, high: float) -> None:
        if not isinstance(layer, nn.Linear | BinaryLinear):
            raise ValueError(f"layers.0: expected a BinaryLinear or a torch.nn.Linear, got {type(layer).__name__}")
        if isinstance(layer, BinaryLinear) and layer.frozen_values is not None:
            raise ValueError("layers.0: expected latent weights for synapses='real', got frozen codes")
        check_finite(rate=rate, low=low, high=high)
        if not low < high:
            raise ValueError(f"low, high: expected low < high, got {low} and {high}")
        self.weight, self.window, self.rate, self.low, self.high = layer.weight, window, rate, low, high
        with torch.no_grad():
            self.weight.clamp_(low, high)

    @torch.no_grad()
    def learn(self, pre: Tensor, post: Tensor, traces: Any) -> tuple[Any, Updates]:
        rate = self.rate / len(pre)
        if isinstance(self.window, Pairs):
            one = pre.unsqueeze(0), post.unsqueeze(0)
            return learn_pairs_(self.weight.data, *one, traces, self.window, rate=rate, low=self.low, high=self.high)
        traces, change = triplet_step(pre, post, traces, self.window)
        self.weight.add_(change, alpha=rate).clamp_(self.low, self.high)
        return traces, Updates(int((change > 0).sum()), int((change < 0).sum()))

    @torch.no_grad()
    def normalise(self, total: float) -> None:
        """Scale each output's weights so that they add up to ``total``, as far as the bounds allow."""
        sums = self.weight.sum(1, keepdim=True)
        self.weight.mul_(torch.where(sums > 0, total / sums, 1.0)).clamp_(self.low, self.high)


class StochasticSynapses:
    """Codes of one bit or a few that events flip by a level: a :class:`BinaryLinear` frozen at them, without latent weights.

    The codes stay in the layer, ``frozen_values``, from where it computes, packs and is saved. A layer that is not frozen
    yet starts at its own codes, with one power of two near its mean scale for all: levels of 0 or more in the affine form
    (of one bit 0 and 1), levels on both sides of 0 in the linear form (±1).

    Args:
        layer: without sparsity or blocks, of 1 to 8 bits.
        window: "post" or "pre", see :func:`post_moves` and :func:`pre_moves`; else a window of which ``rate``·dW, summed over
            the batch, is the probability.
        p_plus, p_minus, reach: of "post" and "pre".
        generator: of the draws.

    Raises ``ValueError`` for another layer, probabilities outside [0, 1], a reach below 1.
    """

    def __init__(
        self, layer: nn.Module, window: str | Pairs | Triplets, *, p_plus: float, p_minus: float, reach: int, rate: float,
        generator: torch.Generator,
    ) -> None:  # fmt: skip
        layer, bits = _few_bits(layer)
        check_probability("p_plus", p_plus)
        check_probability("p_minus", p_minus)
        recent(None, torch.zeros(1, 1), reach)
        check_finite(rate=rate)
        self.layer, self.window, self.rate, self.generator = layer, window, rate, generator
        self.p_plus, self.p_minus, self.reach = p_plus, p_minus, reach
        self.top = 2**bits - 1
        if layer.frozen_values is None:
            layer.freeze(_start(layer, self.top))

    @property
    def levels(self) -> Tensor:
        """int16 (M, N) in 0..top."""
        return (self._values + self.top) // 2

    @property
    def _values(self) -> Tensor:
        values = self.layer.frozen_values
        if values is None:
            raise ValueError("layers.0: expected frozen codes, got latent weights")
        return values

    @torch.no_grad()
    def learn(self, pre: Tensor, post: Tensor, traces: Any) -> tuple[Any, Updates]:
        if self.window == "post":
            traces = recent(traces, pre, self.reach)
            moves = post_moves(post, (traces > 0).to(pre), self.p_plus, self.p_minus)
        elif self.window == "pre":
            moves = pre_moves(pre, post, self.p_plus, self.p_minus)
        elif isinstance(self.window, Pairs):
            traces, change = pair_step(pre, post, traces, self.window)
            moves = window_moves(self.rate * change)
        elif isinstance(self.window, Triplets):
            traces, change = triplet_step(pre, post, traces, self.window)
            moves = window_moves(self.rate * change)
        else:
            raise ValueError(f"window: expected 'post', 'pre', Pairs or Triplets, got {self.window!r}")
        return traces, self._flip(moves)

    def _flip(self, moves: Moves) -> Updates:
        """Draw, and write what changed to the codes and to the weights that they stand for."""
        values, where = self._values, _index(moves)
        own = values[where]
        step = flips((own + self.top) // 2, moves._replace(rows=None, columns=None), self.top, self.generator)
        if not bool(step.any()):
            return Updates(0, 0)
        own = own + 2 * step
        values[where] = own
        rows = slice(None) if moves.rows is None else moves.rows
        scale, offset = self.layer.frozen_scale, self.layer.frozen_offset
        if scale is not None and offset is not None:
            self.layer.weight[where] = scale[rows] * own + offset[rows]
        return Updates(int((step > 0).sum()), int((step < 0).sum()))


def _few_bits(layer: nn.Module) -> tuple[BinaryLinear, int]:
    """The layer and its bits, if it has codes that can flip."""
    if isinstance(layer, BinaryLinear) and layer.sparsity == 0 and layer.block is None:
        bits = layer.bits
        if bits is not None and bits == int(bits):
            return layer, int(bits)
    raise ValueError(
        "layers.0: expected a BinaryLinear of 1 to 8 bits without sparsity or blocks for synapses='stochastic', got "
        f"{layer}"
    )


def _index(moves: Moves) -> Any:
    """What of a matrix the moves concern."""
    if moves.columns is not None:
        return slice(None), moves.columns
    return slice(None) if moves.rows is None else moves.rows


def _start(layer: BinaryLinear, top: int) -> Codes:
    """The layer's own codes on one grid of powers of two, so that a packed network gives the same bits."""
    codes = layer.codes()
    unit = 2.0 ** round(math.log2(float(codes.scale.abs().mean().clamp(min=2.0**-20))))
    scale = torch.full_like(codes.scale, unit)
    offset = torch.full_like(codes.offset, unit * top if layer.form == "affine" else 0.0)
    return Codes(codes.values, scale, offset)
