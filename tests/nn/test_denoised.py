"""emit="denoised": batch statistics in training, running ones in evaluation."""

import math

import pytest
import torch
from torch import Tensor

from tbnn.nn import Leaky
from tbnn.ops.lif import SpikeGradient, lif


def currents(*shape: int) -> Tensor:
    return 0.5 * torch.randn(*shape) + 0.2


def trained(**arguments: object) -> Leaky:
    """A neuron that has seen three batches."""
    neuron = Leaky(0.8, emit="denoised", **arguments)  # type: ignore[arg-type]
    for _ in range(3):
        neuron(currents(20, 4, 3, 5))
    return neuron


def moments_of(x: Tensor, **arguments: object) -> Tensor:
    moments = lif(x, 0.8, gradient=SpikeGradient(emit="denoised", **arguments)).moments  # type: ignore[arg-type]
    assert moments is not None
    return moments


def test_running_moments_average_the_batches() -> None:
    neuron, batches = Leaky(0.8, emit="denoised"), [currents(20, 4, 3, 5) for _ in range(3)]
    expected = None
    for x in batches:
        neuron(x)
        expected = moments_of(x) if expected is None else 0.9 * expected + 0.1 * moments_of(x)
    assert neuron.running_moments.shape == (3, 3)
    torch.testing.assert_close(neuron.running_moments, expected)


@pytest.mark.parametrize("arguments", [{"stats": "step"}, {"per_channel": False}], ids=str)
def test_one_pair_of_constants_for_a_layer_without_channels(arguments: dict[str, object]) -> None:
    neuron, x = Leaky(0.8, emit="denoised", **arguments), currents(20, 4, 3, 5)  # type: ignore[arg-type]
    neuron(x)
    torch.testing.assert_close(neuron.running_moments, moments_of(x, **arguments).mean(1, keepdim=True))


def test_evaluation_emits_a_times_the_bit_plus_b() -> None:
    neuron, x = trained().eval(), currents(20, 4, 3, 5)
    bits = lif(x, 0.8).out
    f, q, fq = neuron.running_moments
    a = (fq - f * q) / (q - q * q + 0.01)
    b = f - a * q
    out, _ = neuron(x)
    torch.testing.assert_close(out, a.reshape(3, 1) * bits + b.reshape(3, 1))
    assert len(out[:, :, 0].unique()) == 2


def test_evaluation_equals_training_where_the_batch_is_the_history() -> None:
    neuron, x = Leaky(0.8, emit="denoised"), currents(20, 4, 3, 5)
    training, _ = neuron(x)
    torch.testing.assert_close(neuron.eval()(x)[0], training, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arguments", [{}, {"stats": "step"}], ids=str)
def test_evaluation_does_not_depend_on_the_batch_or_on_stepping(arguments: dict[str, object]) -> None:
    neuron, x = trained(**arguments).eval(), currents(20, 4, 3, 5)
    before = neuron.running_moments.clone()
    out, last = neuron(x)
    for b in range(4):
        assert torch.equal(neuron(x[:, b : b + 1])[0], out[:, b : b + 1])
    state, steps = None, []
    for x_t in x:
        step, state = neuron.step(x_t, state)
        steps.append(step)
    assert torch.equal(torch.stack(steps), out)
    assert torch.equal(state.v, last.v)
    assert torch.equal(neuron.running_moments, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stepping_in_evaluation_in_every_dtype(dtype: torch.dtype) -> None:
    neuron, x = trained().eval().to(dtype), currents(6, 2, 3, 5).to(dtype)
    out, state, steps = neuron(x)[0], None, []
    for x_t in x:
        step, state = neuron.step(x_t, state)
        steps.append(step)
    assert torch.equal(torch.stack(steps), out)
    assert out.dtype == dtype


def test_state_dict_round_trip_into_a_fresh_neuron() -> None:
    neuron, fresh, x = trained().eval(), Leaky(0.3, emit="denoised").eval(), currents(20, 4, 3, 5)
    assert not torch.equal(fresh(x)[0], neuron(x)[0])
    fresh.load_state_dict(neuron.state_dict())
    assert torch.equal(fresh(x)[0], neuron(x)[0])
    with_parents = torch.nn.Sequential(Leaky(0.3, emit="denoised"))
    with_parents.load_state_dict(torch.nn.Sequential(neuron).state_dict())
    assert torch.equal(with_parents[0].running_moments, neuron.running_moments)


def test_before_any_training_the_bits_leave() -> None:
    x = currents(10, 2, 3)
    assert torch.equal(Leaky(0.8, emit="denoised").eval()(x)[0], lif(x, 0.8).out)


def test_evaluation_s_gradient_is_a_times_the_soft_slope() -> None:
    neuron, x = trained().eval(), currents(1, 2, 3, 5).requires_grad_()
    a, _ = neuron.emitted_affine()
    (dx,) = torch.autograd.grad(neuron(x)[0].sum(), x)
    expected = a.detach().reshape(3, 1) / (1 + (math.pi * (x.detach() - 1)) ** 2)
    torch.testing.assert_close(dx, expected.expand_as(x))


def test_bits_keep_no_statistics() -> None:
    neuron = Leaky(0.8)
    neuron(currents(20, 4, 3, 5))
    assert neuron.running_moments.numel() == 0


def test_a_step_in_training_keeps_one_block_a_channel() -> None:
    torch.manual_seed(0)
    neuron = Leaky(0.9, emit="denoised")
    neuron(torch.rand(6, 4, 3))
    before = neuron.running_moments.clone()
    neuron.step(torch.rand(4, 3))
    assert neuron.running_moments.shape == (3, 3)
    moved = (neuron.running_moments - 0.9 * before) / 0.1
    assert torch.allclose(moved, moved[:, :1].expand(3, 3), atol=1e-5)
