"""From a readout over time to one score a class and to a loss; regularisers of firing; a distance of spike trains.

Time is axis 0: a readout is (T, B, C), spikes are (T, B, features...). Everything is differentiable, and everything takes
``mask``, bool (T, B), True where a sequence still runs, for batches padded at the end: it gives what the sequences give
alone, cut to their lengths, and whatever stands in the padding, NaN even, reaches neither value nor gradient.

Under torch.compile, which traces without values, the shapes of what comes in are checked and its values are not.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from tbnn.nn.stateful import lengths_of
from tbnn.ops.lif.integrate import leaky_integrate

READOUTS = ("mean", "max", "last", "count", "first")


def logits(readout: Tensor, how: str = "mean", mask: Tensor | None = None) -> Tensor:
    """Scores over classes from a readout over time: (T, B, C) -> (B, C).

    ==========  ========================================================================================
    ``how``     score of a class whose readout is s[0], ..., s[T−1], T the steps of its sequence
    ==========  ========================================================================================
    "mean"      Σ_t s[t] / T
    "max"       max_t s[t]
    "last"      s[T−1]
    "count"     Σ_t s[t], the spike count
    "first"     Σ_t p[t]·(T−t)/T with p[t] = s[t]·Π_{k<t} (1−s[k]), the earlier the first spike the higher
    ==========  ========================================================================================

    "first" is for spikes in [0, 1]. Read as chances, p[t] is that of the first spike at t. On bits it is 1 at the first
    spike and 0 elsewhere: the score is (T−t)/T exactly, 1 for a spike at once, 1/T at the last step, 0 without any.
    It is linear in each spike, so its derivative by a spike is the score with that spike less the score without it: a
    silent class learns where to spike, the first spike sees the one that would take its place, later ones see nothing.
    Summed by parts it is 1 − Σ_t Π_{k≤t} (1−s[k]) / T, which is how it is computed.

    Args:
        readout: float (T, B, C); membranes, or spikes for "count" and "first".
        how: see above.
        mask: bool (T, B), True where a sequence still runs; all do if not given.

    Raises:
        ValueError: an unknown ``how``; a readout of other axes, empty or not of floats; "first" of values outside [0, 1];
            a mask of another shape or dtype, with gaps, or empty for a sequence.

    Source: the class read off the first spike is Mostafa, "Supervised learning based on temporal coding in spiking neural
    networks", IEEE TNNLS 2018; the product form makes it differentiable in discrete time.

    >>> spikes = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]).unsqueeze(1)  # (T=4, B=1, C=2)
    >>> logits(spikes, "count"), logits(spikes, "first")
    (tensor([[1., 2.]]), tensor([[0.5000, 0.7500]]))
    """
    if readout.ndim != 3:
        raise ValueError(f"logits: expected a readout (T, B, C), got shape {tuple(readout.shape)}")
    if how not in READOUTS:
        raise ValueError(f"readout: expected one of {', '.join(map(repr, READOUTS))}, got {how!r}")
    x, steps = _without_padding("logits", readout, mask)
    if how == "count":
        return x.sum(0)
    if how == "mean":
        return x.mean(0) if mask is None else x.sum(0) / steps.unsqueeze(1)
    if how == "max":
        return (x if mask is None else x.masked_fill(~mask.unsqueeze(2), -math.inf)).amax(0)
    if how == "last":
        return x[-1] if mask is None else x.gather(0, (steps - 1).reshape(1, -1, 1).expand(1, *x.shape[1:])).squeeze(0)
    if not torch.compiler.is_compiling() and not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError(
            f"logits: readout='first' expected spikes in [0, 1], got values in [{x.min().item():g}, {x.max().item():g}]"
        )
    fired = 1 - (1 - x).cumprod(0)
    fired = fired if mask is None else fired * mask.unsqueeze(2)
    return fired.sum(0) / steps.unsqueeze(1)


def cross_entropy(
    readout: Tensor, labels: Tensor, how: str = "mean", label_smoothing: float = 0.0, mask: Tensor | None = None
) -> Tensor:
    """Cross-entropy of :func:`logits` against labels, ``−log softmax(score)[label]``, averaged over the batch.

    Args:
        readout: float (T, B, C).
        labels: int64 (B,), classes; or floats (B, C), the share of each class in a mixed sample.
        how: one of :data:`READOUTS`; "count" and "max" are snntorch's ``ce_count_loss`` and ``ce_max_membrane_loss``.
        label_smoothing: share of the target spread evenly over all classes.
        mask: bool (T, B), as for :func:`logits`.

    Raises:
        ValueError: as :func:`logits`; labels of another shape or dtype, or outside [0, C); a smoothing outside [0, 1].

    >>> cross_entropy(torch.zeros(5, 2, 4), torch.tensor([0, 3]))  # log 4
    tensor(1.3863)
    """
    scores = logits(readout, how, mask)
    _check_targets(labels, *scores.shape)
    _check_between("label_smoothing", label_smoothing, 1)
    return functional.cross_entropy(scores, labels, label_smoothing=label_smoothing)


def temporal_efficient_training(
    readout: Tensor,
    labels: Tensor,
    lam: float = 0.05,
    phi: float = 1.0,
    label_smoothing: float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """TET: the cross-entropy of every step, pulled towards a common level, averaged over steps, then over the batch.

    ``(1−λ)·mean_t CE(y[t], label) + λ·mean_{t,c} (y[t, c] − φ)²``

    Each step has to tell the class by itself; λ keeps the readout from running away. λ = 0 is snntorch's ``ce_rate_loss``.

    Args:
        readout: y, float (T, B, C).
        labels: as for :func:`cross_entropy`.
        lam: λ in [0, 1].
        phi: φ, the level; the paper takes the neurons' threshold.
        label_smoothing: of the cross-entropy.
        mask: bool (T, B), as for :func:`logits`.

    Raises:
        ValueError: λ outside [0, 1]; otherwise as :func:`cross_entropy`.

    Source: Deng, Li, Zhang & Gu, "Temporal efficient training of spiking neural network via gradient re-weighting",
    ICLR 2022.

    >>> temporal_efficient_training(torch.zeros(5, 2, 4), torch.tensor([0, 3]), lam=0.5)  # (log 4 + 1) / 2
    tensor(1.1931)
    """
    if readout.ndim != 3:
        raise ValueError(f"temporal_efficient_training: expected a readout (T, B, C), got shape {tuple(readout.shape)}")
    _check_between("lam", lam, 1)
    _check_between("label_smoothing", label_smoothing, 1)
    y, steps = _without_padding("temporal_efficient_training", readout, mask)
    T, B, C = y.shape
    _check_targets(labels, B, C)
    repeated = labels.repeat(T, 1) if labels.ndim == 2 else labels.repeat(T)
    ce = functional.cross_entropy(y.flatten(0, 1), repeated, reduction="none", label_smoothing=label_smoothing)
    loss = (1 - lam) * ce.reshape(T, B) + lam * (y - phi).square().mean(2)
    return loss.mean() if mask is None else ((loss * mask).sum(0) / steps).mean()


def count_mse(
    spikes: Tensor, labels: Tensor, correct_rate: float = 1.0, incorrect_rate: float = 0.0, mask: Tensor | None = None
) -> Tensor:
    """Squared difference of spike counts from target counts, over steps: ``mean_{b,c} (Σ_t s[t] − ⌊r·T⌋)² / T``.

    r is ``correct_rate`` for the label's class and ``incorrect_rate`` for the others; T is the sequence's own length. This
    is snntorch's ``mse_count_loss``, with its rounding down: in floating point, 0.29·100 makes a target of 28.

    Args:
        spikes: float (T, B, C).
        labels: int64 (B,), classes.
        correct_rate, incorrect_rate: spikes per step, in [0, 1].
        mask: bool (T, B), as for :func:`logits`.

    Raises:
        ValueError: a rate outside [0, 1]; otherwise as :func:`cross_entropy`.

    Source: Shrestha & Orchard, "SLAYER: spike layer error reassignment in time", NeurIPS 2018.

    >>> count_mse(torch.ones(10, 1, 2), torch.tensor([0]), 0.8, 0.2)  # (2² + 8²) / 2 / 10
    tensor(3.4000)
    """
    if spikes.ndim != 3:
        raise ValueError(f"count_mse: expected spikes (T, B, C), got shape {tuple(spikes.shape)}")
    _check_between("correct_rate", correct_rate, 1)
    _check_between("incorrect_rate", incorrect_rate, 1)
    s, steps = _without_padding("count_mse", spikes, mask)
    _check_labels(labels, *s.shape[1:])
    right, wrong = ((steps.double() * rate).floor().to(s.dtype) for rate in (correct_rate, incorrect_rate))
    is_label = functional.one_hot(labels, s.shape[2]).bool()
    target = torch.where(is_label, right.unsqueeze(1), wrong.unsqueeze(1))
    return ((s.sum(0) - target).square().mean(1) / steps).mean()


def count_lower_bound(spikes: Tensor, least: float, mask: Tensor | None = None) -> Tensor:
    """Keep neurons alive: ``mean_{b,i} max(0, θ − n[b, i])²``, n[b, i] = Σ_t s[t, b, i] the count of neuron i in sequence b.

    Args:
        spikes: float (T, B, features...), of 0 and 1.
        least: θ, spikes per neuron and sequence; >= 0.
        mask: bool (T, B), as for :func:`logits`.

    Raises:
        ValueError: a negative bound; spikes of fewer axes, empty or not of floats; a wrong mask.

    Source: Zenke & Vogels, "The remarkable robustness of surrogate gradient learning", Neural Computation 2021; Cramer,
    Stradmann, Schemmel & Zenke, "The Heidelberg spiking data sets", IEEE TNNLS 2022.

    >>> count_lower_bound(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]]), 2)  # counts 2 and 1: (0² + 1²) / 2
    tensor(0.5000)
    """
    _check_between("least", least)
    return (least - _counts("count_lower_bound", spikes, mask)).relu().square().mean()


def count_upper_bound(spikes: Tensor, most: float, mask: Tensor | None = None) -> Tensor:
    """Keep a population quiet: ``mean_b max(0, mean_i n[b, i] − θ)²``, n as for :func:`count_lower_bound`.

    Only the mean over neurons is bounded: one neuron may fire often as long as others are silent.

    Args:
        spikes: float (T, B, features...), of 0 and 1.
        most: θ, spikes per neuron and sequence, on average over neurons; >= 0.
        mask: bool (T, B), as for :func:`logits`.

    Raises:
        ValueError: as :func:`count_lower_bound`.

    Source: as for :func:`count_lower_bound`.

    >>> count_upper_bound(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]]), 1)  # (1.5 − 1)²
    tensor(0.2500)
    """
    _check_between("most", most)
    return (_counts("count_upper_bound", spikes, mask).mean(1) - most).relu().square().mean()


def rate_target(spikes: Tensor, rate: float, mask: Tensor | None = None) -> Tensor:
    """Hold every neuron near one rate: ``mean_i (r[i] − rate)²``, r[i] = Σ_{t,b} s[t, b, i] / Σ_{t,b} 1.

    A neuron's rate is its mean over the steps of all sequences of the batch, so it may still fire for some of them only.

    Args:
        spikes: float (T, B, features...), of 0 and 1.
        rate: spikes per neuron and step, in [0, 1].
        mask: bool (T, B), as for :func:`logits`; a longer sequence weighs more.

    Raises:
        ValueError: a rate outside [0, 1]; otherwise as :func:`count_lower_bound`.

    Source: Bellec et al., "A solution to the learning dilemma for recurrent networks of spiking neurons", Nature
    Communications 2020.

    >>> rate_target(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]]), 0.5)  # rates 1 and 0.5
    tensor(0.1250)
    """
    _check_between("rate", rate, 1)
    counts = _counts("rate_target", spikes, mask)
    steps = spikes.shape[0] * spikes.shape[1] if mask is None else mask.sum()
    return (counts.sum(0) / steps - rate).square().mean()


def van_rossum_distance(a: Tensor, b: Tensor, tau: float, dt: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """The van Rossum distance of pairs of spike trains: ``D² = ∫₀^∞ (f−g)² dt / τ`` with ``f(t) = Σ_{tᵢ<=t} exp(−(t−tᵢ)/τ)``.

    A spike of step k stands at time k·dt. Between steps f − g only decays, so the integral, its tail beyond the last step
    included, is a sum without any error of discretisation: with γ = exp(−dt/τ) and d[t] = γ·d[t−1] + a[t] − b[t],

        D² = ½·((1−γ²)·Σ_{t<T−1} d[t]² + d[T−1]²)

    One spike too many costs ½; one spike moved by Δ costs 1 − exp(−Δ/τ). For τ → 0 it is half the number of spikes that
    do not coincide, for τ → ∞ half the squared difference of the counts. Its root is a metric.

    Args:
        a, b: floats (T, B, features...) of one shape, 0 and 1, or any weights.
        tau: τ > 0, in the unit of dt.
        dt: the length of a step, > 0.
        mask: bool (T, B), as for :func:`logits`.

    Returns:
        D² of every pair of trains, (B, features...); ``.mean()`` of it is a loss.

    Raises:
        ValueError: different shapes, dtypes or devices; fewer axes, empty or not floats; τ or dt not above 0; a wrong mask.

    Source: van Rossum, "A novel spike distance", Neural Computation 2001.

    >>> one, none = torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1), torch.zeros(3, 1, 1)
    >>> van_rossum_distance(one, none, tau=10)
    tensor([[0.5000]])
    """
    for name, value in (("tau", tau), ("dt", dt)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: expected a finite number > 0, got {value}")
    if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        raise ValueError(
            "van_rossum_distance: expected two trains of one shape, dtype and device, "
            f"got {tuple(a.shape)} {a.dtype} on {a.device} and {tuple(b.shape)} {b.dtype} on {b.device}"
        )
    difference, _ = _without_padding("van_rossum_distance", a - b, mask)
    difference = difference.flatten(2)
    T, B, F = difference.shape
    gamma = difference.new_full((F,), math.exp(-dt / tau))
    d = leaky_integrate(difference, gamma, difference.new_zeros(B, F))
    # Of the rounded γ, so that the terms of one spike still telescope to ½ when τ is long.
    weight = d.new_full((T, 1, 1), (1 - gamma[0].item() ** 2) / 2)
    weight[-1] = 0.5
    return (weight * d.square()).sum(0).reshape(a.shape[1:])


def _without_padding(what: str, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """x (T, B, features...) with 0 where its sequences have ended, and their lengths, int64 (B,)."""
    if x.ndim < 3 or x.numel() == 0 or not x.is_floating_point():
        raise ValueError(
            f"{what}: expected floats (T, B, features...) with at least one of each, got {x.dtype} {tuple(x.shape)}"
        )
    T, B = x.shape[:2]
    if mask is None:
        return x, torch.full((B,), T, device=x.device)
    lengths = lengths_of(mask, T, B, at_start=True)
    return x.masked_fill(~mask.reshape(T, B, *[1] * (x.ndim - 2)), 0), lengths


def _counts(what: str, spikes: Tensor, mask: Tensor | None) -> Tensor:
    """Spikes of every neuron in every sequence, (B, N)."""
    return _without_padding(what, spikes, mask)[0].sum(0).flatten(1)


def _check_labels(labels: Tensor, batch: int, classes: int) -> None:
    if labels.shape != (batch,) or labels.dtype != torch.int64:
        raise ValueError(f"labels: expected torch.int64 ({batch},), got {labels.dtype} {tuple(labels.shape)}")
    if torch.compiler.is_compiling():
        return
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high >= classes:
        raise ValueError(f"labels: expected classes in [0, {classes}), got values in [{low}, {high}]")


def _check_targets(labels: Tensor, batch: int, classes: int) -> None:
    """Labels, or shares of classes."""
    if not (labels.is_floating_point() and labels.ndim == 2):
        _check_labels(labels, batch, classes)
        return
    if labels.shape != (batch, classes):
        raise ValueError(f"labels: expected shares of classes ({batch}, {classes}), got {tuple(labels.shape)}")
    if torch.compiler.is_compiling():
        return
    if not bool((labels >= 0).all()) or not torch.allclose(labels.sum(1), labels.new_ones(batch), atol=1e-4):
        raise ValueError("labels: expected shares of 0 or more with sum 1 in every row, got others")


def _check_between(name: str, value: float, high: float = math.inf) -> None:
    if not 0 <= value <= high or value == math.inf:
        expected = "a finite number >= 0" if high == math.inf else f"a number in [0, {high:g}]"
        raise ValueError(f"{name}: expected {expected}, got {value}")
