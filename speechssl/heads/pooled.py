"""One vector per utterance for heads with several answers: projection, pooling, dropout.

Shape legend: B utterances, L samples, D width.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import Tensor, nn

from speechssl.contract import Encoder
from speechssl.heads.frames import FramesConfig, FramesHead
from speechssl.heads.pooling import AttentiveStatistics, mean_and_deviation, mean_of_frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class PooledConfig(FramesConfig):
    projection_dim: int = 256
    """Width that each frame is projected to before pooling; 0: frames stay as they are."""
    pooling: Literal["mean", "mean_std", "attentive"] = "mean"
    """mean of the frames; mean_std: with their deviation; attentive: both, weighed by channel."""
    attention_dim: int = 128
    """Bottleneck of attentive pooling."""
    dropout: float = 0.0
    """Dropout of the pooled vector."""


class PooledHead(FramesHead):
    """`pooled` gives a vector of `pooled_dim` for each utterance."""

    config: PooledConfig

    def __init__(self, config: PooledConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        dim = config.projection_dim or self.dim
        self.projection = nn.Linear(self.dim, dim) if config.projection_dim else nn.Identity()
        if config.pooling == "attentive":
            self.attention = AttentiveStatistics(dim, config.attention_dim)
        self.pooled_dim = dim if config.pooling == "mean" else 2 * dim
        self.dropout = nn.Dropout(config.dropout)

    def pooled(self, wave: Tensor, wave_lengths: Tensor) -> Tensor:
        """(B, L) and (B,) samples -> (B, pooled_dim) float32."""
        x, lengths = self.frames(wave, wave_lengths)
        x = self.projection(x)
        if self.config.pooling == "attentive":
            return self.dropout(self.attention(x, lengths))
        pool = mean_of_frames if self.config.pooling == "mean" else mean_and_deviation
        return self.dropout(pool(x, lengths))
