"""DEEP R: as many synapses as before, each with its sign, at other places."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tbnn.nn import BinaryConv2d, BinaryLinear, Dale, DeepR, Leaky, LeakyIntegrator, Network, rewire


def layer_of(wiring: Any = None, n: int = 40, m: int = 12, **options: Any) -> Any:
    return BinaryLinear(n, m, form="linear", wiring=wiring or DeepR(0.1), **options)


def trained(layer: Any, optimizer: Any, steps: int, seed: int = 0) -> list[int]:
    """How many synapses each step moved."""
    generator, counts = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        x = (torch.rand(30, 40, generator=generator) < 0.3).float()
        optimizer.zero_grad()
        (layer(x) - 3 * x[:, :12] + 2 * x[:, 20:32]).square().mean(0).sum().backward()
        optimizer.step()
        counts.append(rewire(layer, optimizer)[""])
    return counts


@pytest.mark.parametrize("scope", ["layer", "row"])
@pytest.mark.parametrize("options", [{}, {"l1": 0.5}, {"temperature": 0.05}])
@pytest.mark.parametrize("law", [(), (Dale(0.3),)])
def test_the_number_of_synapses_and_their_signs_stay(scope: str, options: dict[str, Any], law: tuple[Any]) -> None:
    layer = layer_of((*law, DeepR(0.1, scope=scope, **options)))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    start, signs = layer.mask.clone(), layer.signs.clone()
    if law:
        assert torch.equal(signs[0], law[0].neurons(40))
    for _ in range(12):
        before = layer.mask.clone()
        moved = trained(layer, optimizer, 1)[0]
        assert int(layer.mask.sum()) == 48
        assert scope == "layer" or set(layer.mask.sum(1).tolist()) == {4}
        assert int((layer.mask & ~before).sum()) <= moved
        assert torch.equal(layer.signs, signs)
        values = layer.codes().values
        assert torch.equal(values, layer.mask * signs)  # all that are active are present
    assert not torch.equal(layer.mask, start)


def test_it_learns_where_to_be() -> None:
    """Two inputs matter to each output: synapses that came anywhere gather there, and the loss falls."""
    layer = layer_of(DeepR(0.05))
    layer.signs[:, :12], layer.signs[:, 12:24] = 1, -1
    layer.reset_parameters()
    x, each = (torch.rand(400, 40) < 0.3).float(), torch.arange(12)
    y, optimizer, losses = 2 * x[:, :12] - 2 * x[:, 12:24], torch.optim.Adam(layer.parameters(), lr=0.03), []
    start = int((layer.mask[each, each] + layer.mask[each, each + 12]).sum())
    for _ in range(300):
        optimizer.zero_grad()
        loss = (layer(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        rewire(layer, optimizer)
        losses.append(loss.item())
    assert start <= 4
    assert int(layer.mask[each, each].sum() + layer.mask[each, each + 12].sum()) >= 12  # of 24, where chance has 1.2
    assert losses[-1] < 0.6 * losses[0]


def test_one_step_by_hand() -> None:
    """l1 takes lr·α of every active θ; who falls to 0 or below leaves; who comes starts at a share of the mean."""
    layer = layer_of(DeepR(0.1, l1=2.0, birth=0.25))
    theta = torch.linspace(0.01, 0.48, 48)  # 0.01 apart
    with torch.no_grad():
        layer.weight[layer.mask] = theta * layer.signs[layer.mask]
    before, optimizer = layer.mask.clone(), torch.optim.SGD(layer.parameters(), lr=0.05)
    assert rewire(layer, optimizer) == {"": 10}  # of 0.01 … 0.10, lr·α = 0.1
    after = (layer.weight * layer.signs).detach()
    stayed, mean = theta[theta > 0.1001] - 0.1, (theta[theta > 0.1001] - 0.1).mean()
    old = before & (after > 0)
    assert torch.allclose(after[layer.mask & before].sort().values[-38:], stayed, atol=1e-6)
    new = layer.mask & ((after - 0.25 * mean).abs() < 1e-6)
    assert int(new.sum()) >= 10
    assert int(layer.mask.sum()) == 48
    assert not layer.weight[~layer.mask].any()
    assert bool((after[old] > 0).all())
    assert int(layer.rewirings) == 1


def test_noise_has_the_size_of_the_temperature() -> None:
    layer = layer_of(DeepR(1.0, temperature=2.0), n=300, m=200)
    with torch.no_grad():
        layer.weight.copy_(100.0 * layer.signs)
    before = layer.weight.clone()
    assert rewire(layer, torch.optim.SGD(layer.parameters(), lr=0.25)) == {"": 0}
    change = (layer.weight - before).detach()
    assert change.std().item() == pytest.approx(1.0, rel=0.02)  # √(2·0.25·2)
    assert abs(change.mean().item()) < 0.02


def test_new_places_are_drawn_evenly() -> None:
    layer = layer_of(DeepR(0.25, seed=4), n=8, m=5)
    counts, optimizer = torch.zeros(5, 8), torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(600):
        layer.mask.zero_()
        layer.mask[:, :2] = True
        with torch.no_grad():
            layer.weight.copy_(-layer.signs.float())  # all fall
        rewire(layer, optimizer)
        counts += layer.mask
    assert counts.sum() == 6000
    assert (counts - 150).abs().max() < 5 * (600 * 0.25 * 0.75) ** 0.5


def test_averages_of_new_and_dormant_synapses_are_reset_and_others_kept() -> None:
    layer = layer_of(DeepR(0.1))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, amsgrad=True)
    trained(layer, optimizer, 3)
    layer.zero_grad()
    layer(torch.ones(2, 40)).sum().backward()
    optimizer.step()
    active, state = layer.mask.clone(), optimizer.state[layer.weight]
    before = {k: v.clone() for k, v in state.items()}
    assert before["exp_avg"][active].all()
    with torch.no_grad():  # a third falls
        fallen = active & (torch.rand(12, 40) < 0.33)
        layer.weight[fallen] *= -1
        layer.weight[active & ~fallen] = layer.signs[active & ~fallen].float()
    rewire(layer, optimizer)
    stayed = active & ~fallen
    for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        assert torch.equal(state[name][stayed], before[name][stayed])
        assert not state[name][~stayed].any()
    assert torch.equal(state["step"], before["step"])


def test_equal_seeds_move_equally_and_others_do_not() -> None:
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(0)
        layer = layer_of(DeepR(0.1, seed=seed, temperature=0.01))
        counts = trained(layer, torch.optim.Adam(layer.parameters(), lr=0.1), 10)
        runs.append((layer.state_dict(), counts))
    assert all(torch.equal(a, b) for a, b in zip(runs[0][0].values(), runs[1][0].values(), strict=True))
    assert runs[0][1] == runs[1][1]
    assert sum(runs[0][1]) > 0
    assert not torch.equal(runs[0][0]["mask"], runs[2][0]["mask"])


def test_a_run_goes_on_from_a_state_dict_as_if_it_had_not_stopped() -> None:
    layer = layer_of(DeepR(0.1, temperature=0.01))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    trained(layer, optimizer, 5)
    saved = copy.deepcopy((layer.state_dict(), optimizer.state_dict()))
    counts = trained(layer, optimizer, 5, seed=1)
    other = layer_of(DeepR(0.1, temperature=0.01))
    other_optimizer = torch.optim.Adam(other.parameters(), lr=0.1)
    other.load_state_dict(saved[0])
    other_optimizer.load_state_dict(saved[1])
    assert trained(other, other_optimizer, 5, seed=1) == counts
    assert sum(counts) > 0
    for name, value in layer.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_layers_of_a_network_by_name_and_by_a_hook() -> None:
    net = Network([
        BinaryConv2d(2, 3, 3, form="linear", wiring=DeepR(0.5)), Leaky(0.5), nn.Flatten(2),
        BinaryLinear(27, 4), Leaky(0.5), layer_of(DeepR(0.5), 4, 3), LeakyIntegrator(0.5),
    ], (2, 5, 5))  # fmt: skip
    optimizer, found = torch.optim.Adam(net.parameters(), lr=1.0), []
    optimizer.register_step_post_hook(lambda own, *_: found.append(rewire(net, own)))
    net((torch.rand(4, 2, 2, 5, 5) < 0.5).float())[0].square().sum().backward()
    optimizer.step()
    assert list(found[0]) == ["layers.0", "layers.5"]
    assert sum(found[0].values()) > 0
    assert int(net.layers[0].mask.sum()) == 3 * 9  # type: ignore[union-attr, operator]
    net.layers[5].freeze()  # type: ignore[operator]
    assert list(rewire(net, optimizer)) == ["layers.0"]


def test_an_optimizer_without_the_weights_is_refused() -> None:
    net = Network([layer_of()])
    with pytest.raises(ValueError, match=r"rewire: expected the optimizer to have the parameter 'layers.0.weight'"):
        rewire(net, torch.optim.SGD([net.layers[0].bias], lr=0.1))  # type: ignore[list-item]
    assert rewire(Network([BinaryLinear(3, 2)]), torch.optim.SGD([torch.ones(1)], lr=0.1)) == {}
