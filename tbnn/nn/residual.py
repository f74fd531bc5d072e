"""Residual blocks whose edges carry bits."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from tbnn.nn.network import Network
from tbnn.nn.recorded import Recorded
from tbnn.nn.stateful import Stateful

Run = Callable[..., tuple[Tensor, Any]]
"""A path, as a whole sequence or one step takes it."""

JOINS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "or": lambda body, shortcut: body + shortcut - body * shortcut,
    "and": lambda body, shortcut: body * shortcut,
    "iand": lambda body, shortcut: (1 - body) * shortcut,
    "current": lambda body, shortcut: body + shortcut,
}


class ResidualState(NamedTuple):
    """What a residual block carries from step to step: the state of each path, None for a path without layers."""

    body: Any
    shortcut: Any


class Residual(Recorded, Stateful):
    """``y = join(body(x), shortcut(x))``, on bits a bit again: spike-element-wise blocks without ADD, whose sums are not.

    ``block(x, state=None, mask=None) -> (y, state)``, x (T, B, features...). Joins, for a = body(x), s = shortcut(x):

    - "or": a + s − a·s; a silent body is the identity.
    - "and": a·s; a body that always fires is the identity.
    - "iand": (1 − a)·s; a silent body is the identity.
    - "current": a + s, both currents (weights last in the body and in the shortcut): a neuron must follow the block.

    The gradients are those of these products: where a bit decides nothing, it gets none.

    Args:
        body: layers in order, or a module.
        shortcut: likewise; None is the identity, which needs x and body(x) of one shape.
        join: "or", "and", "iand" or "current".

    Raises:
        ValueError: an unknown join; paths that end in other shapes.

    Source: Fang et al., "Deep residual learning in spiking neural networks", NeurIPS 2021 (SEW: AND, IAND); Hu et al.,
    "Advancing spiking neural networks toward deep residual learning", 2024 (currents joined before the neuron).

    >>> block = Residual([BinaryLinear(8, 8), Leaky(0.9)], join="or")
    """

    def __init__(
        self,
        body: nn.Module | Iterable[nn.Module],
        shortcut: nn.Module | Iterable[nn.Module] | None = None,
        join: str = "or",
    ) -> None:
        super().__init__()
        if join not in JOINS:
            raise ValueError(f"join: expected one of {', '.join(map(repr, JOINS))}, got {join!r}")
        self.body, self.join = _path(body), join
        self.shortcut = None if shortcut is None else _path(shortcut)

    def forward(
        self, x: Tensor, state: ResidualState | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, ResidualState]:
        return self._run(self.body, self.shortcut, x, state, mask)

    def step(
        self, x: Tensor, state: ResidualState | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, ResidualState]:
        """One step: x (B, features...), mask (B,) or None -> (y (B, features...), state)."""
        return self._run(self.body.step, None if self.shortcut is None else self.shortcut.step, x, state, mask)

    def _run(self, body: Run, shortcut: Run | None, x: Tensor, state: ResidualState | None, mask: Tensor | None) -> Any:
        state = ResidualState(None, None) if state is None else state
        a, body_state = body(x, state.body, mask)
        s, shortcut_state = (x, None) if shortcut is None else shortcut(x, state.shortcut, mask)
        if a.shape != s.shape:
            raise ValueError(
                f"Residual: expected a body and a shortcut that end in one shape, got {tuple(a.shape)} and {tuple(s.shape)}"
            )
        return JOINS[self.join](a, s), ResidualState(body_state, shortcut_state)

    def extra_repr(self) -> str:
        return f"join={self.join}"


def _path(layers: nn.Module | Iterable[nn.Module]) -> Network:
    """Layers as a network."""
    if isinstance(layers, Network):
        return layers
    return Network([layers] if isinstance(layers, nn.Module) else layers)
