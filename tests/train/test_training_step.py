"""What a training step is made of: bits in, weights quantised once, AdamW in one pass; and what stops it."""

import copy
import math
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode

from tbnn.bits import pack_bits
from tbnn.cli import main
from tbnn.data import PackedFrames
from tbnn.learning import match_scale
from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network
from tbnn.nn.weights import BinaryWeight
from tbnn.train import Diverged, ModelConfig, OptimConfig, TrainConfig, step, train
from tbnn.train.batches import EpochOrder, packed_file, train_loader
from tbnn.train.build import build_network
from tbnn.train.log import read_metrics
from tbnn.train.step import matched


class Calls(TorchDispatchMode):
    """How often each operator is called inside the ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Counter[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[function._schema.name] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("recurrent", [False, True])
def test_bits_go_in_and_weights_are_quantised_once(config: TrainConfig, recurrent: bool) -> None:
    frames = PackedFrames(packed_file(config.data), "train")
    words, labels = next(iter(train_loader(frames, EpochOrder(len(frames), 0), 8)))
    assert words.dtype == torch.int32
    assert words.shape == (6, 8, math.ceil(24 / 32))
    net = build_network(ModelConfig(hidden=(16, 16), recurrent=recurrent), frames.info.sensor, 2)
    layers = sum(isinstance(module, BinaryWeight) for module in net.modules())
    with Calls() as calls:
        step.objective(net, words, labels, OptimConfig())[0].backward()
    assert layers == (5 if recurrent else 3)
    assert calls.count["tbnn::quantize"] == calls.count["tbnn::quantize_backward"] == layers


def test_the_optimizer_is_adamw_in_one_pass() -> None:
    net = build_network(ModelConfig(hidden=(16,)), (2, 3, 4), 2)
    twin = copy.deepcopy(net)
    fused = step.optimizer_of(net, OptimConfig(learning_rate=0.01, weight_decay=0.1))
    plain = AdamW(twin.parameters(), lr=0.01, weight_decay=0.1, fused=False)
    for _ in range(3):
        for a, b in zip(net.parameters(), twin.parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        with Calls() as calls:
            fused.step()
        plain.step()
    assert calls.count["aten::_fused_adamw_"] == 1
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.fixture
def _spoilt_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second call on, the loss is finite and its gradient is not; the first call compiles."""
    real, calls = step.cross_entropy, []

    def spoilt(readout: Tensor, *arguments: Any) -> Tensor:
        calls.append(0)
        loss = real(readout, *arguments)
        return loss if len(calls) < 3 else loss + (readout[4, 0, 0] - readout[4, 0, 0].detach()).abs().sqrt()

    monkeypatch.setattr(step, "cross_entropy", spoilt)


@pytest.mark.usefixtures("_spoilt_gradient")
def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(config: TrainConfig) -> None:
    message = "the norm of the gradient is nan in epoch 1, step 2; .* --optim.detect_nonfinite true names the layer"
    with pytest.raises(Diverged, match=message):
        train(config, quiet=True)


@pytest.mark.usefixtures("_spoilt_gradient")
def test_on_request_the_layer_is_named(config: TrainConfig) -> None:
    config = replace(config, optim=replace(config.optim, detect_nonfinite=True))
    message = (
        f"{config.output}: epoch 1, step 2: the loss, backward: 1 of 96 of the gradients of the output of "
        "layers.3 (LeakyIntegrator) are not finite, the latest at step 4"
    )
    with pytest.raises(FloatingPointError, match=f"^{re.escape(message)}$"):
        train(config, quiet=True)


@pytest.mark.usefixtures("_spoilt_gradient")
@pytest.mark.parametrize(("asked", "code"), [("true", 2), ("false", 1)])
def test_the_command_ends_in_one_line(
    config: TrainConfig, asked: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    data = config.data
    assert code == main([
        "train", "--data.dataset", data.dataset, "--data.source", str(data.source), "--data.cache", str(data.cache),
        "--model.hidden", "[16]", "--optim.batch_size", "8", "--output", config.output, "--device", "cpu",
        "--optim.detect_nonfinite", asked,
    ])  # fmt: skip
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("tbnn: error: " if code == 2 else "tbnn: ")
    assert "epoch 1, step 2" in error
    assert "Traceback" not in error


def test_watching_changes_no_number(config: TrainConfig, tmp_path: Any) -> None:
    optim = replace(config.optim, epochs=2)
    folders = [
        train(
            replace(config, optim=replace(optim, detect_nonfinite=watch), output=str(tmp_path / str(watch))), quiet=True
        )
        for watch in (False, True)
    ]
    rows = [[row["train_loss"] for row in read_metrics(folder)] for folder in folders]
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)


def test_surrogates_are_matched_before_an_epoch_if_asked() -> None:
    network = Network([BinaryLinear(6, 5), Leaky(0.9, gradient="surrogate"), BinaryLinear(5, 2), LeakyIntegrator(0.9)])
    words = pack_bits((torch.rand(20, 4, 6) < 0.5).float())
    matched(network, words, ModelConfig(gradient="surrogate"))
    assert network.layers[1].spike_gradient.scale == 1.0
    matched(network, words, ModelConfig(gradient="surrogate", match_scale=True, scale=2.0, spike_lam=0.5))
    twice = network.layers[1].spike_gradient.scale
    assert twice == match_scale(network, words, lam=0.5, factor=2.0)["layers.1"] != 1.0
