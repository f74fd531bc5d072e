"""The event-driven kernel gives what the reference gives, in place."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tbnn.bits import pack_bits
from tbnn.learning.plasticity import Pairs, Traces, Updates, learn_pairs_, pair_step

HALF = 1 / math.log(2)  # a decay of 1/2: traces exact in float


def given(steps: int, batch: int, inputs: int, outputs: int, rate: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(steps + inputs)
    pre = (torch.rand(steps, batch, inputs, generator=g) < rate).to(dtype)
    post = (torch.rand(steps, batch, outputs, generator=g) < 0.2).to(dtype)
    return torch.randint(0, 65, (outputs, inputs), generator=g).to(dtype) / 64, pre, post


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("coincidence", ["causal", "both", "neither"])
@pytest.mark.parametrize("interaction", ["all", "nearest"])
@pytest.mark.parametrize(
    ("shape", "rate"),  # few and many inputs take other ways
    [
        ((1, 1, 63, 5), 0.5),
        ((7, 3, 500, 2), 0.005),
        ((7, 3, 500, 2), 0.3),
        ((5, 2, 300, 70), 0.02),
        ((4, 1, 256, 1), 0.0),
    ],
)
def test_the_kernel_is_the_reference_bit_for_bit(poisoned_memory, dtype, coincidence, interaction, shape, rate) -> None:
    _, batch, inputs, outputs = shape
    weight, pre, post = given(*shape, rate, dtype)
    window = Pairs(0.5, 0.25, HALF, HALF, interaction, coincidence)
    assert window.decays == (0.5, 0.5)
    start = Traces(torch.full((batch, inputs), 0.25, dtype=dtype), torch.full((batch, outputs), 0.5, dtype=dtype))
    ours, theirs = weight.clone(), weight.clone()
    learn_pairs_(weight.clone(), pre, post, None, window)  # compiles, which poisoned memory would disturb
    with poisoned_memory():
        traces, made = learn_pairs_(ours, pack_bits(pre), post, start, window, rate=1 / 8, low=0.0, high=1.0)
    expected, counted = learn_pairs_(
        theirs, pre, post, start, window, rate=1 / 8, low=0.0, high=1.0, backend="reference"
    )
    assert torch.equal(ours, theirs)
    assert torch.equal(traces.pre, expected.pre)
    assert torch.equal(traces.post, expected.post)
    assert made == counted
    assert start.pre.eq(0.25).all()  # what was passed in stays


def test_a_sequence_is_the_sum_of_its_steps() -> None:
    weight, pre, post = given(9, 2, 70, 6, 0.1, torch.float64)
    window, before, traces = Pairs(0.7, 0.3, 5.0, 8.0), weight.clone(), None
    total = torch.zeros_like(weight)
    for pre_t, post_t in zip(pre, post, strict=True):
        traces, dw = pair_step(pre_t, post_t, traces, window)
        total += dw
    after, _ = learn_pairs_(weight, pre, post, None, window, rate=-2.0)
    torch.testing.assert_close(weight, before - 2 * total)
    assert traces is not None
    torch.testing.assert_close(after.pre, traces.pre)
    stepped, state = before.clone(), None
    for t in range(9):
        state, _ = learn_pairs_(stepped, pre[t : t + 1], post[t : t + 1], state, window, rate=-2.0)
    torch.testing.assert_close(stepped, weight)


def test_updates_count_synapses_that_an_event_reached() -> None:
    pre, post = torch.zeros(3, 1, 4), torch.zeros(3, 1, 2)
    pre[0, 0, [0, 2]], post[1, 0, 1], pre[2, 0, 3] = 1, 1, 1
    _, made = learn_pairs_(torch.zeros(2, 4), pre, post, None, Pairs())
    assert made == (2, 1)
    assert made + Updates(1, 2) == (3, 3)


def test_threads_change_nothing(with_threads) -> None:
    weight, pre, post = given(6, 4, 700, 40, 0.1, torch.float32)
    found = []
    for threads in (1, 2):
        own = weight.clone()
        with_threads(threads, lambda own=own: learn_pairs_(own, pre, post, None, Pairs(0.7, 0.3, 5.0, 8.0)))
        found.append(own)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(4, 2).T}, "weight: expected contiguous floats"),
        ({"weight": torch.zeros(2, 4, dtype=torch.int32)}, "weight: expected"),
        ({"post": torch.zeros(3, 1, 5)}, r"post: expected torch.float32 \(T, B, 2\)"),
        ({"post": torch.zeros(3, 1, 2).double()}, "post: expected torch.float32"),
        ({"pre": torch.zeros(2, 1, 4)}, r"pre: expected \(3, 1, ...\)"),
        ({"pre": torch.zeros(3, 1, 5)}, "pre: expected 0/1 floats"),
        ({"pre": torch.full((3, 1, 4), 0.5)}, "expected values 0 and 1"),
        ({"pre": torch.full((3, 1, 1), 16, dtype=torch.int32)}, "pre: expected zeros in the padding"),
        ({"rate": math.nan}, "rate: expected a finite number"),
        ({"low": 1.0, "high": 0.0}, "low, high: expected low <= high"),
        ({"traces": Traces(torch.full((1, 4), math.nan), torch.zeros(1, 2))}, "traces: expected finite"),
        ({"backend": "gpu"}, "backend"),
    ],
)
def test_what_is_refused(change: dict[str, object], message: str) -> None:
    good = {"weight": torch.zeros(2, 4), "pre": torch.zeros(3, 1, 4), "post": torch.zeros(3, 1, 2), "traces": None}
    with pytest.raises(ValueError, match=message):
        learn_pairs_(**{**good, "window": Pairs(), **change})  # type: ignore[arg-type]
