"""What the device is good at, which decides the best settings of a rival."""

from pathlib import Path

import torch


def native_bfloat16():
    """Whether the device multiplies in bfloat16 itself."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.is_file() else set()
    return bool(flags & {"avx512_bf16", "amx_bf16"})
