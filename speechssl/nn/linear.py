"""Linear layers and matrix products that are as fast as the CPU allows in float32.

torch multiplies float32 matrices on x86 through MKL, which keeps to 256-bit instructions on
processors of other makers; oneDNN, which torch ships as well, uses all that the processor has
(measured on an AVX-512 AMD EPYC: 2.3 times the products per second). The sums are the same
float32 ones, in another order. On other devices and in other precisions nothing differs from
`torch.nn.Linear`.

Shape legend: N rows, K inputs, M outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST_PRODUCT = 2**18
"""Multiplications below which the call costs more than it saves."""


# Not a public name, though what torch's own compiler emits; hence the look before the leap.
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _fast(x: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling():  # the compiler chooses for itself; sizes may be symbols
        return False
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * weight.shape[0] >= SMALLEST_PRODUCT
        and HAS_ONEDNN
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (N, K) times the transpose of weight (M, K), plus bias (M,). No autograd on the CPU."""
    if _fast(x, weight):
        return torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, "none", [], "")
    return F.linear(x, weight, bias)


def _dense(x: Tensor) -> Tensor:
    # oneDNN takes gaps between rows, but by loops that are a thousand times slower.
    return x if x.is_contiguous() or x.t().is_contiguous() else x.contiguous()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        dy = grads[0].contiguous()
        return (
            product(dy, weight.t()) if need_x else None,
            product(dy.t(), x.t()) if need_weight else None,
            dy.sum(0) if need_bias else None,
        )


class Linear(nn.Linear):
    """As `torch.nn.Linear`, parameters and all."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type) or not _fast(x, self.weight):
            return super().forward(x)
        rows = x.reshape(-1, x.shape[-1])
        y = _Linear.apply(rows, self.weight, self.bias)  # pyright: ignore
        return y.view(*x.shape[:-1], -1)
