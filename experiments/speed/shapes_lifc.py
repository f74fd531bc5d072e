"""LIFC: the neurons alone, forward and backward, against snntorch and SpikingJelly, and against the memory's bandwidth."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from ceilings import moving
from peers import SPIKINGJELLY, check_rates, snntorch_neurons, spikingjelly_neurons
from suite import BETA, Part, Settings, claim
from timing import row
from torch import Tensor
from train_sides import Outcome, check, trained

from tbnn.nn import Leaky

SHAPES = ((500, 16, 512), (100, 128, 1024))
TINY = ((20, 3, 40),)
OURS, INDEXED, UNBOUND = "tbnn, surrogate", "snntorch, x[t]", "snntorch, x.unbind(0)"
TARGETS = {"tbnn, soft target": "soft", "tbnn, trace target": "trace"}
AIMS = {SHAPES[0]: 80.0, SHAPES[1]: 30.0}
TRIAD = "the triad over as many bytes"
SHARE = 0.7
BYTES = 4 * 5 + 2 / 8
"""What must move for a neuron and a step: float32 current read, spike written, spike read by the sum; in backward the current
read again (to find the membranes) and its gradient written; the packed spike written and read, a bit each. The gradient of
a sum is one number, membranes stay in registers; what a cache line fetches before it is overwritten does not count."""


def measure(settings: Settings) -> Part:
    """Every shape."""
    part = Part(facts={"gate": [], "firing_rates": [], "bandwidth": [], "claims": []})
    for size in TINY if settings.tiny else SHAPES:
        _measure(size, settings, part)
    return part


def sides(x: Tensor) -> dict[str, Callable[[], Outcome]]:
    """Spikes and the gradient of their sum in the current, by every side."""
    theirs, steps = snntorch_neurons(), x.shape[0]
    found: dict[str, Callable[[], Outcome]] = {
        OURS: _side(x, _ours(gradient="surrogate")),
        INDEXED: _side(x, lambda leaf: theirs(leaf[t] for t in range(steps))),
        UNBOUND: _side(x, lambda leaf: theirs(leaf.unbind(0))),
    }
    jelly = spikingjelly_neurons()
    if jelly is not None:
        found[SPIKINGJELLY] = _side(x, jelly)
    return found | {name: _side(x, _ours(target=target)) for name, target in TARGETS.items()}


def _ours(**options: Any) -> Callable[[Tensor], Tensor]:
    neurons = Leaky(BETA, **options)
    return lambda leaf: neurons(leaf)[0]


def _side(x: Tensor, run: Callable[[Tensor], Tensor]) -> Callable[[], Outcome]:
    def side() -> Outcome:
        leaf = x.detach().requires_grad_()
        return trained(lambda: run(leaf), [leaf])

    return side


def gate(shape: str, found: dict[str, Callable[[], Outcome]], part: Part) -> None:
    """Spikes and gradients of snntorch's loops, spikes of our targets, rates of SpikingJelly."""
    ours = found[OURS]()
    for name in (INDEXED, UNBOUND):
        theirs = found[name]()
        pairs: Iterable[Any] = zip(ours.gradients, theirs.gradients, strict=True)
        part.facts["gate"].append(check(shape, ours.spikes, theirs.spikes, pairs, name))
    for name in TARGETS:
        if not torch.equal(found[name]().spikes, ours.spikes):
            raise SystemExit(f"{shape}: {name} spikes otherwise than {OURS}")
    rates = {name: found[name]().spikes.mean().item() for name in (OURS, SPIKINGJELLY) if name in found}
    check_rates(shape, rates, OURS)
    part.facts["firing_rates"].append({"shape": shape, "rates": rates})


def _measure(size: tuple[int, int, int], settings: Settings, part: Part) -> None:
    """The whole comparison of one shape."""
    x = torch.randn(size, generator=torch.Generator().manual_seed(0)) * 0.5
    shape, found = f"LIFC {size} fwd+bwd, {settings.label}", sides(x)
    gate(shape, found, part)
    moved = round(BYTES * x.numel())
    with moving(settings.threads, moved) as triad:
        times = settings.times({**found, TRIAD: triad}, rounds=5, repeats=3)
    for name in found:
        if name != OURS:
            aim = AIMS.get(size) if name == INDEXED else None
            part.rows.append({"shape": shape, **row(times, OURS, name, aim)})
    shares = [most / mine for most, mine in zip(times[TRIAD], times[OURS], strict=True)]
    share = float(np.median(shares))
    part.facts["bandwidth"].append(
        {
            "shape": shape,
            "bytes": moved,
            "bytes_per_neuron_step": BYTES,
            "triad_bytes_per_s": moved / float(np.median(times[TRIAD])),
            "share": share,
            "share_min": min(shares),
            "share_max": max(shares),
        }
    )
    part.facts["claims"].append(claim(f"{shape}: share of the triad's bandwidth", share, low=SHARE))
