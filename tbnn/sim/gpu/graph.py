"""Steps of a recurrent layer as one launch: a CUDA graph, where a step is too short for a launch of its own."""

from collections.abc import Callable

import torch
from torch import Tensor

GRAPH_STEPS = 64

Step = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""last (B, words), current (B, N), v (B, N) in place, out (B, words) filled: all of them fixed places on the device."""


class StepGraph:
    """``GRAPH_STEPS`` steps, recorded once and played on any currents. Only on a CUDA device."""

    def __init__(self, step: Step, v: Tensor, last: Tensor) -> None:
        self.v, self.last = torch.empty_like(v), torch.empty_like(last)
        self.current = v.new_zeros((GRAPH_STEPS, *v.shape))
        self.words = last.new_zeros((GRAPH_STEPS, *last.shape))
        self.v.copy_(v)
        self.last.copy_(last)
        step(self.last, self.current[0], self.v, self.words[0])  # compiles what recording must find compiled
        torch.cuda.synchronize(v.device)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            for t in range(GRAPH_STEPS):
                step(self.last if t == 0 else self.words[t - 1], self.current[t], self.v, self.words[t])

    def play(self, last: Tensor, current: Tensor, v: Tensor, out: Tensor) -> None:
        """last (B, words), current (GRAPH_STEPS, B, N); v (B, N) in place, out (GRAPH_STEPS, B, words) filled."""
        self.last.copy_(last)
        self.current.copy_(current)
        self.v.copy_(v)
        self.graph.replay()
        out.copy_(self.words)
        v.copy_(self.v)
