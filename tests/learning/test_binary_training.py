"""Networks that learn with binary weights: they stay so, pack, resume, follow schedules; and what that costs a synapse."""

import copy
import io
import math
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import SGD, AdamW, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR

from tbnn.bits import pack_bits
from tbnn.learning import LearningConfig
from tbnn.learning.binary import KINDS, BinaryOptimizer, bits_per_synapse, is_binary, optimizer_for
from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network, Recurrent
from tbnn.sim import check_parity, pack
from tbnn.train.config import OptimConfig
from tbnn.train.step import learner, schedule_of

LIVELY: dict[str, dict[str, Any]] = {  # options at which a few steps flip some weights
    "bop": {"gamma": 0.3, "threshold": 1e-3},
    "bop2": {"gamma": 0.3, "sigma": 0.1, "threshold": 0.3},
    "metaplastic": {"rate": 0.05},
    "states": {"depth": 1, "rate": 0.2},
}


def network(seed: int = 0, **options: Any) -> Network:
    torch.manual_seed(seed)
    return Network(
        [
            BinaryLinear(33, 24, **options),
            Recurrent(Leaky(0.9, learn_threshold=True), BinaryLinear(24, 24, **options)),
            BinaryLinear(24, 5, **options),
            LeakyIntegrator(0.9),
        ]
    )


X = (torch.rand(6, 9, 33, generator=torch.Generator().manual_seed(1)) < 0.3).float()
LABELS = torch.arange(9) % 5


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, schedule: Any = None) -> list[float]:
    """Losses of some steps of the usual loop."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(X)[0].mean(0), LABELS)
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        losses.append(loss.item())
    return losses


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("form", ["linear", "affine"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_stay_binary_learn_and_pack(kind: str, form: str) -> None:
    model = network(form=form, estimator="ste")
    optimizer = optimizer_for(model, kind, lr=1e-2, **LIVELY[kind])
    assert is_binary(model)
    before = parameters(model)
    losses = learn(model, optimizer, 15)
    assert is_binary(model)
    after = parameters(model)
    for name, was in before.items():
        assert not torch.equal(was, after[name]), name
        if name.endswith(".weight"):
            assert torch.equal(was.abs(), after[name].abs()), name
    assert min(losses[-5:]) < losses[0]
    assert check_parity(model, pack(model), pack_bits(X)).ok


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumed_from_its_states_goes_on_the_same(kind: str) -> None:
    model = network(estimator="ste")
    optimizer = optimizer_for(model, kind, **LIVELY[kind])
    learn(model, optimizer, 4)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = network(seed=5, estimator="ste")
    resumed = optimizer_for(other, kind, **LIVELY[kind])
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    kept = [t for state in resumed.flips.state.values() for t in state.values() if isinstance(t, Tensor)]
    assert {t.dtype for t in kept} == {torch.int8 if kind == "states" else torch.float32}
    assert learn(other, resumed, 4) == learn(model, optimizer, 4)
    for name, p in parameters(model).items():
        assert torch.equal(parameters(other)[name], p), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_moves_both_parts_also_after_loading(kind: str) -> None:
    model = network(estimator="ste")
    optimizer = optimizer_for(model, kind, lr=0.02, **LIVELY[kind])
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    schedule = CosineAnnealingLR(optimizer, T_max=4)
    learn(model, optimizer, 3, schedule)
    assert optimizer.rest is not None
    for group in (*optimizer.flips.param_groups, *optimizer.rest.param_groups):
        assert math.isclose(group["lr"], 0.02 * (1 + math.cos(math.pi * 3 / 4)) / 2, rel_tol=1e-6)
    learn(model, optimizer, 1, schedule)
    before = parameters(model)
    learn(model, optimizer, 1)  # at a rate of 0 nothing moves
    for name, p in parameters(model).items():
        assert torch.equal(before[name], p), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_training_loops_own_step_and_schedule(kind: str) -> None:
    optim = OptimConfig(learning_rate=0.02, epochs=1, schedule="one_cycle")
    model = network(estimator="ste")
    optimizer = optimizer_for(model, kind, lr=optim.learning_rate, **LIVELY[kind])
    schedule = schedule_of(optimizer, optim, 10)
    ready, prepared, stepped = Accelerator(cpu=True).prepare(model, optimizer, schedule)
    strengths = []
    for _ in range(9):
        (group,) = optimizer.flips.param_groups
        strengths.append(group["lr"] / group["lr_unit"])
        prepared.zero_grad()
        learner(ready, optim, LearningConfig()).sequence(X, LABELS)
        prepared.step()
        stepped.step()
    assert is_binary(model)
    assert math.isclose(strengths[0], 1 / 25)
    assert math.isclose(max(strengths), 1)
    assert strengths[-1] < 0.2


def test_which_parameters_go_where() -> None:
    model = nn.ModuleList([network(), nn.Linear(5, 3), nn.BatchNorm1d(3)])
    model[1].bias.requires_grad_(False)
    optimizer = optimizer_for(model, "bop", weight_decay=0.1)
    flipped = {id(p) for group in optimizer.flips.param_groups for p in group["params"]}
    assert optimizer.rest is not None
    rest = {id(p) for group in optimizer.rest.param_groups for p in group["params"]}
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[i] for i in flipped} == {f"0.layers.{n}.weight" for n in ("0", "1.recurrent_layer", "2")}
    assert {names[i] for i in rest} == set(names.values()) - {names[i] for i in flipped} - {"1.bias"}
    assert len(optimizer.param_groups) == 2
    alone = BinaryLinear(8, 4, bias=False)
    learned = optimizer_for(alone, "bop", threshold=0.0)
    assert learned.rest is None
    before = alone.weight.detach().clone()
    alone(torch.ones(2, 8)).sum().backward()
    learned.step()
    learned.load_state_dict(learned.state_dict())
    assert torch.equal(alone.weight == before, before < 0)


def test_the_metaplastic_rule_starts_from_the_latent_weights() -> None:
    layer = BinaryLinear(8, 4)
    latent = layer.weight.detach().clone()
    optimizer = optimizer_for(layer, "metaplastic", start=0.2)
    hidden = optimizer.flips.state[layer.weight]["hidden"]
    torch.testing.assert_close(hidden, 0.2 * latent / latent.abs().mean(1, keepdim=True))
    again = optimizer_for(layer, "metaplastic", start=0.2)
    torch.testing.assert_close(again.flips.state[layer.weight]["hidden"], 0.2 * latent.sign())


def test_bits_per_synapse() -> None:
    expected = {"bop": 33, "bop2": 65, "metaplastic": 96, "states": 2}
    for kind, bits in expected.items():
        assert bits_per_synapse(optimizer_for(network(), kind, **LIVELY[kind])) == bits
    assert bits_per_synapse(optimizer_for(network(), "metaplastic", update="sgd")) == 32
    assert bits_per_synapse(optimizer_for(network(), "metaplastic", update="sgd", momentum=0.9)) == 64
    assert bits_per_synapse(optimizer_for(network(), "states", depth=0)) == 1
    assert bits_per_synapse(optimizer_for(network(), "states", depth=9)) == math.log2(20)
    weights = network().parameters()
    assert bits_per_synapse(AdamW(weights)) == 96
    assert bits_per_synapse(AdamW(network().parameters(), amsgrad=True)) == 128
    assert bits_per_synapse(SGD(network().parameters(), momentum=0.9)) == 64
    assert bits_per_synapse(SGD(network().double().parameters())) == 64
    with pytest.raises(ValueError, match="got RMSprop"):
        bits_per_synapse(RMSprop(network().parameters()))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_of_a_synapse_is_what_is_said(kind: str) -> None:
    layer = BinaryLinear(8, 4, bias=False)
    optimizer = optimizer_for(layer, kind, **LIVELY[kind])
    kept = [t for t in optimizer.flips.state[layer.weight].values() if isinstance(t, Tensor) and t.shape == (4, 8)]
    bits = sum(8 * t.element_size() for t in kept)
    assert bits_per_synapse(optimizer) <= bits + 1
    assert kind == "states" or bits_per_synapse(optimizer) >= bits


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="kind: expected one of bop, bop2, metaplastic, states, got 'adam'"):
        optimizer_for(network(), "adam")
    with pytest.raises(ValueError, match="bop: expected options gamma, threshold, got rate"):
        optimizer_for(network(), "bop", rate=0.1)
    with pytest.raises(ValueError, match=r"layers\.0\.sparsity"):
        optimizer_for(network(sparsity=0.5))
    bop, states = optimizer_for(network(), "bop"), optimizer_for(network(), "states")
    with pytest.raises(ValueError, match="expected a state of kind 'bop', got 'states'"):
        bop.load_state_dict(states.state_dict())
    with pytest.raises(ValueError, match="expected the same real parameters"):
        bop.load_state_dict(bop.state_dict() | {"rest": None})
    with pytest.raises(ValueError, match=r"added to \.flips or \.rest"):
        bop.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    assert isinstance(bop, BinaryOptimizer)
