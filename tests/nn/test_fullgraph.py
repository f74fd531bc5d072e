"""torch.compile makes one graph of a training step: the same spikes, readout and gradients as without it."""

import copy
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tbnn import pack_bits
from tbnn.losses import cross_entropy
from tbnn.nn import (
    Adaptive,
    AdLIF,
    BinaryConv1d,
    BinaryConv2d,
    BinaryLinear,
    Leaky,
    LeakyIntegrator,
    Network,
    Recurrent,
    Synaptic,
    TargetRate,
    Winners,
    coded_operator,
    detach,
    network,
    zoo,
)
from tbnn.ops.lif import SpikeGradient, fused, integrate, lif, operator
from tbnn.surrogate import boxcar, fast_sigmoid, sigmoid, sparse_fast_sigmoid, triangular

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch's compiler about itself

NEURONS: dict[str, Callable[[], nn.Module]] = {
    "leaky": lambda: Leaky(0.9),
    "surrogate": lambda: Leaky(0.9, gradient="surrogate", surrogate=fast_sigmoid(5.0), reset_mechanism="zero"),
    "bare": lambda: Leaky(0.9, gradient="surrogate", surrogate=sparse_fast_sigmoid(2.0, -0.5), scale=0.5),
    "trace": lambda: Leaky(0.9, target="trace", learn_beta=True, learn_threshold=True),
    "synaptic": lambda: Synaptic(0.5, 0.9, surrogate=sigmoid(4.0), stats="step", learn_beta=True),
    "synaptic trace": lambda: Synaptic(0.5, 0.9, target="trace", learn_alpha=True),
    "denoised": lambda: Leaky(0.9, emit="denoised", refractory=1, surrogate=triangular()),
    "winners": lambda: AdLIF(0.9, 0.8, 1.0, 0.5, 0.5, activity=Winners(7), learn_beta=True, surrogate=boxcar(2.0)),
    "steps": lambda: Adaptive(0.9, emit="denoised", stats="step"),
    "rate": lambda: Leaky(0.9, activity=TargetRate(0.1), differentiate_stats=False, scale=2.0),
}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    yield
    torch.compiler.reset()


class Called(TorchDispatchMode):
    """The operators of tbnn that are called inside the ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "tbnn":
            self.calls.append((function._opname, args))
        return function(*args, **(kwargs or {}))

    def names(self) -> set[str]:
        return {name for name, _ in self.calls}


def dense(neuron: nn.Module) -> Network:
    return Network([BinaryLinear(24, 32), neuron, BinaryLinear(32, 5), LeakyIntegrator(0.9, learn_beta=True)])


def as_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have neurons call what a compiled graph calls, without a compiler."""
    monkeypatch.setattr(fused._Lif, "apply", operator.lif_traced)
    monkeypatch.setattr(integrate._Integrate, "apply", operator.integrate_traced)
    monkeypatch.setattr(network, "group_at", lambda *_: None)


def step(net: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Loss and readout of a training step."""
    y, _ = net(x)
    return cross_entropy(y, labels), y


def results(run: Callable[..., Any], net: nn.Module, *inputs: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    loss, y = run(net, *inputs)
    assert y.abs().sum() > 0
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    assert all(g.abs().sum() > 0 for g in gradients)
    return [loss.detach(), y.detach(), *gradients]


def same(net: nn.Module, *inputs: Tensor, backend: str = "aot_eager", tolerance: float = 1e-6) -> None:
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for got, want in zip(results(compiled, net, *inputs), results(step, net, *inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NEURONS)
def test_operators_give_what_the_autograd_functions_give(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of neuron, as a compiled graph calls it."""
    net, x, labels = dense(NEURONS[name]()), (torch.rand(6, 3, 24) < 0.4).float(), torch.tensor([0, 4, 2])
    with torch.no_grad():
        net(x)  # running statistics have their size on either side
    twin = copy.deepcopy(net)
    want = results(step, net, x, labels)
    as_operators(monkeypatch)
    with Called() as called:
        got = results(step, twin, x, labels)
    assert {"lif", "lif_backward", "leaky_integrate", "leaky_integrate_backward"} <= called.names()
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    for a, b in zip(twin.buffers(), net.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_dense_network() -> None:
    same(dense(Leaky(0.9)), (torch.rand(6, 3, 24) < 0.4).float(), torch.tensor([0, 4, 2]))


def test_the_convolutional_network_of_the_zoo() -> None:
    net = zoo.nmnist_conv((4, 6), input_shape=(2, 12, 12), dropout=0.0)
    same(net, (torch.rand(4, 3, 2, 12, 12) < 0.3).float(), torch.tensor([1, 9, 0]))


def test_packed_words() -> None:
    net = Network([BinaryLinear(40, 32), Leaky(0.9), BinaryLinear(32, 5), LeakyIntegrator(0.9)], input_shape=(40,))
    same(net, pack_bits(torch.rand(4, 3, 40) < 0.4), torch.tensor([0, 1, 2]))


def test_a_recurrent_network_falls_back_to_its_loop() -> None:
    net = dense(Recurrent(Synaptic(0.5, 0.9), BinaryLinear(32, 32)))
    same(net, (torch.rand(3, 3, 24) < 0.4).float(), torch.tensor([0, 4, 2]))


def test_steps_with_a_mask_and_a_state_that_goes_on() -> None:
    net = dense(Leaky(0.9))
    mask = torch.arange(6).unsqueeze(1) < torch.tensor([6, 2, 4])
    x = (torch.rand(6, 3, 24) < 0.4).float()
    _, state = net(x)
    state = detach(state)

    def run(x: Tensor, state: Any, mask: Tensor) -> tuple[Tensor, Any]:
        return net(x, state, mask)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    (got, got_state), (want, want_state) = compiled(x, state, mask), run(x, state, mask)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got_state[1].v, want_state[1].v)
    torch.testing.assert_close(got_state[3].v, want_state[3].v)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler, g++ is not there")
def test_inductor() -> None:
    same(dense(Leaky(0.9)), (torch.rand(6, 3, 24) < 0.4).float(), torch.tensor([0, 4, 2]), backend="inductor")


@pytest.mark.parametrize("refractory", [0, 2])
@pytest.mark.parametrize(
    "gradient",
    [SpikeGradient(), SpikeGradient(emit="denoised", stats="step"), SpikeGradient(target="trace")],
    ids=["soft", "denoised", "trace"],
)
def test_the_operator_does_what_it_declares(
    gradient: SpikeGradient, refractory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fake shapes, no aliases, no writes to what comes in."""
    as_operators(monkeypatch)
    current = torch.randn(5, 2, 7).requires_grad_()
    with Called() as called:
        lif(current, 0.5, refractory=refractory, gradient=gradient, lengths=torch.tensor([5, 3]))
    monkeypatch.undo()
    (arguments,) = [given for name, given in called.calls if name == "lif"]
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.tbnn.lif.default, arguments, test_utils=checks)


def test_the_other_operators_do_what_they_declare() -> None:
    checks = ("test_schema", "test_faketensor")
    x, beta, v0 = torch.randn(5, 2, 7), torch.rand(7), torch.randn(2, 7)
    torch.library.opcheck(torch.ops.tbnn.leaky_integrate.default, (x, beta, v0), test_utils=checks)
    for learns in (False, True):
        arguments = (x, x, beta, v0, learns)
        torch.library.opcheck(torch.ops.tbnn.leaky_integrate_backward.default, arguments, test_utils=checks)
    x, window = torch.randn(2, 5, 6), (2, 3, 1, 2, 1, 1)
    torch.library.opcheck(torch.ops.tbnn.max_pool.default, (x, window), test_utils=checks)
    y = torch.ops.tbnn.max_pool(x, window)
    torch.library.opcheck(torch.ops.tbnn.max_pool_backward.default, (x, y, y, window), test_utils=checks)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: BinaryLinear(128, 256, bits=2, block=64), (2, 70, 128)),
        (lambda: BinaryConv2d(4, 32, 3, padding=1, groups=2, form="linear"), (2, 9, 4, 20, 20)),
        (lambda: BinaryConv1d(8, 64, 3, padding=((0, 2),)), (2, 40, 8, 30)),
    ],
    ids=["linear", "conv", "uneven"],
)
def test_large_products_go_by_bits(
    make: Callable[[], Any], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, by_bits = make(), []
    for way in ("coded_product", "_made"):
        real = getattr(coded_operator, way)
        monkeypatch.setattr(coded_operator, way, lambda *a, real=real, way=way: by_bits.append(way) or real(*a))
    x = (torch.rand(shape) < 0.2).float().requires_grad_()
    inputs, g = [x, *layer.parameters()], torch.randn_like(layer(x))
    y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    got = torch.autograd.grad(y, inputs, g)
    assert by_bits == ["_made", "coded_product", "_made"]  # forward, and a product made again for backward
    assert torch.equal(y, layer(x))
    for a, b in zip(got, torch.autograd.grad(layer(x), inputs, g), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-5)


def test_the_product_does_what_it_declares() -> None:
    for sides, geometry in (((), ([], [], [], 1)), ((3, 2), ([2, 1], [1, 0], [1, 2], 1))):
        x, weight = torch.randint(0, 2, (40, 2, 9, 8)[: 2 + len(sides)]).float(), torch.randn(3, 2, *sides)
        values, per_row = weight.sign(), torch.rand(3, 1)
        arguments = (x, weight.requires_grad_(), values, per_row, per_row, True, *geometry, None)
        checks = ("test_schema", "test_faketensor", "test_autograd_registration")
        torch.library.opcheck(torch.ops.tbnn.coded_product.default, arguments, test_utils=checks)
        y = torch.ops.tbnn.coded_product(*arguments)
        for needs in ((True, False), (False, True)):
            back = (torch.randn_like(y), x, weight.detach(), *needs, *arguments[2:])
            torch.library.opcheck(torch.ops.tbnn.coded_product_backward.default, back, test_utils=checks[:2])
