"""The benchmark of training runs, in tiny; its gate finds a wrong side, its meter what is kept."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest_plugins = ["tests.speed_modules"]
PARTS = ("LIFC", "ON", "REC", "E2E", "GROWTH", "MEM")
LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")


@LINUX
def test_the_whole_suite_in_tiny(speed: Any, tmp_path: Path) -> None:
    training, settings = speed("training").SUITE, speed("suite").Settings(threads=1, tiny=True)
    path = training.measure(settings, None, tmp_path)
    found = json.loads(path.read_text())
    assert path.name == "training.cpu.1.json"
    assert tuple(found["parts"]) == PARTS
    assert {row["part"] for row in found["rows"]} >= {"LIFC", "ON", "REC", "E2E"}
    for row in found["rows"]:
        assert 0 < row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
        assert row["shape"].endswith("1 thread")
        assert ("aim" in row) >= (row["part"] == "E2E")
    parts, modes = found["parts"], speed("train_sides").modes()
    assert all(gate["gradient_error"] < 1e-3 for part in parts.values() for gate in part["gate"])
    assert [sweep["grows"] for sweep in parts["GROWTH"]["sweeps"]] == ["T", "B", "N"]
    assert [sweep["side"] for sweep in parts["MEM"]["sweeps"]] == ["snntorch", *modes]
    for sweep in parts["MEM"]["sweeps"]:
        assert [point["steps"] for point in sweep["points"]] == [30, 60]
        assert sweep["points"][1]["saved_bytes"] > sweep["points"][0]["saved_bytes"] > 0
    assert parts["MEM"]["long"][modes[-1]]["held_at_most"] > 0
    assert parts["LIFC"]["bandwidth"][0]["bytes"] == 2400 * 20.25
    for part, claims in (("LIFC", 1), ("GROWTH", 3), ("MEM", 4)):
        assert len(parts[part]["claims"]) == claims
    assert training.draw(tmp_path).read_bytes().startswith(b"\x89PNG")


def test_every_shape_has_its_aims(speed: Any) -> None:
    lifc, train = speed("shapes_lifc"), speed("shapes_train")
    assert list(lifc.AIMS.items()) == [((500, 16, 512), 80), ((100, 128, 1024), 30)]
    assert set(lifc.SHAPES) == set(lifc.AIMS)
    assert {size for size, _ in train.ON_AIMS} == set(train.NEURONS)
    assert set(train.REC_AIMS) == set(train.BATCHES)


def altered(side: Any, spikes: Any = None, gradients: Any = None) -> Any:
    """The side with other spikes or gradients."""

    def run() -> Any:
        out = side()
        spiked = spikes(out.spikes) if spikes else out.spikes
        return out._replace(spikes=spiked, gradients=tuple(map(gradients, out.gradients)) if gradients else out[1])

    return run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spikes": lambda s: s.roll(1, 0)}, "spikes differ"),
        ({"spikes": torch.zeros_like}, "spikes differ"),
        ({"gradients": lambda g: 1.01 * g}, "gradients differ"),
        ({"gradients": lambda g: g * torch.nan}, "gradients differ"),
        ({"gradients": torch.zeros_like}, "gradients differ"),
    ],
)
def test_the_gate_finds_a_wrong_side(speed: Any, change: dict[str, Any], message: str) -> None:
    lifc, train, suite = speed("shapes_lifc"), speed("shapes_train"), speed("suite")
    part = suite.Part(facts={"gate": [], "firing_rates": []})
    sides = lifc.sides(0.5 * torch.randn(20, 3, 40))
    lifc.gate("right", sides, part)
    assert [found["different"] for found in part.facts["gate"]] == [0, 0]
    for name in (lifc.OURS, lifc.INDEXED, lifc.UNBOUND):
        with pytest.raises(SystemExit, match=f"wrong: .*{message}"):
            lifc.gate("wrong", {**sides, name: altered(sides[name], **change)}, part)
    network, sides = train.on_sides(64, speed("train_sides").spikes_in(20, 3, 64, 0.2))
    train.gate_on("right", network, sides, part)
    broken = {**sides, train.SNNTORCH: altered(sides[train.SNNTORCH], **change)}
    with pytest.raises(SystemExit, match=f"wrong, tbnn.*: .*{message}"):
        train.gate_on("wrong", network, broken, part)


def test_the_gate_finds_another_rate_and_another_target(speed: Any) -> None:
    lifc, part = speed("shapes_lifc"), speed("suite").Part(facts={"gate": [], "firing_rates": []})
    sides = lifc.sides(0.5 * torch.randn(20, 3, 40))
    more = altered(sides[lifc.OURS], torch.ones_like)
    with pytest.raises(SystemExit, match=r"wrong: SpikingJelly, fp32 fires at 1\.0000"):
        lifc.gate("wrong", {**sides, lifc.SPIKINGJELLY: more}, part)
    for name in lifc.TARGETS:
        with pytest.raises(SystemExit, match=f"wrong: {name} spikes otherwise"):
            lifc.gate("wrong", {**sides, name: more}, part)


@pytest.mark.parametrize(("factor", "message"), [(1.5, "spikes differ"), (1.0, None)])
def test_the_gate_of_networks(speed: Any, monkeypatch: pytest.MonkeyPatch, factor: float, message: str | None) -> None:
    sides, layers = speed("train_sides"), speed("shapes_train").recurrent_layers(20, 40, 5)
    network, x = sides.network_of(layers), sides.spikes_in(30, 3, 20, 0.1)
    original = sides.in_snntorch

    def scaled(network: Any) -> Any:
        exported = original(network)
        with torch.no_grad():
            exported.layers[0].weight.mul_(factor)
        return exported

    monkeypatch.setattr(sides, "in_snntorch", scaled)
    if message is None:
        assert sides.check_networks("right", network, x, 2)["different"] == 0
    else:
        with pytest.raises(SystemExit, match=f"wrong: .*{message}"):
            sides.check_networks("wrong", network, x, 2)


def test_a_silent_side_is_no_comparison(speed: Any) -> None:
    nothing, one = torch.zeros(3, 4), torch.ones(3, 4)
    with pytest.raises(SystemExit, match="nothing to compare: 0 spikes of 12"):
        speed("train_sides").check("silent", nothing, nothing, [(one, one)], "theirs")


def test_weights_are_powers_of_two_and_their_own_quantisation(speed: Any) -> None:
    layer = speed("train_sides").binary(100, 30, 0.2)
    assert torch.equal(layer.quantized_weight(), layer.weight)
    assert layer.weight.abs().unique().log2().tolist() == [-3]  # 0.4/√20 = 0.089 lies nearer to 1/8 than to 1/16


def test_the_memory_argument_is_optional(speed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = speed("train_sides")

    class Old:
        def __init__(self, layers: Any) -> None:
            self.memory = None

    class New:
        def __init__(self, layers: Any, memory: str = "speed") -> None:
            self.memory = memory

    for kind, expected in ((Old, {"speed": None}), (New, {mode: mode for mode in ("speed", "balanced", "minimal")})):
        monkeypatch.setattr(sides, "Network", kind)
        assert {mode: sides.network_of([], mode).memory for mode in sides.modes()} == expected


class Squares(nn.Module):
    """Keeps one tensor of x's size for backward, and one more where autograd does not see it."""

    def __init__(self, hide: bool) -> None:
        super().__init__()
        self.w, self.hide = nn.Parameter(torch.ones(1)), hide

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        h = x * self.w
        out = h * h
        if self.hide:
            self.hidden = h + 1
        return out, None


@LINUX
@pytest.mark.parametrize("hide", [False, True])
def test_what_is_kept_is_measured(speed: Any, hide: bool) -> None:
    x = torch.ones(1000, 16, 512)
    found, size = speed("train_memory").one_step(Squares(hide), x), x.nbytes
    assert found["saved_bytes"] == size
    assert found["grown_bytes"] == pytest.approx((1 + hide) * size, rel=0.2)
    assert found["held_at_most"] > found["peak_bytes"] >= 0.95 * max(2, 1 + hide) * size


def test_a_process_that_fails_is_told(
    speed: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = speed("train_memory")
    monkeypatch.setattr(memory.sys, "executable", "false")
    assert memory._in_a_process("speed", 1, 1, 1) == []
    assert memory._in_a_process("recurrent", "speed", 1, 1, 1) == {}
    assert "MEM speed 1 1 1: failed with 1" in capsys.readouterr().out


def test_claims(speed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    claim = speed("suite").claim
    assert claim("bits", 1.25, high=1.5) == {"what": "bits", "value": 1.25, "aim": "<= 1.5", "met": True}
    assert not claim("exponent", 1.2, 0.9, 1.1)["met"]
    assert not claim("share", float("nan"), low=0.7)["met"]
    assert capsys.readouterr().out.splitlines() == [
        "bits: 1.25; aim <= 1.5: met",
        "exponent: 1.2; aim >= 0.9 and <= 1.1: missed",
        "share: nan; aim >= 0.7: missed",
    ]
