"""Whether a packed network does what its model does, spike by spike."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tbnn.bits import unpack_bits
from tbnn.sim.network import PackedNetwork, SimulationResult

TOLERANCE = 1e-5


@dataclass(frozen=True)
class LayerParity:
    """One spiking layer: of ``compared`` spikes, how many differ, and why.

    Attributes:
        mismatches: all that differ.
        tolerated: those whose membrane in the model is within 1e-5·max(1, |v|) of its threshold.
        downstream: those of a sample in which a mismatch came before, at an earlier step or in an earlier layer: from
            there on the two runs have different inputs, so nothing more can be said.
    """

    name: str
    compared: int
    mismatches: int
    tolerated: int
    downstream: int


@dataclass(frozen=True)
class Parity:
    """A simulation held against its model.

    Attributes:
        layers: every spiking layer.
        readout_difference: largest absolute difference of the readout where no mismatch came before in its sample;
            None without a readout.
        readout_ok: that difference is within 1e-5·max(1, |readout|) everywhere.
        equal: every spike and every value of the readout is the same, bit for bit.
    """

    layers: tuple[LayerParity, ...]
    readout_difference: float | None
    readout_ok: bool
    equal: bool

    @property
    def ok(self) -> bool:
        """Whether the parity contract holds: no mismatch but tolerated ones and what follows from them."""
        return self.readout_ok and all(x.mismatches == x.tolerated + x.downstream for x in self.layers)

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {**asdict(self), "layers": [asdict(layer) for layer in self.layers], "ok": self.ok}

    def summary(self) -> str:
        """One line."""
        keys = ("compared", "mismatches", "tolerated", "downstream")
        compared, mismatches, tolerated, downstream = (sum(getattr(x, key) for x in self.layers) for key in keys)
        verdict = "equal bit for bit" if self.equal else "within the contract" if self.ok else "BROKEN"
        difference = self.readout_difference
        readout = "" if difference is None else f"; readout differs by at most {difference:.3g}"
        return (
            f"parity {verdict}: {mismatches:,} of {compared:,} spikes differ "
            f"({tolerated:,} at the threshold, {downstream:,} after those){readout}"
        )


@torch.no_grad()
def check_parity(model: nn.Module, packed: PackedNetwork, x: Tensor) -> Parity:
    """Run the model in evaluation and the packed network on ``x`` and compare every spike and the readout.

    Args:
        model: the :class:`tbnn.nn.Network` that ``packed`` was made from; its mode is left as it was.
        packed: the packed network.
        x: frames (T, B, features) of 0 and 1, or packed words, on the CPU.

    Raises:
        ValueError: as :meth:`PackedNetwork.simulate`.
    """
    result = packed.simulate(x, record=("spikes",))
    comparisons: dict[str, Comparison] = {}
    with _evaluating(model), _calls_of(model, packed.spiking_layers) as calls:
        out = model(x if x.dtype == torch.int32 else x.flatten(2).float())[0]
        for name, layer in packed.spiking_layers.items():
            spikes = unpack_bits(result.spikes[name], layer.spec.features, torch.bool)
            comparisons[name] = _compare(model.get_submodule(name), *calls[name], spikes)
    # A sample is judged up to the step of its first mismatch, and at that step up to the layer that has it.
    first = torch.full((x.shape[1],), x.shape[0])
    for wrong, _ in comparisons.values():
        first = torch.minimum(first, _first_step(wrong))
    judged = torch.arange(x.shape[0]).unsqueeze(1) <= first  # (T, B)
    layers = []
    for name, (wrong, near) in comparisons.items():
        here = judged.unsqueeze(-1)
        numbers = (int(t.sum()) for t in (wrong, wrong & near & here, wrong & ~here))
        layers.append(LayerParity(name, wrong.numel(), *numbers))
        judged = judged & ~wrong.any(-1)
    return _verdict(tuple(layers), out, result, judged)


class Comparison(NamedTuple):
    """One layer's spikes against the model's, each (T, B, N) bool."""

    wrong: Tensor
    """They differ."""
    near: Tensor
    """The membrane in the model is at its threshold."""


def _compare(layer: nn.Module, current: Tensor, out: Tensor, spikes: Tensor) -> Comparison:
    excess, v = (values.flatten(2) for values in _membranes(layer, current))
    neuron: Any = getattr(layer, "neuron", layer)
    # A denoised output is a·q + b: where a is 0 only the membrane tells the bit.
    reference = out.flatten(2) != 0 if neuron.spike_gradient.emit == "bits" else excess > 0
    room = TOLERANCE * v.abs().clamp(min=1)
    near = excess.abs() < room
    if neuron.winners is not None:
        # A winner no further above its threshold than the best loser, or a loser no further below the last winner.
        last = torch.where(reference, excess, torch.inf).amin(-1, keepdim=True)
        best = torch.where(~reference & (excess > 0), excess, -torch.inf).amax(-1, keepdim=True)
        near = near | torch.where(reference, excess - best < room, last - excess < room)
    return Comparison(reference != spikes, near)


def _verdict(layers: tuple[LayerParity, ...], out: Tensor, result: SimulationResult, judged: Tensor) -> Parity:
    same = not any(layer.mismatches for layer in layers)
    if result.readout is None:
        return Parity(layers, None, True, same)
    difference = (out - result.readout).abs() * judged.unsqueeze(-1)
    fits = bool((difference <= TOLERANCE * out.abs().clamp(min=1)).all())
    return Parity(layers, difference.max().item(), fits, same and torch.equal(out, result.readout))


def _first_step(wrong: Tensor) -> Tensor:
    """The first step with a mismatch in each sample: (T, B, N) -> (B,), T where there is none."""
    any_wrong = torch.cat([wrong.any(-1), torch.ones(1, wrong.shape[1], dtype=torch.bool)])
    return any_wrong.to(torch.uint8).argmax(0)


def _membranes(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Membranes less thresholds, and membranes, of a spiking layer at every step, by stepping it; (T, B, features...)."""
    neuron: Any = getattr(layer, "neuron", layer)
    threshold, second = neuron.effective_threshold(x.shape[2:]), neuron.coefficients().second
    state, excess, membranes = None, [], []
    for x_t in x.unbind(0):
        _, state = layer.step(x_t, state)  # pyright: ignore[reportCallIssue]
        cell = getattr(state, "neuron", state)
        adapted = threshold if second is None else threshold + second.to_threshold * cell.w
        membranes.append(cell.v)
        excess.append(cell.v - adapted)
    return torch.stack(excess), torch.stack(membranes)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _calls_of(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Collect what enters and what leaves the named layers in a forward pass."""
    calls: dict[str, tuple[Tensor, Tensor]] = {}

    def collector(name: str) -> Callable[..., None]:
        def collect(_module: nn.Module, args: Any, output: Any) -> None:
            calls[name] = args[0], output[0]

        return collect

    hooks = [model.get_submodule(name).register_forward_hook(collector(name)) for name in names]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
