"""Graphs of NIR by hand, and NIR's equations in plain numpy."""

from itertools import pairwise
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor

DT = 1e-3


def spikes(*shape: int, rate: float = 0.5) -> Tensor:
    return (torch.rand(shape) < rate).float()


def euler(node: Any, current: np.ndarray, threshold: np.ndarray | float | None = None) -> np.ndarray:
    """NIR's equations in forward Euler steps, the new synaptic current into v, a spike's reset right after it."""
    v, i, out = np.zeros(current.shape[1:]), np.zeros(current.shape[1:]), []
    theta = getattr(node, "v_threshold", threshold)
    for x in current:
        if isinstance(node, (nir.CubaLIF, nir.CubaLI)):
            i = i + DT / node.tau_syn * (-i + node.w_in * x)
            v = v + DT / node.tau_mem * (node.v_leak - v + node.r * i)
        elif isinstance(node, (nir.LIF, nir.LI)):
            v = v + DT / node.tau * (node.v_leak - v + node.r * x)
        else:
            v = v + DT * node.r * x
        out.append(v if theta is None else v > theta)
        if hasattr(node, "v_reset"):
            v = np.where(v > node.v_threshold, node.v_reset, v)
    return np.stack(out).astype(np.float32)


def of(*nodes: nir.NIRNode, shape: tuple[int, ...] = (3,)) -> nir.NIRGraph:
    named = {"input": nir.Input(np.array(shape)), **{f"n{i}": node for i, node in enumerate(nodes)}}
    named["output"] = nir.Output(np.array(shape))
    names = list(named)
    return nir.NIRGraph(named, list(pairwise(names)), type_check=False)


def lif(**values: Any) -> nir.LIF:
    given = {"tau": 2e-4, "r": 2.0, "v_leak": 0.0, "v_threshold": 1.0, **values}
    metadata = given.pop("metadata", {})
    return nir.LIF(**{name: np.full(3, value) for name, value in given.items()}, metadata=metadata)
