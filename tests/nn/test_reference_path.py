"""Where no compiled kernel fits (another device, another dtype) the references carry a whole network."""

import pytest
import torch
from torch import Tensor

from tbnn import pack_bits
from tbnn.nn import BinaryLinear, Leaky, LeakyIntegrator, Network, Recurrent
from tbnn.ops import ddt, lif, quantize
from tbnn.ops.lif import integrate


def network(target: str, form: str, estimator: str) -> Network:
    torch.manual_seed(0)
    weights = {"form": form, "estimator": estimator}
    return Network([
        BinaryLinear(40, 24, **weights), Recurrent(Leaky(0.9, target=target), BinaryLinear(24, 24, **weights)),
        BinaryLinear(24, 16, **weights), Leaky(0.8, target=target),
        BinaryLinear(16, 2, **weights), LeakyIntegrator(0.9),
    ])  # fmt: skip


def loss_and_gradients(net: Network, x: Tensor) -> list[Tensor]:
    y = net(x)[0]
    y.mean(0).square().sum().backward()
    return [y.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]


CASES = [("soft", "affine", "ddt"), ("trace", "linear", "ddt"), ("trace", "affine", "ste")]


@pytest.mark.parametrize(("target", "form", "estimator"), CASES)
def test_references_give_what_the_kernels_give(
    target: str, form: str, estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = pack_bits(torch.rand(8, 4, 40) < 0.2)
    net = network(target, form, estimator).double()
    compiled = loss_and_gradients(net, x)
    net.zero_grad()
    for module in (ddt, quantize, lif, integrate):
        monkeypatch.setattr(module, "backend_for", lambda *_args, **_kwargs: "reference")
    reference = loss_and_gradients(net, x)
    assert len(compiled) == len(reference) == 1 + len(list(net.parameters()))
    for a, b in zip(compiled, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("target", "form", "estimator"), CASES)
def test_bfloat16_runs_and_points_the_same_way(target: str, form: str, estimator: str) -> None:
    x = pack_bits(torch.rand(8, 4, 40) < 0.2)
    net = network(target, form, estimator).to(torch.bfloat16)
    coarse = loss_and_gradients(net, x)
    fine = loss_and_gradients(network(target, form, estimator).to(torch.bfloat16).float(), x)
    assert all(t.dtype == torch.bfloat16 and t.isfinite().all() for t in coarse)
    cosine = torch.cosine_similarity(coarse[1].float().flatten(), fine[1].flatten(), dim=0)
    assert cosine > 0.5
