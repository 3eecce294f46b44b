"""One Transformer layer, with the layer norms before (pre-norm) or behind each sum (post-norm)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.nn.attention import SelfAttention
from speechssl.nn.linear import Linear


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward block: (B, T, D) -> (B, T, D)."""

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        heads: int,
        *,
        pre_norm: bool,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        gated_bias: bool = False,
        attention_kernel: str = "auto",
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.dropout, self.activation_dropout = dropout, activation_dropout
        self.attention = SelfAttention(
            dim, heads, dropout=attention_dropout, gated=gated_bias, kernel=attention_kernel
        )
        self.attention_norm = nn.LayerNorm(dim)
        self.fc1 = Linear(dim, ffn_dim)
        self.fc2 = Linear(ffn_dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, keep: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """keep: (B, T) True on valid frames, None if all are; bias: as `SelfAttention` reads it."""
        if self.pre_norm:
            x = x + self._drop(self.attention(self.attention_norm(x), keep, bias), self.dropout)
            return x + self._drop(self._feed_forward(self.ffn_norm(x)), self.dropout)
        x = self.attention_norm(x + self._drop(self.attention(x, keep, bias), self.dropout))
        return self.ffn_norm(x + self._drop(self._feed_forward(x), self.dropout))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.fc2(self._drop(F.gelu(self.fc1(x)), self.activation_dropout))

    def _drop(self, x: Tensor, probability: float) -> Tensor:
        return F.dropout(x, probability) if self.training and probability > 0 else x
