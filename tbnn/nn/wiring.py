"""Which synapses a layer of binary weights has, and the signs they keep: Dale's law, distance, fixed and given wirings.

A wiring is a frozen value that a layer is given, ``BinaryLinear(64, 32, form="linear", wiring=Dale(0.2))``, and that a
configuration can hold. A tuple of wirings holds all of them at once: synapses are those that each of them allows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

Size = tuple[int, ...]
Positions = Size | tuple[tuple[float, ...], ...]

DECAYS = ("exponential", "gaussian")
SCOPES = ("layer", "row")


class Wires(NamedTuple):
    """What a wiring fixes of a layer's weights, both of the weight's shape; None where it leaves all free."""

    mask: Tensor | None
    """bool, where there is a synapse."""
    signs: Tensor | None
    """int8, +1 or −1: the only sign that a weight may have."""


class Wiring:
    """Base of wirings."""

    def drawn(self, shape: Size, groups: int) -> Wires:
        """For weights (outputs, inputs / groups, ...). Raises ``ValueError`` for a shape that it cannot wire."""
        raise NotImplementedError


WiringLike = Wiring | Sequence[Wiring]
Kind = TypeVar("Kind", bound=Wiring)


@dataclass(frozen=True)
class Dale(Wiring):
    """Dale's law: all synapses that leave a neuron excite, or all inhibit; a neuron is a column of the weights.

    A synapse is present where its latent weight has the neuron's sign and silent, of code 0, where it has the other: with
    one bit a weight is 0 or ± a scale, with more bits 0 or an odd magnitude, and never has the wrong sign. Silent ones take
    a gradient as pruned weights do (:class:`tbnn.quantize`'s estimators), so they may come back. The scale of a row is
    fitted over its present synapses. In a convolution a neuron is an input channel.

    round(inhibitory·N) of the N neurons inhibit, which ones depends on the seed and N alone: layers that take the same
    neurons' spikes, a recurrent one and the next say, agree if their seeds do. Where the neurons are unlike in number,
    fewer of the more numerous synapses are present at the start, that a row's inhibition is ``balance`` times its
    excitation; beside :class:`DeepR`, which draws places evenly, there is no such start. (A batch norm, folded with a
    negative factor, may turn an output's signs.)

    Args:
        inhibitory: share of the presynaptic neurons.
        seed: of the draw.
        balance: inhibition over excitation at the start.

    Raises:
        ValueError: a share outside [0, 1], a balance that is not finite and > 0.

    Source: columns of one sign, rectified: Song, Yang & Wang, PLoS Comput. Biol. 12 (2016) e1004792; that such columns learn
    worse than free ones, and what helps: Cornford et al., "Learning to live with Dale's principle", ICLR 2021.

    >>> BinaryLinear(64, 32, form="linear", wiring=Dale(0.2)).codes().values.unique().tolist()
    [-1.0, 0.0, 1.0]
    """

    inhibitory: float = 0.2
    seed: int = 0
    balance: float = 1.0

    def __post_init__(self) -> None:
        _check_share("Dale: inhibitory", self.inhibitory, least=0.0)
        if not (math.isfinite(self.balance) and self.balance > 0):
            raise ValueError(f"Dale: balance: expected a finite number > 0, got {self.balance}")

    def neurons(self, count: int) -> Tensor:
        """int8 (count,): +1 for an excitatory neuron, −1 for an inhibitory one."""
        signs = np.ones(count, np.int8)
        signs[np.random.default_rng(self.seed).permutation(count)[: round(self.inhibitory * count)]] = -1
        return torch.from_numpy(signs)

    def drawn(self, shape: Size, groups: int) -> Wires:
        own = self.neurons(shape[1] * groups).reshape(groups, shape[1]).repeat_interleave(shape[0] // groups, 0)
        return Wires(None, own.reshape(*own.shape, *[1] * (len(shape) - 2)).expand(shape).clone())

    def present(self, signs: Tensor) -> Tensor:
        """The probability that a synapse is present at the start, of the signs' shape; one half where all are alike."""
        inhibitory = (signs < 0).double().mean().item()
        if inhibitory in (0.0, 1.0):
            return torch.full(signs.shape, 0.5)
        excitatory = self.balance * (1 - inhibitory)
        share = inhibitory / (inhibitory + excitatory)  # of the excitatory synapses; of the others, the rest
        return torch.where(signs > 0, share, 1 - share)


@dataclass(frozen=True)
class Distance(Wiring):
    """Local wiring: a synapse exists with probability ``peak·exp(−d/length)``, d the distance of its two neurons.

    ``decay="gaussian"``: ``peak·exp(−d²/(2·length²))``. Drawn once, each synapse by itself. Neurons lie on a grid over the
    unit square or cube, in row-major order and at the cells' centres, so that layers of other sizes lie over each other.

    Args:
        length: in units of the positions, > 0.
        peak: the probability at distance 0, in (0, 1].
        decay: "exponential" or "gaussian".
        seed: of the draw.
        inputs, outputs: the grid's sizes, two or three of them; positions (N, 2) or (N, 3), a tensor or nested tuples;
            or None: the grid of two axes that is nearest to a square.

    Raises:
        ValueError: values out of range, another number of positions than neurons, positions of other dimensions; when a
            layer is made, an output without any synapse, and a convolution, whose kernel is local as it is.

    >>> wiring = Distance(0.1)
    >>> layer = BinaryLinear(256, 256, form="linear", wiring=wiring)
    >>> print(f"{wiring.expected_density(256, 256):.3f} {layer.density:.3f}")
    0.049 0.048
    """

    length: float
    peak: float = 1.0
    decay: str = "exponential"
    seed: int = 0
    inputs: Positions | Tensor | None = field(default=None, repr=False)
    outputs: Positions | Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.length) and self.length > 0):
            raise ValueError(f"Distance: length: expected a finite number > 0, got {self.length}")
        _check_share("Distance: peak", self.peak)
        if self.decay not in DECAYS:
            raise ValueError(f"Distance: decay: expected one of {DECAYS}, got {self.decay!r}")
        for name in ("inputs", "outputs"):  # as values that compare
            given: Any = getattr(self, name)
            if isinstance(given, Tensor):
                object.__setattr__(self, name, tuple(map(tuple, given.tolist())) if given.ndim == 2 else given.tolist())

    def probabilities(self, outputs: int, inputs: int) -> Tensor:
        """Of each synapse, float64 (outputs, inputs)."""
        to, start = _placed("outputs", self.outputs, outputs), _placed("inputs", self.inputs, inputs)
        if to.shape[1] != start.shape[1]:
            raise ValueError(
                f"Distance: expected positions of as many dimensions, got {start.shape[1]} of the inputs and "
                f"{to.shape[1]} of the outputs"
            )
        far = torch.cdist(to, start, compute_mode="donot_use_mm_for_euclid_dist") / self.length
        return self.peak * torch.exp(-far if self.decay == "exponential" else -far.square() / 2)

    def expected_density(self, outputs: int, inputs: int) -> float:
        """The mean probability: what share of all synapses is to be expected."""
        return self.probabilities(outputs, inputs).mean().item()

    def drawn(self, shape: Size, groups: int) -> Wires:
        if len(shape) != 2:
            raise ValueError(f"Distance: expected the weights (outputs, inputs) of a linear layer, got {shape}")
        chance = np.random.default_rng(self.seed).random(shape)
        return Wires(torch.from_numpy(chance) < self.probabilities(*shape), None)


@dataclass(frozen=True)
class FixedWiring(Wiring):
    """Each output has round(share·inputs) synapses, at least one, at random places that stay.

    Args:
        share: of the synapses that exist, in (0, 1].
        seed: of the draw.

    Raises:
        ValueError: a share outside (0, 1].

    >>> BinaryLinear(100, 32, form="linear", wiring=FixedWiring(0.1)).density
    0.1
    """

    share: float
    seed: int = 0

    def __post_init__(self) -> None:
        _check_share(f"{type(self).__name__}: share", self.share)

    def drawn(self, shape: Size, groups: int) -> Wires:
        row = math.prod(shape[1:])
        first = np.zeros((shape[0], row), bool)
        first[:, : max(1, round(self.share * row))] = True
        mask = np.random.default_rng(self.seed).permuted(first, axis=1)
        return Wires(torch.from_numpy(mask).reshape(shape), None)


@dataclass(frozen=True)
class DeepR(FixedWiring):
    """DEEP R: the number of synapses stays, :func:`rewire` moves those that training drove below 0 to other places.

    Every possible synapse has a sign for good, drawn evenly (a :class:`Dale` beside it gives its own). θ is the latent
    weight times this sign. Of an active synapse the code is its sign's where θ > 0 and 0 elsewhere; a dormant one has code
    0 and takes no gradient. With one bit the code says no more than the place: magnitudes decide who stays.

    Args:
        share: of the synapses that are active, in (0, 1]; round(share·inputs), at least one, an output at the start.
        seed: of the first places, of the signs, of the noise and of the places to come.
        l1: α, θ of an active synapse falls by lr·α a step.
        temperature: T, and changes by √(2·lr·T)·ν, ν a standard Gaussian.
        birth: θ of an activated synapse as a share of the layer's mean θ, > 0: in the paper 0, where a code would be silent.
        scope: "layer", as in the paper: synapses move between the outputs, which may come to have none (their scale is
            then 0); or "row": each output keeps its number.

    Raises:
        ValueError: values out of range.

    Source: Bellec, Kappel, Maass & Legenstein, "Deep Rewiring: Training very sparse deep networks", ICLR 2018 (arXiv
    1711.05136), algorithm 1; there weights are real numbers.

    >>> layer = BinaryLinear(100, 32, form="linear", wiring=DeepR(0.1))
    >>> optimizer = torch.optim.Adam(layer.parameters())
    >>> loss = layer(torch.ones(4, 100)).square().sum().backward()
    >>> optimizer.step()
    >>> moved = rewire(layer, optimizer)  # {"": how many synapses}
    """

    l1: float = 0.0
    temperature: float = 0.0
    birth: float = 0.01
    scope: str = "layer"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("l1", "temperature"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"DeepR: {name}: expected a finite number >= 0, got {value}")
        if not (math.isfinite(self.birth) and self.birth > 0):
            raise ValueError(f"DeepR: birth: expected a finite number > 0, got {self.birth}")
        if self.scope not in SCOPES:
            raise ValueError(f"DeepR: scope: expected one of {SCOPES}, got {self.scope!r}")

    def drawn(self, shape: Size, groups: int) -> Wires:
        signs = np.random.default_rng([self.seed, 0]).integers(0, 2, shape, np.int8) * 2 - 1
        return Wires(super().drawn(shape, groups).mask, torch.from_numpy(signs))


@dataclass(frozen=True, eq=False, repr=False)
class GivenWiring(Wiring):
    """The synapses of a mask, and if so wished the only sign of each.

    Args:
        mask: bool, of the weight's shape.
        signs: None, or ±1 of the weight's shape: what has the other sign is silent, as for :class:`Dale`.

    Raises:
        ValueError: a mask that is not bool, signs that are not ±1; when a layer is made, other shapes, an output without
            any synapse.

    >>> BinaryLinear(3, 2, form="linear", wiring=GivenWiring(torch.eye(3)[:2] > 0)).codes().values.count_nonzero()
    tensor(2)
    """

    mask: Tensor
    signs: Tensor | None = None

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool:
            raise ValueError(f"GivenWiring: mask: expected bool, got {self.mask.dtype}")
        if self.signs is not None and not bool((self.signs.abs() == 1).all()):
            raise ValueError("GivenWiring: signs: expected +1 and -1 alone")

    def __repr__(self) -> str:
        return f"GivenWiring({int(self.mask.sum())} of {tuple(self.mask.shape)}, signs={self.signs is not None})"

    def drawn(self, shape: Size, groups: int) -> Wires:
        for name, value in (("mask", self.mask), ("signs", self.signs)):
            if value is not None and value.shape != shape:
                raise ValueError(f"GivenWiring: {name}: expected {shape}, got {tuple(value.shape)}")
        return Wires(self.mask.clone(), None if self.signs is None else self.signs.to(torch.int8, copy=True))


def parts_of(wiring: WiringLike) -> tuple[Wiring, ...]:
    """A wiring, or several, as a tuple. Raises ``ValueError`` for anything else, and for parts that do not go together."""
    parts = tuple(wiring) if isinstance(wiring, Sequence) else (wiring,)
    if not parts or not all(isinstance(part, Wiring) for part in parts):
        raise ValueError(
            f"wiring: expected Dale, Distance, FixedWiring, DeepR, GivenWiring or some of them, got {wiring!r}"
        )
    kinds = sorted(type(part).__name__ for part in parts)
    if len(parts) > 1 and "DeepR" in kinds and kinds != ["Dale", "DeepR"]:
        raise ValueError(f"wiring: expected DeepR alone or with one Dale, since its places move, got {parts}")
    return parts


def part_of(wiring: WiringLike | None, kind: type[Kind]) -> Kind | None:
    """The part of a kind, or None."""
    parts = () if wiring is None else parts_of(wiring)
    return next((part for part in parts if isinstance(part, kind)), None)


def wires_of(wiring: WiringLike, shape: Size, groups: int = 1) -> tuple[Tensor, Tensor | None]:
    """(mask, signs) of weights that several wirings fix together.

    Raises ``ValueError`` for an output without any synapse, and for signs that two of them give.
    """
    mask, signs = torch.ones(shape, dtype=torch.bool), None
    parts = parts_of(wiring)
    for part in sorted(parts, key=lambda part: isinstance(part, DeepR)):
        own = part.drawn(shape, groups)
        mask = mask if own.mask is None else mask & own.mask
        if own.signs is not None and signs is not None and not isinstance(part, DeepR):
            raise ValueError(f"wiring: expected one that gives signs, got {parts}")
        signs = own.signs if signs is None else signs
    empty = (~mask.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"wiring: expected a synapse at least for each output, got none for {len(empty)} of {shape[0]}, "
            f"output {empty[0]} first"
        )
    return mask, signs


def _check_share(name: str, value: float, least: float | None = None) -> None:
    """In [0, 1], or without ``least`` in (0, 1]."""
    if not (0 <= value <= 1 and (value > 0 or least == 0)):
        raise ValueError(f"{name}: expected a share in {'(' if least is None else '['}0, 1], got {value}")


def _placed(name: str, given: Any, count: int) -> Tensor:
    """Positions float64 (count, dimensions)."""
    if given is None:
        short = next(size for size in range(math.isqrt(count), 0, -1) if count % size == 0)
        given = (short, count // short)
    if isinstance(given, Sequence) and given and all(isinstance(size, int) for size in given):
        if math.prod(given) != count or len(given) not in (2, 3) or min(given) < 1:
            raise ValueError(f"Distance: {name}: expected a grid of two or three sizes, {count} neurons, got {given}")
        axes = [(torch.arange(size, dtype=torch.float64) + 0.5) / size for size in given]
        return torch.cartesian_prod(*axes)
    widths = {len(row) if isinstance(row, Sequence) else 0 for row in given}
    if len(given) != count or widths not in ({2}, {3}):
        raise ValueError(
            f"Distance: {name}: expected positions ({count}, 2) or ({count}, 3), got {len(given)} of {sorted(widths)} numbers"
        )
    places = torch.tensor(given, dtype=torch.float64)
    if not bool(places.isfinite().all()):
        raise ValueError(f"Distance: {name}: expected finite positions")
    return places
