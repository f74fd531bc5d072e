"""What a training run is told: frozen dataclasses, which are also the command line and the file saved with the run."""

from dataclasses import dataclass, field
from typing import Literal

from tbnn.data.augment import Augment
from tbnn.data.frames.options import FrameOptions
from tbnn.learning import LearningConfig
from tbnn.surrogate import (
    Surrogate,
    atan,
    boxcar,
    fast_sigmoid,
    heaviside,
    leaky_spike,
    sigmoid,
    signed,
    sparse_fast_sigmoid,
    spike_rate_escape,
    straight_through_estimator,
    triangular,
)

SURROGATES = {
    "atan": atan,
    "fast_sigmoid": fast_sigmoid,
    "sigmoid": sigmoid,
    "triangular": triangular,
    "boxcar": boxcar,
    "straight_through_estimator": straight_through_estimator,
    "heaviside": heaviside,
    "leaky_spike": leaky_spike,
    "signed": signed,
    "spike_rate_escape": spike_rate_escape,
    "sparse_fast_sigmoid": sparse_fast_sigmoid,
}
WITHOUT_WIDTH = ("straight_through_estimator", "heaviside")


def _at_least(name: str, value: float, low: float) -> None:
    if not value >= low:
        raise ValueError(f"{name}: expected a number >= {low:g}, got {value}")


def _above(name: str, value: float, low: float) -> None:
    if not value > low:
        raise ValueError(f"{name}: expected a number > {low:g}, got {value}")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value < high:
        raise ValueError(f"{name}: expected a number in [{low:g}, {high:g}), got {value}")


@dataclass(frozen=True)
class DataConfig:
    """Which recordings, as which frames, and how they are varied in training.

    Attributes:
        dataset: a recipe's name (``tbnn datasets list``) or the path of a recipe file.
        source: the folder that holds the recordings the recipe names, or to which they are downloaded.
        cache: the folder of packed files; the user's cache folder if not given.
        frames: frames other than the recipe's.
        augment: variation of the training samples.
        workers: processes that read batches ahead; 0 reads them in the training process, enough for bits in memory.
    """

    dataset: str = "digits"
    source: str | None = None
    cache: str | None = None
    frames: FrameOptions = field(default_factory=FrameOptions)
    augment: Augment = field(default_factory=Augment)
    workers: int = 0

    def __post_init__(self) -> None:
        _at_least("data.workers", self.workers, 0)


@dataclass(frozen=True)
class ModelConfig:
    """A network of layers of spiking neurons with a leaky readout.

    Attributes:
        network: "dense" (fully connected, by ``hidden`` and ``recurrent``), or a convolutional net of ``tbnn.nn.zoo``:
            "nmnist_conv", "dvsgesture_conv", "vgg11" or "spiking_resnet"; or "equilibrium", units joined both ways by
            symmetric weights, with a linear readout (:class:`tbnn.learning.EquilibriumNetwork`).
        units: of "equilibrium": "real" or "binary".
        hidden: neurons in each hidden layer; of a convolutional net that asks for them, its channels.
        stride: of the first convolution of "nmnist_conv".
        recurrent: whether each hidden layer feeds back on itself, one step later; of "nmnist_conv" the last convolution.
        weights: "binary" (few bits each) or "float".
        bits, sparsity, scope, estimator, form, lam, block: of binary weights, see ``tbnn.nn.BinaryLinear``; bits 0
            stands for full precision, sparsity alone. Estimators that change in training ("reste", "qgait", "pege") do so
            from the first epoch to the last, see ``tbnn.nn.progress``.
        n_of_m: N:M sparsity, [2, 4] say, in place of a share.
        neuron: "leaky", "synaptic", "adaptive" or "adlif".
        beta, threshold, reset_mechanism, refractory: of the neurons, see ``tbnn.nn.Leaky``.
        alpha: the synapse's decay of "synaptic" neurons; rho: the adaptation's of "adaptive" and "adlif" ones.
        learn_beta, learn_threshold: train them.
        activity: "free", "winners" or "rate": whether a share ``activity_rate`` of each layer's neurons spikes at most, or
            a homeostatic threshold holds that rate.
        beta_readout: the readout's decay.
        gradient, surrogate, target, emit, stats, per_channel, differentiate_stats, scale, floor: of the spikes, see ``tbnn.nn.Leaky``.
            Those from "straight_through_estimator" on are snntorch's gradients without a soft spike, for "surrogate" alone
            ("signed" is its triangular, "leaky_spike" its LSO, "sparse_fast_sigmoid" its SFS).
        surrogate_width: the surrogate's parameter (alpha, slope, width, threshold or beta); its default if not given.
        match_scale: of gradient "surrogate": before each epoch multiply ``scale`` by what the ridge slope on the trace finds, see
            :func:`tbnn.learning.match_scale`.
        spike_lam: λ of the spikes' ridge regression; ``lam`` if not given.
        dropout: share of the spikes dropped in training.
        memory: what is kept for backward, see ``tbnn.nn.Network``: "speed", "balanced", "minimal" or bytes.
        wiring: which synapses of a "dense" network's hidden layers there are: "all", or a share ``wiring_share`` of them:
            "fixed" for good, nearer ones more often ("distance", falling off over ``wiring_length`` of the layer's width;
            the share is then what comes of it), or moving in training ("deep_r"). In the linear form, see ``tbnn.nn.DeepR``.
        inhibitory: Dale's law: the share of neurons, and inputs, whose synapses all inhibit; none keep a sign if not given.
    """

    network: Literal["dense", "nmnist_conv", "dvsgesture_conv", "vgg11", "spiking_resnet", "equilibrium"] = "dense"
    units: Literal["real", "binary"] = "real"
    hidden: tuple[int, ...] = (256,)
    stride: int = 1
    recurrent: bool = False
    weights: Literal["binary", "float"] = "binary"
    bits: float = 1
    sparsity: float = 0.0
    n_of_m: tuple[int, int] | None = None
    scope: Literal["block", "row", "tensor"] = "row"
    estimator: Literal["ddt", "ddt_ridge", "ddt_slope", "ste", "ewgs", "reste", "qgait", "pege"] = "ddt"
    form: Literal["affine", "linear"] = "affine"
    lam: float = 0.01
    block: int | None = None
    neuron: Literal["leaky", "synaptic", "adaptive", "adlif"] = "leaky"
    beta: float = 0.9
    alpha: float = 0.8
    rho: float = 0.98
    learn_beta: bool = False
    learn_threshold: bool = False
    refractory: int = 0
    activity: Literal["free", "winners", "rate"] = "free"
    activity_rate: float = 0.02
    beta_readout: float = 0.9
    threshold: float = 1.0
    reset_mechanism: Literal["subtract", "zero", "none"] = "subtract"
    gradient: Literal["ddt", "surrogate"] = "ddt"
    surrogate: Literal[
        "atan", "fast_sigmoid", "sigmoid", "triangular", "boxcar", "straight_through_estimator", "heaviside",
        "leaky_spike", "signed", "spike_rate_escape", "sparse_fast_sigmoid",
    ] = "atan"  # fmt: skip
    surrogate_width: float | None = None
    target: Literal["soft", "trace"] = "soft"
    emit: Literal["bits", "denoised"] = "bits"
    stats: Literal["sequence", "step"] = "sequence"
    per_channel: bool = True
    differentiate_stats: bool = True
    scale: float = 1.0
    match_scale: bool = False
    spike_lam: float | None = None
    floor: float = -0.05
    dropout: float = 0.0
    memory: Literal["speed", "balanced", "minimal"] | int = "speed"
    wiring: Literal["all", "fixed", "distance", "deep_r"] = "all"
    wiring_share: float = 0.1
    wiring_length: float = 0.15
    inhibitory: float | None = None

    def __post_init__(self) -> None:
        if not self.hidden or any(n < 1 for n in self.hidden):
            raise ValueError(
                f"model.hidden: expected at least one layer of at least one neuron, got {list(self.hidden)}"
            )
        _within("model.dropout", self.dropout, 0, 1)
        if isinstance(self.memory, int):
            _at_least("model.memory", self.memory, 1)
        if self.wired and (self.network != "dense" or self.weights != "binary"):
            raise ValueError(
                f"model.wiring, model.inhibitory: expected a 'dense' network of binary weights, got {self.network!r}, {self.weights!r}"
            )
        if self.match_scale and self.gradient != "surrogate":
            raise ValueError(f"model.match_scale: expected model.gradient 'surrogate', got {self.gradient!r}")
        if self.n_of_m is not None and self.sparsity:
            raise ValueError(
                f"model.n_of_m: expected it or model.sparsity, got {list(self.n_of_m)} and {self.sparsity:g}"
            )

    @property
    def wired(self) -> bool:
        """Whether synapses are missing, or keep a sign."""
        return self.wiring != "all" or self.inhibitory is not None

    def spike_surrogate(self) -> Surrogate:
        """The surrogate with its width."""
        if self.surrogate_width is None:
            return SURROGATES[self.surrogate]()
        if self.surrogate in WITHOUT_WIDTH:
            raise ValueError(
                f"model.surrogate_width: expected none for {self.surrogate!r}, got {self.surrogate_width:g}"
            )
        return SURROGATES[self.surrogate](self.surrogate_width)


@dataclass(frozen=True)
class OptimConfig:
    """How the weights are trained: by an optimizer, on a loss of the readout.

    Attributes:
        optimizer: "adamw", or one whose weights of one bit are binary while they learn, the rest by AdamW: "bop", "bop2",
            "metaplastic" or "states", see :mod:`tbnn.learning.binary`.
        options: of that optimizer, by name, ``{threshold: 1e-4}`` say.
        epochs, batch_size: as they say.
        learning_rate: the highest of the schedule.
        schedule: "one_cycle" (up for 30 %, then down to 0), "cosine" (down to 0) or "constant".
        weight_decay: AdamW's.
        label_smoothing: of the cross-entropy.
        clip_norm: largest norm of the gradient; no clipping if not given.
        readout: scores are the readout's "mean", "max" or "last" value over time, or "count", its sum.
        loss: "cross_entropy" of the scores, or "tet", of every step by itself (the scores then only tell the answer).
        tet_lambda: of loss "tet", the weight of the readout's pull towards 1.
        rate_weight: weight of the squared difference of every neuron's rate from ``rate_target``, a mean over neurons added
            for each spiking layer; 0 leaves rates alone. The logged train_loss includes it, the validation_loss is always
            the cross-entropy of the scores.
        rate_target: that rate, in spikes per neuron and step.
        truncate: back-propagate through so many steps at a time: the states go on, their gradients do not, and each piece
            has a loss of its own, weighted by its length. For loss "tet", or the "mean" of the readout, then of each piece.
            All steps at once if not given.
        detect_nonfinite: look at every layer's values and gradients, and stop at the first that is not a finite number with
            the layer's name and the time step (:func:`tbnn.nn.detect_nonfinite`); slow.
        calibrate: firing rate at which every layer starts, on the first batch; 0 leaves the weights as drawn.
    """

    optimizer: Literal["adamw", "bop", "bop2", "metaplastic", "states"] = "adamw"
    options: dict[str, float] = field(default_factory=dict)
    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 2e-3
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    readout: Literal["mean", "max", "last", "count"] = "mean"
    loss: Literal["cross_entropy", "tet"] = "cross_entropy"
    tet_lambda: float = 0.05
    rate_weight: float = 0.0
    rate_target: float = 0.1
    truncate: int | None = None
    detect_nonfinite: bool = False
    calibrate: float = 0.1

    def __post_init__(self) -> None:
        if self.optimizer == "adamw" and self.options:
            raise ValueError(f"optim.options: expected none for 'adamw', got {sorted(self.options)}")
        _at_least("optim.epochs", self.epochs, 1)
        _at_least("optim.batch_size", self.batch_size, 1)
        _above("optim.learning_rate", self.learning_rate, 0)
        _at_least("optim.weight_decay", self.weight_decay, 0)
        _within("optim.label_smoothing", self.label_smoothing, 0, 1)
        if self.clip_norm is not None:
            _above("optim.clip_norm", self.clip_norm, 0)
        _within("optim.tet_lambda", self.tet_lambda, 0, 1)
        _at_least("optim.rate_weight", self.rate_weight, 0)
        _within("optim.rate_target", self.rate_target, 0, 1)
        if self.truncate is not None:
            _at_least("optim.truncate", self.truncate, 1)
            if self.loss != "tet" and self.readout != "mean":
                raise ValueError(
                    f"optim.truncate: expected loss 'tet' or readout 'mean', which every piece of a sequence has, "
                    f"got readout {self.readout!r}"
                )
        if self.calibrate != 0 and not 0 < self.calibrate <= 0.5:
            raise ValueError(f"optim.calibrate: expected 0 or a rate in (0, 0.5], got {self.calibrate}")


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        learning: the rule by which weights change.
        output: the run's folder, made if need be; one that holds a run is refused unless ``resume`` or ``overwrite``.
        seed: of weights, data order and augmentation; the same seed gives the same numbers on the same machine.
        resume: go on from the last checkpoint in ``output``.
        overwrite: replace the run in ``output``.
        device: "auto" (a GPU if there is one) or "cpu".
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    output: str = "runs/train"
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    device: Literal["auto", "cpu"] = "auto"

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite: expected at most one of them, got both")
        if self.optim.rate_weight and self.model.emit == "denoised":
            raise ValueError("optim.rate_weight: expected 0 with model.emit='denoised', whose output is no spikes")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed: expected a number in [0, 2^31), got {self.seed}")
