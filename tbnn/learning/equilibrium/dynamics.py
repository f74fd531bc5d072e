"""Units that descend an energy of symmetric weights: the equations of the relaxation, written once."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor
from torch.nn import functional

from tbnn.surrogate import boxcar

THRESHOLD = 0.5  # of the bit of a binary unit: the middle of its range
NEURONS = ("real", "binary")
READOUTS = ("units", "linear")

Units = tuple[Tensor, ...]
"""The states u of each layer's units, (B, n) in [0, 1]."""


def real(u: Tensor) -> Tensor:
    """The hard sigmoid: the identity, as the states stay in [0, 1]."""
    return u


def binary(u: Tensor) -> Tensor:
    """One bit, ``1[u > ½]``, with a derivative of 1 on [0, 1] (Laydevant et al. 2021)."""
    bit: Tensor = boxcar(1.0)(u - THRESHOLD)
    return bit


@dataclass(frozen=True)
class Dynamics:
    """A network with its weights quantised once: ``u ← clip(u − dt·∂E/∂u, 0, 1)``, all layers at once.

    ``E(u) = Σ_l ½‖u_l‖² − ρ(u_l)·(W_l·ρ(u_{l−1}) + b_l)``, ρ(u_0) = x, and ρ' taken as 1 on [0, 1]:
    ``−∂E/∂u_l = −u_l + W_l·ρ(u_{l−1}) + b_l + W_{l+1}ᵀ·ρ(u_{l+1})``.

    Source: Scellier & Bengio, "Equilibrium propagation", Front. Comput. Neurosci. 2017, equations 1 to 3.
    """

    weights: tuple[Tensor, ...]
    """Ŵ of each layer, (outputs, inputs); of a linear readout too."""
    biases: tuple[Tensor | None, ...]
    output: Callable[[Tensor], Tensor]
    """ρ."""
    linear: bool
    """Whether the last weights read the last units out, outside the energy."""
    copies: int
    """Output units a class, without a linear readout."""

    @property
    def layers(self) -> int:
        """Layers of units."""
        return len(self.weights) - self.linear

    def detached(self) -> "Dynamics":
        """The same without a graph."""
        biases = tuple(None if bias is None else bias.detach() for bias in self.biases)
        return Dynamics(tuple(w.detach() for w in self.weights), biases, self.output, self.linear, self.copies)

    def drive(self, x: Tensor) -> Tensor:
        """What a clamped input (B, features) sends to the first units, (B, n_1)."""
        return functional.linear(x, self.weights[0], self.biases[0])

    def rest(self, batch: int) -> Units:
        """All units at 0."""
        return tuple(w.new_zeros(batch, w.shape[0]) for w in self.weights[: self.layers])

    def downhill(self, units: Units, drive: Tensor) -> list[Tensor]:
        """−∂E/∂u of every layer."""
        out, fields = [self.output(u) for u in units], []
        for index in range(self.layers):
            below = drive if index == 0 else functional.linear(out[index - 1], self.weights[index], self.biases[index])
            above = out[index + 1] @ self.weights[index + 1] if index + 1 < self.layers else 0.0
            fields.append(below + above - units[index])
        return fields

    def relax(
        self, units: Units, drive: Tensor, steps: int, dt: float, push: Callable[[Tensor], Tensor] | None = None
    ) -> Units:
        """``steps`` of the dynamics; ``push`` turns a readout (B, C) into what is taken from it, −β·∂C/∂y."""
        for _ in range(steps):
            fields = self.downhill(units, drive)
            if push is not None:
                fields[-1] = fields[-1] + self.backwards(push(self.readout(units)))
            units = tuple((u + dt * field).clamp(0, 1) for u, field in zip(units, fields, strict=True))
        return units

    def readout(self, units: Units) -> Tensor:
        """The scores (B, C): the outputs of the last units, the mean of a class's copies, or a linear layer of them."""
        last = self.output(units[-1])
        if self.linear:
            return functional.linear(last, self.weights[-1], self.biases[-1])
        return last if self.copies == 1 else last.unflatten(1, (-1, self.copies)).mean(2)

    def backwards(self, dy: Tensor) -> Tensor:
        """The gradient of the last units' outputs by that of the readout."""
        if self.linear:
            return dy @ self.weights[-1]
        return dy if self.copies == 1 else (dy / self.copies).repeat_interleave(self.copies, 1)

    def energy(self, units: Units, drive: Tensor) -> Tensor:
        """E, (B,)."""
        out, total = [self.output(u) for u in units], drive.new_zeros(len(drive))
        for index, u in enumerate(units):
            below = drive if index == 0 else functional.linear(out[index - 1], self.weights[index], self.biases[index])
            total = total + 0.5 * u.square().sum(1) - (out[index] * below).sum(1)
        return total

    def energy_gradients(self, units: Units, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Σ over the batch of (∂E/∂W_l, ∂E/∂b_l) of the layers in the energy: Hebb's products, the sign turned."""
        out = [x, *(self.output(u) for u in units)]
        return [(-(post.T @ pre), -post.sum(0)) for pre, post in pairwise(out)]

    def readout_gradients(self, units: Units, dy: Tensor) -> tuple[Tensor, Tensor]:
        """Those of a cost by the linear readout's weights and biases, of its gradient by the readout (B, C)."""
        return dy.T @ self.output(units[-1]), dy.sum(0)
