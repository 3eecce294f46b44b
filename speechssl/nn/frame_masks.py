"""The masked frames of a batch, and the frames that masks choose.

Shape legend: B utterances, T frames, M the most masked frames of an utterance, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechssl.contract import Batch, Encoder, padding_mask
from speechssl.nn.masking import span_mask


def masked_frames(
    encoder: Encoder, batch: Batch, *, probability: float, span: int, min_spans: int
) -> tuple[Tensor, Tensor]:
    """(B, T) bool masked frames of `batch`, as `span_mask` draws them, and (B, T) valid frames."""
    lengths = encoder.frame_lengths(batch.wave_lengths)
    size = int(encoder.frame_lengths(torch.tensor([batch.wave.shape[1]])))
    mask = span_mask(
        lengths, batch.seeds, probability=probability, span=span, min_spans=min_spans, size=size
    )
    return mask, ~padding_mask(lengths, size)


def pack(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the chosen frames of each row to its start: (B, T, D), (B, T) -> (B, M, D), (B, M).

    The second result is True on chosen frames; what stands behind them has no meaning.
    """
    counts = mask.sum(1)
    most = int(counts.max())
    order = torch.argsort(mask.to(torch.uint8), dim=1, descending=True, stable=True)[:, :most]
    packed = x.gather(1, order[..., None].expand(-1, -1, x.shape[2]))
    return packed, ~padding_mask(counts, most)
