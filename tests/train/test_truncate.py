"""Truncated back-propagation and memory modes in the training loop."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tbnn.losses import cross_entropy
from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network
from tbnn.train import ModelConfig, OptimConfig, TrainConfig, load_run, train
from tbnn.train.step import piece_objective
from tbnn.train.work import evaluate_run


def test_states_go_on_and_gradients_do_not() -> None:
    """Of a loss on the second piece the first one's input hears nothing, but its spikes count."""
    network = Network([BinaryLinear(9, 16), Leaky(0.9), BinaryLinear(16, 4), LeakyIntegrator(0.9)], memory="minimal")
    x, labels = (torch.rand(8, 3, 9) < 0.5).float(), torch.tensor([0, 1, 3])
    whole = network(x)[0]
    first, readout, state = piece_objective(network, x[:5], labels, OptimConfig(), None)
    second, more, _ = piece_objective(network, x[5:], labels, OptimConfig(), tuple(_cut(s) for s in state))
    assert torch.equal(torch.cat([readout, more]), whole)
    assert torch.allclose(first, cross_entropy(whole[:5], labels))
    assert torch.allclose(second, cross_entropy(whole[5:], labels))
    second.backward()  # the first piece's graph stays whole
    first.backward()


def _cut(state: object) -> object:
    return None if state is None else state.detach()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("loss", ["tet", "cross_entropy"])
def test_it_learns_in_pieces(config: TrainConfig, loss: str) -> None:
    optim = replace(config.optim, epochs=20, truncate=4, loss=loss)  # 6 steps: a piece of 4 and one of 2
    run = load_run(train(replace(config, optim=optim), quiet=True))
    assert evaluate_run(run, "test").accuracy > 0.9


def test_one_piece_is_the_whole(config: TrainConfig, tmp_path: Path) -> None:
    runs = [
        train(
            replace(config, optim=replace(config.optim, truncate=steps), output=str(tmp_path / f"{steps}")), quiet=True
        )
        for steps in (None, 6, 100, 2)
    ]
    whole, same, more, pieces = (load_file(folder / "last.safetensors")["layers.0.weight"] for folder in runs)
    assert torch.equal(whole, same)
    assert torch.equal(whole, more)
    assert not torch.equal(whole, pieces)


@pytest.mark.parametrize("memory", ["minimal", 100_000])
def test_a_memory_mode_changes_no_number(config: TrainConfig, memory: str | int, tmp_path: Path) -> None:
    runs = [
        train(
            replace(config, model=ModelConfig(hidden=(16,), memory=mode), output=str(tmp_path / f"{mode}")), quiet=True
        )  # pyright: ignore[reportArgumentType]
        for mode in ("speed", memory)
    ]
    first, second = (load_file(folder / "last.safetensors")["layers.0.weight"] for folder in runs)
    assert torch.allclose(first, second, rtol=1e-3, atol=1e-4)
    assert load_run(runs[1]).config.model.memory == memory


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"truncate": 0}, "optim.truncate: expected a number >= 1, got 0"),
        ({"truncate": 5, "readout": "last"}, "optim.truncate: expected loss 'tet' or readout 'mean'"),
    ],
)
def test_losses_that_pieces_do_not_have_are_refused(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        OptimConfig(**settings)  # pyright: ignore[reportArgumentType]
    assert OptimConfig(truncate=5, readout="last", loss="tet").truncate == 5


def test_a_budget_below_a_byte_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.memory: expected a number >= 1, got 0"):
        ModelConfig(memory=0)
