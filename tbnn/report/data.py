"""What a report shows: plain Python and NumPy, filled in by whoever trained, evaluated or packed the network."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Sample:
    """One recording on its way through the network.

    Raises ``ValueError`` when the parts do not agree on the number of steps T.
    """

    label: int
    predicted: int
    index: int  # of the recording in its split
    frames: npt.NDArray[np.uint8]  # (T, C, H, W)
    spikes: dict[str, npt.NDArray[np.uint8]]  # layer name -> (T, N)
    readout: npt.NDArray[np.floating]  # (T, classes)

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.readout.ndim != 2:
            raise ValueError(
                "Sample: expected frames (T, C, H, W) and a readout (T, classes), "
                f"got shapes {self.frames.shape} and {self.readout.shape}"
            )
        steps = len(self.frames)
        for name, part in {**self.spikes, "readout": self.readout}.items():
            if part.ndim != 2 or len(part) != steps:
                raise ValueError(f"Sample: expected {name} of shape ({steps}, N), got {part.shape}")


@dataclass(frozen=True, eq=False)
class WeightPicture:
    """The signs of a layer's weights, to be drawn.

    With ``input_shape`` the rows are receptive fields over an image. Raises ``ValueError`` when it does not fit.
    """

    name: str
    sign: npt.NDArray[np.int8]  # (out, in) of -1, 0 and 1
    kind: str = "forward"  # or "recurrent"
    input_shape: tuple[int, int, int] | None = None  # C, H, W

    def __post_init__(self) -> None:
        if self.kind not in ("forward", "recurrent"):
            raise ValueError(f'WeightPicture: expected kind "forward" or "recurrent", got "{self.kind}"')
        if self.sign.ndim != 2 or not self.sign.size:
            raise ValueError(f"WeightPicture: expected sign of shape (out, in), got {self.sign.shape}")
        if self.input_shape is not None and int(np.prod(self.input_shape)) != self.sign.shape[1]:
            raise ValueError(
                f"WeightPicture: expected {self.sign.shape[1]} inputs in input_shape, got {self.input_shape}"
            )


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything on the page of one trained network. What is left empty is left out of the page.

    Attributes:
        title: of the page.
        verdict: one-sentence lines for the top.
        dataset: name, title, classes, sensor (C, H, W), steps, bin_width, time_unit, bits, licence, source, citation,
            splits (name -> number of recordings).
        history: a row an epoch: epoch, train_loss, train_accuracy, validation_loss, validation_accuracy,
            learning_rate, grad_norm, grad_norm_max, seconds, and a firing rate per layer as "rate/NAME".
        evaluation: split, accuracy, loss, samples, best_epoch; weights and gradient as in baselines, if wished.
        confusion: number of recordings (true, predicted).
        classes: their names.
        rates: spikes per neuron and step on the evaluated split, by layer.
        sample: one recording on its way through the network.
        weights: pictures of the weights' signs.
        storage: rows of layer, shape, weights, bits_per_weight, packed_bytes, float32_bytes; they add up to the network.
        counts: rows of layer, dense_synops, effective_synops, spikes, rate, neuron_updates, bytes, for one inference.
        neurobench: its metrics for one inference, as :func:`tbnn.sim.neurobench.neurobench` names them, and scale_multiplies.
        energy: layers and total (rows of :meth:`tbnn.sim.energy.Energy.table`), and text, for one inference.
        parity: ok, equal, summary and layers (rows, or name -> row): the packed network against the trained one.
        baselines: rows of name, weights, gradient, accuracy, samples: other networks on the same split.
        config_yaml: the whole configuration.
        environment: versions, commit, device, seed, date.
        warnings: what is wrong with the network's health.

    Raises:
        ValueError: when the confusion matrix or the sample does not fit the classes.
    """

    title: str
    verdict: list[str] = field(default_factory=list)
    dataset: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    confusion: npt.NDArray[np.integer] = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    classes: list[str] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    sample: Sample | None = None
    weights: list[WeightPicture] = field(default_factory=list)
    storage: list[dict[str, Any]] = field(default_factory=list)
    counts: list[dict[str, Any]] = field(default_factory=list)
    neurobench: dict[str, Any] = field(default_factory=dict)
    energy: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    baselines: list[dict[str, Any]] = field(default_factory=list)
    config_yaml: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        n = len(self.classes)
        if self.confusion.size and self.confusion.shape != (n, n):
            raise ValueError(f"ReportData: expected a confusion matrix of {n} classes, got {self.confusion.shape}")
        if self.sample is not None and self.sample.readout.shape[1] != n:
            raise ValueError(f"ReportData: expected a readout of {n} classes, got {self.sample.readout.shape[1]}")
