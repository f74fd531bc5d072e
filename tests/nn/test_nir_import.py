"""Graphs of NIR that others wrote: gains, feedback in any form, any order, what is refused, damaged files."""

import math
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tbnn.nn import Leaky, Network, Recurrent
from tbnn.nn.nir import to_nir
from tbnn.nn.nir_import import from_nir
from tests.nn.nir_graphs import DT, euler, lif, of, spikes
from tests.nn.snntorch_nets import exact


def test_gains_move_into_the_threshold_or_behind_the_readout() -> None:
    """R = 1 as in a node by hand: v[t] = β·v[t−1] + (dt/τ)·I[t]."""
    current = (torch.randn(50, 2, 3) * 16).round() / 8
    for node in (lif(r=1.0, tau=8e-3), nir.IF(r=np.full(3, 125.0), v_threshold=np.ones(3))):
        layer = from_nir(of(node), dt=DT).layers[0]
        np.testing.assert_array_equal(layer.threshold.item(), 8)  # type: ignore[union-attr, operator]
        np.testing.assert_array_equal(layer(current)[0].numpy(), euler(node, current.numpy()))
    node = nir.LI(tau=np.array([2e-3, 4e-3, 8e-3]), r=np.full(3, 3.0), v_leak=np.zeros(3))
    got = from_nir(of(node), dt=DT)(current)[0].detach().numpy()
    np.testing.assert_allclose(got, euler(node, current.numpy()), rtol=1e-5, atol=1e-6)
    assert not [*from_nir(of(node), dt=DT).parameters()]


def test_threshold_alone_fires_where_its_input_is_above() -> None:
    x = torch.randn(4, 2, 3)
    theta = np.array([0.5, -0.5, 0.0])
    got = from_nir(of(nir.Threshold(theta)))(x)[0]
    assert torch.equal(got, (x > torch.from_numpy(theta)).float())


def test_the_time_step_is_the_graphs_own() -> None:
    graph = to_nir(Network([nn.Linear(2, 3), Leaky(0.75)]), dt=DT)
    assert from_nir(graph).layers[1].beta == 0.75  # type: ignore[union-attr]
    assert from_nir(graph, dt=DT / 2).layers[1].beta == 0.875  # type: ignore[union-attr]


def test_reset_is_nirs_unless_someone_says_otherwise() -> None:
    said = lif(metadata={"reset_mechanism": "subtract"})
    for node, options, want in (
        (lif(), {}, "zero"),
        (said, {}, "subtract"),
        (lif(), {"reset_mechanism": "subtract"}, "subtract"),
        (said, {"reset_mechanism": "zero"}, "zero"),
    ):
        assert from_nir(of(node), neuron=options).layers[0].reset_mechanism == want  # type: ignore[union-attr, arg-type]


@given(st.randoms(use_true_random=False), st.booleans())
def test_order_does_not_matter(random: Any, flat: bool) -> None:
    """Nodes and edges shuffled; feedback in a subgraph or as a cycle of the graph's own edges."""
    torch.manual_seed(3)
    feedback = Recurrent(Leaky(0.5, reset_mechanism="none"), nn.Linear(3, 3), delay=2)
    network = exact(Network([nn.Linear(3, 3), feedback, nn.Linear(3, 2), Leaky(0.5)]))
    graph = to_nir(network)  # type: ignore[arg-type]
    nodes, edges = graph.nodes, graph.edges
    if flat:
        inner = nodes.pop("layer_1")
        nodes |= {name: node for name, node in inner.nodes.items() if name not in ("input", "output")}
        edges = [edge for edge in edges if "layer_1" not in edge] + [("layer_0", "lif"), ("lif_threshold", "layer_2")]
        edges += [edge for edge in inner.edges if not {"input", "output"} & {*edge}]
    items = list(nodes.items())
    random.shuffle(items)
    random.shuffle(edges)
    back = from_nir(nir.NIRGraph(dict(items), edges, type_check=False))
    x = spikes(10, 2, 3)
    assert back.layers[1].delay == 2  # type: ignore[union-attr]
    assert torch.equal(back(x)[0], network(x)[0])


def test_a_neuron_that_hears_itself() -> None:
    graph = of(lif())
    graph.edges.append(("n0", "n0"))
    x = (torch.randn(20, 2, 3) * 8).round() / 8
    want = Recurrent(Leaky(0.5, reset_mechanism="zero"), nn.Identity())
    assert torch.equal(from_nir(graph)(x)[0], want(x)[0])


def test_flatten_in_parts() -> None:
    x = torch.randn(4, 2, 3, 4, 5)
    for first, last in ((0, 1), (1, -1), (1, 2), (-2, -1), (0, -1)):
        node = nir.Flatten({"input": np.array([3, 4, 5])}, first, last)
        want = x.flatten(first + 2 if first >= 0 else first, last + 2 if last >= 0 else last)
        assert torch.equal(from_nir(of(node, shape=(3, 4, 5)))(x)[0], want)


def affine(*shape: int) -> nir.Affine:
    return nir.Affine(np.ones(shape), np.ones(shape[0]))


def conv(**values: Any) -> nir.Conv2d:
    given = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "bias": np.zeros(2), **values}
    return nir.Conv2d(input_shape=(5, 5), weight=np.ones((2, 2, 3, 3)), **given)


class Other(nir.ir.NIRNode):
    """A node of a later NIR."""

    def __init__(self) -> None:
        self.input_type, self.output_type, self.metadata = {"input": None}, {"output": None}, {}


REFUSED = {
    r"n1 \(Other\): no counterpart in tbnn; expected one of Affine": (lif(), Other()),
    r"n0 \(LIF\): v_leak: expected 0": (lif(v_leak=0.5),),
    r"n0 \(LIF\): v_reset: expected 0": (lif(v_reset=-1.0),),
    r"n0 \(LIF\): tau: expected at least a step of 0.0001 s, got 5e-05": (lif(tau=5e-5),),
    r"n0 \(LIF\): tau: expected at least a step": (lif(tau=0.0),),
    r"n0 \(LIF\): tau: expected finite numbers": (lif(tau=math.nan),),
    r"n0 \(LIF\): r: expected an input gain > 0, got -1": (lif(r=-2.0),),
    r"n0 \(LIF\): metadata: expected reset_mechanism": (lif(metadata={"reset_mechanism": "softly"}),),
    r"n0 \(IF\): v_reset: expected 0": (nir.IF(np.ones(3), np.ones(3), np.ones(3)),),
    r"n0 \(CubaLI\): expected a Threshold after it": (nir.CubaLI(*(np.ones(3),) * 3, np.zeros(3)),),
    r"n0 \(Delay\): delay: expected multiples >= 0 of 0.0001 s": (nir.Delay(np.full(3, 1.5e-4)),),
    r"n0 \(Delay\): delay: expected multiples >= 0": (nir.Delay(np.full(3, -1e-4)),),
    r"n0 \(Delay\): delay: expected \(features": (nir.Delay(np.array(1e-4)),),
    r"n0 \(Affine\): weight: expected 2 axes": (nir.Affine(np.ones((2, 3, 3)), np.ones(3)),),
    r"n0 \(Affine\): weight: .*bias \(2,\)": (nir.Affine(np.ones((3, 3)), np.ones(2)),),
    r"n0 \(Affine\): weight: expected finite numbers": (nir.Affine(np.full((3, 3), np.inf), np.ones(3)),),
    r"n1 \(Affine\): does not take steps of \(4,\)": (affine(4, 3), affine(3, 3)),
    r"n0 \(Conv2d\): padding: 'same' needs a stride of 1|n0 \(Conv2d\): padding='same'": (
        conv(padding="same", stride=2),
    ),
    r"n0 \(Conv2d\): does not take steps of \(3,\)": (conv(),),
    r"expected at least one node": (),
}


@pytest.mark.parametrize("message", REFUSED)
def test_nodes_that_cannot_be_read(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_nir(of(*REFUSED[message]))


NAMED = {"a": affine(3, 3), "b": lif(), "c": affine(3, 3), "d": lif()}
CHAIN = [("input", "a"), ("a", "b"), ("b", "output")]
BRANCHED = {
    r"a \(Affine\): expected one edge out": [("input", "a"), ("a", "b"), ("a", "c"), ("b", "output"), ("c", "output")],
    r"input \(Input\): expected one edge out": [("input", "a"), ("input", "b"), ("a", "b"), ("b", "output")],
    r"a \(Affine\): expected one edge out .*no node": [("input", "a")],
    r"c \(Affine\): expected a node on the way": [*CHAIN, ("c", "d")],
    r"output \(Output\): expected one edge in": [*CHAIN, ("c", "output")],
    r"b \(LIF\): expected at most one edge of feedback": [*CHAIN, ("b", "c"), ("c", "b"), ("b", "d"), ("d", "b")],
    r"c \(Affine\): expected one edge in": [*CHAIN, ("b", "c"), ("c", "b"), ("d", "c")],
    r"a \(Affine\): expected one edge out|a \(Affine\): expected a chain": [("input", "a"), ("a", "b"), ("b", "a")],
    r"a \(Affine\): expected one spiking neuron": [*CHAIN, ("b", "c"), ("c", "a")],
    r"b \(LIF\): expected one spiking neuron": [*CHAIN, ("b", "d"), ("d", "b")],
    r"x: expected a node of the graph": [*CHAIN, ("b", "x")],
}  # fmt: skip


@pytest.mark.parametrize("message", BRANCHED)
def test_graphs_that_are_no_chains(message: str) -> None:
    nodes = {"input": nir.Input(np.array([3])), "output": nir.Output(np.array([3])), **NAMED}
    touched = {name for edge in BRANCHED[message] for name in edge} | {"input", "output"}
    kept = {name: node for name, node in nodes.items() if name in touched}
    with pytest.raises(ValueError, match=message):
        from_nir(nir.NIRGraph(kept, BRANCHED[message], type_check=False))


@pytest.mark.parametrize("dt", ["soon", [1], math.inf, -1.0])
def test_a_time_step_that_is_none(dt: Any) -> None:
    graph = of(lif())
    graph.metadata["dt"] = dt if dt != [1] else [[], [1]]
    with pytest.raises(ValueError, match=r"^dt: expected"):
        from_nir(graph)


def test_inputs_no_memory_holds() -> None:
    graph = of(nir.Scale(np.ones(1)), shape=(2**50, 2**12))
    with pytest.raises(ValueError, match=r"n0 \(Scale\): does not take steps of \(1125899906842624, 4096\)"):
        from_nir(graph)


def test_one_input_and_one_output() -> None:
    graph = of(lif())
    graph.nodes["more"] = nir.Input(np.array([3]))
    with pytest.raises(ValueError, match=r"graph: expected one Input node, got \['input', 'more'\]"):
        from_nir(graph)
    inner = to_nir(Network([Recurrent(Leaky(0.5), nn.Linear(3, 3))]), input_shape=[3])
    del inner.nodes["layer_0"].nodes["output"]
    inner.nodes["layer_0"].edges.pop(1)
    with pytest.raises(ValueError, match="layer_0: expected one Output node, got none"):
        from_nir(inner)


def test_damaged_files_say_which(tmp_path: Path) -> None:
    path = tmp_path / "network.nir"
    nir.write(path, to_nir(Network([nn.Linear(20, 30), Leaky(0.5)])))
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"network\.nir: expected a graph as nir.write leaves it"):
            from_nir(path)
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(ValueError, match=r"network\.nir: expected a graph"):
        from_nir(str(path))
    with pytest.raises(FileNotFoundError):
        from_nir(tmp_path / "none.nir")
    nir.write(path, lif())
    with pytest.raises(ValueError, match=r"network\.nir: expected"):
        from_nir(path)


@pytest.mark.parametrize("change", ["drop node", "drop field", "type", "edge", "shape"])
def test_files_with_parts_missing_or_wrong(tmp_path: Path, change: str) -> None:
    path = tmp_path / "network.nir"
    nir.write(path, to_nir(Network([nn.Linear(4, 3), Leaky(0.5)])))
    with h5py.File(path, "r+") as file:
        nodes = file["node/nodes"]
        if change == "drop node":
            del nodes["layer_0"]
        elif change == "drop field":
            del nodes["layer_1/tau"]
        elif change == "type":
            del nodes["layer_1/type"]
            nodes["layer_1"].create_dataset("type", data="Resonator")
        elif change == "edge":
            del file["node/edges"]
            file["node"].create_dataset("edges", data=[["input", "nowhere"]], dtype=h5py.string_dtype())
        else:
            del nodes["layer_0/weight"]
            nodes["layer_0"].create_dataset("weight", data=np.ones(12))
    with pytest.raises(ValueError, match=r"network\.nir: expected|expected a node of the graph"):
        from_nir(path)


@given(st.data())
def test_flipped_bytes_never_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped.nir"
    nir.write(path, to_nir(Network([nn.Linear(4, 3), Leaky(0.5)])))
    raw = bytearray(path.read_bytes())
    for _ in range(20):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        assert isinstance(from_nir(path), Network)
    except ValueError as error:
        assert str(error)  # noqa: PT017
