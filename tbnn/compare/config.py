"""What a comparison is told: tasks, estimators, the budget each of them has, and the seeds.

A configuration that would give one estimator more than another, or that would choose anything on test recordings, is
refused here, before anything runs.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from tbnn.learning import LearningConfig

SPIKES: dict[str, dict[str, Any]] = {
    "soft": {"model.gradient": "ddt", "model.target": "soft"},
    "soft_slope": {"model.gradient": "ddt", "model.target": "soft", "model.differentiate_stats": False},
    "trace": {"model.gradient": "ddt", "model.target": "trace"},
    "trace_slope": {"model.gradient": "ddt", "model.target": "trace", "model.differentiate_stats": False},
    "denoised": {"model.gradient": "ddt", "model.target": "soft", "model.emit": "denoised"},
    "denoised_slope": {
        "model.gradient": "ddt",
        "model.target": "soft",
        "model.emit": "denoised",
        "model.differentiate_stats": False,
    },
}
"""Ridge-denoised gradients of spikes by name; every other name is a bare surrogate's (``model.surrogate``)."""

RANDOM = "sso"
"""snntorch's stochastic spike operator, whose random numbers only snntorch draws."""

WEIGHTS: dict[str, dict[str, Any]] = {
    "float": {"model.weights": "float"},
    **{
        name: {"model.estimator": name}
        for name in ("ste", "ewgs", "reste", "pege", "qgait", "ddt", "ddt_ridge", "ddt_slope")
    },
    **{
        f"{name}_{form}": {"model.estimator": name, "model.form": form}
        for name in ("ste", "ddt")
        for form in ("affine", "linear")
    },
}
"""Gradients of quantised weights by name; with a form, or in that of the task."""

ESTIMATOR_SETTINGS = frozenset(
    f"model.{name}"
    for name in (
        "weights", "estimator", "form", "lam", "spike_lam", "gradient", "surrogate", "surrogate_width", "target", "emit",
        "stats", "per_channel", "differentiate_stats", "scale", "match_scale", "floor",
    )
)  # fmt: skip
"""What an estimator may set: how gradients are estimated. Anything else would make it another network or another budget."""

RULE_SETTINGS = frozenset(f"learning.{option.name}" for option in fields(LearningConfig)) | {"optim.optimizer"}
"""What says by which rule an estimator's gradients come about, and what they do to weights."""
OPTIONS = ("optim.options.", "learning.options.")
"""Before the name of an optimizer's, or of a rule's, own setting."""

SEARCHED = ESTIMATOR_SETTINGS | {"optim.learning_rate", "optim.clip_norm"}


@dataclass(frozen=True)
class EstimatorConfig:
    """How gradients are estimated: of spikes and of weights.

    Attributes:
        spikes: "soft", "trace" (DDT, see ``tbnn.nn.Leaky``), "soft_slope", "trace_slope" (the ridge's slope alone),
            "denoised" (reconstructed values leave), or a bare surrogate: "atan", "fast_sigmoid" and so on, all of snntorch's
            ("signed" is its triangular, "sparse_fast_sigmoid" its SFS); "sso" in its own library only.
        weights: "ste", "ewgs", "reste", "pege", "qgait", "ddt", "ddt_ridge", "ddt_slope" (the ridge's slope alone), or
            "float"; "ste_linear", "ddt_affine" and so on fix the form.
        rule: by which they reach the weights: "bptt", or an online one, see :class:`tbnn.learning.LearningConfig`; its further
            options are ``settings``, ``learning.feedback: random`` say.
        library: "tbnn", or "snntorch": the same network of snntorch's neurons in a loop over time (a bare surrogate only).
        search: which of ``tuning.search`` it tunes, all of them if not given; the number of trials is the same for all.
        trials: may repeat ``tuning.trials``; another number is refused.
        settings: further settings of the gradient or the rule, ``model.scale: 4`` say.
        control: "none", or of :func:`tbnn.compare.mechanism.control`: "readout", only the readout learns; "zero", no
            gradient passes a spike. A constant surrogate is ``spikes: straight_through_estimator``.
        group: under which heading it counts; found from the rest if not given.
    """

    spikes: str
    weights: str = "ste"
    rule: str = "bptt"
    library: Literal["tbnn", "snntorch"] = "tbnn"
    search: list[str] | None = None
    trials: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    control: Literal["none", "readout", "zero"] = "none"
    group: Literal["surrogate", "ddt", "float", "control", "other"] | None = None

    def __post_init__(self) -> None:
        from tbnn.train.config import SURROGATES

        known = (SPIKES, SURROGATES, [RANDOM] if self.library == "snntorch" else [])
        if not any(self.spikes in names for names in known):
            raise ValueError(f"spikes: expected one of {_names(*known)}, got {self.spikes!r}")
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights: expected one of {_names(WEIGHTS)}, got {self.weights!r}")
        if self.library == "snntorch" and self.spikes in SPIKES:
            raise ValueError(f"library: snntorch's neurons take a bare surrogate, got spikes {self.spikes!r}")
        if self.library == "snntorch" and self.rule != "bptt":
            raise ValueError(f"library: snntorch's networks learn by 'bptt', got rule {self.rule!r}")
        for name in self.settings:
            if name not in ESTIMATOR_SETTINGS | RULE_SETTINGS and not name.startswith(OPTIONS):
                raise ValueError(
                    f"settings: {name} belongs to the task, equal for all: an estimator with its own would be another "
                    f"network or another budget; expected one of {_names(ESTIMATOR_SETTINGS, RULE_SETTINGS)}"
                )

    @property
    def model(self) -> dict[str, Any]:
        """Its settings, dotted, the explicit ones last."""
        bare = {"model.gradient": "surrogate"} | ({} if self.spikes == RANDOM else {"model.surrogate": self.spikes})
        rule = {} if self.rule == "bptt" else {"learning.rule": self.rule}
        return {**SPIKES.get(self.spikes, bare), **WEIGHTS[self.weights], **rule, **self.settings}

    @property
    def heading(self) -> str:
        """The group: "control", "float", "ddt" (anything ridge-denoised), "surrogate" (a bare one, weights by STE), "other"."""
        if self.group is not None:
            return self.group
        if self.control != "none":
            return "control"
        if self.rule != "bptt":
            return "other"
        if self.weights == "float":
            return "float"
        if self.spikes in SPIKES or self.weights.startswith("ddt") or self.settings.get("model.match_scale"):
            return "ddt"
        return "surrogate" if self.weights.startswith("ste") else "other"


@dataclass(frozen=True)
class Space:
    """Where trials are drawn from: a list of ``values``, or the range from ``low`` to ``high``, on a log scale.

    Attributes:
        values: to choose from.
        low, high: 0 < low < high.
    """

    values: list[Any] | None = None
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        ends = (self.low, self.high)
        if (self.values is None) == (self.low is None or self.high is None) or (self.values and ends != (None, None)):
            raise ValueError(f"search: expected either values or low and high, got {self}")
        if self.values is not None and not self.values:
            raise ValueError("search: expected at least one value, got none")
        if self.low is not None and self.high is not None and not 0 < self.low < self.high:
            raise ValueError(f"search: expected 0 < low < high, got {self.low} and {self.high}")


@dataclass(frozen=True)
class TuningConfig:
    """The budget that every estimator has in every task, spent before the seeds that count.

    Attributes:
        trials: settings tried, the same points for all estimators; 0 takes the settings as they are.
        search: by setting, where trials are drawn from.
        split: what the best trial is chosen on; "validation" is the only one accepted.
        task: "each" by itself, or the name of one task whose choice holds for all.
        seed: of the trials' runs and of the points; no final run has it.
    """

    trials: int = 8
    search: dict[str, Space] = field(default_factory=lambda: {"optim.learning_rate": Space(low=5e-4, high=3e-2)})
    split: str = "validation"
    task: str = "each"
    seed: int = 1000

    def __post_init__(self) -> None:
        if self.split != "validation":
            raise ValueError(
                f"tuning.split: expected 'validation', got {self.split!r}: what is chosen on test recordings says nothing about them"
            )
        if self.trials < 0:
            raise ValueError(f"tuning.trials: expected a number >= 0, got {self.trials}")
        if self.trials and not self.search:
            raise ValueError("tuning.search: expected at least one setting to try, got none")
        for name in self.search:
            if name not in SEARCHED and not name.startswith(OPTIONS):
                raise ValueError(f"tuning.search: expected one of {_names(SEARCHED)}, got {name!r}")


@dataclass(frozen=True)
class CompareConfig:
    """Estimators against each other: the same tasks, networks, initial weights, data order and budget for all.

    Attributes:
        title, claim: what the report is headed by, and the sentence it tests.
        base: settings of ``tbnn train`` (data, model, optim) that all tasks share, nested or dotted.
        tasks: by name, what differs from ``base``; one task "base" if not given.
        grid: by setting, values: each task is run at every combination.
        estimators: by name.
        tuning: the budget.
        seeds: final runs of each estimator in each task, with seeds 0, 1, ...
        reference: the estimator the others are compared with; if not given, the bare surrogate with the best validation
            accuracy in each task.
        margin: differences of accuracy within it count as equal.
        converged: a run converged if it came this part of the way from chance to the best estimator's mean.
        mechanism: in final runs also measure gradients by layer and time, flips of weights and reconstruction errors.
        smoothed: with ``mechanism``, pairs of samples of the smoothed gradient that each estimator's is compared with at the
            start and at the end (a few thousand weights take a few thousand pairs); 0 for none.
        quick: a rehearsal: one trial, two seeds, a few batches; figures mean nothing.
        output: the folder of runs and results; a comparison that was stopped goes on there.
        results: the file of results; results.json in ``output`` if not given.
        stale: finished runs of other code: "refuse" to mix, "keep" them marked as such, or "repeat" them.
        processes: as many at once, one thread each; 0 takes all cores.
        recheck: instead of all this, repeat so many of the finished results' runs and note whether they came out the same:
            for results of other code.
    """

    title: str = "Comparison of gradient estimators"
    claim: str = ""
    base: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = field(default_factory=lambda: {"base": {}})
    grid: dict[str, list[Any]] = field(default_factory=dict)
    estimators: dict[str, EstimatorConfig] = field(
        default_factory=lambda: {
            "atan": EstimatorConfig("atan"),
            "fast_sigmoid": EstimatorConfig("fast_sigmoid"),
            "DDT, soft": EstimatorConfig("soft", "ddt"),
            "DDT, trace, slope only": EstimatorConfig("trace_slope", "ddt_linear"),
        }
    )
    tuning: TuningConfig = field(default_factory=TuningConfig)
    seeds: int = 10
    reference: str | None = None
    margin: float = 0.02
    converged: float = 0.5
    mechanism: bool = False
    smoothed: int = 0
    quick: bool = False
    output: str = "runs/compare"
    results: str | None = None
    stale: Literal["refuse", "keep", "repeat"] = "refuse"
    processes: int = 0
    recheck: int = 0

    def __post_init__(self) -> None:
        if not self.tasks or not self.estimators:
            raise ValueError("compare: expected at least one task and one estimator")
        for part, names in (("tasks", self.tasks), ("estimators", self.estimators), ("grid", self.grid)):
            for name in names:
                if not isinstance(name, str):  # YAML reads 128: as a number, true: as a truth value
                    raise ValueError(f"{part}: expected a name, got {name!r}; put quotes around it")
        if self.seeds < 1:
            raise ValueError(f"seeds: expected a number >= 1, got {self.seeds}")
        if 0 <= self.tuning.seed < self.seeds:
            raise ValueError(
                f"tuning.seed: expected none of the final seeds 0 to {self.seeds - 1}, got {self.tuning.seed}"
            )
        if self.reference is not None and self.reference not in self.estimators:
            raise ValueError(f"reference: expected one of {_names(self.estimators)}, got {self.reference!r}")
        if not 0 < self.converged < 1 or not 0 <= self.margin < 1:
            raise ValueError(f"converged, margin: expected shares in (0, 1), got {self.converged}, {self.margin}")
        if self.smoothed < 0 or self.smoothed % 2 or (self.smoothed and not self.mechanism):
            raise ValueError(f"smoothed: expected an even number >= 0, with mechanism true, got {self.smoothed}")
        for name in ("processes", "recheck"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected a number >= 0, got {getattr(self, name)}")
        for name, estimator in self.estimators.items():
            _check_budget(name, estimator, self.tuning)


def _check_budget(name: str, estimator: EstimatorConfig, tuning: TuningConfig) -> None:
    if estimator.trials not in (None, tuning.trials):
        raise ValueError(
            f"estimators: {name!r} asks for {estimator.trials} trials where the others have {tuning.trials}: unequal budgets"
        )
    for key in estimator.search or ():
        if key not in tuning.search:
            raise ValueError(
                f"estimators: {name!r} searches {key}, expected one of tuning.search, {_names(tuning.search)}"
            )
    searched = tuning.search if estimator.search is None else estimator.search
    if tuning.trials and not searched:
        raise ValueError(
            f"estimators: {name!r} searches nothing where the others have {tuning.trials} trials: unequal budgets"
        )
    for key in set(searched) & estimator.settings.keys():
        raise ValueError(f"estimators: {name!r} fixes {key}, which it also searches")


def _names(*groups: Any) -> str:
    return ", ".join(sorted(name for group in groups for name in group))
