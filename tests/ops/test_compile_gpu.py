"""The Triton kernels compile for CUDA, on a machine without it: the interpreter would not notice."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.interpreter import HERE


@pytest.mark.slow
@pytest.mark.skipif(not HERE, reason="triton is not installed: pip install 'tbnn[gpu]'")
def test_every_kernel_compiles(tmp_path: Path) -> None:
    script = Path(__file__).with_name("compile_for_cuda.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, script, "90"], env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[0]) > 200
