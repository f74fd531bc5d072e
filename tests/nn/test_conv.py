"""Binary convolutions: those of the quantised weights, and on bits whole numbers before the scaling."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tbnn.nn.conv import BinaryConv1d, BinaryConv2d
from tbnn.nn.linear import BinaryLinear

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using padding='same' with even kernel:UserWarning"
)  # torch's, of itself

geometries = st.fixed_dictionaries(
    {
        "per_group": st.sampled_from([1, 3]),
        "outputs": st.sampled_from([1, 2]),
        "groups": st.sampled_from([1, 2]),
        "kernel_size": st.sampled_from([1, 3, (3, 2)]),
        "stride": st.sampled_from([1, 2, (2, 1)]),
        "padding": st.sampled_from([0, 1, (2, 0), "same", "valid"]),
        "dilation": st.sampled_from([1, 2, (1, 2)]),
        "block": st.sampled_from([None, 4, 9, 1000]),
        "form": st.sampled_from(["affine", "linear"]),
        "bias": st.booleans(),
        "seed": st.integers(0, 99),
    }
)


def conv_of(g: dict[str, Any], **arguments: Any) -> BinaryConv2d:
    torch.manual_seed(g["seed"])
    names = ("kernel_size", "padding", "dilation", "groups", "block", "form", "bias")
    stride = 1 if g["padding"] == "same" else g["stride"]
    layer = BinaryConv2d(
        g["groups"] * g["per_group"], g["groups"] * g["outputs"], stride=stride, **{n: g[n] for n in names}, **arguments
    )
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


def plain(layer: BinaryConv2d, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


@given(g=geometries, estimator=st.sampled_from(["ddt", "ste"]))
def test_forward_and_gradients_are_those_of_the_quantised_weights(g: dict[str, Any], estimator: str) -> None:
    layer = conv_of(g, estimator=estimator).double()
    x = torch.randn(3, 2, layer.in_channels, 7, 8, dtype=torch.float64, requires_grad=True)
    y, expected = layer(x), plain(layer, x.flatten(0, 1), layer.quantized_weight()).unflatten(0, (3, 2))
    if layer.bias is not None:
        expected = expected + layer.bias.reshape(-1, 1, 1)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    weights, leaves = torch.randn_like(y), [x, *layer.parameters()]
    got, want = (torch.autograd.grad(out, leaves, weights) for out in (y, expected))
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kernel_size", [2, 3, (4, 1), (1, 2)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_pads_as_torch_does(kernel_size: Any, dilation: int) -> None:
    layer, x = BinaryConv2d(2, 3, kernel_size, padding="same", dilation=dilation, bias=False), torch.randn(2, 2, 6, 7)
    torch.testing.assert_close(layer(x), plain(layer, x, layer.quantized_weight()))
    assert layer(x).shape == (2, 3, 6, 7)


@given(g=geometries, density=st.sampled_from([0.0, 0.1, 0.6, 1.0]))
def test_on_bits_the_convolutions_are_whole_numbers_then_scale_and_offset(g: dict[str, Any], density: float) -> None:
    """Float32 arithmetic, one rounding an operation, on counts that a float64 convolution gives without error."""
    layer = conv_of(g)
    x = (torch.rand(3, layer.in_channels, 7, 8) < density).float()
    values, scale, offset = layer.codes()
    row, (outputs, per_group) = values[0].numel(), values.shape[:2]
    block = min(g["block"] or row, row)
    expected = None
    for k, lo in enumerate(range(0, row, block)):
        inside = torch.zeros(row)
        inside[lo : lo + block] = 1
        inside = inside.reshape(1, per_group, *layer.kernel_size)
        counts = plain(layer, x.double(), (values * inside).double())
        sums = plain(layer, x.double(), inside.expand_as(values).double())
        assert torch.equal(counts, counts.round())
        per_output = (outputs, 1, 1)
        term = counts.numpy().astype(np.float32) * scale[:, k].reshape(per_output).numpy()
        if g["form"] == "affine":
            term = term + sums.numpy().astype(np.float32) * offset[:, k].reshape(per_output).numpy()
        expected = term if expected is None else expected + term
    if layer.bias is not None:
        expected = expected + layer.bias.detach().reshape(-1, 1, 1).numpy()
    assert np.array_equal(layer(x).detach().numpy(), expected)


@pytest.mark.parametrize(
    "kind", [{}, {"bits": 1.58, "form": "linear"}, {"bits": 4}, {"bits": 8}, {"block": 9}], ids=str
)
@pytest.mark.parametrize(
    "geometry",
    [
        {"padding": 1}, {"stride": (2, 1), "padding": (2, 0)}, {"groups": 2, "dilation": (1, 2)},
        {"kernel_size": (3, 2), "padding": "same"}, {"kernel_size": 1, "groups": 2},
    ],
    ids=str,
)  # fmt: skip
def test_many_spikes_are_convolved_as_bits_with_the_same_result(
    kind: dict[str, Any], geometry: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tbnn.ops.spike_products.conv_gradients.MOST_UNPACKED", 1000)  # a few frames at a time
    monkeypatch.setattr("tbnn.nn.conv.FROM_BITS", 1)
    torch.manual_seed(0)
    layer = BinaryConv2d(4, 6, **({"kernel_size": 3} | geometry), **kind)
    x = (torch.rand(25, 4, 11, 12) < 0.3).float().requires_grad_()
    y = layer(x)
    dy, leaves = torch.randn_like(y), [x, *layer.parameters()]
    got = torch.autograd.grad(y, leaves, dy)
    monkeypatch.setattr("tbnn.nn.weights.PACKED_FROM", 1 << 60)
    expected = layer(x)
    assert torch.equal(y, expected)
    for one, want in zip(got, torch.autograd.grad(expected, leaves, dy), strict=True):
        torch.testing.assert_close(one, want, rtol=1e-4, atol=1e-4)
    assert torch.equal(layer(x[:1, :, :9]), layer(x[:, :, :9])[:1])


def test_many_spikes_along_one_axis_and_frames_of_two_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tbnn.nn.conv.FROM_BITS", 1)
    layer = BinaryConv1d(4, 6, 3, stride=2, padding=1)
    prepared = layer.prepare()
    inputs = [(torch.rand(100, 4, length) < 0.3).float() for length in (30, 21)]
    got = [prepared(x) for x in inputs]
    monkeypatch.setattr("tbnn.nn.weights.PACKED_FROM", 1 << 60)
    for y, x in zip(got, inputs, strict=True):
        assert torch.equal(y, layer(x))


def test_of_spikes_a_bit_each_is_kept() -> None:
    layer, x, kept = BinaryConv2d(2, 3, 3), (torch.rand(50, 2, 16, 16) < 0.3).float(), {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.update({t.data_ptr(): t.nbytes}), t)[1], lambda t: t):
        layer(x)
    assert x.numel() // 8 in kept.values()
    assert max(kept.values()) == x.numel() // 8


@pytest.mark.parametrize("block", [None, 5])
def test_the_weights_of_an_output_are_quantised_as_a_row(block: int | None) -> None:
    conv, linear = BinaryConv2d(6, 4, 3, groups=2, block=block), BinaryLinear(27, 4, block=block)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.flatten(1))
    assert torch.equal(conv.quantized_weight().flatten(1), linear.quantized_weight())
    for got, want in zip(conv.codes(), linear.codes(), strict=True):
        assert torch.equal(got.flatten(1), want)


def test_a_window_by_hand() -> None:
    """Weights ±0.5 + 0.25: the corner's window holds one spike at a weight of 0.75, the zeros around it nothing."""
    layer = BinaryConv2d(1, 1, 2, padding=1, lam=1e-9)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.75, -0.25], [-0.25, 0.75]])[None, None])
        layer.bias.fill_(0.5)
    y = layer(torch.tensor([[1.0, 0.0], [1.0, 1.0]])[None, None])
    expected = torch.tensor([[0.75, -0.25, 0.0], [0.5, 1.25, -0.25], [-0.25, 0.5, 0.75]]) + 0.5
    torch.testing.assert_close(y[0, 0], expected)


@pytest.mark.parametrize("padding", ["same", 1, 0])
@pytest.mark.parametrize("groups", [1, 2])
def test_one_axis_is_two_with_a_height_of_one(padding: Any, groups: int) -> None:
    one = BinaryConv1d(4, 6, 4, padding=padding, groups=groups, dilation=2 if padding == "same" else 1)
    margin = padding if isinstance(padding, str) else (0, padding)
    two = BinaryConv2d(4, 6, (1, 4), padding=margin, groups=groups, dilation=one.dilation * 2)
    with torch.no_grad():
        two.weight.copy_(one.weight.unsqueeze(2))
    x = (torch.rand(5, 2, 4, 11) < 0.4).float()
    torch.testing.assert_close(one(x), two(x.unsqueeze(-2)).squeeze(-2))
    (one(x) ** 2).sum().backward()
    (two(x.unsqueeze(-2)) ** 2).sum().backward()
    torch.testing.assert_close(one.weight.grad, two.weight.grad.squeeze(2))


def test_a_prepared_layer_and_any_leading_axes_are_the_layer() -> None:
    layer, x = BinaryConv2d(2, 3, 3, padding=1), torch.randn(4, 2, 2, 5, 6)
    prepared = layer.prepare()
    y = layer(x)
    assert torch.equal(prepared(x), y)
    assert torch.equal(torch.stack([layer(x_t) for x_t in x]), y)
    assert torch.equal(layer(x[None])[0], y)


def test_latent_weights_start_at_the_documented_magnitude() -> None:
    layer = BinaryConv2d(20, 40, 5, groups=2)
    assert layer.weight.abs().mean().item() * 250**0.5 == pytest.approx(2, rel=0.05)
    assert not layer.bias.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out_channels": 0}, "BinaryConv2d: expected sizes >= 1, got 4 -> 0"),
        ({"groups": 3}, "expected channels that 3 groups divide, got 4 -> 6"),
        ({"kernel_size": 0}, "kernel_size: expected an integer >= 1 or 2 of them, got 0"),
        ({"kernel_size": (3, 3, 3)}, r"kernel_size: .* got \(3, 3, 3\)"),
        ({"stride": 0}, "stride: .* got 0"),
        ({"padding": -1}, "padding: expected an integer >= 0 .* got -1"),
        ({"padding": "full"}, "padding: expected 'same', 'valid' or sizes, got 'full'"),
        ({"padding": "same", "stride": 2}, r"padding: 'same' needs a stride of 1, got \(2, 2\)"),
        ({"padding_mode": "circular"}, "padding_mode: expected 'zeros', got 'circular'"),
        ({"form": "ternary"}, "form: .* got 'ternary'"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BinaryConv2d(**({"in_channels": 4, "out_channels": 6, "kernel_size": 3} | arguments))


def test_refused_inputs() -> None:
    with pytest.raises(ValueError, match=r"BinaryConv2d: expected \(\.\.\., 4, H, W\), got \(2, 3, 5, 5\)"):
        BinaryConv2d(4, 3, 3)(torch.zeros(2, 3, 5, 5))
    with pytest.raises(ValueError, match=r"BinaryConv1d: expected \(\.\.\., 4, L\), got \(4, 9\)"):
        BinaryConv1d(4, 3, 3)(torch.zeros(4, 9))
