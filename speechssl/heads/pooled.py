"""One vector per utterance for heads with several answers: projection, pooling, dropout.

Shape legend: B utterances, L samples, D width.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from speechssl.contract import Encoder
from speechssl.heads.aggregate import PoolingKind, add_pooling, pool
from speechssl.heads.frames import FramesConfig, FramesHead


@dataclasses.dataclass(frozen=True, kw_only=True)
class PooledConfig(FramesConfig):
    projection_dim: int = 256
    """Width that each frame is projected to before pooling; 0: frames stay as they are."""
    pooling: PoolingKind = "mean"
    """mean of the frames; mean_std: with their deviation; attentive: both, weighed by channel;
    ecapa: ECAPA-TDNN; transformer: layers over the frames and a class token."""
    attention_dim: int = 128
    """Bottleneck of attentive pooling, and of ecapa's."""
    pooling_channels: int = 512
    """ecapa: width of its blocks."""
    pooling_dim: int = 192
    """ecapa: width of its vector."""
    pooling_layers: int = 2
    """transformer: how many; each as wide as the frames."""
    pooling_heads: int = 4
    """transformer: heads of each layer."""
    dropout: float = 0.0
    """Dropout of the pooled vector, and inside pooling: transformer."""


class PooledHead(FramesHead):
    """`pooled` gives a vector of `pooled_dim` for each utterance."""

    config: PooledConfig

    def __init__(self, config: PooledConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        dim = config.projection_dim or self.dim
        self.projection = nn.Linear(self.dim, dim) if config.projection_dim else nn.Identity()
        self.pooled_dim = add_pooling(self, config, dim)
        self.dropout = nn.Dropout(config.dropout)

    def pooled(self, wave: Tensor, wave_lengths: Tensor) -> Tensor:
        """(B, L) and (B,) samples -> (B, pooled_dim) float32."""
        x, lengths = self.frames(wave, wave_lengths)
        return self.dropout(pool(self, self.config, self.projection(x), lengths))
