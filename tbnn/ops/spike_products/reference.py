"""Products of spikes and their gradients by definition, in whatever precision the operands have."""

from torch import Tensor

from tbnn.bits import unpack_bits


def weight_gradient_reference(dy: Tensor, words: Tensor, inputs: int) -> Tensor:
    """dW[n, f] = Σ_m dy[m, n]·x[m, f]: dy (M, N), words (M, ⌈F/32⌉) -> (N, F)."""
    return dy.T @ unpack_bits(words, inputs, dy.dtype)


def input_gradient_reference(dy: Tensor, values: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """dx[m, f] = Σ_n dy[m, n]·(scale[n]·values[n, f] + offset[n]): dy (M, N), values (N, F) -> (M, F)."""
    weight = scale[:, None] * values
    return dy @ (weight if offset is None else weight + offset[:, None])


def spike_linear_reference(
    words: Tensor, inputs: int, values: Tensor, scale: Tensor, offset: Tensor | None, block: int
) -> Tensor:
    """y = Σ_k scale_k·(x·values_k) + offset_k·Σx_k, k the blocks of inputs: words (M, ⌈F/32⌉) -> (M, N) as scale's dtype."""
    x = unpack_bits(words, inputs, scale.dtype)
    y = x.new_zeros((x.shape[0], values.shape[0]))
    for k, lo in enumerate(range(0, inputs, block)):
        part = x[:, lo : lo + block]
        term = (part @ values[:, lo : lo + block].T) * scale[:, k]
        y = y + (term if offset is None else term + part.sum(1, keepdim=True) * offset[:, k])
    return y
