"""How many bytes a network keeps for backward, before it runs."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tbnn.bits import WORD_BITS, words_for
from tbnn.nn.fused import sees_no_current
from tbnn.nn.network import Network
from tbnn.nn.neuron import Neuron
from tbnn.nn.recurrent import Recurrent
from tbnn.ops.layer_lif import SHARES, Memory, WeightedSpikes, kept_bytes, plan_of

SHORT, LONG = 16, 32  # steps of the runs that tell what the other layers keep, which of very few is more than a bit


class _Fused(NamedTuple):
    """A layer of weights and its neurons that ran as one, in numbers of :func:`tbnn.ops.layer_lif.kept_bytes`."""

    inputs: int
    features: int
    numbers: int
    states: int
    size: int
    products: int | None
    """Of whole numbers kept in place of states: a step's of one sample, in bytes."""
    shared: bool
    """Whether a layer before keeps the words that enter it, as what it emitted."""

    def kept(self, memory: Memory, steps: int, batch: int) -> int:
        """Its bytes."""
        given = self.inputs, self.features, self.numbers, self.states, self.size, self.products
        parts = kept_bytes(memory, steps, batch, *given)
        return sum(parts.values()) - (parts["inputs"] if self.shared else 0)


class _Looped(NamedTuple):
    """A recurrent layer that ran as one call, :mod:`tbnn.ops.recurrent_lif`, with the weights before it or without."""

    inputs: int | None
    """Of the weights before it, whose words no other layer keeps; None where a current arrives; 0: others keep them."""
    features: int
    numbers: int
    states: int
    size: int
    delay: int

    def kept(self, memory: Memory, steps: int, batch: int) -> int:
        """Its bytes."""
        plan = plan_of(
            memory if self.inputs is not None or self.states > 1 else "speed", steps, batch, self.features, self.numbers
        )
        recorded = sum(hi - lo for i, (lo, hi) in enumerate(plan.segments) if plan.keeps(i))
        each = self.size * batch * self.features
        words = 4 * steps * batch * words_for(self.inputs or 0)
        bits = 8 * (steps + self.delay) * batch * -(-self.features // (2 * WORD_BITS))
        current = each * steps if self.inputs is None and plan.kept < len(plan.segments) else 0
        return words + bits + each * (self.numbers * len(plan.segments) + self.states * recorded) + current


class Predicted:
    """What a network will keep for backward on batches like x (T, B, features...) or packed, of any number of steps.

    Layers of weights that run as one with their neurons, and recurrent layers that do, are counted; of the others the bytes that autograd saves in runs
    of 16 and 32 steps tell what a step and a call take. Parameters and buffers do not count.
    """

    def __init__(self, network: Network, x: Tensor) -> None:
        own = copy.deepcopy(network)
        own.memory = "minimal"
        self.batch = x.shape[1]
        self.fused: list[_Fused | _Looped] = []
        others = []
        with torch.random.fork_rng(devices=[]):
            for steps in (SHORT, LONG):
                some = x.detach()[torch.arange(steps) % x.shape[0]]
                saved, self.fused = _run(own, some)
                others.append(saved - self._fused_bytes("minimal", steps))
        self.step = (others[1] - others[0]) / (LONG - SHORT)
        self.call = others[0] - SHORT * self.step

    def bytes(self, memory: Memory, steps: int) -> int:
        """Bytes that ``steps`` steps keep in a mode."""
        return round(self._fused_bytes(memory, steps) + self.call + self.step * steps)

    def share_within(self, budget: int, steps: int) -> float:
        """The largest share of membranes that fits; ``ValueError`` if not even checkpoints do."""
        least = self.bytes("minimal", steps)
        if least > budget:
            raise ValueError(
                f"memory: {steps} steps of {self.batch} sequences do not fit into {budget} bytes: "
                f"expected at least {least}"
            )
        # Shares at which a layer comes to keep one more segment; segments have 1 step at least.
        counts = sorted({k / n for n in range(1, 65) for k in range(n + 1)}, reverse=True)
        return next((share for share in counts if self.bytes(share, steps) <= budget), 0.0)

    def modes(self, steps: int) -> dict[str, int]:
        """The bytes of every mode."""
        return {mode: self.bytes(mode, steps) for mode in SHARES}

    def _fused_bytes(self, memory: Memory, steps: int) -> int:
        return sum(layer.kept(memory, steps, self.batch) for layer in self.fused)


def saved_bytes(network: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps after ``network(x)``, each memory once, but for parameters, buffers and x."""
    kept = [x, *network.parameters(), *network.buffers()]
    seen = {t.untyped_storage().data_ptr() for t in kept}
    count = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal count
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept.append(tensor)  # so that its memory is not used again
            count += storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(x)
    return count


def _run(network: Network, x: Tensor) -> tuple[int, list[_Fused | _Looped]]:
    """What autograd keeps, and the layers that ran as one."""
    fused: list[_Fused | _Looped] = []
    seen: list[Tensor] = [x]  # words that are kept already

    def record(neuron: Neuron, args: tuple[object, ...], _: object) -> None:
        weighted = args[0]
        if not isinstance(weighted, WeightedSpikes) or weighted.emitted is None:
            return
        shared = any(weighted.words.data_ptr() == words.data_ptr() for words in seen)
        seen.extend([weighted.words, weighted.emitted])
        states, gates = _numbers_of(neuron)
        features, size = weighted.shape[2:].numel(), weighted.weights.weight.element_size()
        fused.append(_Fused(weighted.inputs, features, states + gates, states, size, weighted.products, shared))

    def record_loop(layer: Recurrent, args: tuple[Tensor | WeightedSpikes, ...], _: object) -> None:
        given, inputs = args[0], None
        if not layer.fuses(given):
            return
        if isinstance(given, WeightedSpikes):
            inputs = 0 if any(given.words.data_ptr() == words.data_ptr() for words in seen) else given.inputs
            seen.append(given.words)
        states, gates = _numbers_of(layer.neuron)
        second = layer.neuron.coefficients().second
        reads = second is not None and (second.from_current.requires_grad or second.current_gain.requires_grad)
        features, size = given.shape[2:].numel(), given.dtype.itemsize
        fused.append(_Looped(inputs, features, states + gates, states + reads, size, layer.delay))

    kinds = ((Neuron, record), (Recurrent, record_loop))
    hooks = [
        m.register_forward_hook(sees_no_current(hook, nor_spikes=True))
        for kind, hook in kinds
        for m in network.modules()
        if isinstance(m, kind)
    ]
    try:
        return saved_bytes(network, x), fused
    finally:
        for hook in hooks:
            hook.remove()


def _numbers_of(neuron: Neuron) -> tuple[int, int]:
    """Numbers of a neuron's states that backward reads, and those that a checkpoint holds besides."""
    second = neuron.coefficients().second is not None
    states = (1 + second) * (1 + neuron.spike_gradient.uses_trace)
    return states, (second or neuron.winners is not None or neuron.refractory > 0) + (neuron.refractory > 0)
