"""Exact gradients in continuous time: closed forms, finite differences, and the limit of the time grid."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tbnn.compare.eventprop import EventNetwork, agreement, exact_gradients, on_grid
from tbnn.surrogate import Surrogate, atan, fast_sigmoid, sigmoid


def bare(surrogate: Surrogate) -> dict[str, Any]:
    return {"gradient": "surrogate", "surrogate": surrogate}


def example(inputs: int = 6, hidden: int = 5, classes: int = 3, batch: int = 4) -> tuple[EventNetwork, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    w = 6 * torch.rand(hidden, inputs, generator=generator, dtype=torch.float64) - 1
    v = torch.randn(classes, hidden, generator=generator, dtype=torch.float64)
    times = 0.08 * torch.rand(batch, inputs, 3, generator=generator, dtype=torch.float64)
    times[0, 1, 2] = math.inf
    return EventNetwork(w, v), times, torch.randint(classes, (batch,), generator=generator)


def test_one_spike_is_where_the_closed_form_has_it() -> None:
    # With τ_mem = 2·τ_syn v = w·(a − a²), a = exp(−t/τ_mem): it reaches θ first at the larger root a.
    w = torch.tensor([[5.0]], dtype=torch.float64, requires_grad=True)
    network = EventNetwork(w, torch.ones(1, 1, dtype=torch.float64), tau_mem=0.02, tau_syn=0.01)
    time = network.spike_times(torch.tensor([[[0.004]]], dtype=torch.float64))
    a = (1 + math.sqrt(1 - 4 / 5)) / 2
    assert time[0, 0, 0].item() == pytest.approx(0.004 - 0.02 * math.log(a), abs=1e-15)
    (dt_dw,) = torch.autograd.grad(time[0, 0, 0], w)
    # a² − a + 1/w = 0: da/dw = 1/(w²·(2a − 1)), dt = −τ·da/a
    assert dt_dw.item() == pytest.approx(-0.02 / (a * 25 * (2 * a - 1)), rel=1e-12)


def test_neurons_that_stay_below_threshold_do_not_spike() -> None:
    # The peak of w·(a − a²) is w/4.
    for weight, count in ((3.999, 0), (4.001, 1)):
        w = torch.tensor([[weight]], dtype=torch.float64)
        network = EventNetwork(w, torch.ones(1, 1, dtype=torch.float64), tau_mem=0.02, tau_syn=0.01, duration=1.0)
        assert network.spike_times(torch.zeros(1, 1, 1, dtype=torch.float64)).shape[2] == count


def test_membranes_reach_the_threshold_at_every_spike_and_nowhere_else() -> None:
    network, inputs, _ = example()
    times = network.spike_times(inputs)
    assert times.shape[2] >= 3
    kappa = network.gain

    def v(b: int, h: int, t: float) -> float:
        since = t - inputs[b]
        kernel = torch.where(since > 0, torch.exp(-since / 0.02) - torch.exp(-since / 0.005), 0.0)
        lifted = kappa * (network.hidden[h, :, None] * kernel).nansum().item()
        before = times[b, h][times[b, h] < t - 1e-12]
        return lifted - torch.exp(-(t - before) / 0.02).sum().item()

    for b in range(4):
        for h in range(5):
            for t in times[b, h][times[b, h].isfinite()].tolist():
                assert v(b, h, t) == pytest.approx(1.0, abs=1e-9)
            assert max(v(b, h, t) for t in torch.linspace(0, 0.1, 300).tolist()) <= 1 + 1e-9


@pytest.mark.parametrize("which", ["hidden", "readout"])
def test_exact_gradients_equal_finite_differences(which: str, numeric_gradient: Callable[..., Tensor]) -> None:
    network, inputs, labels = example(inputs=4, hidden=3, batch=2)
    weights = {"hidden": network.hidden, "readout": network.readout}

    def loss(w: Tensor) -> Tensor:
        return functional.cross_entropy(EventNetwork(**{**weights, which: w}).scores(inputs), labels)

    _, exact = exact_gradients(network, inputs, labels)
    torch.testing.assert_close(exact[which], numeric_gradient(loss, weights[which], 1e-6), rtol=1e-6, atol=1e-9)
    assert exact[which].abs().max() > 1e-3


def test_the_grid_tends_to_continuous_time() -> None:
    network, inputs, labels = example()  # from 3e-5 s on both have the same spikes
    coarse, fine = (agreement(network, inputs, labels, dt, **bare(atan(2.0))) for dt in (3e-5, 1e-5))
    gaps = [abs(found.losses[0] - found.losses[1]) for found in (coarse, fine)]
    assert gaps[1] < gaps[0] < 1e-3
    assert gaps[0] / gaps[1] == pytest.approx(3, rel=0.5)  # first order in dt
    assert fine.cosine["readout"] > 1 - 1e-7


def test_the_scale_moves_the_ratio_and_not_the_direction_of_hidden_weights() -> None:
    network, inputs, labels = example()
    one, two = (agreement(network, inputs, labels, 1e-4, **bare(sigmoid(25.0)), scale=scale) for scale in (1.0, 2.0))
    assert two.ratio["hidden"] == pytest.approx(2 * one.ratio["hidden"])
    assert two.cosine["hidden"] == pytest.approx(one.cosine["hidden"])
    assert two.ratio["readout"] == pytest.approx(one.ratio["readout"])


def test_surrogates_point_roughly_the_exact_way() -> None:
    network, inputs, labels = example()
    for surrogate in (atan(2.0), fast_sigmoid(25.0), sigmoid(25.0)):
        assert 0.2 < agreement(network, inputs, labels, 1e-4, **bare(surrogate)).cosine["hidden"] < 1


def test_input_spikes_fall_into_their_steps() -> None:
    network, _, _ = example(inputs=2)
    inputs = torch.tensor([[[0.0, 0.00249], [math.inf, 0.0995]]], dtype=torch.float64)
    x = on_grid(network, inputs, 1e-3, **bare(atan())).x
    assert x.shape == (100, 1, 2)
    assert x.nonzero().tolist() == [[0, 0, 0], [2, 0, 0], [99, 0, 1]]


def test_wrong_arguments_are_refused() -> None:
    network, inputs, _ = example()
    with pytest.raises(ValueError, match="tau_syn: expected another"):
        EventNetwork(network.hidden, network.readout, tau_mem=0.005)
    with pytest.raises(ValueError, match=r"float64, got torch\.float32"):
        EventNetwork(network.hidden.float(), network.readout)
    with pytest.raises(ValueError, match=r"weights \(H, I\) and \(C, H\)"):
        EventNetwork(network.hidden, network.readout.T)
    with pytest.raises(ValueError, match="threshold: expected"):
        EventNetwork(network.hidden, network.readout, threshold=0.0)
    with pytest.raises(ValueError, match="inputs: expected float64 times"):
        network.scores(inputs[:, :2])
