"""Weights of ±c in a network's binary layers: which layers may have them, how latent weights become them.

What reaches ``weight.grad`` when all |w| of a block are c, with G = dL/dŴ, q̄ the share of +c, V = q̄·(1 − q̄),
ρ = V/(V + λ), a mean over the block written ⟨·⟩ (the formulas of :func:`tbnn.quantize` at |w| = c):

===================  ============================  ====================================================================
estimator            linear, Ŵ = w/(1 + λ)         affine, Ŵ = ρ·w + (1 − ρ)·⟨w⟩
===================  ============================  ====================================================================
"ste", "ewgs"        G                             G
"ddt_slope"          G/(1 + λ)                     ρ·G: nothing in a block of one sign alone, whose weights stay
"ddt", "ddt_ridge"   (G + 2λ/(1 + λ)·⟨G·σ⟩·σ)      ρ·G + (1 − ρ)·(⟨G⟩ + 2·⟨G·(q − q̄)⟩/(V + λ)·(q − q̄)):
                     / (1 + λ), σ = sign(w)        ⟨G⟩ in a block of one sign alone, whose weights then move together
===================  ============================  ====================================================================

All are G up to λ, but where a block has come to one sign. The others are refused: "reste" and "qgait" are a constant
times G here, for their slopes depend on where a real weight lies; "pege" mixes real weights in.

In the linear form Ŵ stays at ±c/(1 + λ) while signs flip, and binarising a network does not change what it computes.
In the affine form scale and offset follow q̄, and Ŵ before and after differ in the offset by as much as ⟨w⟩ does.
"""

import torch
from torch import Tensor, nn

from tbnn.nn.weights import BinaryWeight
from tbnn.ops.quantize import Ddt, Ewgs, Ste
from tbnn.ops.quantize.estimators import estimator_of

SUPPORTED = (Ddt, Ste, Ewgs)


def binary_layers(network: nn.Module) -> dict[str, BinaryWeight]:
    """The layers with binary weights by name, each checked to be one that can learn as ±c.

    Raises:
        ValueError: there are none; a layer of more than one bit, with sparsity, frozen or not trained, or with an
            estimator whose gradient says nothing about weights of one size.
    """
    layers = {name or type(m).__name__: m for name, m in network.named_modules() if isinstance(m, BinaryWeight)}
    if not layers:
        raise ValueError("network: expected at least one layer with binary weights, got none")
    for name, layer in layers.items():
        _check(name, layer)
    return layers


def _check(name: str, layer: BinaryWeight) -> None:
    estimator = estimator_of(layer.estimator)
    if layer.frozen_values is not None or not layer.weight.requires_grad:
        raise ValueError(f"{name}.weight: expected weights that train, got ones that are frozen")
    if not isinstance(estimator, SUPPORTED):
        raise ValueError(
            f"{name}.estimator: weights of ±c learn with 'ste', 'ewgs', 'ddt', 'ddt_ridge' or 'ddt_slope', "
            f"got {type(estimator).__name__.lower()!r}"
        )
    if layer.bits != 1:
        raise ValueError(f"{name}.bits: only weights of 1 bit can be binary while learning, got {layer.bits}")
    if layer.sparsity != 0:
        raise ValueError(f"{name}.sparsity: weights of ±c cannot be pruned by size, expected 0, got {layer.sparsity}")


@torch.no_grad()
def binarize_(network: nn.Module) -> dict[nn.Parameter, Tensor]:
    """Replace latent weights by ±c, in place, c the mean |w| of their block (a row, or a run of ``block`` weights).

    A weight of 0 becomes −c, as the layers quantise it. Doing it again changes nothing.

    Returns:
        The latent weights of each parameter, in units of c.

    Raises:
        ValueError: as :func:`binary_layers`; weights that are not finite; a block of zeros, which has no scale.
    """
    layers, latent = binary_layers(network), {}
    for name, layer in layers.items():
        rows = layer.weight.flatten(1)
        size = _sizes(layer)
        if not bool((torch.isfinite(size) & (size > 0)).all()):
            raise ValueError(
                f"{name}.weight: expected finite weights and no block of zeros, got a mean |w| of 0, inf or nan"
            )
        latent[layer.weight] = (rows / size).view_as(layer.weight)
        layer.weight.copy_(torch.where(rows > 0, size, -size).view_as(layer.weight))
    return latent


def is_binary(network: nn.Module) -> bool:
    """Whether all layers with binary weights hold ±c, one c > 0 a block. Raises ``ValueError`` as :func:`binary_layers`."""
    return all(_holds_signs(layer) for layer in binary_layers(network).values())


def _holds_signs(layer: BinaryWeight) -> bool:
    size = _sizes(layer)
    return bool(((layer.weight.detach().flatten(1).abs() == size) & (size > 0)).all())


def _sizes(layer: BinaryWeight) -> Tensor:
    """The mean |w| of each weight's block, (outputs, inputs); of equal |w| it is just these."""
    rows = layer.weight.detach().flatten(1)
    runs = rows.abs().double().split(layer.block or rows.shape[1], 1)
    return torch.cat([run.mean(1, keepdim=True).expand_as(run) for run in runs], 1).to(rows.dtype)
