"""What arrives at a recurrent layer from outside: a current, or spikes in front of weights."""

from typing import Any

from torch import Tensor

from tbnn.ops.kernels import as_numpy
from tbnn.ops.layer_lif.passage import Array
from tbnn.ops.layer_lif.products import Products
from tbnn.ops.layer_lif.weighted import WeightedSpikes
from tbnn.ops.lif.memory import reused


class Arriving:
    """The current of some steps of a sequence, on demand.

    Args:
        given: the current (T, B, N), or the spikes and weights that make it.

    Attributes:
        weight: Ŵ of those weights; None for a current.
        words, inputs: those spikes, packed, and how many a step has.
    """

    def __init__(self, given: Tensor | WeightedSpikes) -> None:
        self.weight: Tensor | None = None
        self.inputs = 0
        if isinstance(given, WeightedSpikes):
            self.weight, self.inputs, self.words = given.weights.weight.detach(), given.inputs, given.words
            self._products = Products(given.weights)
            self._shape, self._dtype = tuple(given.shape[1:]), given.dtype
        self._given: Any = None if isinstance(given, WeightedSpikes) else as_numpy(given)

    def steps(self, lo: int, hi: int) -> Array:
        """The current at steps lo … hi, (hi − lo, B, N)."""
        if self.weight is None:
            return self._given[lo:hi]
        out = as_numpy(reused((hi - lo, *self._shape), self._dtype))
        self._products.current(as_numpy(self.words[lo:hi]), out)
        return out

    def input_gradient(self, dcurrent: Tensor, out: Tensor) -> None:
        """Fill out (M, inputs) with the gradient of the spikes, from that of M steps' currents (M, N)."""
        if self.weight is not None:
            self._products.input_gradient(dcurrent, self.weight, out)
