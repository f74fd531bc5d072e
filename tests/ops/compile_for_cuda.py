"""Compile for CUDA, without a device, every kernel that the host code would launch: run by test_compile_gpu.py.

Launches are replaced by compilation, arguments and all; what the tensors hold is nonsense then, and nobody looks.
"""

import itertools
import sys
from collections.abc import Callable

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from tbnn import surrogate
from tbnn.nn import BinaryLinear, Leaky
from tbnn.nn.fused import Group, weighted_spikes
from tbnn.ops.binary_linear.gpu import binary_product_gpu, count_rows_gpu
from tbnn.ops.ddt import gpu as ddt_gpu
from tbnn.ops.layer_lif.gpu import layer_lif_gpu
from tbnn.ops.layer_lif.gpu_products import packed_spikes_gpu, unpacked
from tbnn.ops.lif import Cell, LifState, Rule, Second, SpikeGradient, Statistics, check_state
from tbnn.ops.lif.gpu import integrate_gpu, lif_gpu
from tbnn.ops.patches.gpu import bit_patches_gpu, or_pool2d_gpu
from tbnn.ops.patches.reference import windows_over
from tbnn.ops.quantize import gpu as quantize_gpu
from tbnn.ops.quantize.grid import scheme_of
from tbnn.ops.recurrent_lif import Feedback
from tbnn.ops.recurrent_lif.gpu import recurrent_lif_gpu
from tbnn.sim.gpu import launch as simulator


class Driver:
    """As much of a device as the compiler asks about."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_benchmarker(self) -> Callable[..., list[float]]:
        """Every configuration that is tried out is compiled; none is the faster."""

        def once(call: Callable[[], object], quantiles: tuple[float, ...]) -> list[float]:
            call()
            return [0.0 for _ in quantiles]

        return once


def neuron(
    estimator: SpikeGradient,
    rule: Rule,
    second: bool,
    ragged: bool,
    dtype: torch.dtype,
    size: tuple[int, int, int] = (4, 3, 48),
) -> None:
    steps, batch, features = size
    current = torch.randn(size, dtype=dtype, requires_grad=True)
    numbers = [torch.full((features,), 0.5, dtype=dtype, requires_grad=True) for _ in range(9)]
    cell = Cell(numbers[0], numbers[1], Second(*numbers[2:]) if second else None)
    state = check_state(None, current, with_trace=estimator.uses_trace, with_second=second, rule=rule)
    state = LifState(*(None if part is None else part.requires_grad_(i < 4) for i, part in enumerate(state)))
    alive = torch.ones(steps, batch, dtype=dtype) if ragged else None
    result = lif_gpu(current, cell, state, rule, estimator, Statistics(features, alive), None)
    last = result.state.v if result.state.trace is None else result.state.trace
    (result.out.sum() + last.sum()).backward()


def neurons() -> None:
    estimators = [
        SpikeGradient("surrogate"),
        SpikeGradient(),
        SpikeGradient(target="trace"),
        SpikeGradient(emit="denoised"),
    ]
    for estimator, second, waits in itertools.product(estimators, (False, True), (0, 2)):
        dtype = torch.bfloat16 if waits else torch.float32
        neuron(estimator, Rule("subtract", waits), second, second, dtype)
    for shape in (surrogate.fast_sigmoid(), surrogate.sigmoid(), surrogate.triangular(), surrogate.boxcar()):
        neuron(SpikeGradient(surrogate=shape, stats="step"), Rule("zero"), False, False, torch.float16)
    for shape in (
        surrogate.leaky_spike(),
        surrogate.signed(),
        surrogate.spike_rate_escape(),
        surrogate.sparse_fast_sigmoid(),
    ):
        neuron(SpikeGradient("surrogate", shape), Rule("zero"), False, False, torch.float16)
    for size in ((1, 1, 1), (1, 3, 7), (4, 1, 7)):  # an integer argument of 1 is a constant to the compiler
        for estimator in estimators:
            neuron(estimator, Rule("subtract", 1), True, True, torch.float32, size)
    for learns in (False, True):
        v = torch.randn(4, 3, 48, requires_grad=True)
        integrate_gpu(v, torch.rand(48, requires_grad=learns), v[0].detach()).sum().backward()


def quantisers() -> None:
    for bits, form, sparsity in itertools.product(
        (1, 1.58, 4, None), ("affine", "linear"), ((0.0, 0, 0), (0.5, 0, 0), (0.0, 2, 4))
    ):
        fraction, keep, group = sparsity
        scheme = scheme_of(bits, form, 0.01, keep, group, fraction > 0 or group > 0)
        for shape, block in (((3, 300, 1), 128), ((2, 30, 20), 30), ((1, 20000, 1), 20000), ((1, 1, 1), 1)):
            x = torch.randn(shape)
            _, facts = quantize_gpu.quantize(x, block, fraction, "block", *scheme)
            for estimator in ("ddt", "ddt_ridge", "ddt_slope", "ewgs", *(("reste",) if bits == 1 else ())):
                quantize_gpu.quantize_backward(x, x, facts, block, *scheme, estimator, [1.0, 1.5, 0.1])
    for dtype in (torch.float64, torch.bfloat16):
        x = torch.randn(3, 300, 1).to(dtype)
        _, facts = quantize_gpu.quantize(x, 128, 0.0, "block", *scheme_of(4, "affine", 0.01))
        quantize_gpu.quantize_values(x, facts, 128, *scheme_of(4, "affine", 0.01))
        for shape in ((3, 300, 1), (2, 30, 20)):
            x = torch.randn(shape).to(dtype)
            _, sums = ddt_gpu.ddt(x, x, 0.01, "affine", 30)
            ddt_gpu.ddt_backward(x, x, x, sums, 0.01, "affine", 30, True, True)


def packed_products() -> None:
    for rows, columns, words, planes in ((500, 300, 40, 1), (1, 1, 1, 1), (3, 40, 2, 4)):
        spikes, weights = (torch.zeros(size, dtype=torch.int32) for size in ((rows, words), (planes, columns, words)))
        kept = torch.zeros(32 * words, dtype=torch.int32)
        for shift in (None, torch.zeros(rows, dtype=torch.int32)):
            binary_product_gpu(spikes, weights, torch.ones(planes, dtype=torch.int32), shift)
        count_rows_gpu(spikes)
        count_rows_gpu(spikes, kept)
    for shape, kernel, groups in (((4, 9, 33), 3, 2), ((1, 1, 1), 1, 1)):
        windows = windows_over("", shape, kernel, 1, 0, 1)
        frames = torch.zeros((5, 38 if shape[0] == 4 else 1), dtype=torch.int32)
        bit_patches_gpu(frames, shape, windows, groups)
        or_pool2d_gpu(frames, shape, windows)


def fused_layers() -> None:
    """Packing, currents of one block and of several, sums over words, and scans that write and read single bytes."""
    for dtype in (torch.float32, torch.float64):
        packed_spikes_gpu(torch.zeros(3, 2, 33, dtype=dtype))
    for size in ((1, 1), (5, 40)):
        for kind in (torch.float32, torch.int8):
            unpacked(torch.zeros(size[0], -(-size[1] // 32), dtype=torch.int32), size[1], kind)
    estimators = [
        SpikeGradient("surrogate"),
        SpikeGradient(),
        SpikeGradient(target="trace"),
        SpikeGradient(stats="step"),
    ]
    sizes = ((1, 1, 1, 1, None), (4, 3, 64, 48, 32), (4, 3, 64, 48, None))
    for (steps, batch, inputs, features, block), floats in itertools.product(sizes, (False, True)):
        for estimator, form in itertools.product(estimators, ("affine", "linear")):
            layer = BinaryLinear(inputs, features, bias=floats, bits=2, form=form, block=block)
            x = torch.zeros(steps, batch, inputs, requires_grad=True)
            weighted = weighted_spikes(Group(layer, None, Leaky(0.5)), x, "minimal")
            if weighted is None:
                raise RuntimeError("expected layers that run as one")
            weighted.floats = floats
            cell = Cell(torch.full((features,), 0.5), torch.ones(features))
            rule = Rule("subtract", 2 * (form == "linear"))
            current = torch.zeros(weighted.shape)
            state = check_state(None, current, with_trace=estimator.uses_trace, rule=rule)
            alive = torch.ones(steps, batch) if floats else None
            layer_lif_gpu(weighted, cell, state, rule, estimator, Statistics(features, alive)).out.sum().backward()


def recurrent() -> None:
    estimators = [SpikeGradient(how, target=target, stats="step") for how, target in (("surrogate", "soft"), ("ddt", "soft"), ("ddt", "trace"))]  # fmt: skip
    sizes = ((4, 3, 48, 1), (3, 20, 700, 1), (3, 20, 1500, 2), (1, 1, 1, 1))  # in the third, programs share neurons
    for (steps, batch, n, delay), estimator, second in itertools.product(sizes, estimators, (False, True)):
        current, past = (
            torch.randn(steps, batch, n, requires_grad=True),
            torch.zeros(delay, batch, n, requires_grad=True),
        )
        numbers = [torch.full((n,), 0.5, requires_grad=True) for _ in range(9)]
        cell = Cell(numbers[0], numbers[1], Second(*numbers[2:]) if second else None)
        rule = Rule("zero" if estimator.gradient == "surrogate" and not second else "subtract", 2 * second)
        weight, more = torch.zeros(n, n, requires_grad=True), (numbers[0], numbers[0]) if second else (None, None)
        feedback, lengths = Feedback(weight, weight.detach(), numbers[1], *more), torch.full((batch,), steps)
        state = check_state(None, current, with_trace=estimator.uses_trace, with_second=second, rule=rule)
        result = recurrent_lif_gpu(current, feedback, cell, state, past, rule, estimator, lengths if second else None)
        (result.out.sum() + (result.past.sum() if second else 0)).backward()
        with torch.no_grad():
            recurrent_lif_gpu(current, feedback, cell, state, past, rule, estimator, None)


def simulated() -> None:
    sizes = ((5, 40, 300, 1000, 1), (5, 3, 40, 70, 3), (1, 1, 1, 1, 1), (2, 9, 64, 4000, 1))
    for (steps, batch, features, inputs, planes), full in itertools.product(sizes, (False, True)):
        words, out_words = -(-inputs // 32), -(-features // 32)
        values, v = torch.zeros(features), torch.zeros(batch, features)
        spikes = torch.zeros((steps, batch, words), dtype=torch.int32)
        feed = torch.zeros((planes, features, words), dtype=torch.int32)
        factors = torch.ones(planes, dtype=torch.int32)
        offset, bias = (values, values) if full else (None, None)
        weights = simulator.Weights(feed, factors, -1 if full else 0, values, offset)
        product, ones = (
            torch.zeros((steps, batch, features), dtype=torch.int32),
            torch.zeros(steps * batch, dtype=torch.int32),
        )
        for reset in range(3):
            neurons = simulator.Neurons(values, values, reset)
            simulator.fused_scan(spikes, weights, bias, neurons, v)
            simulator.scan(product, neurons, v, ones, weights, bias)
            simulator.scan(torch.zeros(steps, batch, features), neurons, v)
            own = torch.zeros((planes, features, out_words), dtype=torch.int32)
            last = torch.zeros((batch, out_words), dtype=torch.int32)
            simulator.fused_step(last, weights._replace(planes=own), bias, neurons, v, v, last)
        for first in (False, True):
            y = torch.zeros(steps * batch, features)
            simulator.scale(product.flatten(0, 1), ones, weights, bias, y, first=first)


def main() -> None:
    compiled: set[str] = set()
    launch = JITFunction.run

    def compile_only(self: JITFunction, *args, grid, warmup, **kwargs):
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        assert "cubin" in kernel.asm
        compiled.add(kernel.name + str(hash(kernel.asm["ptx"])))
        return kernel

    JITFunction.run = compile_only  # type: ignore[method-assign]
    triton.runtime.driver.set_active(Driver(int(sys.argv[1])))
    neurons()
    quantisers()
    packed_products()
    fused_layers()
    recurrent()
    simulated()
    print(f"{len(compiled)} kernels compiled for sm_{sys.argv[1]} by triton {triton.__version__}")


if __name__ == "__main__":
    main()
