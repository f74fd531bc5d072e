"""tbnn: temporal binary networks, trained through time with ridge denoising and run as packed bits."""

from tbnn import nn, surrogate
from tbnn._version import __version__
from tbnn.bits import pack_bits, unpack_bits
from tbnn.nn.summary import summary
from tbnn.ops.ddt import ddt
from tbnn.ops.quantize import quantize
from tbnn.sim import PackedNetwork, pack, unpack

__all__ = [
    "PackedNetwork",
    "__version__",
    "ddt",
    "nn",
    "pack",
    "pack_bits",
    "quantize",
    "summary",
    "surrogate",
    "unpack",
    "unpack_bits",
]
