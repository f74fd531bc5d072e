"""NIR between tbnn and snntorch, and to norse: what arrives with equal spikes, and what their bridges lose."""

import contextlib
import io
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import nir
import numpy as np
import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from tbnn.nn import AvgPool2d, Delay, Flatten, Leaky, LeakyIntegrator, Network, Recurrent, Synaptic
from tbnn.nn.nir import to_nir
from tbnn.nn.nir_import import from_nir
from tests.nn.nir_graphs import spikes
from tests.nn.snntorch_nets import exact

pytest.importorskip("nirtorch")

ZERO: Any = {"reset_mechanism": "zero"}


def loop(module: Callable[..., Any], x: Tensor) -> Tensor:
    """A module of nirtorch, step by step."""
    out, state = [], None
    for x_t in x:
        y, state = module(x_t, state)
        out.append(y)
    return torch.stack(out).detach()


def in_snntorch(network: Any) -> Any:
    from snntorch.import_nir import import_from_nir

    with contextlib.redirect_stdout(io.StringIO()):
        return import_from_nir(to_nir(network))


TO_SNNTORCH: dict[str, list[nn.Module]] = {
    "dense": [nn.Linear(7, 6), Leaky(0.5, **ZERO), nn.Linear(6, 3, bias=False), Leaky(0.75, 0.5, **ZERO)],
    "decimal": [nn.Linear(7, 6), Leaky(0.9, **ZERO)],
    "spread": [nn.Linear(7, 6), Leaky(torch.tensor([0.5, 0.25, 0.75, 0.0, 0.875, 0.5]), **ZERO)],
    "synaptic": [nn.Linear(7, 6), Synaptic(0.5, 0.75, **ZERO)],
    "recurrent": [nn.Linear(7, 6), Recurrent(Leaky(0.5, **ZERO), nn.Linear(6, 6, bias=False)), nn.Linear(6, 2), Leaky(0.5, **ZERO)],
    "recurrent synaptic": [nn.Linear(7, 6), Recurrent(Synaptic(0.5, 0.75, **ZERO), nn.Linear(6, 6, bias=False))],
}  # fmt: skip


@pytest.mark.parametrize("case", TO_SNNTORCH)
def test_to_snntorch(case: str) -> None:
    network = exact(Network(TO_SNNTORCH[case]))
    x = spikes(40, 3, 7)
    want = network(x)[0]
    assert 0.01 < want.mean() < 0.9
    assert torch.equal(loop(in_snntorch(network), x), want)


def test_convolutions_to_snntorch_one_sample_at_a_time() -> None:
    """NIR counts axes without the batch; snntorch's Flatten takes them as they are, so a batch would be flattened too."""
    layers = [nn.Conv2d(2, 4, 3), Leaky(0.5, **ZERO), AvgPool2d(2), Flatten(), nn.Linear(36, 3), Leaky(0.5, **ZERO)]
    network = exact(Network(layers, input_shape=(2, 8, 8)))
    x = spikes(20, 1, 2, 8, 8)
    want = network(x)[0]
    assert 0.01 < want.mean() < 0.9
    assert torch.equal(loop(in_snntorch(network), x[:, 0]), want[:, 0])
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        loop(in_snntorch(network), x.expand(20, 3, 2, 8, 8))


@pytest.mark.parametrize(
    ("neuron", "error"),
    [
        (LeakyIntegrator(0.5), "Unknown node type"),
        (Leaky(0.5, reset_mechanism="none"), "Unknown node type"),
        (Delay(6, 1, learn=False), "Unknown node type"),
        (Leaky(1.0, **ZERO), "r != 1 not supported"),
        (Leaky(0.5, torch.arange(1.0, 7.0), **ZERO), "v_threshold must be same for all neurons"),
    ],
)
def test_what_snntorch_cannot_read(neuron: nn.Module, error: str) -> None:
    with pytest.raises((ValueError, AssertionError), match=error):
        in_snntorch(Network([nn.Linear(7, 6), neuron]))


def test_snntorch_reads_every_reset_as_to_zero() -> None:
    network = exact(Network([nn.Linear(7, 6), Leaky(0.5)]))
    x = spikes(40, 3, 7)
    as_zero = from_nir(to_nir(network), neuron=ZERO)(x)[0]
    assert not torch.equal(as_zero, network(x)[0])
    assert torch.equal(loop(in_snntorch(network), x), as_zero)


SIX = torch.ones(6)
FROM_SNNTORCH: dict[str, Callable[..., nn.Module]] = {
    "leaky": lambda **options: snn.Leaky(0.5 * SIX, threshold=0.5 * SIX, **options),
    "spread": lambda **options: snn.Leaky(SIX.cumsum(0) / 8, threshold=SIX, **options),
    "synaptic": lambda **options: snn.Synaptic(0.5 * SIX, 0.75 * SIX, threshold=SIX, **options),
    "rleaky": lambda **options: snn.RLeaky(0.5, linear_features=6, **options),
    "rleaky one to one": lambda **options: snn.RLeaky(0.5, all_to_all=False, V=SIX.cumsum(0) / 8, **options),
    "rsynaptic": lambda **options: snn.RSynaptic(0.5, 0.75, linear_features=6, **options),
}


def from_snntorch(layers: nn.Sequential) -> Any:
    from snntorch.export_nir import export_to_nir

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return export_to_nir(layers, torch.zeros(1, 7), ignore_dims=[0])


@pytest.mark.parametrize(
    ("case", "reset"), [*((case, "subtract") for case in FROM_SNNTORCH), ("leaky", "zero"), ("spread", "zero")]
)
def test_from_snntorch(case: str, reset: str) -> None:
    """snntorch writes no reset mechanism: it must be said. Its "zero" drops a current in all but Leaky."""
    neuron = FROM_SNNTORCH[case](init_hidden=True, reset_mechanism=reset)
    layers = exact(nn.Sequential(nn.Linear(7, 6), neuron))
    x = spikes(40, 3, 7)
    ours = from_nir(from_snntorch(layers), neuron={"reset_mechanism": reset})  # type: ignore[arg-type]
    want = torch.stack([layers(x_t) for x_t in x]).detach()
    assert 0.01 < want.mean() < 0.9
    assert torch.equal(ours(x)[0], want)


def test_snntorch_writes_parameters_without_the_layers_size() -> None:
    layers = nn.Sequential(nn.Linear(7, 6), snn.Leaky(0.5, init_hidden=True))
    with pytest.raises(ValueError, match="type mismatch"):
        from_snntorch(layers)


def without_resistance(graph: Any) -> Any:
    """R = 1 everywhere, the gain moved into the weights before: what norse reads of a LIF."""
    names = list(graph.nodes)
    for before, name in pairwise(names):
        node = graph.nodes[name]
        if isinstance(node, nir.LIF):
            for values in vars(graph.nodes[before]).values():
                if isinstance(values, np.ndarray):
                    values *= node.r.reshape(-1, *[1] * (values.ndim - 1)).astype(values.dtype)
            node.r = np.ones_like(node.r)
    return graph


@pytest.mark.parametrize(
    ("layers", "plain"),
    [
        ([nn.Linear(7, 6), Synaptic(0.5, 0.75, **ZERO)], False),
        ([nn.Linear(7, 6), Leaky(1.0, **ZERO)], False),
        ([nn.Linear(7, 6), Leaky(0.5, **ZERO), nn.Linear(6, 3), Leaky(0.75, **ZERO)], True),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_to_norse(layers: list[nn.Module], plain: bool) -> None:
    """norse 1.1.0 reads CubaLIF and IF; of a LIF it ignores R, which must then be 1."""
    norse = pytest.importorskip("norse.torch")
    network = exact(Network(layers))
    graph = without_resistance(to_nir(network)) if plain else to_nir(network)  # type: ignore[arg-type]
    x = spikes(40, 3, 7)
    want = network(x)[0]
    assert torch.equal(loop(norse.from_nir(graph, dt=1e-4, ignore_warnings=True), x), want)
    torch.testing.assert_close(from_nir(graph)(x)[0], want)
