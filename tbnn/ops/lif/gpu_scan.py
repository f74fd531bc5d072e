"""The neuron's Triton kernels as functions of tensors: scans of a chunk of time forward and back, and the sums of the DDT."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor, distributed

from tbnn.ops.ddt import gpu as ddt_gpu
from tbnn.ops.ddt.gpu import launch
from tbnn.ops.lif.cell import Rule
from tbnn.ops.lif.gpu_backward import scan_backward
from tbnn.ops.lif.gpu_kernels import scan, target_sums
from tbnn.ops.lif.gradient import SpikeGradient
from tbnn.ops.lif.reference import Statistics

KINDS = {"surrogate": 0, "soft": 1, "trace": 2}
INTEGRATE = 3
RESETS = {"subtract": 0, "zero": 1, "none": 2}
# Rows of the coefficients; see gpu_kernels.py.
BETA, THRESHOLD, GAIN, FROM_CURRENT, FROM_SPIKE, CURRENT_GAIN = 0, 1, 2, 5, 6, 7

LANES = 256  # neurons of a program, two a thread
FEW_LANES = 64  # of a layer so small that programs would be too few
FEW = 1 << 16  # neurons and samples
ROWS = 16  # turns of a program that sums


class Settings(NamedTuple):
    """The arguments of the autograd function that take no gradient."""

    rule: Rule
    gradient: SpikeGradient
    statistics: Statistics
    affine: tuple[Tensor, Tensor] | None
    lengths: Tensor | None  # (B,) int32
    learn: int  # a bit for each coefficient whose gradient is wanted
    spikes: Tensor | None  # (B, F) before the first step, of gated neurons
    waiting: Tensor | None  # (B, F)
    saves: bool  # whether a backward pass may follow

    @property
    def reads_current(self) -> bool:
        """Whether a coefficient's gradient needs the current."""
        return bool(self.learn & (1 << FROM_CURRENT | 1 << CURRENT_GAIN))

    @property
    def by_step(self) -> bool:
        """Whether each step is a block of the ridge regression."""
        return self.gradient.stats == "step"

    @property
    def kind(self) -> int:
        """The estimator, as kernels know it."""
        return KINDS[self.gradient.target if self.gradient.gradient == "ddt" else "surrogate"]

    @property
    def blocks(self) -> int:
        """Blocks of the ridge regression across the features."""
        return self.statistics.channels if self.gradient.per_channel and not self.by_step else 1


class Saved(NamedTuple):
    """What the backward pass reads; None where the neuron has no such thing."""

    coefficients: Tensor  # (3 or 10, F)
    states: Tensor  # (1 or 2, T + 1, B, F)
    traces: Tensor | None
    spikes: Tensor | None  # (T, B, F) of gated neurons: no level tells them
    current: Tensor | None  # where a gradient reads it


class Start(NamedTuple):
    """The state between two steps, float32 and contiguous; None where the neuron has no such thing."""

    real: Tensor  # (1 or 2, B, F)
    trace: Tensor | None
    spikes: Tensor | None  # (B, F)
    waiting: Tensor | None  # (B, F)


class Tile(NamedTuple):
    """How much a program holds."""

    samples: int
    neurons: int

    @property
    def warps(self) -> int:
        """Two values a thread."""
        return max(1, min(4, self.samples * self.neurons // 64))

    def programs(self, rows: int, features: int) -> int:
        """How many programs cover rows × features."""
        return -(-rows // self.samples) * -(-features // self.neurons)


def tile_for(rows: int, features: int) -> Tile:
    """Neurons side by side, so that memory is read in runs; samples where neurons are few."""
    lanes = FEW_LANES if rows * features < FEW else LANES
    neurons = min(triton.next_power_of_2(features), lanes)
    return Tile(min(triton.next_power_of_2(rows), lanes // neurons), neurons)


def start_of(start: Tensor, trace_start: Tensor | None, settings: Settings) -> Start:
    """The state before the first step."""
    parts = (None if t is None else wide(t) for t in (trace_start, settings.spikes, settings.waiting))
    return Start(wide(start), *parts)


def scan_forward(
    current: Tensor, coefficients: Tensor, start: Start, rule: Rule, lengths: Tensor | None, spikes: Tensor, keeps: bool
) -> tuple[Tensor, Tensor | None, Start]:
    """Fill spikes (T, B, F) from current (T, B, F), both contiguous: the courses of states and of traces, and the state after.

    Courses are (1 or 2, T + 1, B, F) from the start on, or, unless ``keeps``, (1 or 2, 0, B, F).
    """
    steps, batch, features = current.shape
    shape = (len(start.real), steps + 1 if keeps else 0, batch, features)
    states, last = start.real.new_empty(shape), torch.empty_like(start.real)
    traces, trace_last = (None, None) if start.trace is None else (torch.empty_like(states), torch.empty_like(last))
    fired, waiting = (None if t is None else t.clone() for t in (start.spikes, start.waiting))
    tile = tile_for(batch, features)
    launch(
        scan, tile.programs(batch, features),
        current, coefficients, start.real, start.trace, fired, waiting, lengths, spikes, states, traces, last, trace_last,
        steps, batch, features, rule.refractory,
        RESET=RESETS[rule.reset], SECOND=len(start.real) > 1, WITH_TRACE=traces is not None, GATED=fired is not None,
        RAGGED=lengths is not None, SAVES=keeps, SPIKES=True, BB=tile.samples, BF=tile.neurons, num_warps=tile.warps,
    )  # fmt: skip
    return states, traces, Start(last, trace_last, fired, waiting)


def scan_back(
    saved: Saved,
    steps: int,
    dout: Tensor,
    dlast: Tensor | None,
    factors: Tensor,
    learn: int,
    settings: Settings,
    kind: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """dcurrent (T, B, F), dstart (1 or 2, B, F), dcoefficients (3 or 10, F), all but the first float32."""
    count, _, batch, features = saved.states.shape
    tile, rule, surrogate = tile_for(batch, features), settings.rule, settings.gradient.surrogate
    dcurrent = dout.new_empty((steps, batch, features), dtype=dtype)
    dstart = saved.states.new_empty((count, batch, features))
    tiles = -(-batch // tile.samples)
    totals = dstart.new_empty((len(saved.coefficients), tiles if learn else 0, features))
    launch(
        scan_backward, tile.programs(batch, features),
        saved.coefficients, saved.states, saved.traces, saved.spikes,
        None if settings.spikes is None else wide(settings.spikes), saved.current, dout, *strides_of(dout), factors,
        features if factors.shape[1] > 1 else 0, factors.shape[1] * features, settings.lengths,
        None if dlast is None else wide(dlast), dstart, totals, dcurrent, steps, batch, features,
        surrogate.parameter, surrogate.extra, settings.gradient.floor, _ceiling(rule),
        KIND=kind, SHAPE=surrogate.code, RESET=RESETS[rule.reset], SECOND=count > 1, GATED=saved.spikes is not None,
        RAGGED=settings.lengths is not None, LEARN=learn, HAS_LAST=dlast is not None,
        BB=tile.samples, BF=tile.neurons, num_warps=tile.warps,
    )  # fmt: skip
    return dcurrent, dstart, totals.sum(1)


def _ceiling(rule: Rule) -> float:
    return 1 / (1 + rule.refractory)


def strides_of(grad: Tensor) -> tuple[int, int]:
    """Of a gradient (1 or T, 1 or B, F), 0 where there is one for all."""
    steps, batch, features = grad.shape
    return batch * features if steps > 1 else 0, features if batch > 1 else 0


def part_sums(saved: Saved, dout: Tensor | None, settings: Settings) -> Tensor:
    """Σx, Σq, Σq², Σxq and, given dout, ΣG, ΣGq of these steps: float64 (4 or 6, 1 or T, blocks across features)."""
    gradient, surrogate = settings.gradient, settings.gradient.surrogate
    count, rows, batch, features = saved.states.shape
    steps = rows - 1
    how = Rows.of(steps, batch, features, settings.by_step)
    parts = saved.states.new_empty((4 if dout is None else 6, how.groups * how.chunks, features))
    launch(
        target_sums, how.programs(features),
        saved.coefficients, saved.states, saved.traces, saved.spikes, dout, *((0, 0) if dout is None else strides_of(dout)),
        settings.lengths, parts, steps, batch, features, how.span, how.chunk, how.chunks,
        surrogate.parameter, surrogate.extra, gradient.floor, _ceiling(settings.rule),
        KIND=settings.kind, SHAPE=surrogate.code, SECOND=count > 1, GATED=saved.spikes is not None,
        RAGGED=settings.lengths is not None, WITH_GRAD=dout is not None, BB=how.tile.samples, BF=how.tile.neurons,
        num_warps=how.tile.warps,
    )  # fmt: skip
    return how.added(parts, settings.blocks)


class Rows(NamedTuple):
    """How the rows of a sum, the samples of every step, are shared among programs: ``groups`` of ``span``, in ``chunks``."""

    tile: Tile
    groups: int
    span: int
    chunk: int

    @classmethod
    def of(cls, steps: int, batch: int, features: int, by_step: bool) -> "Rows":
        """One group, or one a step."""
        groups, span = (steps, batch) if by_step else (1, steps * batch)
        tile = tile_for(span, features)
        return cls(tile, groups, span, tile.samples * ROWS)

    @property
    def chunks(self) -> int:
        """Programs that add up a group, for a tile of neurons."""
        return -(-self.span // self.chunk)

    def programs(self, features: int) -> int:
        """All of them."""
        return self.groups * self.chunks * -(-features // self.tile.neurons)

    def added(self, parts: Tensor, blocks: int) -> Tensor:
        """The programs' sums (n, groups·chunks, F) as those of the blocks, float64 (n, groups, blocks)."""
        return parts.reshape(len(parts), self.groups, self.chunks, blocks, -1).sum((2, 4), dtype=torch.float64)


def counted(sums: Tensor, settings: Settings, size: tuple[int, int, int]) -> Tensor:
    """The sums (4 or 6, 1 or T, blocks) of all steps with n before them, those of all processes where they are joined."""
    (steps, batch, features), alive = size, settings.statistics.alive
    _, groups, blocks = sums.shape
    alive = sums.new_full((steps,), batch) if alive is None else alive.sum(1, dtype=torch.float64)
    n = (alive if settings.by_step else alive.sum(0, keepdim=True)) * (features // blocks)
    sums = torch.cat([n[None, :, None].expand(1, groups, blocks), sums])
    if settings.statistics.joined:
        distributed.all_reduce(sums)
    sums[0].clamp_(min=1)  # a block in which every sequence has ended
    return sums


def scale_alone(coefficients: Tensor, gradient: SpikeGradient) -> Tensor:
    """The factors of a bare surrogate, (4, 1, F), of which kG alone is read."""
    return coefficients.new_full((4, 1, coefficients.shape[1]), gradient.scale)


def ridge_factors(sums: Tensor, gradient: SpikeGradient, features: int) -> Tensor:
    """k0, kG, kx, kq of every neuron (and step), (4, 1 or T, F), from n, Σx, Σq, Σq², Σxq, ΣG, ΣGq of every block."""
    *known, g, gq = sums
    s, r, x_const, q_const = ddt_gpu.gradient(known, g, gq, gradient.lam, "affine", gradient.differentiate_stats)
    factors = torch.stack([x_const + q_const, s, r, r - 2 * s * r])
    return spread(gradient.scale * factors, features)


def spread(per_block: Tensor, features: int) -> Tensor:
    """(..., blocks across features) -> (..., F), float32."""
    wide = per_block.unsqueeze(-1).expand(*per_block.shape, features // per_block.shape[-1])
    return wide.reshape(*per_block.shape[:-1], features).float()


def wide(t: Tensor) -> Tensor:
    """Float32, contiguous: what the kernels take."""
    return t.detach().float().contiguous()
