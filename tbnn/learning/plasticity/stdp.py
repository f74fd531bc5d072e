"""Unsupervised STDP under a supervised linear readout, as a rule."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from tbnn.learning.plasticity.learn import Updates
from tbnn.learning.plasticity.synapses import RealSynapses, StochasticSynapses
from tbnn.learning.plasticity.threshold import AdaptiveThreshold
from tbnn.learning.plasticity.triplets import Triplets
from tbnn.learning.plasticity.windows import Pairs
from tbnn.learning.rule import Outcome, Rule, RuleState, classification_error
from tbnn.learning.stages import add_gradient
from tbnn.nn import BinaryLinear, LeakyIntegrator, Network, Neuron, Winners
from tbnn.nn.stateful import call_stateless

WINDOWS = ("post", "pre", "pair", "triplet")
KINDS = ("stochastic", "real")
LAYERS = "[BinaryLinear or torch.nn.Linear, neuron, BinaryLinear or torch.nn.Linear, LeakyIntegrator]"


class StdpTraces(NamedTuple):
    """What :class:`Stdp` carries of the past."""

    synapses: Any
    """The hidden layer's, of the kind that its window has."""
    filtered: Tensor
    """(B, M): hidden spikes as the readout's membrane has kept them, p[t] = β·p[t−1] + q[t]."""
    time: Tensor
    """The same of a constant 1, for the readout's bias."""


class Stdp(Rule):
    """STDP for the first layer of ``[weights, neuron, weights, LeakyIntegrator]``; its readout learns by the delta rule.

    The first layer learns without targets, and at once: :meth:`step` **changes its weights** from the step's spikes, and
    leaves it no ``.grad``. :meth:`update` adds to the ``.grad`` of the second layer of weights ``error ⊗ p``, p the hidden
    spikes filtered by the readout's β: of a linear readout that is the cross-entropy's exact gradient, at each step, and
    an optimizer takes it from there. Nothing kept grows with the number of steps.

    The neuron may compete, ``Leaky(..., activity=Winners(1))`` or ``winners=1`` here, and keep to a rate, by
    :class:`TargetRate` or by thresholds that each spike raises. The thresholds stay with the neuron: the network packs.

    Args:
        network: of these four layers.
        synapses: "stochastic", codes that flip and have no latent weights (:class:`StochasticSynapses`), or "real" weights
            (:class:`RealSynapses`), in a binary layer its latent ones.
        window: what makes a synapse change: "post" or "pre" events (stochastic synapses only) with ``p_plus``,
            ``p_minus`` and, for "post", ``reach``; or the "pair" or the "triplet" window, its dW times ``rate``, of stochastic synapses
            the probability of a flip.
        p_plus, p_minus: probabilities of a level up and down, of a batch's every event.
        reach: steps for which an input counts as active.
        a_plus, a_minus, tau_plus, tau_minus, interaction, coincidence: of the pair window, see :class:`Pairs`.
        a2_plus, a2_minus, a3_plus, a3_minus, tau_x, tau_y: of the triplet window, with taus and interaction from above.
        rate: see window; real weights move by the batch's mean.
        low, high: bounds of real weights.
        norm: None, or what the real weights of each output add up to after each sequence (Diehl & Cook 2015).
        theta_plus, theta_tau: how much a spike raises its neuron's threshold, batch means, and the time constant in steps
            with which that decays, None: never; see :class:`AdaptiveThreshold`.
        winners: None leaves the neuron as it is; else it gets ``Winners(winners)``.
        every: steps between the readout's updates.
        seed: of the flips.

    Attributes:
        updates: synapses of the first layer written to so far, potentiations and depressions; of stochastic synapses flips.
        samples: sequences begun so far.

    Raises:
        ValueError: another network, options outside their ranges, ``update`` before ``step``, winners besides a TargetRate.

    Source: Diehl & Cook, "Unsupervised learning of digit recognition using spike-timing-dependent plasticity", Frontiers in
    Computational Neuroscience 9 (2015), for competing neurons with thresholds that adapt; the windows' own pages for the rest.
    """

    name = "stdp"

    def __init__(
        self,
        network: nn.Module,
        *,
        synapses: str = "stochastic",
        window: str = "post",
        p_plus: float = 0.1,
        p_minus: float = 0.02,
        reach: int = 3,
        a_plus: float = 0.005,
        a_minus: float = 0.00525,
        tau_plus: float = 20.0,
        tau_minus: float = 20.0,
        interaction: str = "all",
        coincidence: str = "causal",
        a2_plus: float = 0.0,
        a2_minus: float = 7.1e-3,
        a3_plus: float = 6.5e-3,
        a3_minus: float = 0.0,
        tau_x: float = 101.0,
        tau_y: float = 114.0,
        rate: float = 1.0,
        low: float = 0.0,
        high: float = 1.0,
        norm: float | None = None,
        theta_plus: float = 0.0,
        theta_tau: float | None = None,
        winners: int | float | None = None,
        every: int | None = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(network)
        self.hidden, self.neuron, self.readout, self.integrator = _layers_of(network)
        _check_kinds(synapses, window)
        if every is not None and every < 1:
            raise ValueError(f"every: expected None or a number of steps >= 1, got {every}")
        if norm is not None and not (synapses == "real" and norm > 0):
            raise ValueError(f"norm: expected None, or a number > 0 for synapses='real', got {norm}")
        self.synapses: RealSynapses | StochasticSynapses
        self.generator = torch.Generator().manual_seed(seed)
        shape: str | Pairs | Triplets = window
        if window == "pair":
            shape = Pairs(a_plus, a_minus, tau_plus, tau_minus, interaction, coincidence)
        elif window == "triplet":
            shape = Triplets(a2_plus, a2_minus, a3_plus, a3_minus, tau_plus, tau_minus, tau_x, tau_y, interaction)
        if isinstance(shape, str) or synapses == "stochastic":
            self.synapses = StochasticSynapses(
                self.hidden, shape, p_plus=p_plus, p_minus=p_minus, reach=reach, rate=rate, generator=self.generator
            )
        else:
            self.synapses = RealSynapses(self.hidden, shape, rate, low, high)
        self.hidden.weight.requires_grad_(False)
        _compete(self.neuron, winners)
        self.threshold = AdaptiveThreshold(self.neuron, self.hidden.weight.shape[0], theta_plus, theta_tau)
        self.every, self.norm = every, norm
        self.updates, self.samples = Updates(0, 0), 0
        self._last: RuleState | None = None

    @torch.no_grad()
    def step(self, x: Tensor, state: RuleState | None = None) -> RuleState:
        pre = cast("Network", self.network).unpacked(x.unsqueeze(0)).flatten(2)
        own = (None, None) if state is None else state.network
        post, neuron = self.neuron.step(call_stateless(self.hidden, pre, None).squeeze(0), own[0])
        readout, integrator = self.integrator.step(call_stateless(self.readout, post, None), own[1])
        before = None if state is None else state.traces
        synapses, made = self.synapses.learn(pre.squeeze(0), post, None if before is None else before.synapses)
        self.threshold.follow(post)
        self.updates, self.samples = self.updates + made, self.samples + (len(x) if state is None else 0)
        beta = self.integrator.beta.clamp(0, 1)
        filtered, time = (post, torch.ones_like(beta)) if before is None else (
            beta * before.filtered + post, beta * before.time + 1
        )  # fmt: skip
        self._last = RuleState((neuron, integrator), StdpTraces(synapses, filtered, time), readout)
        return self._last

    def credit(self, target: Tensor, weight: float) -> float:
        """The readout's part; see :meth:`Rule.update`. The hidden layer has learnt by now."""
        if self._last is None:
            raise ValueError(f"{self.name}: update: expected a step before, got none")
        loss, error = classification_error(self._last.readout, target)
        _, filtered, time = self._last.traces
        if self.readout.weight.requires_grad:
            change = weight * (error.T @ filtered)
            if isinstance(self.readout, BinaryLinear):
                self.readout.quantized_weight().backward(change)
            else:
                add_gradient(self.readout.weight, change)
        if self.readout.bias is not None and self.readout.bias.requires_grad:
            add_gradient(self.readout.bias, weight * time * error.sum(0))
        return weight * loss

    def sequence(
        self, x: Tensor, target: Tensor, change: Callable[[], Any] | None = None, *, steps: int | None = None
    ) -> Outcome:
        outcome = super().sequence(x, target, change, steps=steps)
        self.threshold.observe()
        if self.norm is not None and isinstance(self.synapses, RealSynapses):
            self.synapses.normalise(self.norm)
        return outcome

    def state_dict(self) -> dict[str, Tensor]:
        """Where the draws of flips stand, and where adapting thresholds rest."""
        own = {"draws": self.generator.get_state()}
        return own | ({"rest": self.threshold.rest} if self.threshold.plus else {})

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        self.generator.set_state(saved["draws"])
        if self.threshold.plus:
            self.threshold.rest = saved["rest"]


def _check_kinds(synapses: str, window: str) -> None:
    """Raise ``ValueError`` for other names than these, or windows that real weights do not know."""
    if synapses not in KINDS:
        raise ValueError(f"synapses: expected 'stochastic' or 'real', got {synapses!r}")
    if window not in WINDOWS or (synapses == "real" and window in ("post", "pre")):
        wanted = "'pair' or 'triplet'" if synapses == "real" else "'post', 'pre', 'pair' or 'triplet'"
        raise ValueError(f"window: expected {wanted} for synapses={synapses!r}, got {window!r}")


def _compete(neuron: Neuron, winners: int | float | None) -> None:
    """Let so many neurons spike a step; None leaves them as they are."""
    if winners is None:
        return
    if neuron.homeostasis is not None:
        raise ValueError("winners: expected None for a neuron that keeps to a TargetRate, got a number")
    neuron.winners = Winners(winners)
    neuron.__dict__["made_with"]["activity"] = neuron.winners


def _layers_of(network: nn.Module) -> tuple[Any, Neuron, Any, LeakyIntegrator]:
    """The four layers; ``ValueError`` for others."""
    layers: list[Any] = list(network.layers) if isinstance(network, Network) else []
    linear = (BinaryLinear, nn.Linear)
    kinds = (linear, Neuron, linear, LeakyIntegrator)
    if len(layers) != 4 or not all(isinstance(layer, kind) for layer, kind in zip(layers, kinds, strict=True)):
        got = [type(layer).__name__ for layer in layers] or type(network).__name__
        raise ValueError(f"network: expected a Network of {LAYERS}, got {got}")
    hidden, neuron, readout, integrator = layers
    if neuron.spike_gradient.emit != "bits":
        raise ValueError(f"layers.1: expected emit='bits', got {neuron.spike_gradient.emit!r}")
    if integrator.beta.numel() != 1:
        raise ValueError(f"layers.3: expected one beta for all classes, got {tuple(integrator.beta.shape)}")
    return hidden, neuron, readout, integrator
