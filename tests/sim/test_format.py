"""docs/format.md tells enough to write a reader: one in NumPy, and its spikes and readouts are the library's."""

import re
import tempfile
from pathlib import Path

import numpy as np
import numpy_reader
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_networks import small_input, small_network
from test_everything_packs import Case, conv_networks, flat_networks, residual_networks
from test_late_and_pooled import late_networks, pooled_networks

from tbnn.nn import AvgPool2d, BinaryConv2d, DelayedLinear, Flatten, Network
from tbnn.sim import pack
from tbnn.sim.file import SPECS, VERSION

TEXT = (Path(__file__).parents[2] / "docs/format.md").read_text()


EXACT = [
    kind(dyadic=True) for kind in (flat_networks, conv_networks, residual_networks, late_networks, pooled_networks)
]


@settings(deadline=None, max_examples=80, derandomize=True)
@given(case=st.one_of(EXACT))
def test_exact_networks_read_in_numpy_give_the_same_readout(case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tbnn"
        packed = pack(case.network)
        packed.save(path)
        got = numpy_reader.simulate(path, case.x.flatten(2).numpy())
    np.testing.assert_array_equal(got, packed.simulate(case.x).readout.numpy())


@settings(deadline=None, max_examples=40, derandomize=True)
@given(case=st.one_of(flat_networks(dyadic=False), conv_networks(dyadic=False)))
def test_weights_of_every_grid_are_read(case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tbnn"
        packed = pack(case.network)
        packed.save(path)
        _, tensors = numpy_reader.read(path)
        for layer in packed.linear_layers:
            spec = {**vars(layer.spec)}
            linear = numpy_reader.Linear(spec, tensors)
            np.testing.assert_array_equal(linear.values, layer.values().numpy())


def test_a_network_with_feedback_and_blocks(tmp_path: Path) -> None:
    packed = pack(small_network())
    packed.save(tmp_path / "a.tbnn")
    got = numpy_reader.simulate(tmp_path / "a.tbnn", small_input().numpy())
    np.testing.assert_allclose(got, packed.simulate(small_input()).readout.numpy(), rtol=1e-5, atol=1e-6)


def test_delays_feedback_and_windows_of_rounded_weights(tmp_path: Path) -> None:
    """Offsets, blocks and several bits of each, currents before any threshold."""
    torch.manual_seed(0)
    x = (torch.rand(12, 3, 2, 8, 8) < 0.4).float()
    for layers in (
        [Flatten(), DelayedLinear(128, 9, 6, bits=3, block=32)],
        [AvgPool2d(2), BinaryConv2d(2, 4, 3, padding=1, bits=2)],
    ):
        packed = pack(Network(layers, (2, 8, 8)))
        packed.save(tmp_path / "a.tbnn")
        got = numpy_reader.simulate(tmp_path / "a.tbnn", x.flatten(2).numpy())
        np.testing.assert_array_equal(got, packed.simulate(x).readout.numpy())


def test_the_document_names_every_kind_field_and_the_version() -> None:
    assert f"version {VERSION}" in TEXT
    assert f'"version": {VERSION}' in TEXT
    for kind, spec in SPECS.items():
        section = re.search(rf"\*\*`{kind}`\*\*:(.*?)(?=\n\*\*`|\Z)", TEXT, re.S)
        assert section is not None, kind
        for field in spec.__dataclass_fields__:
            assert field in ("name", "kind") or f"`{field}`" in section[1], f"{kind}.{field}"
    assert len((Path(__file__).parent / "numpy_reader.py").read_text().splitlines()) <= 240
