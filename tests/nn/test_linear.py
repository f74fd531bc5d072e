"""The binary layer: the product its weights define, exactly, and the gradients of a plain linear layer over them."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tbnn.bits import pack_bits
from tbnn.nn import BinaryLinear
from tbnn.ops.binary_linear import binary_linear
from tbnn.ops.quantize import Ewgs


def layer_of(n: int, m: int, seed: int = 0, **arguments: Any) -> BinaryLinear:
    torch.manual_seed(seed)
    layer = BinaryLinear(n, m, **arguments)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


layers = st.fixed_dictionaries(
    {
        "n": st.sampled_from([1, 7, 63, 130]),
        "m": st.sampled_from([1, 5, 33]),
        "seed": st.integers(0, 99),
        "bias": st.booleans(),
        "form": st.sampled_from(["affine", "linear"]),
        "estimator": st.sampled_from(["ddt", "ste"]),
        "block": st.sampled_from([None, 1, 32, 500]),
        "lam": st.sampled_from([0.01, 1.0]),
    }
)
codes = st.sampled_from([
    {"bits": 1.58}, {"bits": 1, "sparsity": 0.9}, {"bits": 1, "sparsity": 0.5, "scope": "tensor"}, {"bits": 4},
    {"bits": 2, "sparsity": (2, 4), "scope": "block"}, {"bits": 1.58, "estimator": Ewgs(0.01)},
])  # fmt: skip


@given(arguments=layers)
def test_forward_and_gradients_are_those_of_the_quantised_weights(arguments: dict[str, Any]) -> None:
    layer = layer_of(**arguments).double()
    x = torch.randn(3, 2, arguments["n"], dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 2, arguments["m"], dtype=torch.float64)
    leaves = [x, *layer.parameters()]
    y, expected = layer(x), F.linear(x, layer.quantized_weight(), layer.bias)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    got, want = (torch.autograd.grad(out, leaves, weights) for out in (y, expected))
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


@given(arguments=layers, code=codes)
def test_so_they_are_with_more_bits_and_fewer_weights(arguments: dict[str, Any], code: dict[str, Any]) -> None:
    test_forward_and_gradients_are_those_of_the_quantised_weights.hypothesis.inner_test(arguments | code)  # type: ignore[attr-defined]
    test_codes_rebuild_the_weights.hypothesis.inner_test(arguments | code)  # type: ignore[attr-defined]


@given(arguments=layers, code=codes, density=st.sampled_from([0.05, 0.5, 1.0]))
def test_on_bits_more_bits_are_whole_numbers_too(
    arguments: dict[str, Any], code: dict[str, Any], density: float
) -> None:
    layer = layer_of(**(arguments | code))
    n, block = arguments["n"], arguments["block"] or arguments["n"]
    x = torch.rand(9, n) < density
    values, scale, offset = layer.codes()
    assert torch.equal(values, values.round())
    expected = np.zeros((9, arguments["m"]), np.float32)
    for k, lo in enumerate(range(0, n, block)):
        part = x[:, lo : lo + block].long()
        counts = (part @ values[:, lo : lo + block].long().T).float().numpy()
        expected += counts * scale[:, k].numpy() + part.sum(1, keepdim=True).float().numpy() * offset[:, k].numpy()
    if layer.bias is not None:
        expected = expected + layer.bias.detach().numpy()
    assert np.array_equal(layer(x.float()).detach().numpy(), expected)


@given(arguments=layers, density=st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_on_bits_the_product_is_whole_numbers_then_scale_and_offset(arguments: dict[str, Any], density: float) -> None:
    """Float32 arithmetic, one rounding an operation: what a packed network computes from popcounts."""
    layer = layer_of(**arguments)
    n, block = arguments["n"], arguments["block"] or arguments["n"]
    x = (torch.rand(9, n) < density).float()
    sign, scale, offset = layer.codes()
    expected = np.zeros((9, arguments["m"]), np.float32)
    for k, lo in enumerate(range(0, n, block)):
        part, width = x[:, lo : lo + block], min(block, n - lo)
        counts = (
            binary_linear(pack_bits(part), pack_bits(sign[:, lo : lo + block] > 0), width).numpy().astype(np.float32)
        )
        expected += counts * scale[:, k].numpy() + part.sum(1, keepdim=True).numpy() * offset[:, k].numpy()
    if layer.bias is not None:
        expected = expected + layer.bias.detach().numpy()
    assert np.array_equal(layer(x).detach().numpy(), expected)


@given(arguments=layers)
def test_codes_rebuild_the_weights(arguments: dict[str, Any]) -> None:
    layer = layer_of(**arguments)
    sign, scale, offset = layer.codes()
    block = arguments["block"] or arguments["n"]
    spread = [v.repeat_interleave(block, dim=1)[:, : arguments["n"]] for v in (scale, offset)]
    torch.testing.assert_close(spread[0] * sign + spread[1], layer.quantized_weight().detach(), rtol=1e-5, atol=1e-6)
    assert arguments.get("bits", 1) != 1 or "sparsity" in arguments or set(sign.unique().tolist()) <= {-1.0, 1.0}
    assert not any(t.requires_grad for t in (sign, scale, offset))


kinds = pytest.mark.parametrize(
    "kind",
    [
        {}, {"form": "linear"}, {"bits": 1.58}, {"bits": 4}, {"bits": 8}, {"bits": None, "sparsity": 0.5}, {"block": 64},
        {"block": 50}, {"sparsity": 0.5, "bias": False}, {"bits": 2, "block": 96},
    ],
    ids=str,
)  # fmt: skip


def floats_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tbnn.nn.weights.PACKED_FROM", 1 << 60)


@kinds
@pytest.mark.parametrize(("rows", "density"), [(40, 0.1), (700, 0.1), (700, 0.5)])
def test_many_spikes_are_multiplied_as_bits_with_the_same_result(
    kind: dict[str, Any], rows: int, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = layer_of(130, 70, **kind)
    x = (torch.rand(rows, 130) < density).float().requires_grad_()
    dy, leaves = torch.randn(rows, 70), [x, *layer.parameters()]
    y = layer(x)
    got = torch.autograd.grad(y, leaves, dy)
    floats_only(monkeypatch)
    expected = layer(x)
    if kind.get("bits", 1) is not None:
        assert torch.equal(y, expected)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-5)
    exact = layer.double()
    wide = x.detach().double().requires_grad_()
    wants = torch.autograd.grad(exact(wide), [wide, *exact.parameters()], dy.double())
    for one, want in zip(got, wants, strict=True):
        assert ((one - want).norm() / want.norm()).item() < 2e-6


def test_a_frozen_layer_hands_the_gradient_on_from_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = layer_of(130, 70), (torch.rand(700, 130) < 0.1).float().requires_grad_()
    layer.freeze()
    dy = torch.randn(700, 70)
    (got,) = torch.autograd.grad(layer(x), x, dy)
    floats_only(monkeypatch)
    torch.testing.assert_close(got, torch.autograd.grad(layer(x), x, dy)[0], rtol=1e-4, atol=1e-5)


def kept_bytes(layer: nn.Module, x: torch.Tensor) -> int:
    """Of what the graph of the layer's output holds on to, tensors of more than the weights' size."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.update({t.data_ptr(): t.nbytes}), t)[1], lambda t: t):
        layer(x)
    return sum(kept.values())


def test_of_spikes_a_bit_each_is_kept_and_of_other_numbers_all() -> None:
    layer, spikes = layer_of(256, 8), (torch.rand(4000, 256) < 0.1).float()
    without = kept_bytes(layer, torch.zeros(1, 256)) - 4 * 256
    assert kept_bytes(layer, spikes) - without == spikes.numel() // 8
    assert kept_bytes(layer, spikes * 0.5) - without == spikes.nbytes
    assert kept_bytes(layer, spikes[:1]) - without == 256 * 4


@pytest.mark.filterwarnings("ignore")  # of torch's compiler about itself
def test_many_spikes_under_a_compiler_give_the_same_numbers() -> None:
    layer, x = layer_of(130, 70), (torch.rand(700, 130) < 0.1).float()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    y, expected, dy = compiled(x), layer(x), torch.randn(700, 70)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)
    got, want = (torch.autograd.grad(out, [layer.weight], dy) for out in (y, expected))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_row_by_hand() -> None:
    layer = BinaryLinear(4, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-1, -0.5, 0.5, 2]]))
        layer.bias.fill_(0.5)
    half = 1.9230769230769231 / 2
    low, high = 0.25 - half, 0.25 + half
    x = torch.tensor([[1.0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0]])
    assert layer(x).flatten().tolist() == pytest.approx([low + high + 0.5, 2 * high + 0.5, 0.5], rel=1e-6)


def test_ste_hands_the_weight_gradient_to_the_latent_weights() -> None:
    layer, x = layer_of(6, 3, estimator="ste"), torch.randn(5, 6)
    weights = torch.randn(5, 3)
    (layer(x) * weights).sum().backward()
    torch.testing.assert_close(layer.weight.grad, weights.T @ x)


def test_inside_a_plain_sequential_it_learns() -> None:
    """The drop-in's use: torch's own containers, optimiser and loss; ±1 rows separate what their signs can."""
    torch.manual_seed(1)
    x = (torch.rand(200, 20) < 0.5).float()
    teacher = torch.sign(torch.randn(20))
    y = (x @ teacher > teacher.sum() / 2).long()
    model = nn.Sequential(BinaryLinear(20, 30), nn.ReLU(), BinaryLinear(30, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert (model(x).argmax(1) == y).float().mean() > 0.95


def test_state_dict_is_weight_and_bias_as_in_linear() -> None:
    layer, plain = layer_of(6, 3), nn.Linear(6, 3)
    assert {k: v.shape for k, v in layer.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    layer.load_state_dict(plain.state_dict())
    assert torch.equal(layer.weight, plain.weight)


@pytest.mark.parametrize("n", [10, 1000])
def test_weights_start_at_the_documented_magnitude(n: int) -> None:
    layer = BinaryLinear(n, 400)
    assert layer.weight.abs().mean().item() * n**0.5 == pytest.approx(2, rel=0.05)
    assert abs(layer.weight.mean().item()) * n**0.5 < 0.2
    assert not layer.bias.any()


def test_prepared_layer_is_the_layer() -> None:
    layer, x = layer_of(40, 7, block=16), torch.randn(4, 40, requires_grad=True)
    prepared = layer.prepare()
    twice, direct = prepared(x) + prepared(2 * x), layer(x) + layer(2 * x)
    assert torch.equal(twice, direct)
    got, want = (torch.autograd.grad(y.sum(), [x, layer.weight]) for y in (twice, direct))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_features": 0}, "BinaryLinear: expected sizes >= 1, got 0 -> 3"),
        ({"out_features": -1}, "got 4 -> -1"),
        ({"block": 0}, "block: expected None or a length >= 1, got 0"),
        ({"form": "ternary"}, "form: .* got 'ternary'"),
        ({"lam": -1.0}, "lam: .* got -1.0"),
        ({"estimator": "none"}, "estimator: .* got 'none'"),
        ({"sparsity": -0.1}, "sparsity: .* got -0.1"),
        ({"bits": 0}, "bits: .* got 0"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BinaryLinear(**({"in_features": 4, "out_features": 3} | arguments))


def test_refused_inputs() -> None:
    with pytest.raises(ValueError, match=r"BinaryLinear: expected \(\.\.\., 4\), got \(2, 5\)"):
        BinaryLinear(4, 3)(torch.zeros(2, 5))


def test_lambda_zero_is_refused_where_a_block_may_become_constant() -> None:
    BinaryLinear(4, 4, form="linear", lam=0.0)  # q² is 1
    BinaryLinear(4, 4, form="linear", lam=0.0, bits=4)
    for options in ({}, {"form": "linear", "bits": 1.58}, {"form": "linear", "sparsity": 0.5}, {"bits": 4}):
        with pytest.raises(ValueError, match=r"lam: expected a number > 0 .* got 0"):
            BinaryLinear(4, 4, lam=0.0, **options)
