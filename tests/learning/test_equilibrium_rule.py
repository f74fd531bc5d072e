"""Equilibrium propagation against back-propagation through the relaxation, and the orders of its bias."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tbnn import pack_bits
from tbnn.learning.equilibrium import EquilibriumNetwork, EquilibriumPropagation
from tbnn.nn import BinaryLinear, Network

LABELS = torch.tensor([0, 1, 2, 1])
PAIRS = [("units", "mse"), ("units", "cross_entropy"), ("linear", "mse"), ("linear", "cross_entropy")]


def smooth(readout: str = "units", **options: Any) -> EquilibriumNetwork:
    """Real units of 1-bit weights, none of which comes to rest at an end of its range."""
    torch.manual_seed(0)
    net = EquilibriumNetwork((6, 7, 5, 3), readout=readout, **{"gain": 0.12, "rest_bias": 0.4, **options}).double()
    last = net.linears[-1].bias
    if readout == "units" and last is not None:
        nn.init.constant_(last, 0.4)
    return net


def standing(steps: int = 80, batch: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, batch, 6, dtype=torch.float64, generator=generator).expand(steps, -1, -1)


def flat(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def cost(kind: str, y: Tensor, labels: Tensor) -> Tensor:
    if kind == "cross_entropy":
        return functional.cross_entropy(y, labels)
    return 0.5 * (y - functional.one_hot(labels, y.shape[1])).square().sum(1).mean()


def by_time(net: EquilibriumNetwork, kind: str, x: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """The loss at rest and its gradient, by back-propagation through the whole relaxation."""
    net.zero_grad()
    loss = cost(kind, net(x)[0][-1], labels)
    loss.backward()
    return loss.item(), flat(net)


def by_rest(net: EquilibriumNetwork, x: Tensor, labels: Tensor, **options: Any) -> tuple[float, Tensor]:
    net.zero_grad()
    outcome = EquilibriumPropagation(net, **{"nudged_steps": 80, **options}).sequence(x, labels)
    return outcome.loss, flat(net)


@pytest.mark.parametrize(("readout", "loss"), PAIRS)
@pytest.mark.parametrize(("nudging", "order"), [("one_sided", 1), ("symmetric", 2)])
def test_the_bias_is_of_the_order_that_the_nudging_has(readout: str, loss: str, nudging: str, order: int) -> None:
    net, x = smooth(readout), standing()
    value, reference = by_time(net, loss, x, LABELS)
    ends = [(u.detach() <= 0) | (u.detach() >= 1) for u in net(x)[1].units]
    assert not any(bool(end.any()) for end in ends)
    betas = [0.08 / 2**k for k in range(4)]
    biases = []
    for beta in betas:
        got, estimate = by_rest(net, x, LABELS, beta=beta, nudging=nudging, loss=loss)
        assert got == pytest.approx(value, rel=1e-9)
        biases.append(((estimate - reference).norm() / reference.norm()).item())
    slopes = [math.log2(large / small) for large, small in pairwise(biases)]
    assert slopes == pytest.approx([order] * 3, abs=0.1)
    assert biases[0] < 0.2


def test_a_saturated_network_has_the_gradient_too() -> None:
    """Units at an end of their range, and not about to leave it, have no gradient either way."""
    net, x = smooth("linear", gain=0.5, rest_bias=0.2), standing(400)
    units = torch.cat(net(x)[1].units, 1)
    assert 0.2 < ((units <= 0) | (units >= 1)).double().mean() < 0.8
    _, reference = by_time(net, "cross_entropy", x, LABELS)
    _, estimate = by_rest(net, x, LABELS, beta=1e-3, loss="cross_entropy", nudged_steps=400)
    assert (estimate - reference).norm() < 1e-4 * reference.norm()


@pytest.mark.parametrize(
    "options", [{"estimator": "ste"}, {"bits": 2, "block": 4}, {"copies": 3}, {"input_scale": 1.5}]
)
def test_the_estimate_is_the_gradient_whatever_the_layers_are(options: dict[str, Any]) -> None:
    """The latent weights' too: the estimate goes on through the layers' own estimator."""
    net, x = smooth(**options), standing()
    _, reference = by_time(net, "mse", x, LABELS)
    _, estimate = by_rest(net, x, LABELS, beta=1e-3)
    torch.testing.assert_close(estimate, reference, rtol=1e-3, atol=1e-6)


def test_random_signs_are_the_two_halves_of_the_symmetric_estimate() -> None:
    net, x = smooth(), standing()
    symmetric = by_rest(net, x, LABELS, beta=0.2)[1]
    one_sided = by_rest(net, x, LABELS, beta=0.2, nudging="one_sided")[1]
    other = 2 * symmetric - one_sided
    assert (other - one_sided).norm() > 0.01 * symmetric.norm()
    seen = set()
    for seed in range(5):
        torch.manual_seed(seed)
        drawn = by_rest(net, x, LABELS, beta=0.2, nudging="random_sign")[1]
        positive = torch.allclose(drawn, one_sided, atol=1e-12)
        assert positive or torch.allclose(drawn, other, atol=1e-12)
        seen.add(positive)
    assert seen == {True, False}


def test_the_rate_of_change_is_a_product_of_the_two_neurons() -> None:
    """Of one synapse w between x and u, with C = ½(u − p)²: u at rest is w·x, nudged (w·x + β·p)/(1 + β)."""
    net = EquilibriumNetwork((1, 1), bits=None, form="linear", lam=1e-12, bias=False).double()
    nn.init.constant_(net.linears[0].weight, 0.5)
    rule = EquilibriumPropagation(net, beta=0.25, nudging="one_sided", nudged_steps=100)
    rule.sequence(torch.full((100, 1, 1), 0.8, dtype=torch.float64), torch.tensor([[0.9]]).double())
    nudged = (0.4 + 0.25 * 0.9) / 1.25
    assert net.linears[0].weight.grad.item() == pytest.approx(-(nudged * 0.8 - 0.4 * 0.8) / 0.25)  # pyright: ignore[reportOptionalMemberAccess]


def test_gradients_add_up_are_weighted_and_take_shares() -> None:
    net, x = smooth("linear"), standing(20)
    rule = EquilibriumPropagation(net, loss="cross_entropy")
    loss = rule.sequence(x, LABELS).loss
    once = flat(net).clone()
    assert rule.update(functional.one_hot(LABELS, 3), weight=0.5) == pytest.approx(0.5 * loss)
    torch.testing.assert_close(flat(net), 1.5 * once)
    twice = torch.cat([x, x], 1)
    net.zero_grad()
    assert rule.sequence(twice, torch.cat([LABELS, LABELS])).loss == pytest.approx(loss)
    torch.testing.assert_close(flat(net), once)


def test_a_sequence_is_its_steps_and_takes_words() -> None:
    torch.manual_seed(0)
    net = EquilibriumNetwork((37, 8, 3)).double()
    bits = (torch.rand(6, 4, 37) < 0.3).double()
    rule = EquilibriumPropagation(net)
    outcome = rule.sequence(pack_bits(bits), LABELS)
    expected, state = flat(net).clone(), None
    net.zero_grad()
    for t, x_t in enumerate(bits.unbind(0)):
        state = rule.step(x_t, state)
        assert not state.readout.requires_grad
        torch.testing.assert_close(state.readout, outcome.readout[t])
    assert rule.update(LABELS) == pytest.approx(outcome.loss)
    torch.testing.assert_close(flat(net), expected)
    rule.every = 6
    net.zero_grad()
    assert rule.sequence(bits, LABELS).loss == pytest.approx(outcome.loss)
    torch.testing.assert_close(flat(net), expected)


def test_nothing_is_kept_of_the_way_to_rest() -> None:
    def kept(steps: int) -> int:
        net, saved = smooth(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
            EquilibriumPropagation(net, free_steps=steps, nudged_steps=steps).sequence(standing(steps), LABELS)
        return sum(saved)

    assert kept(5) == kept(100) > 0


def test_bits_of_units_still_point_downhill() -> None:
    """Cosine of the estimate with the gradient of the same weights' network of real units, over random networks.

    The first layer's weights, which the cost reaches through both other layers. By chance the mean would be 0, within
    about 0.2 / √12; it comes out at 0.46.
    """
    cosines = []
    for seed in range(12):
        torch.manual_seed(seed)
        net = EquilibriumNetwork((20, 40, 20, 4), neurons="binary", readout="linear", rest_bias=0.45).double()
        x, labels = torch.rand(1, 64, 20).double().expand(20, -1, -1), torch.randint(4, (64,))
        by_rest(net, x, labels, beta=4.0, loss="cross_entropy", nudged_steps=20)
        estimate = net.linears[0].weight.grad.clone()  # pyright: ignore[reportOptionalMemberAccess]
        net.neurons = "real"
        by_time(net, "cross_entropy", x, labels)
        reference = net.linears[0].weight.grad
        cosines.append(functional.cosine_similarity(estimate.flatten(), reference.flatten(), dim=0))  # pyright: ignore[reportOptionalMemberAccess]
    cosine = torch.stack(cosines)
    assert cosine.mean() > 0.3
    assert cosine.mean() / (cosine.std() / math.sqrt(len(cosine))) > 4


@pytest.mark.parametrize(("readout", "loss"), [("units", "mse"), ("linear", "cross_entropy")])
def test_it_learns_xor_with_binary_weights(readout: str, loss: str) -> None:
    torch.manual_seed(0)
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    shown, labels = torch.cat([x, 1 - x], 1).unsqueeze(0), torch.tensor([0, 1, 1, 0])
    net = EquilibriumNetwork((4, 32, 2), readout=readout)
    rule = EquilibriumPropagation(net, loss=loss, beta=0.5)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        losses.append(rule.sequence(shown, labels).loss)
        optimizer.step()
    y = net(shown.expand(40, -1, -1))[0][-1]
    assert y.argmax(1).tolist() == labels.tolist()
    assert losses[-1] < 0.5 * losses[0]
    assert len(net.linears[0].quantized_weight()[0].unique()) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta: expected a finite number > 0, got 0"),
        ({"beta": float("nan")}, "beta: expected"),
        ({"beta": float("inf")}, "beta: expected"),
        ({"nudging": "both"}, "nudging: expected one of 'symmetric', 'one_sided', 'random_sign', got 'both'"),
        ({"loss": "hinge"}, "loss: expected one of 'mse', 'cross_entropy', got 'hinge'"),
        ({"free_steps": -1}, "free_steps: expected a whole number >= 0, got -1"),
        ({"nudged_steps": 0}, "nudged_steps: expected a whole number >= 1, got 0"),
        ({"nudged_steps": 2.5}, "nudged_steps: expected a whole number"),
        ({"dt": 1.5}, r"dt: expected a number in \(0, 1\], got 1.5"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EquilibriumPropagation(smooth(), **options)


def test_other_networks_and_targets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected an EquilibriumNetwork, .*, got Network"):
        EquilibriumPropagation(Network([BinaryLinear(3, 2)]))
    rule = EquilibriumPropagation(smooth())
    with pytest.raises(ValueError, match="expected a step before an update"):
        rule.update(LABELS)
    rule.step(standing()[0])
    for wrong in (LABELS[:3], LABELS.double(), torch.zeros(4, 2), LABELS > 0):
        with pytest.raises(ValueError, match=r"target: expected classes \(4,\) or shares \(4, 3\), got"):
            rule.update(wrong)
    with pytest.raises(ValueError, match=r"target: expected classes in \[0, 3\), got 0 to 3"):
        rule.update(torch.tensor([0, 1, 2, 3]))


def test_frozen_weights_and_missing_biases_are_left_alone() -> None:
    net = smooth(bias=False)
    net.linears[1].freeze()
    EquilibriumPropagation(net).sequence(standing(10), LABELS)
    assert net.linears[1].weight.grad is None
    assert net.linears[0].weight.grad is not None
