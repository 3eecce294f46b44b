"""From frames to one vector per utterance; padding never counts.

Shape legend: B utterances, T frames, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechssl.contract import padding_mask

SMALLEST_VARIANCE = 1e-9
"""Below it a deviation counts as that of this variance: its gradient would be infinite at 0."""


def mean_of_frames(x: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, D) -> (B, D) float32: mean over the valid frames."""
    return _weighted_mean(x.float(), _even_weights(x, lengths))


def mean_and_deviation(x: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, D) -> (B, 2 D) float32: mean and deviation over the valid frames.

    Source: Snyder et al. 2018 (x-vectors), statistics pooling.
    """
    return _statistics(x.float(), _even_weights(x, lengths))


def _even_weights(x: Tensor, lengths: Tensor) -> Tensor:
    valid = ~padding_mask(lengths, x.shape[1])
    return (valid / lengths[:, None])[..., None]  # (B, T, 1)


def _weighted_mean(x: Tensor, weights: Tensor) -> Tensor:
    # Whatever stands on padding, NaN too, must not enter the sum.
    return (weights * x.masked_fill(weights == 0, 0)).sum(1)


def _statistics(x: Tensor, weights: Tensor) -> Tensor:
    mean = _weighted_mean(x, weights)
    variance = _weighted_mean((x - mean[:, None]).square(), weights)
    return torch.cat([mean, variance.clamp(min=SMALLEST_VARIANCE).sqrt()], -1)


class AttentiveStatistics(nn.Module):
    """Mean and deviation over frames that each channel weighs by itself: (B, T, D) -> (B, 2 D).

    The weights are a softmax over valid frames of a bottleneck that sees each frame and the
    utterance's own mean and deviation.
    Source: Desplanques et al. 2020 (ECAPA-TDNN), section 2.1; Okabe et al. 2018.
    Differs: tanh alone in the bottleneck, without the ReLU and batch norm of later code.
    """

    def __init__(self, dim: int, attention_dim: int = 128) -> None:
        super().__init__()
        self.inner = nn.Linear(3 * dim, attention_dim)
        self.outer = nn.Linear(attention_dim, dim)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        padding = padding_mask(lengths, x.shape[1])[..., None]
        x = x.float().masked_fill(padding, 0)
        context = mean_and_deviation(x, lengths)[:, None].expand(-1, x.shape[1], -1)
        logits = self.outer(torch.tanh(self.inner(torch.cat([x, context], -1))))
        weights = logits.float().masked_fill(padding, float("-inf")).softmax(1)
        return _statistics(x, weights)
