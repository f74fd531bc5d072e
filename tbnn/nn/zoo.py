"""Ready-made networks under the field's names.

Every function returns a :class:`tbnn.nn.Network` from (T, B, input_shape...) bits to (T, B, classes), with these options:

- ``weights``: options of :class:`BinaryLinear` and :class:`BinaryConv2d` (``{"bits": 1.58, "sparsity": 0.9, ...}``), or
  "float" for torch's layers, the baseline. Default: one bit a weight, in every layer.
- ``neuron``: options of :class:`Leaky`, or a function that makes a neuron. Default: β = 0.9.

Spikes are bits on every edge; pools are ORs, in place of the averages that some of the sources have.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from torch import nn

from tbnn.nn.conv import BinaryConv2d
from tbnn.nn.dropout import SpikeDropout
from tbnn.nn.leaky import Leaky, LeakyIntegrator
from tbnn.nn.linear import BinaryLinear
from tbnn.nn.network import Network
from tbnn.nn.norm import TemporalBatchNorm
from tbnn.nn.pool import Flatten, MaxPool2d, Voting
from tbnn.nn.recurrent import Recurrent
from tbnn.nn.residual import Residual

Weights = dict[str, Any] | Literal["float"] | None
NeuronOption = dict[str, Any] | Callable[[], nn.Module] | None

VGG11 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")


class _Parts:
    """The layers that the options ask for."""

    def __init__(self, weights: Weights, neuron: NeuronOption) -> None:
        if isinstance(weights, str) and weights != "float":
            raise ValueError(f"weights: expected a dict of options or 'float', got {weights!r}")
        self.weights, self._neuron = weights, neuron

    def linear(self, inputs: int, outputs: int, bias: bool = True) -> nn.Module:
        if self.weights == "float":
            return nn.Linear(inputs, outputs, bias)
        options: dict[str, Any] = {"bias": bias} | self._options()
        return BinaryLinear(inputs, outputs, **options)

    def conv(self, inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
        """A convolution that keeps height and width but for the stride, and its norm, which makes a bias idle."""
        arguments: dict[str, Any] = {"stride": stride, "padding": size // 2, "bias": False}
        if self.weights == "float":
            conv = nn.Conv2d(inputs, outputs, size, **arguments)
        else:
            conv = BinaryConv2d(inputs, outputs, size, **(arguments | self._options()))
        return [conv, TemporalBatchNorm(outputs)]

    def neuron(self) -> nn.Module:
        if self._neuron is None or isinstance(self._neuron, dict):
            options: dict[str, Any] = {"beta": 0.9} | (self._neuron or {})
            return Leaky(**options)
        return self._neuron()

    def spiking_conv(self, inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
        return [*self.conv(inputs, outputs, size, stride), self.neuron()]

    def _options(self) -> dict[str, Any]:
        return self.weights if isinstance(self.weights, dict) else {}


def mlp(
    in_features: int,
    hidden: Sequence[int],
    classes: int,
    *,
    dropout: float = 0.0,
    beta_readout: float = 0.9,
    weights: Weights = None,
    neuron: NeuronOption = None,
) -> Network:
    """Hidden layers of neurons and a leaky readout.

    >>> mlp(784, (256,), 10)(torch.ones(5, 2, 784))[0].shape
    torch.Size([5, 2, 10])
    """
    parts, layers, width = _Parts(weights, neuron), [], in_features
    for size in hidden:
        layers += [parts.linear(width, size), parts.neuron(), *_dropout(dropout)]
        width = size
    return Network([*layers, parts.linear(width, classes), LeakyIntegrator(beta_readout)], input_shape=(in_features,))


def _recurrent(
    in_features: int,
    hidden: Sequence[int],
    classes: int,
    dropout: float,
    beta_readout: float,
    weights: Weights,
    neuron: NeuronOption,
) -> Network:
    parts, layers, width = _Parts(weights, neuron), [], in_features
    for size in hidden:
        recurrent = Recurrent(parts.neuron(), parts.linear(size, size))  # pyright: ignore[reportArgumentType]
        layers += [parts.linear(width, size), recurrent, *_dropout(dropout)]
        width = size
    return Network([*layers, parts.linear(width, classes), LeakyIntegrator(beta_readout)], input_shape=(in_features,))


def shd_recurrent(
    hidden: Sequence[int] = (256,),
    classes: int = 20,
    *,
    in_features: int = 700,
    dropout: float = 0.0,
    beta_readout: float = 0.95,
    weights: Weights = None,
    neuron: NeuronOption = None,
) -> Network:
    """Spiking Heidelberg Digits: 700 cochlear channels, recurrent hidden layers, 20 spoken digits.

    Source: Cramer et al., "The Heidelberg spiking data sets ...", IEEE TNNLS 2022.
    """
    return _recurrent(in_features, hidden, classes, dropout, beta_readout, weights, neuron)


def ssc_recurrent(
    hidden: Sequence[int] = (512, 512),
    classes: int = 35,
    *,
    in_features: int = 700,
    dropout: float = 0.0,
    beta_readout: float = 0.95,
    weights: Weights = None,
    neuron: NeuronOption = None,
) -> Network:
    """Spiking Speech Commands: 700 cochlear channels, recurrent hidden layers, 35 words.

    Source: Cramer et al., "The Heidelberg spiking data sets ...", IEEE TNNLS 2022.
    """
    return _recurrent(in_features, hidden, classes, dropout, beta_readout, weights, neuron)


def braille_recurrent(
    hidden: Sequence[int] = (128,),
    classes: int = 7,
    *,
    in_features: int = 12,
    dropout: float = 0.0,
    beta_readout: float = 0.95,
    weights: Weights = None,
    neuron: NeuronOption = None,
) -> Network:
    """Braille letters under a fingertip: 12 taxels, one recurrent hidden layer.

    Source: Müller-Cleve et al., "Braille letter reading ...", Frontiers in Neuroscience 2022.
    """
    return _recurrent(in_features, hidden, classes, dropout, beta_readout, weights, neuron)


def nmnist_conv(
    channels: Sequence[int] = (16, 32),
    classes: int = 10,
    *,
    input_shape: Sequence[int] = (2, 34, 34),
    stride: int = 1,
    recurrent: bool = False,
    dropout: float = 0.25,
    beta_readout: float = 0.9,
    weights: Weights = None,
    neuron: NeuronOption = None,
) -> Network:
    """N-MNIST: 16C5-MP2-32C5-MP2-10, each convolution with batch norm over time, and a leaky readout.

    A few hundred recordings train it, one bit a weight in every layer: few channels, padded convolutions, dropout (one
    mask over time), and :func:`calibrate` before, which brings the readout's 2048 inputs to the loss's scale. ``stride`` is
    that of the first convolution. ``recurrent`` feeds the spikes of the last convolution back through a 3×3 convolution, for
    recordings whose class is in the motion.
    """
    parts, layers, depth = _Parts(weights, neuron), [], input_shape[0]
    height, width = input_shape[1:]
    for index, size in enumerate(channels):
        step = stride if index == 0 else 1
        spiking = parts.neuron()
        if recurrent and index == len(channels) - 1:
            spiking = Recurrent(spiking, parts.conv(size, size, 3)[0])  # pyright: ignore[reportArgumentType]
        layers += [*parts.conv(depth, size, 5, step), spiking, MaxPool2d(2)]
        depth, height, width = size, -(-height // step) // 2, -(-width // step) // 2
    if min(height, width) < 1:
        raise ValueError(
            f"input_shape: expected sides that {len(channels)} pools leave something of, got {tuple(input_shape)}"
        )
    features = depth * height * width
    head = [Flatten(), *_dropout(dropout), parts.linear(features, classes), LeakyIntegrator(beta_readout)]
    return Network([*layers, *head], input_shape)


def dvsgesture_conv(
    channels: int = 128,
    classes: int = 11,
    *,
    input_shape: Sequence[int] = (2, 128, 128),
    hidden: int = 512,
    voters: int = 10,
    dropout: float = 0.5,
    weights: Weights = None,
    neuron: NeuronOption = None,
) -> Network:
    """DVS128 Gesture: {128C3-BN-LIF-MP2}×5-DP-FC512-LIF-DP-FC110-LIF-voting; 11 gestures, 10 neurons vote for each.

    The readout is the mean of the voters' spikes. Dropout is one mask over time.

    Source: Fang et al., "Incorporating learnable membrane time constant ...", ICCV 2021.
    """
    parts, layers, depth = _Parts(weights, neuron), [], input_shape[0]
    for _ in range(5):
        layers += [*parts.spiking_conv(depth, channels, 3), MaxPool2d(2)]
        depth = channels
    features = depth * _halved(input_shape, 5)
    layers += [Flatten(), *_dropout(dropout), parts.linear(features, hidden), parts.neuron()]
    layers += [*_dropout(dropout), parts.linear(hidden, classes * voters), parts.neuron(), Voting(voters)]
    return Network(layers, input_shape)


def vgg11(
    classes: int = 10,
    *,
    input_shape: Sequence[int] = (2, 48, 48),
    width: float = 1.0,
    dropout: float = 0.25,
    beta_readout: float = 0.9,
    weights: Weights = None,
    neuron: NeuronOption = None,
) -> Network:
    """Spiking VGG-11 for event cameras: its eight 3×3 convolutions, each with batch norm and neurons, one linear readout.

    Args:
        input_shape: (C, H, W), H and W at least 32: (2, 48, 48) or (2, 128, 128), say.
        width: a factor on the 64 to 512 channels.

    Source: Simonyan & Zisserman, ICLR 2015; for event cameras Deng et al., "Temporal efficient training", ICLR 2022.
    """
    parts, layers, depth = _Parts(weights, neuron), [], input_shape[0]
    for size in VGG11:
        if isinstance(size, int):
            layers += parts.spiking_conv(depth, max(1, round(size * width)), 3)
            depth = max(1, round(size * width))
        else:
            layers.append(MaxPool2d(2))
    features = depth * _halved(input_shape, VGG11.count("M"))
    head = [Flatten(), *_dropout(dropout), parts.linear(features, classes), LeakyIntegrator(beta_readout)]
    return Network([*layers, *head], input_shape)


def spiking_resnet(
    channels: Sequence[int] = (16, 32, 64),
    classes: int = 10,
    *,
    input_shape: Sequence[int] = (2, 34, 34),
    blocks: int = 1,
    join: str = "or",
    beta_readout: float = 0.9,
    weights: Weights = None,
    neuron: NeuronOption = None,
) -> Network:
    """A small spike-element-wise ResNet whose shortcuts meet in a bit: 3×3 stem, then stages of residual blocks, each half the size.

    Every stage starts with a block whose body and shortcut have a stride of 2; its further ``blocks`` have identity
    shortcuts. ``join`` is "or", "and", "iand", or "current", after which a neuron follows each block.

    Source: Fang et al., "Deep residual learning in spiking neural networks", NeurIPS 2021.
    """
    parts = _Parts(weights, neuron)
    layers: list[nn.Module] = [*parts.spiking_conv(input_shape[0], channels[0], 3), MaxPool2d(2)]
    last = (lambda: []) if join == "current" else (lambda: [parts.neuron()])
    depth = channels[0]
    for size in channels:
        for index in range(1 + blocks):
            stride = 2 if index == 0 else 1
            body = [*parts.spiking_conv(depth, size, 3, stride), *parts.conv(size, size, 3), *last()]
            shortcut = [*parts.conv(depth, size, 1, stride), *last()] if index == 0 else None
            layers.append(Residual(body, shortcut, join))
            if join == "current":
                layers.append(parts.neuron())
            depth = size
    sides = [side // 2 for side in input_shape[1:]]
    for _ in channels:
        sides = [-(-side // 2) for side in sides]
    features = depth * sides[0] * sides[1]
    return Network([*layers, Flatten(), parts.linear(features, classes), LeakyIntegrator(beta_readout)], input_shape)


def _dropout(p: float) -> Iterable[nn.Module]:
    return [SpikeDropout(p, per="sequence")] if p else []


def _halved(input_shape: Sequence[int], times: int) -> int:
    """Height times width after ``times`` pools by two."""
    sides = [side >> times for side in input_shape[1:]]
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"input_shape: expected (C, H, W) with sides of at least {2**times}, got {tuple(input_shape)}")
    return sides[0] * sides[1]
