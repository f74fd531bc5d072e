"""What every layer with quantised weights shares: the latent weights, their codes, and the product they define."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tbnn.bits import unpack_bits
from tbnn.nn.recorded import Recorded
from tbnn.nn.wired import check_wired, quantize_wired, start_wired
from tbnn.nn.wiring import DeepR, WiringLike, part_of, wires_of
from tbnn.ops.kernels import autocasts
from tbnn.ops.quantize import Codes, Pege, check_quantize, quantize_with_codes
from tbnn.ops.quantize.estimators import Estimator
from tbnn.ops.quantize.sparsify import SparsityLike
from tbnn.ops.spike_products import pack_spikes

OPTIONAL = ("gain", "frozen_values", "frozen_scale", "frozen_offset")  # buffers that a layer may have
PACKED_FROM = 512  # inputs: fewer are kept as they are, faster than they are packed
START_GAIN = 2.0  # mean |w|·√fan_in at the start: a tenth of the inputs active then drives a neuron near its threshold


class BinaryWeight(Recorded, nn.Module, abstract=True):
    """Base of layers whose weights are few bits: ``ŵ = scale·value + offset`` over blocks of an output's weights.

    ``weight`` (outputs, ...) holds the latent, real weights. The weights of one output are a *row*; a block is a row, or
    a run of ``block`` weights of it. A layer's output is ``Σ_k scale_k·(x·values_k) + offset_k·Σx_k``, k the blocks:
    on 0/1 inputs the products and the sums are whole numbers, exact before the scaling, and popcounts give the same.

    Under torch.autocast they stay so: product, scales and gradients are computed in float32, as neurons are, and only other
    layers, torch.nn.Linear say, change to half precision. torch.compile takes a large product as one operator on bits.

    Args:
        shape: of the weight, outputs first.
        bias: real-valued, one an output; starts at 0.
        bits, sparsity, form, lam, estimator: as in :func:`tbnn.quantize`. An estimator that mixes full-precision weights
            in (:class:`Pege` below progress 1) does so in training alone; in evaluation, and in :meth:`codes`, all
            weights are quantised.
        scope: over what a sparse share is taken: each "block", each "row" or the whole "tensor".
        block: None, one block a row, or the length of the runs; longer than a row, it is the row.
        wiring: None, or which synapses there are and the signs they keep, see :mod:`tbnn.nn.wiring`.
        groups: of a convolution.

    Attributes:
        gain: None, or (outputs,), a factor on each output's scales, offsets and Ŵ: what :func:`fold_batch_norms` leaves.
        frozen_values, frozen_scale, frozen_offset: None, or the codes that :meth:`freeze` holds the weights at.
        mask, signs: None without a wiring; bool, where there is a synapse, and int8, its only sign, or None for either.
        rewirings: None, or how often :func:`rewire` has moved the synapses.

    Raises:
        ValueError: sizes below 1, arguments that :func:`tbnn.quantize` refuses; λ = 0 where training may make Var(q) 0;
            a wiring with the affine form, a sparsity, "pege" or λ = 0, or one that leaves an output without synapses.

    Source: arXiv 2409.09245.
    """

    gain: Tensor | None
    frozen_values: Tensor | None
    frozen_scale: Tensor | None
    frozen_offset: Tensor | None
    mask: Tensor | None
    signs: Tensor | None
    rewirings: Tensor | None

    def __init__(
        self,
        shape: tuple[int, ...],
        bias: bool,
        *,
        bits: float | None,
        sparsity: SparsityLike,
        scope: str,
        estimator: str | Estimator,
        form: str,
        lam: float,
        block: int | None,
        wiring: WiringLike | None = None,
        groups: int = 1,
    ) -> None:
        super().__init__()
        if min(shape) < 1:
            raise ValueError(f"{type(self).__name__}: expected sizes >= 1, got {shape[1]} -> {shape[0]}")
        if block is not None and block < 1:
            raise ValueError(f"block: expected None or a length >= 1, got {block}")
        check_quantize(bits, sparsity, form, lam, estimator, scope)
        if lam == 0 and not (form == "linear" and bits is not None and sparsity == 0 and bits != 1.58):
            raise ValueError("lam: expected a number > 0 (a block's codes may come to be all alike, or all 0), got 0")
        self._bits, self.sparsity, self.scope = bits, sparsity, scope
        self.estimator, self.form, self.lam, self.block = estimator, form, lam, block
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape[0])) if bias else None
        for name in OPTIONAL:
            self.register_buffer(name, None)
        self.register_load_state_dict_pre_hook(_expect_optional)
        self._wire(wiring, groups)
        self.reset_parameters()

    def _wire(self, wiring: WiringLike | None, groups: int) -> None:
        """Draw the synapses of a wiring, once for all."""
        mask = signs = None
        if wiring is not None:
            check_wired(self.sparsity, self.scope, self.estimator, self.form, self.lam)
            mask, signs = wires_of(wiring, tuple(self.weight.shape), groups)
        self.wiring = wiring
        self.register_buffer("mask", mask)
        self.register_buffer("signs", signs)
        self.register_buffer(
            "rewirings", None if part_of(wiring, DeepR) is None else torch.zeros((), dtype=torch.int64)
        )

    def reset_parameters(self) -> None:
        """Draw latent weights uniformly, mean |w| = 2/√fan_in, which starts layers alive; bias 0."""
        if self.mask is not None:
            start_wired(self.weight, self.mask, self.signs, self.wiring, START_GAIN)
        else:
            bound = 2 * START_GAIN / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def bits(self) -> float | None:
        """Of a weight; None for full precision, which is also what a layer multiplies by while its estimator mixes it in."""
        return None if self.mixes else self._bits

    @property
    def density(self) -> float:
        """The share of synapses that exist; 1 without a wiring."""
        return 1.0 if self.mask is None else int(self.mask.sum()) / self.mask.numel()

    @property
    def mixes(self) -> bool:
        """Whether some of the weights are full precision now: in training, with a :class:`Pege` below progress 1."""
        how = self.estimator
        return isinstance(how, Pege) and how.share < 1 and self.training and self.frozen_values is None

    def quantized(self) -> tuple[Tensor, Codes]:
        """Ŵ of the weight's shape, differentiable in the latent weights, and its :meth:`codes`, mixed ones if it mixes."""
        return self._quantized(self.estimator if self.mixes else self._settled())

    def _settled(self) -> str | Estimator:
        """The estimator, at the end of training if it would mix full-precision weights in before."""
        return self.estimator.at(1.0) if isinstance(self.estimator, Pege) else self.estimator

    def _quantized(self, estimator: str | Estimator) -> tuple[Tensor, Codes]:
        weight, values, scale, offset = self._latent(estimator) if self.frozen_values is None else self._frozen()
        if self.gain is not None:
            gain = self.gain[:, None]
            weight, scale, offset = weight * gain, scale * gain, offset * gain
        return weight.view_as(self.weight), Codes(values.view_as(self.weight), scale, offset)

    def _latent(self, estimator: str | Estimator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ŵ and its codes from the latent weights, a row an output."""
        if self.mask is not None:
            mask, signs = self.mask.flatten(1), None if self.signs is None else self.signs.flatten(1)
            options: Any = {"bits": self._bits, "lam": self.lam, "block": self.block, "estimator": estimator}
            return quantize_wired(self.weight.flatten(1), mask, signs, **options)
        weight, (values, scale, offset) = quantize_with_codes(
            self.weight.flatten(1),
            bits=self._bits,
            sparsity=self.sparsity,
            scope=self.scope,
            form=self.form,
            lam=self.lam,
            dim=1,
            block=self.block,
            estimator=estimator,
        )
        return weight, values, scale.squeeze(-1), offset.squeeze(-1)

    def _frozen(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ŵ and its codes as :meth:`freeze` left them."""
        if self.weight.requires_grad:
            raise ValueError(
                f"{type(self).__name__}.weight: the weights are frozen at their codes and do not train: expected "
                "requires_grad=False, got True"
            )
        scale, offset = cast("Tensor", self.frozen_scale), cast("Tensor", self.frozen_offset)
        return self.weight.flatten(1), cast("Tensor", self.frozen_values).to(scale.dtype), scale, offset

    @torch.no_grad()
    def freeze(self, codes: Codes | None = None) -> None:
        """Hold the weights at given codes, by default at the layer's own: :meth:`codes` then returns just these.

        The latent weights become Ŵ and take no gradient, so an optimizer leaves them; the bias still trains, and gradients
        still pass to the input. Nothing is quantised any more: training that asks for the weights' gradient raises
        ``ValueError``. A layer with given codes needs no latent weights that would quantise to them.

        Args:
            codes: integer values of the weight's shape, in [−255, 255]; scale and offset (outputs, blocks), offset 0 in
                the linear form.

        Raises:
            ValueError: codes of other shapes; full-precision weights.
        """
        if self._bits is None:
            raise ValueError(f"{type(self).__name__}: expected weights of few bits to freeze, got bits=None")
        values, scale, offset = self.codes() if codes is None else codes
        row = self.weight[0].numel()
        block = min(self.block or row, row)
        blocks = (self.weight.shape[0], -(-row // block))
        if values.shape != self.weight.shape or scale.shape != blocks or offset.shape != blocks:
            raise ValueError(
                f"{type(self).__name__}: expected values {tuple(self.weight.shape)}, scale and offset {blocks}, got "
                f"{tuple(values.shape)}, {tuple(scale.shape)}, {tuple(offset.shape)}"
            )
        flat = values.flatten(1).to(self.weight.device, torch.int16)
        scale, offset = scale.to(self.weight, copy=True), offset.to(self.weight, copy=True)
        each = scale.repeat_interleave(block, 1)[:, :row], offset.repeat_interleave(block, 1)[:, :row]
        self.frozen_values, self.frozen_scale, self.frozen_offset, self.gain = flat, scale, offset, None
        self.weight.copy_((each[0] * flat + each[1]).view_as(self.weight))
        self.weight.requires_grad_(False)

    @property
    def takes_words(self) -> bool:
        """Whether ``layer(x, words)`` may have x's packed words in place of its numbers."""
        return self.bits is not None

    def quantized_weight(self) -> Tensor:
        """Ŵ, of the weight's shape, differentiable in the latent weights."""
        return self.quantized()[0]

    def codes(self) -> Codes:
        """Ŵ in parts, without gradient: values of the weight's shape, scale and offset (outputs, blocks)."""
        return self._quantized(self._settled())[1]

    @torch.no_grad()
    def fold(self, scale: Tensor, shift: Tensor) -> None:
        """Take a factor and a term an output in: ``y ← scale·y + shift``, both (outputs,)."""
        bias = shift if self.bias is None else shift + scale * self.bias
        self.bias = nn.Parameter(bias.clone())
        self.gain = scale.clone() if self.gain is None else self.gain * scale
        self.__dict__["made_with"] = {**self.__dict__["made_with"], "bias": True}

    def _options_repr(self) -> str:
        shown = {"bits": self._bits, "sparsity": self.sparsity, "estimator": self.estimator, "form": self.form}
        return (
            f"bias={self.bias is not None}, "
            + ", ".join(f"{k}={v}" for k, v in shown.items())
            + f", block={self.block}"
            + ("" if self.wiring is None else f", wiring={self.wiring}")
            + (", frozen=True" if self.frozen_values is not None else "")
        )


def _expect_optional(module: Any, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Make room for what a folded or frozen layer has more, or drop one's own, before a state dict is loaded."""
    was_frozen = module.frozen_values is not None
    for name in OPTIONAL:
        saved = state_dict.get(prefix + name)
        room = None if saved is None else torch.empty_like(saved, device=module.weight.device)
        setattr(module, name, room if room is None or not room.is_floating_point() else room.to(module.weight.dtype))
    if was_frozen != (module.frozen_values is not None):
        module.weight.requires_grad_(was_frozen)


Parts = Iterator[tuple[Tensor, Tensor | None]]
"""Block by block: the product with the values (M, outputs, ...) and the sum of the inputs, broadcastable to it."""


class Product:
    """A product linear in the weight, as forward sees it, in blocks of values, and as backward sees it."""

    def parts(self, x: Tensor, values: Tensor, sums: bool) -> Parts:
        """x times each block of the values, and the block's sum of x if ``sums``."""
        raise NotImplementedError

    def gradients(
        self, dy: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """(dx, dweight) of x times the whole weight."""
        raise NotImplementedError

    def from_bits(self, x: Tensor, words: Tensor, codes: Codes, sums: bool) -> Tensor | None:
        """What ``scale·parts + offset·sums`` add up to, bit for bit, from x's packed spikes; None where that does not pay."""
        return None

    def gradients_from_bits(
        self, dy: Tensor, spikes: "Spikes", weight: Tensor, codes: Codes, sums: bool, needs: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """:meth:`gradients` where x is packed."""
        return self.gradients(dy, spikes.unpacked(), weight, needs)

    def __call__(self, x: Tensor, weight: Tensor, codes: Codes, form: str, words: Tensor | None = None) -> Tensor:
        """x (M, inputs...) -> (M, outputs, ...), forward from the codes, backward through Ŵ = ``weight``.

        Given its packed words (M, ⌈inputs/32⌉), x's own numbers are not read.
        """
        sums = form != "linear"
        x = x.to(weight.dtype) if autocasts(x) else x
        with without_autocast(x):
            y = None
            if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
                from tbnn.nn.coded_operator import coded_traced

                y = coded_traced(self, x, weight, codes, sums)
            return _Coded.apply(x, weight, *codes, sums, self, words) if y is None else y


class Spikes(NamedTuple):
    """x (M, inputs...) of 0 and 1, as one bit each."""

    words: Tensor
    """int32 (M, ⌈inputs/32⌉), the inputs flat."""
    features: torch.Size
    """Of one row of x."""

    def unpacked(self, rows: slice = slice(None)) -> Tensor:
        """Some rows of x as float32."""
        return unpack_bits(self.words[rows], self.features.numel()).unflatten(-1, self.features)


def packed(x: Tensor) -> Tensor | None:
    """x's spikes as words, where it has nothing but 0 and 1 and there are enough of them to be worth it."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.numel() < PACKED_FROM or torch.compiler.is_compiling():
        return None
    return pack_spikes(x.flatten(1))


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Where a product of x is whole numbers before the scaling: half precision would round them beyond 256."""
    return torch.autocast(x.device.type, enabled=False) if autocasts(x) else nullcontext()


class _Coded(torch.autograd.Function):
    """``Σ_k scale_k·p_k + offset_k·c_k`` forward; backward as if the product were with Ŵ.

    Of an x of spikes one bit each is kept for backward; a compiler that traces this sees the float products.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, values: Tensor, scale: Tensor, offset: Tensor, sums: bool, product: Product,
        words: Tensor | None,
    ) -> Tensor:  # fmt: skip
        given, codes = words is not None, Codes(values, scale, offset)
        words = packed(x) if words is None else words
        ctx.save_for_backward(x if words is None else words, weight, *codes)
        ctx.features = None if words is None else x.shape[1:]
        ctx.product, ctx.sums = product, sums
        return coded_product(product, x, words, codes, sums, given)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, *codes = ctx.saved_tensors
        needs, product = ctx.needs_input_grad[:2], ctx.product
        with without_autocast(weight):
            if ctx.features is None:
                dx, dweight = product.gradients(grads[0], x, weight, needs)
            else:
                spikes = Spikes(x, ctx.features)
                dx, dweight = product.gradients_from_bits(grads[0], spikes, weight, Codes(*codes), ctx.sums, needs)
        return dx, dweight, *[None] * 6


def coded_product(
    product: Product, x: Tensor, words: Tensor | None, codes: Codes, sums: bool, words_alone: bool = False
) -> Tensor:
    """The products of the blocks and their sums of x, scaled and added up; from x's words where they are given and it pays.

    ``words_alone``: x has the shape alone.
    """
    y = None if words is None else product.from_bits(x, words, codes, sums)
    if y is None and words is not None and words_alone:
        x = Spikes(words, x.shape[1:]).unpacked()
    return _scaled_sum(product.parts(x, codes.values, sums), codes.scale, codes.offset) if y is None else y


def _scaled_sum(parts: Parts, scale: Tensor, offset: Tensor) -> Tensor:
    y: Any = None
    for k, (part, total) in enumerate(parts):
        per_output = (-1, *[1] * (part.ndim - 2))
        # In this order, each operation rounded by itself: the packed simulation repeats it bit for bit.
        part = part.mul_(scale[:, k].reshape(per_output))
        if total is not None:
            part.add_(total * offset[:, k].reshape(per_output))
        y = part if y is None else y.add_(part)
    return y


Prepared = Callable[..., Tensor]
"""A layer as a function of its input, and of its packed words if they are known, its weights quantised once."""
