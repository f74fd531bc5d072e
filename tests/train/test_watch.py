"""What the log says of an epoch beside its loss: signs that turned, agreement with the gradient."""

from pathlib import Path

import pytest
import torch

from tbnn.data import PackedFrames, make
from tbnn.learning import Eprop, LearningConfig
from tbnn.learning.alignment import alignment
from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network, calibrate
from tbnn.train.watch import LOOKED_AT, Watch


def network_of(inputs: int) -> Network:
    return Network([BinaryLinear(inputs, 20), Leaky(0.9), BinaryLinear(20, 10), LeakyIntegrator(0.9)])


def test_signs_that_turned_since_the_last_epoch() -> None:
    network = network_of(30)
    watch = Watch(network)
    assert watch.epoch() == {"flips/layers.0": 0.0, "flips/layers.2": 0.0, "flips/all": 0.0}
    network.layers[0].weight.data[3] *= -1
    assert watch.epoch() == {"flips/layers.0": 1 / 20, "flips/layers.2": 0.0, "flips/all": 30 / 800}
    assert watch.epoch()["flips/all"] == 0.0
    network.layers[2].weight.data *= -1
    assert watch.epoch() == {"flips/layers.0": 0.0, "flips/layers.2": 1.0, "flips/all": 200 / 800}


def test_a_network_of_real_weights_has_no_signs_to_turn() -> None:
    assert Watch(Network([torch.nn.Linear(3, 2), LeakyIntegrator(0.9)])).epoch() == {}


def test_agreement_is_that_of_the_validation_recordings(tmp_path: Path) -> None:
    frames = PackedFrames(make("digits_rows", cache=tmp_path), "validation")
    network = network_of(frames.info.bits)
    words = frames.words(LOOKED_AT).transpose(0, 1).contiguous()
    calibrate(network, words)
    rule = Eprop(network)
    found = Watch(network, (rule, frames)).epoch()
    expected = alignment(rule, words, torch.as_tensor(frames.labels[:LOOKED_AT]))
    for name in ("layers.0.weight", "layers.2.weight", "all"):
        assert found[f"cosine/{name}"] == expected[name].cosine
        assert found[f"norm_ratio/{name}"] == expected[name].ratio
    assert 0.5 < found["cosine/all"] <= 1
    assert not any("bias" in name for name in found)


def test_back_propagation_has_nothing_to_be_held_against() -> None:
    with pytest.raises(
        ValueError, match=r"learning\.alignment: belongs to decolle, dfa, eprop, fa, ostl, ottt, reward, rtrl"
    ):
        LearningConfig(alignment=True)
