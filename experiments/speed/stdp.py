"""Unsupervised STDP on frames of N-MNIST's shape: tbnn against SpikingJelly's STDPLearner doing the same.

    python experiments/speed/stdp.py

The same weights, spikes and parameters on both sides: all pairs count, also those of one step both ways, traces lose a
twentieth a step, real weights in [0, 1], one thread. Weights have to agree after a sequence before anything is timed.
Three cases: the weights' change alone, from given spikes, once a sequence or at every step; and a whole pass, a linear
layer and leaky neurons that reset to 0, then the change.
SpikingJelly is optional: without it the script says so and measures tbnn alone.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from timing import alternate, row, save
from torch import Tensor

from tbnn.bits import pack_bits
from tbnn.learning.plasticity import Pairs, learn_pairs_
from tbnn.nn import Leaky

INPUTS, STEPS = 2312, 20
SIZES = [(100, 1), (400, 1), (100, 32), (400, 32)]  # outputs, batch
RATES = 0.03, 0.02  # of pre and, where they are given, post spikes
TAU = 20.0  # of SpikingJelly's traces, which decay by 1 − 1/τ
WINDOW = Pairs(1.0, 1.0, -1 / math.log1p(-1 / TAU), -1 / math.log1p(-1 / TAU), coincidence="both")
RATE, BETA, THRESHOLD = 2.0**-10, 0.5, 1.0
OURS, THEIRS = "tbnn", "SpikingJelly"
AIM = 10.0

Side = Callable[[], Tensor]


class Case:
    """Spikes and first weights of one size; every side returns the weights it ends with."""

    def __init__(self, outputs: int, batch: int, steps: int = STEPS, inputs: int = INPUTS) -> None:
        g = torch.Generator().manual_seed(outputs + batch)
        self.outputs, self.batch, self.steps, self.inputs = outputs, batch, steps, inputs
        self.pre = (torch.rand(steps, batch, inputs, generator=g) < RATES[0]).float()
        self.words = pack_bits(self.pre)
        self.post = (torch.rand(steps, batch, outputs, generator=g) < RATES[1]).float()
        self.weight = torch.rand(outputs, inputs, generator=g) / 64

    def ours(self) -> dict[str, Side]:
        """tbnn's sides: from packed words, as its data come."""
        w = self.weight.clone()
        neurons: Any = Leaky(BETA, THRESHOLD, reset_mechanism="zero")
        bounds = {"rate": RATE / self.batch, "low": 0.0, "high": 1.0}

        def whole() -> Tensor:
            w.copy_(self.weight)
            learn_pairs_(w, self.words, self.post, None, WINDOW, **bounds)
            return w

        def stepped() -> Tensor:
            w.copy_(self.weight)
            traces = None
            for t in range(self.steps):
                one = slice(t, t + 1)
                traces, _ = learn_pairs_(w, self.words[one], self.post[one], traces, WINDOW, **bounds)
            return w

        @torch.no_grad()
        def passing() -> Tensor:
            w.copy_(self.weight)
            post, _ = neurons(torch.nn.functional.linear(self.pre, w))
            learn_pairs_(w, self.words, post, None, WINDOW, **bounds)
            return w

        return {"change, once a sequence": whole, "change, every step": stepped, "pass and change": passing}

    def theirs(self) -> dict[str, Side] | None:
        """SpikingJelly's, from floats; None where it cannot be imported."""
        try:
            from spikingjelly.activation_based import learning, neuron  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            print(f"SpikingJelly: left out: {error}")
            return None
        layer = torch.nn.Linear(self.inputs, self.outputs, bias=False)
        node: Any = neuron.LIFNode(
            tau=1 / (1 - BETA), decay_input=False, v_threshold=THRESHOLD, v_reset=0.0, step_mode="m"
        )
        amplitude = {"f_pre": lambda _: 1.0, "f_post": lambda _: 1.0}  # by default it is the weight itself
        learners = {mode: learning.STDPLearner(mode, layer, node, TAU, TAU, **amplitude) for mode in ("s", "m")}

        def begin(mode: str) -> Any:
            layer.weight.data.copy_(self.weight)
            node.reset()
            for name, learner in learners.items():
                learner.reset()
                (learner.enable if name == mode else learner.disable)()
            return learners[mode]

        def move(learner: Any) -> None:
            layer.weight.data.add_(learner.step(on_grad=False), alpha=RATE / self.batch).clamp_(0.0, 1.0)

        def tell(learner: Any, pre: Tensor, post: Tensor) -> None:
            learner.in_spike_monitor.records.append(pre)
            learner.out_spike_monitor.records.append(post)
            move(learner)

        def whole() -> Tensor:
            tell(begin("m"), self.pre, self.post)
            return layer.weight.data

        def stepped() -> Tensor:
            learner = begin("s")
            for pre, post in zip(self.pre, self.post, strict=True):
                tell(learner, pre, post)
            return layer.weight.data

        @torch.no_grad()
        def passing() -> Tensor:
            learner = begin("m")
            node(layer(self.pre))
            move(learner)
            return layer.weight.data

        return {"change, once a sequence": whole, "change, every step": stepped, "pass and change": passing}


def check(name: str, ours: Side, theirs: Side, start: Tensor) -> None:
    """End the program where the sides' weights differ by more than rounding, or did not change."""
    a, b = ours().clone(), theirs().clone()
    worst, moved = (a - b).abs().max().item(), (b - start).abs().max().item()
    if worst > 1e-5 or moved < 1e-4:
        raise SystemExit(f"{name}: {OURS} and {THEIRS} differ by {worst:.2g} where {THEIRS} moved by {moved:.2g}")


def measure(sizes: list[tuple[int, int]], rounds: int = 5, repeats: int = 3, **case: int) -> list[dict[str, Any]]:
    """Every case of every size, a row each."""
    rows = []
    for outputs, batch in sizes:
        given = Case(outputs, batch, **case)
        ours, theirs = given.ours(), given.theirs()
        for name, side in ours.items():
            shape = f"{name}, {given.inputs}->{outputs}, T={given.steps}, B={batch}, 1 thread"
            if theirs is None:
                seconds = alternate({OURS: side}, rounds, repeats)[OURS]
                print(f"{shape:52} {1e3 * sorted(seconds)[len(seconds) // 2]:8.2f} ms")
                continue
            check(shape, side, theirs[name], given.weight)
            times = alternate({OURS: side, THEIRS: theirs[name]}, rounds, repeats)
            rows.append({"shape": shape, **row(times, OURS, THEIRS, AIM)})
    return rows


def main() -> None:
    """Measure and write results/stdp.cpu.json."""
    torch.set_num_threads(1)
    rows = measure(SIZES)
    if rows:
        print(save("stdp.cpu", rows))


if __name__ == "__main__":
    main()
