"""Wirings: which synapses there are, and that a layer quantises these alone."""

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tbnn
from tbnn.compare.in_snntorch import _Quantised
from tbnn.nn import BinaryConv2d, BinaryLinear, Dale, DeepR, DelayedLinear, Distance, FixedWiring, GivenWiring
from tbnn.nn.wiring import Wiring
from tbnn.ops.quantize import Ewgs

ESTIMATORS: list[Any] = ["ddt", "ddt_ridge", "ddt_slope", "ste", Ewgs(0.1), "qgait"]


def wired(n: int, m: int, wiring: Any, **options: Any) -> BinaryLinear:
    return BinaryLinear(n, m, form="linear", wiring=wiring, **options).double()


@pytest.mark.parametrize("bits", [1, 1.58, 2, 4, None])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
@pytest.mark.parametrize("lam", [0.01, 1.0])
def test_it_is_the_quantiser_of_the_synapses_that_exist(bits: Any, estimator: Any, lam: float) -> None:
    """Forward, codes and gradient are those of the short rows that hold nothing but them."""
    layer = wired(23, 7, FixedWiring(0.4, seed=3), bits=bits, estimator=estimator, lam=lam)
    assert layer.mask is not None
    weights = torch.randn(7, 23, dtype=torch.float64)
    short = layer.weight.detach()[layer.mask].reshape(7, -1).requires_grad_()
    assert short.shape[1] == round(0.4 * 23)
    want = tbnn.quantize(short, bits=bits, estimator=estimator, lam=lam, form="linear", dim=1)
    (dwant,) = torch.autograd.grad(want, short, weights[layer.mask].reshape(7, -1))
    got, (values, scale, offset) = layer.quantized()
    torch.testing.assert_close(got[layer.mask].reshape(7, -1), want, rtol=1e-12, atol=1e-12)
    (dgot,) = torch.autograd.grad(got, layer.weight, weights)
    torch.testing.assert_close(dgot[layer.mask].reshape(7, -1), dwant, rtol=1e-10, atol=1e-12)
    for nothing in (got, values, dgot):
        assert not nothing[~layer.mask].any()
    torch.testing.assert_close(scale * values, got, rtol=1e-12, atol=1e-12)
    assert not offset.any()


@pytest.mark.parametrize("block", [None, 8])
@pytest.mark.parametrize("signed", [False, True])
def test_the_ddt_gradient_is_the_finite_difference_with_the_rounding_frozen(
    block: int | None, signed: bool, numeric_gradient: Callable[..., Tensor]
) -> None:
    """Of what is there: pinned to the equations, s_f and δ held; silent synapses get s·f'·G, missing ones nothing."""
    mask = torch.rand(5, 20) < 0.5
    mask[:, 0] = True
    signs = (torch.randint(0, 2, (5, 20)) * 2 - 1).to(torch.int8) if signed else None
    layer = wired(20, 5, GivenWiring(mask, signs), bits=4, block=block)
    nn.init.normal_(layer.weight)
    start, (_, codes) = layer.weight.detach().clone(), layer.quantized()
    kept, lam = codes.values != 0, 0.01
    assert torch.equal(kept, mask if signs is None else mask & (start * signs > 0))
    runs = [slice(lo, min(lo + (block or 20), 20)) for lo in range(0, 20, block or 20)]
    steps = torch.empty(5, 20, dtype=torch.float64)  # s_f, of the kept ones
    for run in runs:
        here = torch.where(kept[:, run], start[:, run], 0)
        rms = (here.square().sum(1, keepdim=True) / kept[:, run].sum(1, keepdim=True).clamp(min=1)).sqrt()
        steps[:, run] = torch.minimum(0.3352 * rms / 2, here.abs().amax(1, keepdim=True) / 15)
    steps[steps == 0] = 1  # nothing is kept
    delta, weights = codes.values - start / steps, torch.randn(5, 20, dtype=torch.float64)

    def loss(w: Tensor) -> Tensor:
        q, parts = torch.where(kept, w / steps + delta, 0), []
        for run in runs:
            part, data = q[:, run], torch.where(kept[:, run], w[:, run], 0)
            s = (data * part).sum(1) / (part.square().sum(1) + lam * kept[:, run].sum(1)).clamp(min=1e-9)
            parts.append(s[:, None] * part)
        return (torch.cat(parts, 1) * weights).sum()

    got = torch.autograd.grad(layer.quantized()[0], layer.weight, weights)[0]
    want = numeric_gradient(loss, start)
    torch.testing.assert_close(got[kept], want[kept], rtol=1e-6, atol=1e-7)
    assert not got[~mask].any()
    silent, scale = mask & ~kept, codes.scale.repeat_interleave(block or 20, 1)[:, :20]
    slope = torch.where(scale > 0, scale / steps, 1.0)  # a block that keeps nothing passes G itself
    torch.testing.assert_close(got[silent], (slope * weights)[silent], rtol=1e-10, atol=0)
    assert silent.any() == signed


def test_three_weights_by_hand() -> None:
    layer = wired(4, 1, GivenWiring(torch.tensor([[True, True, False, True]])), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-1.0, 0.5, 8.0, 3.0]]))
    scale = 4.5 / (3 + 3 * 0.01)
    want = torch.tensor([[-scale, scale, 0, scale]], dtype=torch.float64)
    torch.testing.assert_close(layer.quantized_weight(), want)
    assert layer.density == 0.75


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 1.0])
def test_a_fixed_wiring_has_its_number_of_synapses_in_every_row(share: float) -> None:
    mask = FixedWiring(share, seed=2).drawn((50, 40), 1).mask
    assert mask is not None
    assert set(mask.sum(1).tolist()) == {max(1, round(share * 40))}
    assert share == 1 or mask.sum(0).double().std() > 0  # places are random


@pytest.mark.parametrize("wiring", [Dale, FixedWiring, Distance, DeepR])
def test_a_seed_says_which(wiring: Any) -> None:
    argument = {Dale: 0.5, FixedWiring: 0.3, Distance: 0.3, DeepR: 0.3}[wiring]
    one, same, other = (wiring(argument, seed=s).drawn((30, 30), 1) for s in (1, 1, 2))
    for a, b, c in zip(one, same, other, strict=True):
        assert (a is None) == (b is None) == (c is None)
        if a is not None:
            assert torch.equal(a, b)
            assert not torch.equal(a, c)


def test_wirings_join() -> None:
    alone = [FixedWiring(0.5, 1), Distance(0.5, seed=4)]
    layer = wired(36, 16, (*alone, Dale(0.3)))
    masks = [part.drawn((16, 36), 1).mask for part in alone]
    assert masks[0] is not None
    assert masks[1] is not None
    assert layer.mask is not None
    assert torch.equal(layer.mask, masks[0] & masks[1])
    assert layer.signs is not None
    assert torch.equal(layer.signs, Dale(0.3).neurons(36).expand(16, 36))


def chance(d: float, wiring: Distance) -> float:
    if wiring.decay == "gaussian":
        return wiring.peak * math.exp(-((d / wiring.length) ** 2) / 2)
    return wiring.peak * math.exp(-d / wiring.length)


@pytest.mark.parametrize("decay", ["exponential", "gaussian"])
@pytest.mark.parametrize("sizes", [((6, 8), (4, 5)), ((3, 4, 2), (2, 2, 5))])
def test_probabilities_fall_with_the_distance_on_grids(decay: str, sizes: tuple[Any, Any]) -> None:
    wiring = Distance(0.3, 0.8, decay, inputs=sizes[0], outputs=sizes[1])
    n, m = math.prod(sizes[0]), math.prod(sizes[1])
    got = wiring.probabilities(m, n)
    for o in range(m):
        for i in range(n):
            a, b = np.unravel_index(o, sizes[1]), np.unravel_index(i, sizes[0])
            apart = [
                (x + 0.5) / p - (y + 0.5) / q
                for x, p, y, q in zip(a, sizes[1], b, sizes[0], strict=True)
            ]  # fmt: skip
            assert got[o, i].item() == pytest.approx(chance(math.hypot(*apart), wiring), rel=1e-12)
    assert wiring.expected_density(m, n) == pytest.approx(got.mean().item())


@pytest.mark.parametrize("decay", ["exponential", "gaussian"])
def test_as_many_synapses_as_the_closed_form_says(decay: str) -> None:
    """Counts, in all and by distance, within five standard deviations of sums of independent draws."""
    wiring = [Distance(0.2, 0.9, decay, seed=seed) for seed in range(5)]
    p = wiring[0].probabilities(144, 100)
    masks = torch.stack([w.drawn((144, 100), 1).mask for w in wiring])  # type: ignore[arg-type]
    assert not torch.equal(masks[0], masks[1])
    for low, high in ((0.0, 1.0), (0.0, 0.01), (0.01, 0.1), (0.1, 0.4), (0.4, 1.0)):
        inside = (p >= low) & (p < high)
        mean, spread = 5 * p[inside].sum(), (5 * (p * (1 - p))[inside].sum()).sqrt()
        assert inside.any()
        assert (masks[:, inside].sum() - mean).abs() < 5 * spread + 1e-9
    layer = wired(100, 144, wiring[0])
    assert layer.mask is not None
    assert torch.equal(layer.mask, masks[0])
    assert layer.density == masks[0].double().mean().item()


def test_given_positions() -> None:
    """On a line far apart: each output reaches the inputs at its own place alone. A tensor and tuples are one value."""
    places = torch.tensor([[0.0, 0.0], [100.0, 0.0], [200.0, 0.0]])
    wiring = Distance(1.0, inputs=places, outputs=places.flip(0))
    layer = wired(3, 3, wiring)
    assert torch.equal(layer.mask, torch.eye(3).flip(0) > 0)  # type: ignore[arg-type]
    assert wiring == Distance(1.0, inputs=((0.0, 0.0), (100.0, 0.0), (200.0, 0.0)), outputs=places.flip(0))
    assert "100" not in repr(wiring)


def test_rows_start_with_the_strength_of_their_synapses() -> None:
    mask = torch.rand(40, 400) < torch.linspace(0.05, 0.9, 40)[:, None]
    layer = wired(400, 40, GivenWiring(mask))
    kept = mask.sum(1)
    mean = layer.weight.detach().abs().sum(1) / kept
    torch.testing.assert_close(mean * kept.sqrt(), torch.full((40,), 2.0).double(), rtol=0.5, atol=0)
    assert abs((mean * kept.sqrt()).mean().item() - 2) < 0.1
    assert not layer.weight[~mask].any()


def test_a_layer_without_a_wiring_is_what_it_was() -> None:
    torch.manual_seed(5)
    layer = BinaryLinear(9, 4)
    torch.manual_seed(5)
    want = nn.init.uniform_(torch.empty(4, 9), -4 / 3, 4 / 3)
    assert torch.equal(layer.weight, want)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert "wiring" not in repr(layer)
    assert layer.density == 1


LINEAR: dict[str, Any] = {"in_features": 6, "out_features": 4, "form": "linear"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dale(1.5), r"Dale: inhibitory: expected a share in \[0, 1\], got 1.5"),
        (lambda: Dale(-0.1), "Dale: inhibitory"),
        (lambda: Dale(balance=0.0), "Dale: balance: expected a finite number > 0, got 0.0"),
        (lambda: FixedWiring(0.0), r"FixedWiring: share: expected a share in \(0, 1\], got 0.0"),
        (lambda: FixedWiring(math.nan), "FixedWiring: share"),
        (lambda: DeepR(1.1), "DeepR: share"),
        (lambda: DeepR(0.5, l1=-1.0), "DeepR: l1: expected a finite number >= 0"),
        (lambda: DeepR(0.5, temperature=math.inf), "DeepR: temperature"),
        (lambda: DeepR(0.5, birth=0.0), "DeepR: birth: expected a finite number > 0"),
        (lambda: DeepR(0.5, scope="network"), "DeepR: scope: expected one of"),
        (lambda: Distance(0.0), "Distance: length: expected a finite number > 0"),
        (lambda: Distance(1.0, 2.0), "Distance: peak: expected a share"),
        (lambda: Distance(1.0, decay="flat"), "Distance: decay: expected one of"),
        (lambda: Distance(1.0, inputs=(2, 2)).probabilities(4, 6), "inputs: expected a grid .* 6 neurons, got"),
        (lambda: Distance(1.0, inputs=(1, 2, 3)).probabilities(4, 6), "as many dimensions, got 3 .* and 2"),
        (lambda: Distance(1.0, inputs=torch.rand(5, 2)).probabilities(4, 6), r"positions \(6, 2\) or \(6, 3\), got 5"),
        (lambda: Distance(1.0, inputs=torch.rand(6, 4)).probabilities(4, 6), r"of \[4\] numbers"),
        (lambda: Distance(1.0, inputs=torch.full((6, 2), math.inf)).probabilities(4, 6), "expected finite positions"),
        (lambda: GivenWiring(torch.ones(4, 6)), "GivenWiring: mask: expected bool, got torch.float32"),
        (lambda: GivenWiring(torch.ones(4, 6) > 0, torch.zeros(4, 6)), "GivenWiring: signs"),
        (lambda: BinaryLinear(**LINEAR, wiring=GivenWiring(torch.ones(6, 4) > 0)), r"mask: expected \(4, 6\), got \(6, 4\)"),
        (lambda: BinaryLinear(**LINEAR, wiring=GivenWiring(torch.eye(6)[:4] > 1)), "none for 4 of 4, output 0 first"),
        (lambda: BinaryLinear(**LINEAR, wiring=Distance(1e-3)), "expected a synapse at least for each output, got none"),
        (lambda: BinaryLinear(**LINEAR, wiring=cast("Any", "dale")), "wiring: expected Dale, Distance, .* got 'dale'"),
        (lambda: BinaryLinear(**LINEAR, wiring=()), "wiring: expected Dale, Distance"),
        (lambda: BinaryLinear(**LINEAR, wiring=(DeepR(0.5), FixedWiring(0.5))), "DeepR alone or with one Dale"),
        (lambda: BinaryLinear(**LINEAR, wiring=(Dale(), Dale(seed=1))), "expected one that gives signs"),
        (lambda: BinaryLinear(**LINEAR, wiring=Dale(), sparsity=0.5), "sparsity: expected 0 with a wiring"),
        (lambda: BinaryLinear(**LINEAR, wiring=Dale(), estimator="pege"), "estimator: .* 'pege'"),
        (lambda: BinaryLinear(**LINEAR, wiring=Dale(), lam=0), "lam: expected a number > 0 with a wiring"),
        (lambda: BinaryLinear(6, 4, wiring=Dale()), "form: expected 'linear' with a wiring .* got 'affine'"),
        (lambda: BinaryConv2d(2, 3, 3, form="linear", wiring=Distance(1.0)), "Distance: expected the weights"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_wired_layer_does_not_run_in_snntorch_as_if_it_were_dense() -> None:
    with pytest.raises(ValueError, match="wiring: expected None of a layer to run in snntorch"):
        _Quantised(wired(6, 4, Dale()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler about itself
def test_a_compiler_sees_one_graph() -> None:
    layer = BinaryLinear(12, 5, form="linear", wiring=(Dale(0.5), FixedWiring(0.5)))
    x = (torch.rand(3, 12) < 0.5).float()
    want = layer(x)
    want.square().sum().backward()
    grad, layer.weight.grad = layer.weight.grad, None
    got = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    got.square().sum().backward()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(layer.weight.grad, grad)


def test_a_wiring_of_one_s_own_and_delays_next_to_it() -> None:
    class Upper(Wiring):
        def drawn(self, shape: tuple[int, ...], groups: int) -> Any:
            return GivenWiring(torch.ones(shape).triu() > 0).drawn(shape, groups)

    layer = DelayedLinear(6, 6, 3, form="linear", wiring=Upper(), learn=False, delay=2)
    x = (torch.rand(5, 2, 6) < 0.5).float()
    y, _ = layer(x)
    want = torch.cat([torch.zeros(2, 2, 6), x[:-2]]) @ layer.quantized_weight().T
    torch.testing.assert_close(y, want)
    assert not layer.quantized_weight().tril(-1).any()
