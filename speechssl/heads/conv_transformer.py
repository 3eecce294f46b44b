"""Convolutions that shorten frames and Transformer layers behind them, for recognisers.

Source: Shi et al. 2023 (ML-SUPERB), section 3.2, and its recipe in ESPnet (`conv2d2`, two pre-norm
layers of width 256 with 8 heads, and 1024 inside); Dong et al. 2018 (Speech-Transformer) for the
convolutions over frames and channels; Vaswani et al. 2017, section 3.5, for the positions.
Differs: the first and the last frames are convolved with zeros beyond them, so that ceil(T / 2)
frames come out, where ESPnet drops up to three; GELU in place of ReLU inside the layers.

Shape legend: B utterances, T frames, D width, S frames that are left, E width of the layers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.contract import padding_mask
from speechssl.nn.transformer_layer import TransformerLayer

STRIDES = {1: (1, 1), 2: (2, 1), 4: (2, 2)}
"""Strides of the two convolutions, over frames and channels alike, by what they make together."""


class ConvTransformer(nn.Module):
    """(B, T, D) frames -> (B, S, E), S = T / stride, rounded up after each convolution.

    Raises `ValueError` for another stride, heads that do not divide `width`, an odd `width`, or too
    narrow frames.
    """

    def __init__(
        self, dim: int, width: int, layers: int, heads: int, stride: int, dropout: float
    ) -> None:
        super().__init__()
        if stride not in STRIDES:
            raise ValueError(f"hidden_stride: found {stride}, want 1, 2 or 4")
        if layers < 1 or heads < 1 or width % heads or width % 2:
            raise ValueError(
                f"hidden_layers, hidden_heads, hidden_dim: found {layers}, {heads} and {width}, "
                "want a layer or more, and an even width that the heads divide"
            )
        self.strides = STRIDES[stride]
        left = dim
        for s in self.strides:
            left = (left - 3) // s + 1
        if left < 1:
            raise ValueError(
                f"projection_dim: found frames of width {dim} for two convolutions of 3 channels "
                f"with hidden_stride {stride}, want them wider"
            )
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, width, 3, stride=s, padding=(1, 0))
            for inputs, s in zip((1, width), self.strides, strict=True)
        )
        self.join = nn.Linear(width * left, width)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(
                width, 4 * width, heads, pre_norm=True, dropout=dropout, attention_dropout=dropout,
                activation_dropout=dropout,
            )
            for _ in range(layers)
        )  # fmt: skip
        self.norm = nn.LayerNorm(width)

    def shorter(self, lengths: Tensor) -> Tensor:
        """(B,) frames -> (B,) frames that come out for them."""
        for stride in self.strides:
            lengths = (lengths - 1) // stride + 1
        return lengths

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """lengths: (B,) valid ones of T; what comes out on padding means nothing."""
        x = x[:, None]  # (B, 1, T, D)
        for conv, stride in zip(self.convs, self.strides, strict=True):
            padding = padding_mask(lengths, x.shape[2])
            x = F.relu(conv(x.masked_fill(padding[:, None, :, None], 0)))
            lengths = (lengths - 1) // stride + 1
        x = self.join(x.transpose(1, 2).flatten(2))
        x = self.dropout(math.sqrt(x.shape[2]) * x + sinusoids(x.shape[1], x.shape[2], x.device))
        keep = ~padding_mask(lengths, x.shape[1])
        for layer in self.layers:
            x = layer(x, keep)
        return self.norm(x)


def sinusoids(count: int, dim: int, device: torch.device) -> Tensor:
    """(count, dim) float32 positions: sines and cosines in turn, of falling frequencies.

    Source: Vaswani et al. 2017, section 3.5.
    """
    rates = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10000) / dim))
    angles = torch.arange(count, device=device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
