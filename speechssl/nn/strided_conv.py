"""Strided convolution over time as plain matrix products, for channels-last activations.

A convolution of kernel k and stride s over rows of width C is a sum of ceil(k/s) matrix products
of views: s neighbouring rows are one row of width s*C. Nothing is unfolded or transposed, and
the whole batch is one product, since utterances whose padded length is a multiple of the stride
may be laid end to end: an output row whose taps reach into the next utterance lies behind the
last valid row of its own.

Shape legend: N input rows, M = N / stride output rows, C and O channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from speechssl.nn.linear import product


def gelu_conv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Convolve GELU(x) over rows: y[m] = bias + sum_j weight[:, :, j] @ gelu(x)[m * stride + j].

    x: (N, C), N a multiple of `stride`; weight: (O, C, k), k >= stride. Returns (N / stride, O).
    The taps that fall behind the end count as zero. Only `x` is kept for the backward pass; its
    GELU is computed again there, which halves what a front end holds in memory.
    """
    taps = weight.transpose(1, 2).flatten(1)  # (O, k * C)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, taps = x.to(dtype), taps.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    return _GeluConv.apply(x, taps, bias, stride)  # pyright: ignore


def _groups(taps: Tensor, width: int) -> tuple[Tensor, ...]:
    return taps.split(width, dim=1)


class _GeluConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        ctx.save_for_backward(x, taps)
        ctx.stride, ctx.has_bias = stride, bias is not None
        width = stride * x.shape[1]
        h = F.gelu(x).view(-1, width)
        first, *rest = _groups(taps, width)
        y = product(h, first, bias)
        for shift, group in enumerate(rest, start=1):
            y[: len(h) - shift] += product(h[shift:, : group.shape[1]], group)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, taps = ctx.saved_tensors
        dy = grads[0].contiguous()
        need_x, need_taps, need_bias, _ = ctx.needs_input_grad
        width = ctx.stride * x.shape[1]
        d_taps = d_x = None
        if need_taps:
            h = F.gelu(x).view(-1, width)
            d_taps = torch.empty_like(taps)
            for shift, group in enumerate(_groups(d_taps, width)):
                group.copy_(product(dy[: len(h) - shift].t(), h[shift:, : group.shape[1]].t()))
            del h
        if need_x:
            first, *rest = _groups(taps, width)
            d_h = product(dy, first.t())
            for shift, group in enumerate(rest, start=1):
                d_h[shift:, : group.shape[1]] += product(dy[: len(dy) - shift], group.t())
            d_h = d_h.view_as(x)
            d_x = torch.ops.aten.gelu_backward.grad_input(d_h, x, grad_input=d_h)
        d_bias = dy.sum(0) if need_bias and ctx.has_bias else None
        return d_x, d_taps, d_bias, None


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0] * ctx.scale, None


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """Return x; its gradient is multiplied by `scale`."""
    return x if scale == 1.0 else _ScaleGradient.apply(x, scale)  # pyright: ignore
