"""From frames of any encoder to a speaker embedding: x-vector, ECAPA-TDNN, plain pooling.

Frames behind an utterance's end are zero before every convolution, so that an embedding depends
on its utterance alone.

Shape legend: B utterances, T frames, D width of the encoder, C channels, E embedding width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.contract import padding_mask
from speechssl.heads.pooling import AttentiveStatistics, mean_and_deviation, mean_of_frames
from speechssl.nn.log_mel import normalise_frames


class FrameConv(nn.Module):
    """Convolution over frames, ReLU, layer norm over channels: (B, T, C) -> (B, T, C').

    Differs: published networks have batch norm, by which a loss would depend on who else is in the
    batch, and on padding.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, dilation: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv1d(c_in, c_out, kernel, dilation=dilation, padding=padding)
        self.norm = nn.LayerNorm(c_out)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """padding: (B, T, 1) bool, True on padding; there the result is 0."""
        y = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return self.norm(F.relu(y)).masked_fill(padding, 0)


class Pooled(nn.Module):
    """Attentive statistics of the frames as they are, and a linear layer: the smallest network."""

    def __init__(self, dim: int, embedding_dim: int, attention_dim: int) -> None:
        super().__init__()
        self.pool = AttentiveStatistics(dim, attention_dim)
        self.output = nn.Linear(2 * dim, embedding_dim)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D), (B,) -> (B, E)."""
        return self.output(self.pool(x, lengths))


class XVector(nn.Module):
    """Time-delay layers of contexts 5, 3, 3, 1, 1, mean and deviation, a linear embedding.

    Source: Snyder et al. 2018; on a projection of an encoder's layers as in Yang et al. 2021.
    Differs: convolutions keep the number of frames (zeros beyond both ends), so that every
    utterance has an embedding; layer norm in place of batch norm; the embedding is the linear layer
    behind the statistics itself, with no further one between it and the loss.
    """

    def __init__(self, dim: int, channels: int, embedding_dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, channels)
        wide = 1500 * channels // 512  # in the paper 1500 behind 512
        # Output channels, frames of context, dilation.
        shapes = [(channels, 5, 1), (channels, 3, 2), (channels, 3, 3), (channels, 1, 1)]
        shapes.append((wide, 1, 1))
        self.layers = nn.ModuleList(FrameConv(channels, c, k, d) for c, k, d in shapes)
        self.output = nn.Linear(2 * wide, embedding_dim)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D), (B,) -> (B, E)."""
        padding = padding_mask(lengths, x.shape[1])[..., None]
        x = self.projection(x).masked_fill(padding, 0)
        for layer in self.layers:
            x = layer(x, padding)
        return self.output(mean_and_deviation(x, lengths))


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate that sees the utterance's mean: (B, T, C) -> same."""

    def __init__(self, channels: int, bottleneck: int) -> None:
        super().__init__()
        self.inner = nn.Linear(channels, bottleneck)
        self.outer = nn.Linear(bottleneck, channels)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        gate = torch.sigmoid(self.outer(F.relu(self.inner(mean_of_frames(x, lengths)))))
        return x * gate[:, None]


class Res2Block(nn.Module):
    """SE-Res2Block: channels in `scale` groups, each convolved with the one before added."""

    def __init__(self, channels: int, dilation: int, scale: int = 8, bottleneck: int = 128) -> None:
        super().__init__()
        if channels % scale:
            raise ValueError(f"channels: found {channels}, want a multiple of {scale} for ecapa")
        self.scale = scale
        self.inner = FrameConv(channels, channels)
        part = channels // scale
        self.parts = nn.ModuleList(FrameConv(part, part, 3, dilation) for _ in range(scale - 1))
        self.outer = FrameConv(channels, channels)
        self.gate = SqueezeExcitation(channels, bottleneck)

    def forward(self, x: Tensor, padding: Tensor, lengths: Tensor) -> Tensor:
        groups = self.inner(x, padding).chunk(self.scale, dim=-1)
        done = [groups[0]]
        for conv, group in zip(self.parts, groups[1:], strict=True):
            # The first group passes as it is; from the third on the one before is added.
            done.append(conv(group if len(done) == 1 else group + done[-1], padding))
        return x + self.gate(self.outer(torch.cat(done, -1), padding), lengths)


class EcapaTdnn(nn.Module):
    """ECAPA-TDNN on normalised encoder frames.

    Source: Desplanques et al. 2020: three SE-Res2Blocks of dilations 2, 3, 4, each fed the sum of
    all before it; their outputs concatenated, projected, pooled with attention.
    Differs: layer norm in place of batch norm; each channel's mean and deviation over the
    utterance are removed from the encoder's frames first, as WavLM's verification systems do.
    """

    def __init__(self, dim: int, channels: int, embedding_dim: int, attention_dim: int) -> None:
        super().__init__()
        self.first = FrameConv(dim, channels, 5)
        self.blocks = nn.ModuleList(Res2Block(channels, dilation) for dilation in (2, 3, 4))
        self.join = nn.Linear(3 * channels, 3 * channels)
        self.pool = AttentiveStatistics(3 * channels, attention_dim)
        self.norm = nn.LayerNorm(6 * channels)
        self.output = nn.Linear(6 * channels, embedding_dim)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D), (B,) -> (B, E)."""
        mask = padding_mask(lengths, x.shape[1])
        padding = mask[..., None]
        x = self.first(normalise_frames(x.float(), mask), padding)
        found: list[Tensor] = []
        for block in self.blocks:
            found.append(block(x, padding, lengths))
            x = x + found[-1]
        joined = F.relu(self.join(torch.cat(found, -1)))
        return self.output(self.norm(self.pool(joined, lengths)))
