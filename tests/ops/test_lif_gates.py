"""Second states, refractory steps, winners and lengths by hand; the identities of the trace with a second state."""

from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor

from tbnn.ops.lif import Cell, LifState, Rule, Second, SpikeGradient, check_state, lif, lif_reference
from tbnn.ops.lif.cell import advance, effective, trace_gain
from tbnn.ops.lif.reference import Statistics

both = pytest.mark.parametrize("backend", ["cpu", "reference"])


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1)


def second(**given: float) -> Second:
    """A second state that does nothing but what is given; the current drives v."""
    names = dict.fromkeys(Second._fields, 0.0) | {"current_gain": 1.0} | given
    return Second(*(torch.tensor(value, dtype=torch.float64) for value in names.values()))


SYNAPTIC = second(rho=0.5, from_current=1.0, current_gain=0.0, to_v=1.0)
THRESHOLD = second(rho=0.5, from_spike=1.0, to_threshold=0.5)
ADLIF = second(rho=0.5, from_v=0.25, from_spike=0.5, to_v=-1.0)


@both
@pytest.mark.parametrize(
    ("cell", "current", "v", "w", "spikes"),
    [
        # β = ½, θ = 1. w is the synaptic current, v = ½·v + w − q
        (SYNAPTIC, [1.5, 0, 0], [1.5, 0.75 + 0.75 - 1, 0.25 + 0.375], [1.5, 0.75, 0.375], [1, 0, 0]),
        # the level v − w/2 is 2, 1 − ½, 1.5 − ¼, 0.75 − ⅝
        (THRESHOLD, [2, 1, 1, 1], [2, 1, 1.5, 0.75], [0, 1, 0.5, 0.25 + 1], [1, 0, 1, 0]),
        # w hears ¼·v and ½·q of the step before and inhibits v at once
        (ADLIF, [2, 1, 1], [2, 1 - 1 + 1 - 1, 0 - 0.5 + 1], [0, 0.5 + 0.5, 0.5], [1, 0, 0]),
    ],
    ids=["synaptic", "threshold", "adlif"],
)
def test_second_states(
    cell: Second, current: list[float], v: list[float], w: list[float], spikes: list[float], backend: str
) -> None:
    for steps in range(1, len(v) + 1):
        run = lif(column(*current[:steps]), 0.5, second=cell, backend=backend)
        assert run.out.flatten().tolist() == spikes[:steps]
        assert (run.state.v.item(), run.state.w.item()) == (v[steps - 1], w[steps - 1])


@both
def test_a_reset_to_zero_hides_v_from_the_second_state(backend: str) -> None:
    run = lif(column(2, 1), 0.5, second=ADLIF, reset="zero", backend=backend)
    assert run.state.w.item() == 0.25 * 0 + 0.5
    assert run.state.v.item() == 0.5 * 0 - 0.5 + 1


@pytest.mark.parametrize("alpha", [0.875, 0.83])
def test_a_synaptic_neuron_spikes_as_snntorchs(alpha: float) -> None:
    current = 0.25 * torch.randn(300, 2, 50)
    neuron, out = snn.Synaptic(alpha, 0.9), []
    w, v = neuron.reset_mem()
    for current_t in current.unbind(0):
        spikes, w, v = neuron(current_t, w, v)
        out.append(spikes)
    cell = SYNAPTIC._replace(rho=torch.tensor(alpha))
    run = lif(current, 0.9, second=cell)
    assert 0.01 < run.out.mean() < 0.5
    assert torch.equal(run.out, torch.stack(out))
    assert torch.equal(run.state.v, v)
    assert torch.equal(run.state.w, w)


@both
def test_two_refractory_steps(backend: str) -> None:
    """I = 2, β = ½: v = 2 spikes; 2 and 3 wait; 3.5 spikes; the reset is subtracted once."""
    for steps, v, waiting, spikes in ((1, 2.0, 2, 1), (2, 2.0, 1, 0), (3, 3.0, 0, 0), (4, 3.5, 2, 1), (5, 2.75, 1, 0)):
        run = lif(column(*[2.0] * steps), 0.5, refractory=2, backend=backend)
        assert run.out.flatten().tolist() == [1, 0, 0, 1, 0][:steps]
        assert (run.state.v.item(), run.state.waiting.item(), run.state.spikes.item()) == (v, waiting, spikes)


@both
def test_winners_are_the_furthest_above_and_of_equals_the_first(backend: str) -> None:
    current = torch.tensor([[[1.5, 2.0, 0.5, 2.0, 1.25]]], dtype=torch.float64)
    wanted = {1: [0, 1, 0, 0, 0], 2: [0, 1, 0, 1, 0], 3: [1, 1, 0, 1, 0], 4: [1, 1, 0, 1, 1], 9: [1, 1, 0, 1, 1]}
    for winners, spikes in wanted.items():
        run = lif(current, 0.5, winners=winners, backend=backend)
        assert run.out.flatten().tolist() == spikes
        after = lif(torch.zeros_like(current), 0.5, state=run.state, winners=winners, backend=backend)
        assert torch.equal(after.state.v, 0.5 * current[0] - run.out[0])  # who lost was not reset
    margins = lif(current, 0.5, torch.tensor([0.25, 1.0, 0.25, 1.5, 0.125]), winners=2, backend=backend)
    assert margins.out.flatten().tolist() == [1, 0, 0, 0, 1]  # 1.25, 1, ¼, ½, 1.125 above


@both
@pytest.mark.parametrize("target", ["soft", "trace"])
def test_a_sequence_ends_at_its_length(target: str, backend: str) -> None:
    lengths = [0, 2, 5]
    current = (torch.randn(5, 3, 7, dtype=torch.float64) + 0.5).requires_grad_()
    start = [0.5 * torch.randn(3, 7, dtype=torch.float64) for _ in range(4)]
    padded = current.clone()
    for b, n in enumerate(lengths):
        padded[n:, b] = torch.nan
    settings: dict[str, Any] = {"second": ADLIF, "gradient": SpikeGradient(target=target, stats="step")}
    trace = target == "trace"
    state = LifState(start[0], start[1] if trace else None, start[2], start[3] if trace else None)
    run = lif(padded, 0.75, state=state, lengths=torch.tensor(lengths), backend=backend, **settings)
    for b, n in enumerate(lengths):
        assert not run.out[n:, b].any()
        own = LifState(*(None if s is None else s[b : b + 1] for s in state))
        alone = lif(current[:n, b : b + 1], 0.75, state=own, backend=backend, **settings).state if n else own
        for got, expected in zip(run.state, alone, strict=True):
            assert got is expected is None or torch.equal(got[b : b + 1], expected)
        if n:
            bits = lif(current[:n, b : b + 1], 0.75, state=own, backend=backend, **settings).out
            assert torch.equal(run.out[:n, b : b + 1], bits)
    (dx,) = torch.autograd.grad(run.out.sum() + (run.state.trace if trace else run.state.v).sum(), current)
    assert bool(dx.isfinite().all())
    assert bool((dx[:2, 1:] != 0).all())
    assert not dx[:, 0].any()
    assert not dx[2:, 1].any()


@both
def test_the_statistics_are_those_of_the_steps_there_are(backend: str) -> None:
    """Two sequences, one of them padded: the moments of one batch are the mean over what is alive."""
    current = torch.randn(6, 2, 4, dtype=torch.float64)
    estimator = SpikeGradient(emit="denoised", per_channel=False)
    joined = lif(current, 0.5, gradient=estimator, lengths=torch.tensor([6, 3]), backend=backend)
    alone = [lif(current[:n, b : b + 1], 0.5, gradient=estimator, backend=backend) for b, n in ((0, 6), (1, 3))]
    torch.testing.assert_close(joined.moments, (2 * alone[0].moments + alone[1].moments) / 3, rtol=1e-12, atol=1e-12)


def some_cells(neurons: int) -> Cell:
    """Stable random cells whose spikes inhibit."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(neurons, dtype=torch.float64)

    coefficients = Second(
        uniform(0.2, 0.8), uniform(-0.1, 0.1), uniform(-0.5, 1), uniform(-0.1, 0.2), uniform(0.3, 1), uniform(-0.3, 0.2),
        uniform(-0.2, 0.4),
    )  # fmt: skip
    return Cell(uniform(0, 0.8), uniform(0.6, 1.2), coefficients)


def test_the_level_is_the_input_trace_less_the_spike_trace() -> None:
    cell, current = some_cells(50), torch.randn(60, 2, 50, dtype=torch.float64)
    c, trace = cell.second, SpikeGradient(target="trace")
    assert c is not None
    for gates in ({}, {"refractory": 2, "winners": 9}):
        down_v, down_w, fired = (torch.zeros(2, 50, dtype=torch.float64) for _ in range(3))
        state = None
        for current_t in current:
            run = lif(current_t[None], cell.beta, cell.threshold, state, second=c, gradient=trace, **gates)
            state = run.state
            assert state.trace is not None
            assert state.w is not None
            assert state.w_trace is not None
            down_w = c.rho * down_w + c.from_v * down_v - c.from_spike * fired
            down_v = cell.beta * down_v + c.to_v * down_w + cell.threshold * fired
            torch.testing.assert_close(state.v, state.trace - down_v, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(state.w, state.w_trace - down_w, rtol=1e-10, atol=1e-10)
            fired = run.out[0]


def test_the_gain_makes_a_spike_in_every_step_a_rate_of_one() -> None:
    cell = some_cells(200)
    c = cell.second
    assert c is not None
    down_v, down_w = (torch.zeros(200, dtype=torch.float64) for _ in range(2))
    for _ in range(500):
        down_w = c.rho * down_w + c.from_v * down_v - c.from_spike
        down_v = cell.beta * down_v + c.to_v * down_w + cell.threshold
    torch.testing.assert_close(trace_gain(cell) * (down_v - c.to_threshold * down_w), torch.ones(200).double())


def test_the_mean_rate_is_the_trace_less_what_is_still_in_the_state() -> None:
    """The means of x and of the spike trace differ by gain·(mean level), which is little where states are slow."""
    cell, steps = some_cells(40), 2000
    c = cell.second
    assert c is not None
    cell = Cell(0.9 + 0.1 * cell.beta, cell.threshold, c._replace(from_v=torch.zeros(40).double()))
    gain, trace = trace_gain(cell), SpikeGradient(target="trace")
    probe = lif(torch.ones(500, 1, 40).double(), cell.beta, cell.threshold, second=cell.second, gradient=trace).state
    per_unit = gain * (probe.trace - c.to_threshold * probe.w_trace)
    for rate in (0.2, 0.5, 0.8):
        drive = rate / per_unit
        out = lif(drive.expand(steps, 1, 40), cell.beta, cell.threshold, second=cell.second, gradient=trace).out
        v, w, fired, level = (torch.zeros(1, 40).double() for _ in range(4))
        for fired_t in out:
            v, w = advance(v, w, fired, drive, cell, "subtract")
            level, fired = level + effective(v, w, cell) / steps, fired_t
        spiked = out.mean(0)
        torch.testing.assert_close(spiked, rate - gain * level, rtol=0, atol=0.01)
        assert float((spiked - rate).abs().mean()) < 0.1


@pytest.mark.parametrize(
    "estimator", [{"gradient": "surrogate"}, {}, {"emit": "denoised"}, {"target": "trace"}], ids=str
)
def test_the_reference_hides_its_padding(estimator: dict[str, Any]) -> None:
    """The same numbers whatever stands beyond a sequence's end."""
    current = torch.randn(4, 2, 3, dtype=torch.float64)
    alive = torch.tensor([[1.0, 1], [1, 1], [1, 0], [0, 0]], dtype=torch.float64)
    gradient, cell = SpikeGradient(**estimator), Cell(torch.full((3,), 0.5).double(), torch.ones(3).double())
    results = []
    for padding in (0.0, 50.0, torch.nan):
        leaf = torch.where(alive.unsqueeze(2) > 0, current, padding).requires_grad_()
        state = check_state(None, leaf, with_trace=gradient.uses_trace)
        out, *_ = lif_reference(leaf, cell, state, Rule(), gradient, Statistics(3, alive), None)
        results.append((out.detach(), torch.autograd.grad((out * out.detach().add(1)).sum(), leaf)[0]))
    for out, dx in results:
        assert torch.equal(out, results[0][0])
        assert torch.equal(dx, results[0][1])
