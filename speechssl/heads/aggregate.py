"""What makes one vector of an utterance's frames in heads of classes, slots and numbers.

Source: Yang et al. 2021 (SUPERB) for the mean; Okabe et al. 2018 for attentive statistics;
Desplanques et al. 2020 for ECAPA-TDNN, which Zaiem et al. 2023 ("Speech self-supervised
representations benchmarking: a case for larger probing heads") put on frozen encoders for emotion;
Devlin et al. 2019 (BERT) for the class token.

Shape legend: B utterances, T frames, D width.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from speechssl.contract import padding_mask
from speechssl.heads.pooling import AttentiveStatistics, mean_and_deviation, mean_of_frames
from speechssl.heads.speaker_nets import EcapaTdnn
from speechssl.nn.transformer_layer import TransformerLayer

PoolingKind = Literal["mean", "mean_std", "attentive", "ecapa", "transformer"]


class PoolingOptions(Protocol):
    """The options of a head's configuration that are read here."""

    pooling: PoolingKind
    attention_dim: int
    pooling_channels: int
    pooling_dim: int
    pooling_layers: int
    pooling_heads: int
    dropout: float


class ClassToken(nn.Module):
    """Transformer layers over the frames and a learnt vector, whose outcome is the utterance's:
    (B, T, D) -> (B, D). Frames have no positions: an encoder's know theirs."""

    def __init__(self, dim: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        if layers < 1 or heads < 1 or dim % heads:
            raise ValueError(
                f"pooling_layers, pooling_heads: found {layers} and {heads} for frames of width "
                f"{dim}, want a layer or more, and heads that divide the width (projection_dim)"
            )
        self.token = nn.Parameter(0.02 * torch.randn(dim))
        self.layers = nn.ModuleList(
            TransformerLayer(
                dim, 4 * dim, heads, pre_norm=True, dropout=dropout, attention_dropout=dropout
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = x.masked_fill(padding_mask(lengths, x.shape[1])[..., None], 0)
        x = torch.cat([self.token.to(x.dtype).expand(len(x), 1, -1), x], 1)
        keep = ~padding_mask(lengths + 1, x.shape[1])
        for layer in self.layers:
            x = layer(x, keep)
        return self.norm(x[:, 0]).float()


def add_pooling(head: nn.Module, options: PoolingOptions, dim: int) -> int:
    """Give `head` what its pooling of frames of width `dim` learns; returns the vector's width.

    Raises `ValueError` for sizes that make no such network.
    """
    if options.pooling == "attentive":
        head.attention = AttentiveStatistics(dim, options.attention_dim)
    elif options.pooling == "ecapa":
        head.aggregator = EcapaTdnn(
            dim, options.pooling_channels, options.pooling_dim, options.attention_dim
        )
        return options.pooling_dim
    elif options.pooling == "transformer":
        layers, heads = options.pooling_layers, options.pooling_heads
        head.aggregator = ClassToken(dim, layers, heads, options.dropout)
        return dim
    return dim if options.pooling == "mean" else 2 * dim


def pool(head: nn.Module, options: PoolingOptions, x: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, D) frames, (B,) valid ones -> (B, width) float32, as `add_pooling` has told."""
    if options.pooling == "mean":
        return mean_of_frames(x, lengths)
    if options.pooling == "mean_std":
        return mean_and_deviation(x, lengths)
    network = head.attention if options.pooling == "attentive" else head.aggregator
    return network(x, lengths).float()  # pyright: ignore
