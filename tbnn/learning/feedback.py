"""Ways for an error to reach neurons that are not the transposed weights: fixed, adaptive, direct."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from tbnn.learning.online import OnlineRule, StageState
from tbnn.learning.ridge import MOMENTUM
from tbnn.learning.stages import add_gradient
from tbnn.learning.stretch import STRETCH, Stretch
from tbnn.learning.traces import filter_of, response


def checked_scale(scale: float) -> float:
    """A feedback's scale; ``ValueError`` unless it is finite and positive."""
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"feedback_scale: expected a finite number > 0, got {scale}")
    return float(scale)


class Broadcast(nn.Module):
    """A matrix B (classes, neurons) for each hidden stage: neuron j hears ``Σ_k error[k]·B[k, j]``.

    Entries are normal with deviation ``scale``/√neurons, that of a readout's weights. Adaptive ones are parameters whose
    gradient is that of weights from these neurons to the readout: with the same optimizer and weight decay they come
    to agree with such weights (Kolen & Pollack 1994; "adaptive e-prop", Bellec et al. 2020).

    Args:
        shapes: of the hidden stages' output, without the batch.
        readout: of a step, (B, classes), whose device the matrices are on.
        scale, seed, adaptive: as above.
    """

    def __init__(self, shapes: list[torch.Size], readout: Tensor, scale: float, seed: int, adaptive: bool) -> None:
        super().__init__()
        checked_scale(scale)
        classes, generator = readout.shape[1], torch.Generator().manual_seed(seed)
        drawn = [
            torch.randn(classes, *shape, generator=generator) * (scale / math.sqrt(shape.numel())) for shape in shapes
        ]
        self.matrices = nn.ParameterList(
            nn.Parameter(matrix.to(readout.device), requires_grad=adaptive) for matrix in drawn
        )

    def signal(self, index: int, error: Tensor) -> Tensor:
        """What the neurons of a hidden stage hear, (B, features...)."""
        matrix = self.matrices[index].detach().to(error)
        return (error @ matrix.flatten(1)).reshape(-1, *matrix.shape[1:])

    def answer(self, index: int, spikes: Tensor) -> Tensor:
        """What a readout with these weights says of a stage's spikes, (B, classes)."""
        return spikes.flatten(1) @ self.matrices[index].detach().to(spikes).flatten(1).T

    def adapt(self, index: int, error: Tensor, filtered: Tensor) -> None:
        """Add the gradient of weights from ``filtered`` spikes (B, features...) to the readout."""
        matrix = self.matrices[index]
        add_gradient(matrix, (error.T @ filtered.flatten(1)).reshape(matrix.shape).to(matrix))


@torch.no_grad()
def hidden_shapes(rule: OnlineRule) -> tuple[list[torch.Size], Tensor]:
    """The shapes of what leaves a rule's hidden stages, and the readout, of one step of a silent input.

    Raises ``ValueError`` where a network's first layer is a convolution and it has no ``input_shape``.
    """
    network: Any = rule.network
    shape = network.input_shape or (getattr(network.layers[0], "in_features", None),)
    if None in shape:
        raise ValueError(f"{rule.name}: expected a network with input_shape, to know the neurons that errors go to")
    was_training = network.training
    network.eval()
    try:
        weight = next(network.parameters())
        state = rule.step(weight.new_zeros(1, *shape))
    finally:
        network.train(was_training)
        rule.forget()
    return [stage.out.shape[1:] for stage in state.traces[0][:-1]], state.readout


class FeedbackAlignment(OnlineRule):
    """Errors go down through fixed random weights in place of the transposed ones; all else as in OTTT.

    Args:
        network, momentum: see :class:`tbnn.learning.online.OnlineRule`.
        feedback_scale: deviation of the random weights, in units of those of the layer's own weights at the start.
        seed: of the random weights.

    Source: Lillicrap et al., "Random synaptic feedback weights support error backpropagation for deep learning", 2016.
    """

    name = "fa"
    stretch = STRETCH

    def __init__(
        self, network: nn.Module, *, momentum: float = MOMENTUM, feedback_scale: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__(network, momentum=momentum)
        checked_scale(feedback_scale)
        generator = torch.Generator().manual_seed(seed)
        self._matrices = nn.ParameterList()
        self.parts["feedback"] = self._matrices
        self._refresh()
        for synapses in self.forward_synapses:
            weight = synapses.weight.detach()
            drawn = torch.randn(weight.shape, generator=generator).to(weight)
            drawn = drawn * (feedback_scale * weight.square().mean().sqrt())
            self._matrices.append(nn.Parameter(drawn, requires_grad=False))
        self.forget()

    def backward_weight(self, index: int) -> Tensor | None:
        return self._matrices[index]


class DirectFeedbackAlignment(OnlineRule):
    """The readout's error goes straight to every hidden layer through random weights; traces as in OTTT.

    Args:
        network, momentum: see :class:`tbnn.learning.online.OnlineRule`.
        adaptive: let the feedback learn, see :class:`Broadcast`.
        feedback_scale, seed: of the feedback, see :class:`Broadcast`.

    Source: Nøkland, "Direct feedback alignment provides learning in deep neural networks", NeurIPS 2016.
    """

    name = "dfa"
    stretch = STRETCH

    def __init__(
        self, network: nn.Module, *, momentum: float = MOMENTUM, adaptive: bool = False, feedback_scale: float = 1.0,
        seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(network, momentum=momentum)
        self.adaptive = adaptive
        self._readout_filter = filter_of(self.stages[-1].neuron, self.name)
        self.broadcast = Broadcast(*hidden_shapes(self), feedback_scale, seed, adaptive)
        self.parts["broadcast"] = self.broadcast

    def below(self, index: int, states: tuple[StageState, ...], delta: Tensor, error: Tensor) -> Tensor:
        if self.adaptive:
            self.broadcast.adapt(index - 1, error, states[index - 1].extra)
        return self.broadcast.signal(index - 1, error)

    def remember(self, index: int, now: StageState, before: Any) -> Any:
        """Adaptive feedback needs the spikes as the readout hears them."""
        if not self.adaptive or index == len(self.stages) - 1:
            return None
        trace = self._readout_filter.advance(None if before is None else (before,), now.out)
        return self._readout_filter.level(trace)

    def remember_steps(self, stage: Stretch) -> Any:
        if not self.adaptive or stage.index == len(self.stages) - 1:
            return None
        heard = response(self._readout_filter, stage.steps, stage.out)
        return heard.levels(stage.out, None if stage.before is None else stage.before.extra).flatten(0, 1)

    def carry_steps(self, stage: Stretch) -> Any:
        if not self.adaptive or stage.index == len(self.stages) - 1:
            return None
        heard = response(self._readout_filter, stage.steps, stage.out)
        return heard.after(stage.out, None if stage.before is None else stage.before.extra)

    def parameters(self) -> list[nn.Parameter]:
        return [matrix for matrix in self.broadcast.parameters() if matrix.requires_grad]
