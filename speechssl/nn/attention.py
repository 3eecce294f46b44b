"""Self-attention with fused kernels and, where wanted, WavLM's gated relative position bias.

Shape legend: B utterances, T frames, D width, H heads, E = D / H.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.nn.linear import Linear
from speechssl.nn.positions import expand_offsets


class BiasGate(nn.Module):
    """Factor of the relative bias for each head and query, from the attention's input.

    Source: Chen et al., 2022 (WavLM), section 3.1, as in its official code: the gate reads the
    layer's input split to heads, not the query projection.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.projection = nn.Linear(dim // heads, 8)
        self.scale = nn.Parameter(torch.ones(1, heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T)."""
        heads = self.scale.shape[1]
        split = x.unflatten(-1, (heads, -1))  # (B, T, H, E)
        gates = self.projection(split).unflatten(-1, (2, 4)).sum(-1).sigmoid()
        first, second = gates.permute(3, 0, 2, 1).float()
        return first * (second * self.scale[..., 0] - 1) + 2


class SelfAttention(nn.Module):
    """Multi-head self-attention over the valid frames of each utterance: (B, T, D) -> same.

    kernel: "sdpa" is torch's fused attention; with a relative bias it holds one (B, H, T, T)
    tensor per layer. "flex" computes the bias inside the kernel; it has no attention dropout.
    """

    def __init__(self, dim: int, heads: int, *, dropout: float, gated: bool, kernel: str) -> None:
        super().__init__()
        self.heads, self.dropout, self.kernel = heads, dropout, kernel
        self.qkv = Linear(dim, 3 * dim)
        self.out = Linear(dim, dim)
        self.gate = BiasGate(dim, heads) if gated else None

    def forward(self, x: Tensor, keep: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """keep: (B, T) bool, True on valid frames, None if all are.

        bias: (H, 2T - 1) per offset, which the gate weighs, or (B or 1, H, T, T), added as it is.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        gate = None if bias is None or self.gate is None else self.gate(x)
        dropout = self.dropout if self.training else 0.0
        if gate is not None and self._use_flex(x, dropout):
            y = flex_gated(q, k, v, keep, gate, bias)
        else:
            y = attention(q, k, v, _attention_mask(q, keep, gate, bias), dropout)
        return self.out(y.transpose(1, 2).flatten(2))

    def _use_flex(self, x: Tensor, dropout: float) -> bool:
        if self.kernel == "auto":
            return x.is_cuda and dropout == 0.0
        return self.kernel == "flex"


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(q k / sqrt(E)) v by whichever kernel is the fastest here: (B, H, T, E) each.

    mask: additive, or bool with True where attention is allowed; of any shape that expands.
    """
    attend = plain_attention if _is_short(q) else F.scaled_dot_product_attention
    return attend(q, k, v, attn_mask=mask, dropout_p=dropout)


def _is_short(q: Tensor) -> bool:
    """True where torch's fused kernel is the slower one: its backward pass on the CPU takes 3 to 8
    times as long as plain products in bfloat16 at 75 to 150 frames; they meet near 400."""
    return q.device.type == "cpu" and q.shape[2] <= 256


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, dropout_p: float
) -> Tensor:
    """`F.scaled_dot_product_attention` as products of matrices, its softmax in float32.

    q, k, v: (B, H, T, E); attn_mask: additive, or bool with True where attention is allowed.
    """
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        logits = logits + attn_mask
    weights = torch.softmax(logits, -1, dtype=torch.float32).to(v.dtype)
    if dropout_p > 0:
        weights = F.dropout(weights, dropout_p)
    return weights @ v


def _attention_mask(
    q: Tensor, keep: Tensor | None, gate: Tensor | None, bias: Tensor | None
) -> Tensor | None:
    allowed = None if keep is None else keep[:, None, None, :]
    if bias is not None and bias.ndim == 4:
        mask = bias.to(q.dtype)
    elif gate is None or bias is None:
        return allowed
    else:
        mask = (gate[..., None] * expand_offsets(bias)).to(q.dtype)
    return mask if allowed is None else mask.masked_fill(~allowed, float("-inf"))


def flex_gated(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, gate: Tensor, bias: Tensor
) -> Tensor:
    """Attention with logits q.k / sqrt(E) + gate[b, h, query] * bias[h, key - query]."""
    frames = q.shape[2]

    def logits(score: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        score = score + gate[b, h, query] * bias[h, key - query + (frames - 1)]
        return score if keep is None else torch.where(keep[b, key], score, float("-inf"))

    return _flex(q.is_cuda)(q, k, v, score_mod=logits)


@functools.cache
def _flex(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # Uncompiled, flex attention is a reference implementation; only the kernel is worth using.
    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention
