"""Where bfloat16 pays, and the context that uses it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def autocast(precision: str, device_type: str) -> AbstractContextManager[Any]:
    """Context of a forward pass: "fp32", "bf16" (autocast), or "auto": bf16 where it is fast."""
    if precision == "fp32" or (precision == "auto" and not fast_bf16(device_type)):
        return nullcontext()
    return torch.autocast(device_type, torch.bfloat16)


def fast_bf16(device_type: str) -> bool:
    """True if the device multiplies bfloat16 in hardware; a CPU that emulates it is slower."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)
