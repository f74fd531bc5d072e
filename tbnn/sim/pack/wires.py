"""Pooling and delays of bits become packed ones."""

from dataclasses import replace

from tbnn.nn import AvgPool2d, Delay, MaxPool2d
from tbnn.sim.layers import DelaySpec, PackedDelay, PackedPool, PoolSpec
from tbnn.sim.pack.signal import Signal


def pack_pool(name: str, layer: MaxPool2d, signal: Signal) -> PackedPool:
    """OR over windows of frames (C, H, W)."""
    signal.expect_bits(name, "to pool")
    channels, height, width = _frames(name, signal)
    sizes = ((a[0], a[1]) for a in (layer.kernel_size, layer.stride, layer.padding))
    return PackedPool(PoolSpec(name, channels, height, width, *sizes))


def averaged(name: str, layer: AvgPool2d, signal: Signal) -> Signal:
    """What leaves an average pooling, for the weights after it to take in.

    Raises ``ValueError`` for windows that overlap, leave gaps or reach into padding, and for a second one.
    """
    channels, height, width = _frames(name, signal)
    window, step, padding = layer.kernel_size, layer.stride, layer.padding
    if window != step or any(padding):
        raise ValueError(
            f"{name}: expected an AvgPool2d whose windows lie side by side without padding, which the weights after it can "
            f"take in, got kernel_size={window}, stride={step}, padding={padding}"
        )
    if signal.frames is not None:
        raise ValueError(f"{name}: expected weights after an AvgPool2d, which take it in, got another one")
    p, q = window
    shape = (channels, height // p, width // q)
    return replace(signal, shape=shape, frames=(channels, height, width), window=(p, q))


def pack_delay(name: str, layer: Delay, signal: Signal) -> PackedDelay:
    """Delays of bits, one for each of the first axis's features."""
    signal.expect_bits(name, "to delay")
    if signal.shape[0] != layer.features:
        raise ValueError(f"{name}: expected {layer.features} features, got {signal.shape}")
    spec = DelaySpec(name, layer.features, signal.size // layer.features, layer.max_delay)
    return PackedDelay(spec, layer.rounded().cpu().int())


def _frames(name: str, signal: Signal) -> tuple[int, int, int]:
    if len(signal.shape) != 3:
        raise ValueError(f"{name}: expected frames (C, H, W), got {signal.shape}; give Network an input_shape")
    return signal.shape[0], signal.shape[1], signal.shape[2]
