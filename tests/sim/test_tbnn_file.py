"""The .tbnn file: what is written comes back, and nothing broken is ever trusted."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from safetensors import safe_open
from safetensors.torch import save_file
from sim_networks import Shape, rough, shapes, small_input, small_network
from torch import Tensor

from tbnn import files
from tbnn.nn import (
    BinaryConv2d,
    BinaryLinear,
    DelayedLinear,
    Flatten,
    Leaky,
    LeakyIntegrator,
    MaxPool2d,
    Network,
    Recurrent,
)
from tbnn.sim import PackedNetwork, file, pack
from tbnn.sim.file import all_tensors

Content = tuple[dict[str, Any], dict[str, Tensor]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of the small network."""
    pack(small_network(), provenance={"note": "a test"}).save(tmp_path / "small.tbnn")
    return tmp_path / "small.tbnn"


def content(path: Path) -> Content:
    """Header and tensors of a file."""
    with safe_open(path, framework="pt") as opened:
        return json.loads(opened.metadata()["tbnn"]), {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 (it has no iterator)


def assert_refused(path: Path, message: str = "") -> None:
    """One ValueError that names the file."""
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        PackedNetwork.load(path)
    assert re.search(message, str(caught.value)), caught.value


def assert_same_network(got: PackedNetwork, expected: PackedNetwork) -> None:
    assert [layer.spec for layer in got.layers] == [layer.spec for layer in expected.layers]
    assert (got.in_features, got.provenance) == (expected.in_features, expected.provenance)
    ours, theirs = all_tensors(got.layers), all_tensors(expected.layers)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours)


@settings(max_examples=25)
@given(shape=shapes(max_steps=3))
def test_what_is_saved_comes_back(tmp_path_factory: pytest.TempPathFactory, shape: Shape) -> None:
    packed = pack(rough(shape).network, provenance={"seed": shape.seed, "nested": {"a": [1, None, "ü"]}})
    path = tmp_path_factory.mktemp("saved") / "network.tbnn"
    packed.save(path)
    assert_same_network(PackedNetwork.load(str(path)), packed)


def test_a_loaded_network_gives_the_same_bits_and_outlives_its_file(path: Path) -> None:
    loaded = PackedNetwork.load(path)
    path.write_bytes(bytes(path.stat().st_size))
    path.unlink()
    got, expected = loaded.simulate(small_input()), pack(small_network()).simulate(small_input())
    assert torch.equal(got.readout, expected.readout)


def test_a_bias_of_the_first_step_survives(tmp_path: Path) -> None:
    neuron = Leaky(0.9, emit="denoised", per_channel=False)
    network = Network([BinaryLinear(7, 40), Recurrent(neuron, BinaryLinear(40, 40)), BinaryLinear(40, 2)])
    network(small_input())
    packed = pack(network)
    assert packed.layers[1].rest_bias is not None
    packed.save(tmp_path / "x.tbnn")
    assert_same_network(PackedNetwork.load(tmp_path / "x.tbnn"), packed)


def test_saving_replaces_a_file_and_leaves_nothing_beside_it(path: Path) -> None:
    packed = pack(Network([BinaryLinear(3, 2), LeakyIntegrator(0.5)]))
    packed.save(path)
    assert_same_network(PackedNetwork.load(path), packed)
    assert [p.name for p in path.parent.iterdir()] == ["small.tbnn"]


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file_and_nothing_beside_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(*((files.os, "fsync") if where == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="disk full"):
        pack(Network([BinaryLinear(3, 2)])).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["small.tbnn"]


def test_a_provenance_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    for value in (torch.ones(1), float("nan")):
        with pytest.raises(ValueError, match=r"x\.tbnn: provenance"):
            pack(small_network(), provenance={"value": value}).save(tmp_path / "x.tbnn")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "none.tbnn"))):
        PackedNetwork.load(tmp_path / "none.tbnn")
    assert_refused(tmp_path)


def test_cut_short_anywhere(path: Path) -> None:
    whole = path.read_bytes()
    for length in sorted({*range(0, len(whole), 97), *range(12), len(whole) - 1}):
        path.write_bytes(whole[:length])
        assert_refused(path)


def test_longer_than_it_says(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")
    assert_refused(path)


@pytest.mark.parametrize("mask", [0x01, 0x20, 0xFF])
def test_any_byte_changed(path: Path, mask: int) -> None:
    whole = path.read_bytes()
    expected = PackedNetwork.load(path)
    refused = 0
    for place in range(mask % 7, len(whole), 7):
        broken = bytearray(whole)
        broken[place] ^= mask
        path.write_bytes(bytes(broken))
        message = str(path)
        try:
            loaded = PackedNetwork.load(path)
        except ValueError as error:
            message = str(error)
            refused += 1
        else:  # safetensors' own table can be written in more than one way
            assert_same_network(loaded, expected)
        assert str(path) in message
    assert refused >= len(range(mask % 7, len(whole), 7)) - 1


def change_header(**changes: Any) -> Callable[[Content], None]:
    return lambda found: found[0].update(changes)


def change_layer(index: int, **changes: Any) -> Callable[[Content], None]:
    return lambda found: found[0]["layers"][index].update(changes)


def change_tensor(name: str, value: Any) -> Callable[[Content], None]:
    return lambda found: found[1].update({name: value})


def stray_bit(found: Content) -> None:
    found[1]["layers.0.planes"][0, 3, 0] |= 1 << 7


def not_finite(found: Content) -> None:
    found[1]["layers.0.scale"][3, 0] = torch.inf


LIES = {
    "newer": (change_header(version=4), r"expected version 2 to 3, got 4 \(a newer tbnn wrote it"),
    "older": (change_header(version=1), r"expected version 2 to 3, got 1$"),
    "a version that is no number": (change_header(version=True), "expected version 2 to 3, got True"),
    "format": (change_header(format="other"), "expected format 'tbnn'"),
    "an extra key": (change_header(extra=1), "expected the keys"),
    "a missing key": (lambda found: found[0].pop("provenance"), "expected the keys"),
    "input": (change_header(in_features=8), "layers.0: expected 8 inputs"),
    "input of another type": (change_header(in_features=7.0), "in_features: expected int"),
    "no layers": (change_header(layers=[]), r"that it does not name: \['layers.0.bias"),
    "layers of another type": (change_header(layers={}), "layers: expected list"),
    "a layer that is none": (change_header(layers=[3]), "expected a layer with a kind"),
    "a kind that is no text": (change_layer(0, kind=[1]), "expected a layer with a kind among"),
    "kind": (
        change_layer(0, kind="attention"),
        "expected a layer with a kind among linear, conv, delayed, pool, leaky, integrator",
    ),
    "a large input": (change_layer(0, in_features=10**6, block=10**6), "layers.0.planes: the header says"),
    "a large output": (change_layer(0, out_features=10**9), "layers.0.planes: the header says"),
    "a huge input": (change_layer(0, in_features=10**15, block=10**15), "in_features: expected at most 2147483647"),
    "blocks without end": (change_layer(0, in_features=10**30, block=32), "in_features: expected at most 2147483647"),
    "a huge output": (change_layer(0, out_features=2**62), "out_features: expected at most 2147483647"),
    "a huge product": (
        change_layer(0, in_features=2**31 - 1, block=2**31 - 1, out_features=2**31 - 1),
        "layers.0: words: expected at most 2147483647, got 144115188",
    ),
    "planes without end": (change_layer(0, bits=10**9), "bits: expected 1 to 8, got 1000000000"),
    "a size that is no number": (change_layer(0, in_features=float("nan")), "expected finite numbers, got NaN"),
    "an endless size": (change_layer(1, features=float("inf")), "expected finite numbers, got Infinity"),
    "a fraction": (change_layer(1, features=40.0), "features: expected"),
    "a delay without feedback": (change_layer(1, delay=2), "layers.1: a delay needs a feedback"),
    "an endless delay": (change_layer(3, delay=10**9), "layers.3: delay: expected at most 65536 steps, got 1000000000"),
    "a delay of 0": (change_layer(3, delay=0), "layers.3: delay: expected at least 1, got 0"),
    "endless rest": (change_layer(1, refractory=2**40), "expected refractory and winners of 0 to 2147483647"),
    "a smaller input": (change_layer(4, in_features=33), r"layers.4: expected 40 inputs|multiple of 32"),
    "a negative size": (change_layer(0, out_features=-40), "out_features: expected at least 1"),
    "a size that is true": (change_layer(5, beta_size=True), "beta_size: expected"),
    "a size as text": (change_layer(0, out_features="40"), "out_features: expected"),
    "a block": (change_layer(2, block=40), "layers.2.scale: the header says"),
    "no bias": (change_layer(0, bias=False), r"that it does not name: \['layers.0.bias'\]"),
    "a bias": (change_layer(2, bias=True), r"the file lacks: \['layers.2.bias'\]"),
    "reset": (change_layer(1, reset="soft"), "reset: expected one of"),
    "an unknown field": (change_layer(1, gain=2), "expected the fields"),
    "a name twice": (change_layer(1, name="layers.5"), "layers of different names"),
    "no feedback": (change_layer(3, feedback=None), r"that it does not name: \['layers.3.recurrent_layer"),
    "feedback of another type": (change_layer(3, feedback=[]), "linear: expected the fields"),
    "a missing tensor": (lambda found: found[1].pop("layers.5.beta"), r"the file lacks: \['layers.5.beta'\]"),
    "an extra tensor": (change_tensor("extra", torch.ones(1)), r"that it does not name: \['extra'\]"),
    "dtype": (
        change_tensor("layers.0.scale", torch.ones(40, 1).double()),
        "layers.0.scale: the header says torch.float32",
    ),
    "shape": (change_tensor("layers.0.scale", torch.ones(1, 40)), r"\(40, 1\), got torch.float32 \(1, 40\)"),
    "a stray bit": (stray_bit, "layers.0.planes: a padding bit"),
    "a scale that is not finite": (not_finite, "layers.0.scale: expected finite values, got inf"),
    "beta": (change_tensor("layers.5.beta", torch.tensor([1.5])), r"layers.5.beta: expected values in \[0, 1\]"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_file_that_lies_with_a_right_digest(path: Path, name: str) -> None:
    lie, message = LIES[name]
    found = content(path)
    lie(found)
    file.write(json.dumps(found[0]), found[1], path)
    assert_refused(path, message)


def test_a_file_of_version_2_is_read(path: Path) -> None:
    """It is one of version 3 that knows nothing of delayed feedback."""
    expected = PackedNetwork.load(path)
    header, tensors = content(path)
    header["version"] = 2
    for layer in header["layers"]:
        layer.pop("delay", None)
    file.write(json.dumps(header), tensors, path)
    assert_same_network(PackedNetwork.load(path), expected)
    header["version"] = 3
    file.write(json.dumps(header), tensors, path)
    assert_refused(path, "leaky: expected the fields .*delay")


def late_and_framed() -> PackedNetwork:
    """A delayed layer, and frames with margins and a feedback through a convolution."""
    torch.manual_seed(0)
    back = Recurrent(Leaky(0.5), BinaryConv2d(2, 2, 3, padding=1), delay=2)
    layers = [BinaryConv2d(1, 2, 3, padding=1), back, MaxPool2d(2), Flatten(), DelayedLinear(8, 3, 5)]
    return pack(Network(layers, (1, 4, 4)))


LATE_LIES = {
    "a delay beyond the longest": (change_layer(3, max_delay=4), r"layers\.4\.delay: expected 0\.\.4, got up to 5"),
    "fewer bits of delay": (change_layer(3, max_delay=3), r"layers\.4\.delay: the header says torch.int32 \(2, 3, 1\)"),
    "an endless delay": (change_layer(3, max_delay=10**9), "layers.4: max_delay: expected at most 65536 steps"),
    "a negative delay": (change_layer(3, max_delay=-1), "layers.4: max_delay: expected 0 or more, got -1"),
    "a kernel that is none": (change_layer(3, kernel=None), "linear: expected the fields"),
    "a stray delay": (
        lambda found: found[1]["layers.4.delay"].__setitem__((0, 0, 0), 1 << 9),
        r"layers\.4\.delay: a padding bit past the 8 inputs",
    ),
    "endless margins": (
        change_layer(0, margins=[10**9, 10**9, 1, 1]),
        "layers.0: out_features: expected at most 2147483647",
    ),
    "margins of another number": (change_layer(0, margins=[1, 1]), "conv: margins: expected"),
    "endless windows": (change_layer(0, window=[3, 10**30]), "layers.0: window: expected at most 2147483647"),
    "windows that take too much": (
        change_layer(2, window=[3, 3]),
        "layers.2: output: expected at least 1|layers.4: expected",
    ),
    "an endless frame": (change_layer(2, height=10**9, width=10**9), "layers.2: in_features: expected at most"),
    "a feedback of another kind": (change_layer(1, feedback={"kernel": 3}), "conv: expected the fields"),
    "another delay of the feedback": (change_layer(1, delay=0), "layers.1: delay: expected at least 1"),
}


@pytest.mark.parametrize("name", LATE_LIES)
def test_a_file_that_lies_about_delays_and_frames(tmp_path: Path, name: str) -> None:
    path = tmp_path / "late.tbnn"
    late_and_framed().save(path)
    assert_same_network(PackedNetwork.load(path), late_and_framed())
    lie, message = LATE_LIES[name]
    found = content(path)
    lie(found)
    file.write(json.dumps(found[0]), found[1], path)
    assert_refused(path, message)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside a JSON object."""
    if path:
        yield path
    inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inside:
        yield from places(value, (*path, key))


ODD = (0, -1, 3, 2**31, 10**30, -(10**30), 0.5, True, None, "a", [], [1, 2], {}, {"kernel": 1}, {"connections": [1]})


@pytest.mark.parametrize("which", ["late", "small"])
def test_any_value_of_the_header_changed(tmp_path: Path, which: str) -> None:
    """Refused with the file's name, or another network; never another error."""
    path = tmp_path / "x.tbnn"
    (late_and_framed() if which == "late" else pack(small_network())).save(path)
    header, tensors = content(path)
    ways = places({key: value for key, value in header.items() if key != "provenance"})
    for index, (*way, last) in enumerate(ways):
        for value in ODD[index % 4 :: 4]:
            changed = json.loads(json.dumps(header))
            node = changed
            for key in way:
                node = node[key]
            node[last] = value
            file.write(json.dumps(changed), tensors, path)
            message = str(path)
            try:
                PackedNetwork.load(path)
            except ValueError as error:
                message = str(error)
            assert str(path) in message


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"format": "tbnn"}'])
def test_a_header_that_is_none(path: Path, text: str) -> None:
    file.write(text, content(path)[1], path)
    assert_refused(path)


def test_an_unchanged_rewrite_is_accepted(path: Path) -> None:
    expected = PackedNetwork.load(path)
    header, tensors = content(path)
    file.write(json.dumps(header), tensors, path)
    assert_same_network(PackedNetwork.load(path), expected)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_foreign_safetensors_file(path: Path, metadata: dict[str, str] | None) -> None:
    save_file(content(path)[1], path, metadata)
    assert_refused(path, "without the metadata 'tbnn': another program wrote it")


@pytest.mark.parametrize("data", [b"\x80\x04", b"PK\x03\x04" + bytes(60), b"\xff" * 64, b"tbnn" * 40])
def test_a_file_that_is_no_safetensors_file(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    assert_refused(path)
