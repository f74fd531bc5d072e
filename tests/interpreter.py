"""Triton's interpreter: GPU kernels on a machine without a GPU, one operation at a time, for tiny tests.

Triton reads TRITON_INTERPRET when a kernel is declared, those of its own library included. So the variable is set before
anything imports triton (torch.compile does, too), in every test worker, and stays: this module is a plugin of
tests/conftest.py. Where there is a CUDA device the kernels stay compiled, and the tests marked `gpu` run them.
"""

import importlib.util
import os
import sys

import pytest
import torch

HERE = importlib.util.find_spec("triton") is not None
if HERE and not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"


def _missing() -> str:
    """Why kernels cannot be interpreted in this process; empty if they can."""
    if not HERE:
        return "triton is not installed: pip install 'tbnn[gpu]'"
    if torch.cuda.is_available():
        return "a CUDA device is here, kernels are compiled: pytest -m gpu tests them"
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction

    return "" if isinstance(tl.sum, InterpretedFunction) else "triton was imported without TRITON_INTERPRET=1"


REASON = _missing()
interpreted = pytest.mark.skipif(bool(REASON), reason=REASON or "the interpreter is there")
