"""Weights of ±c: what they keep of latent ones, what gradient reaches them, which layers are refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tbnn.learning.binary import binarize_, binary_layers, is_binary
from tbnn.nn import BinaryConv2d, BinaryLinear, Leaky, LeakyIntegrator, Network, Recurrent
from tbnn.ops.quantize import Ddt, Qgait

LAM = 0.01


def layer(outputs: int = 5, inputs: int = 63, **options: Any) -> BinaryLinear:
    """A layer whose latent weights lean to one side."""
    made = BinaryLinear(inputs, outputs, **options)
    made.weight.data += 0.1
    return made


@pytest.mark.parametrize("block", [None, 32])
def test_each_block_holds_its_mean_size_and_the_signs_the_layer_had(block: int | None) -> None:
    one = layer(block=block)
    one.weight.data[0, :2] = torch.tensor([0.0, -0.0])
    before, values = one.weight.detach().clone(), one.codes().values
    latent = binarize_(one)
    runs = zip(*(t.split(block or 63, 1) for t in (before, one.weight.detach(), latent[one.weight])), strict=True)
    for was, now, ratio in runs:
        size = was.abs().mean(1, keepdim=True)
        torch.testing.assert_close(now.abs(), size.expand_as(now))
        torch.testing.assert_close(ratio * size, was)
    assert torch.equal(one.weight.sign(), values)
    assert torch.equal(one.codes().values, values)
    again = one.weight.detach().clone()
    binarize_(one)
    assert torch.equal(one.weight, again)


@pytest.mark.parametrize("block", [None, 32])
def test_in_the_linear_form_nothing_else_changes_and_flips_leave_the_scale(block: int | None) -> None:
    one = layer(form="linear", block=block)
    codes, x = one.codes(), torch.randint(0, 2, (7, 63)).float()
    y = one(x)
    binarize_(one)
    torch.testing.assert_close(one.codes().scale, codes.scale, rtol=3e-7, atol=0)
    torch.testing.assert_close(one(x), y)
    scale = one.codes().scale
    one.weight.data[:, ::3] *= -1
    assert torch.equal(one.codes().scale, scale)


def test_is_binary_of_every_layer_of_a_network() -> None:
    recurrent = Recurrent(Leaky(0.9), BinaryLinear(4, 4))
    network = Network([BinaryLinear(8, 4), recurrent, BinaryLinear(4, 3), LeakyIntegrator(0.9)])
    assert len(binary_layers(network)) == 3
    assert not is_binary(network)
    binarize_(network)
    assert is_binary(network)
    binary_layers(network)["layers.2"].weight.data[1, 2] *= 1.001
    assert not is_binary(network)
    conv = BinaryConv2d(2, 3, 3)
    binarize_(conv)
    assert is_binary(conv)
    assert torch.equal(conv.weight.abs().amin((1, 2, 3)), conv.weight.abs().amax((1, 2, 3)))


def through(one: BinaryLinear, dy: Tensor) -> Tensor:
    """dL/dw where dL/dŴ = dy."""
    return torch.autograd.grad((one.quantized_weight() * dy).sum(), one.weight)[0].double()


def by_the_table(one: BinaryLinear, g: Tensor) -> Tensor:
    """What the module's table says."""
    g, sign = g.double(), one.weight.detach().sign().double()
    q = (sign + 1) / 2
    c, mean = q - q.mean(1, keepdim=True), lambda t: t.mean(1, keepdim=True)
    if one.estimator in ("ste", "ewgs"):
        return g
    if one.form == "linear":
        pull = 0 if one.estimator == "ddt_slope" else 2 * LAM / (1 + LAM) * mean(g * sign) * sign
        return (g + pull) / (1 + LAM)
    variance = mean(c * c)
    rho = variance / (variance + LAM)
    if one.estimator == "ddt_slope":
        return rho * g
    return rho * g + (1 - rho) * (mean(g) + 2 * mean(g * c) / (variance + LAM) * c)


@pytest.mark.parametrize("form", ["linear", "affine"])
@pytest.mark.parametrize("estimator", ["ste", "ewgs", "ddt", "ddt_ridge", "ddt_slope"])
def test_the_gradient_of_each_estimator(estimator: str, form: str) -> None:
    one = layer(estimator=estimator, form=form)
    one.weight.data[1].abs_()  # of one sign alone
    binarize_(one)
    dy = torch.randn(5, 63)
    torch.testing.assert_close(through(one, dy), by_the_table(one, dy), rtol=2e-5, atol=2e-6)


REFUSED = {
    "estimator.*'reste'": lambda: BinaryLinear(8, 4, estimator="reste"),
    "estimator.*'qgait'": lambda: BinaryLinear(8, 4, estimator=Qgait()),
    "estimator.*'pege'": lambda: BinaryLinear(8, 4, estimator="pege"),
    "bits: .*1.58": lambda: BinaryLinear(8, 4, bits=1.58),
    "bits: .*None": lambda: BinaryLinear(8, 4, bits=None, sparsity=0.5),
    "sparsity: .*0.5": lambda: BinaryLinear(8, 4, sparsity=0.5),
    r"sparsity: .*\(2, 4\)": lambda: BinaryLinear(8, 4, sparsity=(2, 4)),
    "at least one layer": lambda: nn.Linear(8, 4),
}


@pytest.mark.parametrize("told", REFUSED)
def test_other_layers_are_refused(told: str) -> None:
    with pytest.raises(ValueError, match=told):
        binary_layers(nn.Sequential(REFUSED[told]()))


def test_weights_that_do_not_train_or_have_no_size_are_refused() -> None:
    frozen, held, none = BinaryLinear(8, 4), BinaryLinear(8, 4, estimator=Ddt()), BinaryLinear(8, 4)
    frozen.freeze()
    held.weight.requires_grad_(False)
    for one in (frozen, held):
        with pytest.raises(ValueError, match=r"0\.weight: .*frozen"):
            binarize_(nn.Sequential(one))
    for bad in (0.0, torch.inf, torch.nan):
        none.weight.data[2] = bad
        with pytest.raises(ValueError, match=r"0\.weight: .*no block of zeros"):
            binarize_(nn.Sequential(none))
