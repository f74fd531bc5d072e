"""The gradients of convolutions of packed frames, by every way, against the definition in float64."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tbnn.bits import pack_bits
from tbnn.ops.patches.reference import windows_over
from tbnn.ops.spike_products import conv_gradients
from tbnn.ops.spike_products.conv_gradients import ConvGradients

Pair = tuple[int, int]

margins = st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * 2)
alphabets = st.sampled_from([(-1, 1), (-1, 0, 1), (-3, -1, 1, 3), tuple(range(-15, 16, 2)), (0,), (2,), (-2, 5)])


def pairs(low: int, high: int) -> st.SearchStrategy[Pair]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@contextmanager
def by(kernels: bool) -> Iterator[None]:
    """Everything from bits, or everything by torch."""
    before = conv_gradients.MAC
    conv_gradients.MAC = math.inf if kernels else 0.0
    try:
        yield
    finally:
        conv_gradients.MAC = before


class Case:
    """A convolution, its operands, and both gradients by definition."""

    def __init__(
        self, frames: int, shape: tuple[int, int, int], outputs: int, kernel: Pair, *, groups: int = 1,
        alphabet: tuple[int, ...] = (-1, 1), affine: bool = True, density: float = 0.3, exact: bool = False, seed: int = 0,
        **geometry: Any,
    ) -> None:  # fmt: skip
        torch.manual_seed(seed)
        options: dict[str, Any] = {"stride": 1, "padding": 0, "dilation": 1} | geometry
        windows = windows_over("test", shape, kernel, **options)
        self.x = (torch.rand(frames, *shape) < density).float()
        self.words = pack_bits(self.x.flatten(1))
        values = torch.tensor(alphabet).float()[torch.randint(len(alphabet), (outputs, shape[0] // groups, *kernel))]
        dy = torch.randn(frames, outputs, *windows.counts)
        scale, offset = torch.rand(outputs, 1) + 0.5, torch.randn(outputs, 1) / 5
        if exact:  # sums are exact in float32
            dy, scale, offset = (torch.round(4 * t) / 4 for t in (dy, scale, offset))
        self.dy, self.weight = dy, values * scale[:, :, None, None] + (offset[:, :, None, None] if affine else 0)
        self.gradients = ConvGradients(shape, windows, groups, values, scale, offset if affine else None)
        (top, left), sizes = windows.before, windows.extent
        ends = [max(e - b, s) - s for e, b, s in zip(sizes, windows.before, shape[1:], strict=True)]
        wide = torch.nn.functional.pad(self.x.double(), (left, ends[1], top, ends[0])).requires_grad_()
        weight = self.weight.double().requires_grad_()
        y = torch.nn.functional.conv2d(wide, weight, None, windows.stride, 0, windows.dilation, groups)
        dx, self.dweight = torch.autograd.grad(y, [wide, weight], dy.double())
        self.dx = dx[:, :, top : top + shape[1], left : left + shape[2]]


def error(got: Tensor, want: Tensor) -> float:
    return ((got - want).norm() / want.norm()).item()


@given(
    frames=st.sampled_from([1, 16, 17, 35, 65]), per_group=st.tuples(st.integers(1, 5), st.sampled_from([1, 3, 16, 17, 33, 70])),
    groups=st.integers(1, 3), size=pairs(4, 11), kernel=pairs(1, 6), stride=pairs(1, 3), padding=margins,
    dilation=pairs(1, 3), density=st.sampled_from([0.0, 0.02, 0.3, 1.0]), alphabet=alphabets, affine=st.booleans(),
)  # fmt: skip
@example((17), (2, 16), 1, (11, 20), (5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1), 0.3, (-1, 1), False)
@example((35), (3, 20), 2, (9, 16), (3, 7), (1, 2), ((9, 0), (0, 9)), (2, 1), 1.0, (-3, -1, 1, 3), True)
@settings(max_examples=60)
def test_exact_numbers_give_the_definition(
    frames: int, per_group: Pair, groups: int, size: Pair, kernel: Pair, stride: Pair, padding: tuple[Pair, Pair],
    dilation: Pair, density: float, alphabet: tuple[int, ...], affine: bool,
) -> None:  # fmt: skip
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    height, width = (max(n, span - sum(p)) for n, span, p in zip(size, spans, padding, strict=True))
    case = Case(
        frames, (per_group[0] * groups, height, width), per_group[1] * groups, kernel, groups=groups, alphabet=alphabet,
        affine=affine, density=density, exact=True, stride=stride, padding=padding, dilation=dilation,
    )  # fmt: skip
    for kernels in (True, False):
        with by(kernels):
            assert torch.equal(case.gradients.weight_gradient(case.dy, case.words).double(), case.dweight)
            out = torch.full(case.x.shape, torch.nan)
            assert case.gradients.input_gradient(case.dy, case.weight, out) is out
            assert torch.equal(out.double(), case.dx)


@pytest.mark.parametrize("density", [0.02, 0.3, 1.0])
def test_the_error_on_real_gradients_is_that_of_float32(density: float) -> None:
    case = Case(100, (5, 17, 17), 40, (5, 5), density=density, padding=2)
    with by(kernels=True):
        assert error(case.gradients.weight_gradient(case.dy, case.words), case.dweight) < 1e-6
        assert error(case.gradients.input_gradient(case.dy, case.weight), case.dx) < 1e-6


def test_the_cheaper_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    for name in ("conv_events_cpu", "conv_inputs_cpu"):
        kernel = getattr(conv_gradients, name)
        monkeypatch.setattr(
            conv_gradients, name, lambda *a, name=name, kernel=kernel, **k: (called.append(name), kernel(*a, **k))
        )

    def ways(**options: Any) -> list[str]:
        called.clear()
        case = Case(20, (16, 9, 9), options.pop("outputs", 32), (5, 5), padding=2, **options)
        case.gradients.weight_gradient(case.dy, case.words)
        case.gradients.input_gradient(case.dy, case.weight)
        return called[:]

    assert ways(density=0.1) == ["conv_events_cpu", "conv_inputs_cpu"]
    assert ways(density=1.0) == ["conv_inputs_cpu"]
    assert ways(density=0.1, alphabet=tuple(range(-15, 16, 2))) == ["conv_events_cpu"]
    assert ways(density=0.9, outputs=1) == []


def test_double_precision_is_torchs() -> None:
    case = Case(20, (3, 9, 9), 16, (3, 3), padding=((1, 0), (0, 2)))
    dy, weight = case.dy.double(), case.weight.double()
    assert error(case.gradients.weight_gradient(dy, case.words), case.dweight) < 1e-14
    assert error(case.gradients.input_gradient(dy, weight), case.dx) < 1e-14


def test_sums_of_many_frames_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(70, (2, 6, 6), 5, (3, 3))
    with by(kernels=True):
        whole = case.gradients.weight_gradient(case.dy, case.words)
        monkeypatch.setattr(conv_gradients, "MOST_PARTIAL", 1)
        assert error(case.gradients.weight_gradient(case.dy, case.words), whole.double()) < 1e-6
    monkeypatch.setattr(conv_gradients, "MOST_UNPACKED", 300)
    with by(kernels=False):
        assert error(case.gradients.weight_gradient(case.dy, case.words), whole.double()) < 1e-5
