"""How many bytes a network keeps for backward, before it runs."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tbnn.nn.fused import sees_no_current
from tbnn.nn.network import Network
from tbnn.nn.neuron import Neuron
from tbnn.ops.layer_lif import SHARES, Memory, WeightedSpikes, kept_bytes

SHORT, LONG = 16, 32  # steps of the runs that tell what the other layers keep, which of very few is more than a bit


class _Fused(NamedTuple):
    """A layer of weights and its neurons that ran as one, in numbers of :func:`tbnn.ops.layer_lif.kept_bytes`."""

    inputs: int
    features: int
    numbers: int
    states: int
    size: int
    shared: bool
    """Whether a layer before keeps the words that enter it, as what it emitted."""

    def kept(self, memory: Memory, steps: int, batch: int) -> int:
        """Its bytes."""
        given = self.inputs, self.features, self.numbers, self.states, self.size
        parts = kept_bytes(memory, steps, batch, *given)
        return sum(parts.values()) - (parts["inputs"] if self.shared else 0)


class Predicted:
    """What a network will keep for backward on batches like x (T, B, features...) or packed, of any number of steps.

    Layers of weights that run as one with their neurons are counted; of the others the bytes that autograd saves in runs
    of 16 and 32 steps tell what a step and a call take. Parameters and buffers do not count.
    """

    def __init__(self, network: Network, x: Tensor) -> None:
        own = copy.deepcopy(network)
        own.memory = "minimal"
        self.batch = x.shape[1]
        self.fused: list[_Fused] = []
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


def _run(network: Network, x: Tensor) -> tuple[int, list[_Fused]]:
    """What autograd keeps, and the layers that ran as one."""
    fused: list[_Fused] = []
    seen: list[Tensor] = [x]  # words that are kept already

    def record(neuron: Neuron, args: tuple[object, ...], _: object) -> None:
        weighted = args[0]
        if not isinstance(weighted, WeightedSpikes) or weighted.emitted is None:
            return
        shared = any(weighted.words.data_ptr() == words.data_ptr() for words in seen)
        seen.extend([weighted.words, weighted.emitted])
        second = neuron.coefficients().second is not None
        states = (1 + second) * (1 + neuron.spike_gradient.uses_trace)
        gates = (second or neuron.winners is not None or neuron.refractory > 0) + (neuron.refractory > 0)
        features = weighted.shape[2:].numel()
        size = weighted.weights.weight.element_size()
        fused.append(_Fused(weighted.inputs, features, states + gates, states, size, shared))

    hook = sees_no_current(record, nor_spikes=True)
    hooks = [m.register_forward_hook(hook) for m in network.modules() if isinstance(m, Neuron)]
    try:
        return saved_bytes(network, x), fused
    finally:
        for hook in hooks:
            hook.remove()
