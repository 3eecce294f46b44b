"""The Conformer's layer: half feed-forward, self-attention, convolution, half feed-forward.

Source: Gulati et al., 2020 (Conformer), section 2; Dai et al., 2019 (Transformer-XL), section 3.3,
for relative positions; Su et al., 2021 (RoFormer), section 3.2, for rotary ones.

Shape legend: B utterances, T frames, D width, H heads, E = D / H.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.nn.attention import attention
from speechssl.nn.frame_norms import FrameBatchNorm, UtteranceNorm
from speechssl.nn.linear import Linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu}
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": nn.LayerNorm,
    "group": UtteranceNorm,
    "batch": FrameBatchNorm,
}


def relative_sinusoids(frames: int, dim: int, device: torch.device) -> Tensor:
    """(2T - 1, D) float32: sine and cosine, by turns, of each distance query - key from T - 1 down
    to 1 - T; a row per offset key - query, rising, as `offset_scores` wants them."""
    distance = torch.arange(frames - 1, -frames, -1, device=device, dtype=torch.float32)
    even = torch.arange(0, dim, 2, device=device, dtype=torch.float32)
    angles = distance[:, None] * torch.exp(even * (-math.log(10000.0) / dim))
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


def offset_scores(scores: Tensor) -> Tensor:
    """(..., T, 2T - 1), each query's score of every offset key - query, -> (..., T, T) by key."""
    frames = scores.shape[-2]
    # With one column more, the scores of neighbouring queries for the same key lie 2T - 1 apart.
    flat = F.pad(scores, (0, 1)).flatten(-2)[..., frames - 1 : -1]
    return flat.unflatten(-1, (frames, 2 * frames - 1))[..., :frames]


def rotary_angles(frames: int, width: int, base: float, device: torch.device) -> Tensor:
    """(2, T, E) float32: cosines and sines by which `rotate` turns a frame's halves."""
    even = torch.arange(0, width, 2, device=device, dtype=torch.float32)
    angles = torch.arange(frames, device=device)[:, None] * base ** (-even / width)
    angles = torch.cat([angles, angles], -1)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the pairs (e, e + E / 2) of x (..., T, E) by each frame's angles."""
    cos, sin = angles
    first, second = x.float().chunk(2, -1)
    return (x * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


class ConformerAttention(nn.Module):
    """Multi-head self-attention over the valid frames of each utterance: (B, T, D) -> same.

    positions: "relative": Transformer-XL's, with a projection and two biases per layer. "rotary":
    queries and keys are turned by their frame's angles. "rotary_input": as fairseq and transformers
    have it, which turn what queries and keys are projected from; scores then depend on where in the
    utterance two frames are, not on their distance alone. "none".
    """

    def __init__(self, dim: int, heads: int, *, dropout: float, positions: str) -> None:
        super().__init__()
        self.heads, self.dropout, self.positions = heads, dropout, positions
        self.qkv = Linear(dim, 3 * dim)
        self.out = Linear(dim, dim)
        if positions == "relative":
            self.position = Linear(dim, dim, bias=False)
            self.content_bias = nn.Parameter(torch.empty(heads, dim // heads))
            self.position_bias = nn.Parameter(torch.empty(heads, dim // heads))
            nn.init.xavier_uniform_(self.content_bias)
            nn.init.xavier_uniform_(self.position_bias)

    def forward(self, x: Tensor, keep: Tensor | None, table: Tensor | None) -> Tensor:
        """keep: (B, T) bool, True on valid frames, None if all are; table: of the positions."""
        q, k, v = self._project(x, table).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if keep is None else keep[:, None, None, :]
        if self.positions == "relative" and table is not None:
            bias = self._relative(q, table)
            mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
            q = q + self.content_bias[:, None].to(q.dtype)
        elif self.positions == "rotary" and table is not None:
            q, k = rotate(q, table), rotate(k, table)
        y = attention(q, k, v, mask, self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).flatten(2))

    def _project(self, x: Tensor, table: Tensor | None) -> Tensor:
        """(B, T, 3 D): queries, keys, values."""
        if self.positions != "rotary_input" or table is None:
            return self.qkv(x)
        turned = rotate(x.unflatten(-1, (self.heads, -1)).transpose(1, 2), table)
        turned = turned.transpose(1, 2).flatten(2)
        weight, bias, two = self.qkv.weight, self.qkv.bias, 2 * x.shape[-1]
        queries_keys = F.linear(turned, weight[:two], bias[:two])
        return torch.cat([queries_keys, F.linear(x, weight[two:], bias[two:])], -1)

    def _relative(self, q: Tensor, table: Tensor) -> Tensor:
        """(B, H, T, T): the scaled scores that depend on where the key is."""
        p = self.position(table.to(q.dtype)).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        q = (q + self.position_bias[:, None].to(q.dtype)) * q.shape[-1] ** -0.5
        return offset_scores(q @ p.transpose(-1, -2))


class ConvolutionModule(nn.Module):
    """Gated pointwise, then depthwise convolution over time, norm, activation, pointwise: (B, T, D)
    -> same.

    Differs: frames of padding are zero before the depthwise convolution, so that frames beside them
    see what they would see at the end of an utterance alone. The norm is a layer norm by default,
    where the paper has a batch norm (see `FrameBatchNorm` for why not).
    """

    def __init__(
        self, dim: int, kernel: int, *, norm: str, activation: str, dropout: float
    ) -> None:
        super().__init__()
        self.activation, self.dropout = ACTIVATIONS[activation], dropout
        self.input_norm = nn.LayerNorm(dim)
        self.expand = Linear(dim, 2 * dim, bias=False)
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=False)
        self.per_frame = norm == "layer"
        self.norm = NORMS[norm](dim)
        self.contract = Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """padding: (B, T) bool, True on padding, None if there is none."""
        x = F.glu(self.expand(self.input_norm(x)), -1)
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0)
        x = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        x = self.norm(x) if self.per_frame else self.norm(x, padding)
        x = self.contract(self.activation(x))
        return F.dropout(x, self.dropout) if self.training and self.dropout > 0 else x


class FeedForward(nn.Module):
    """Norm, expansion, activation, contraction: (B, T, D) -> same."""

    def __init__(
        self, dim: int, ffn_dim: int, *, activation: str, dropout: float, inner_dropout: float
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.dropout, self.inner_dropout = dropout, inner_dropout
        self.norm = nn.LayerNorm(dim)
        self.fc1 = Linear(dim, ffn_dim)
        self.fc2 = Linear(ffn_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.fc1(self.norm(x)))
        x = F.dropout(x, self.inner_dropout, self.training and self.inner_dropout > 0)
        return F.dropout(self.fc2(x), self.dropout, self.training and self.dropout > 0)


class ConformerLayer(nn.Module):
    """(B, T, D) -> (B, T, D)."""

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        heads: int,
        *,
        kernel: int,
        positions: str,
        norm: str,
        activation: str,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.ffn1, self.ffn2 = (
            FeedForward(
                dim,
                ffn_dim,
                activation=activation,
                dropout=dropout,
                inner_dropout=activation_dropout,
            )
            for _ in range(2)
        )
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = ConformerAttention(
            dim, heads, dropout=attention_dropout, positions=positions
        )
        self.conv = ConvolutionModule(
            dim, kernel, norm=norm, activation=activation, dropout=dropout
        )
        self.final_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, keep: Tensor | None = None, table: Tensor | None = None) -> Tensor:
        """keep: (B, T) True on valid frames, None if all are; table: of the positions."""
        x = x + 0.5 * self.ffn1(x)
        y = self.attention(self.attention_norm(x), keep, table)
        x = x + F.dropout(y, self.dropout, self.training and self.dropout > 0)
        x = x + self.conv(x, None if keep is None else ~keep)
        return self.final_norm(x + 0.5 * self.ffn2(x))
