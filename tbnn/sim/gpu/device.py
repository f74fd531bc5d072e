"""Whether there is a device, and what a device that is full says."""

import re

import torch

from tbnn.ops.kernels import has_triton

TRIED = re.compile(r"[Tt]ried to allocate ([\d.]+) (bytes|KiB|MiB|GiB|TiB)")
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


class DeviceMemoryError(MemoryError):
    """A layer found no room on the device. What had been carried so far is as it was before the chunk of time.

    Attributes:
        layer: its name.
        wanted: bytes of the allocation that failed; None where the allocator did not say.
    """

    def __init__(self, layer: str, error: BaseException) -> None:
        found = TRIED.search(str(error))
        self.layer, self.wanted = layer, None if found is None else round(float(found[1]) * UNITS[found[2]])
        size = "memory" if found is None else f"{self.wanted} bytes ({found[1]} {found[2]})"
        super().__init__(
            f"{layer}: the device has no room for {size} more; simulate fewer samples or push fewer steps at a time"
        )


def check_device(device: str | torch.device) -> torch.device:
    """The device, with its number where it is a GPU: "cpu", "cuda" (the current one) or "cuda:N".

    Raises ``ValueError`` for any other, a torch without CUDA, no such device here, and where Triton is missing.
    """
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {device!r}") from None
    if wanted.type == "cpu":
        return torch.device("cpu")
    if wanted.type != "cuda":
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {str(wanted)!r}")
    if torch.version.cuda is None and torch.version.hip is None:
        raise ValueError(f"device: {str(wanted)!r} needs a torch built for CUDA, got torch {torch.__version__}")
    if not torch.cuda.is_available():
        raise ValueError(f"device: expected a CUDA device for {str(wanted)!r}, got none: no driver or no GPU found")
    count = torch.cuda.device_count()
    number = torch.cuda.current_device() if wanted.index is None else wanted.index
    if number >= count:
        raise ValueError(f"device: expected one of cuda:0 to cuda:{count - 1}, got {str(wanted)!r}")
    if not has_triton():
        raise ValueError(f"device: {str(wanted)!r} needs Triton, which is not installed: pip install 'tbnn[gpu]'")
    return torch.device("cuda", number)
