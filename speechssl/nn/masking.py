"""Span masks over frames and channels, drawn per utterance.

Source: Hsu et al. 2021 (HuBERT), section II-C, and Baevski et al. 2020 (wav2vec 2.0), section 3.1
and appendix A; fairseq `data/data_utils.py::compute_mask_indices`.
Differs: fairseq then un-masks random frames until every row of the batch has as many masked
frames as the least masked one, because its loss reshapes to (B, M). A loss that is a sum with a
count needs no equal rows, so spans stay whole and a row does not depend on its batch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_FRAMES, _CHANNELS = 0, 1
"""Independent random streams of one utterance seed."""


def span_mask(
    lengths: Tensor,
    seeds: Tensor,
    *,
    probability: float,
    span: int,
    min_spans: int = 2,
    size: int | None = None,
) -> Tensor:
    """Draw the masked frames of each row: (B,) lengths, (B,) seeds -> (B, size) bool.

    A row of T frames gets int(probability * T / span + U[0, 1)) spans, at least `min_spans`, whose
    starts are drawn without replacement from [0, T - span); spans may overlap. With probability
    0.8 and span 10, about 56.7 % of the frames are masked. A row is a pure function of its seed
    and its length. Rows of at most `span` frames get proportionally shorter spans, so that part of
    them stays visible. Probability 0 masks nothing.

    size: width of the result, default the largest length. The result lies on `lengths`' device.
    """
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"mask probability: found {probability}, want 0 to 1")
    if span < 1:
        raise ValueError(f"mask span: found {span} frames, want at least 1")
    counts = lengths.tolist()
    if len(counts) != len(seeds):
        raise ValueError(f"seeds: found {len(seeds)}, want one per row, {len(counts)}")
    width = max(counts, default=0) if size is None else size
    if counts and max(counts) > width:
        raise ValueError(f"size: found {width}, want at least the largest length, {max(counts)}")
    mask = np.zeros((len(counts), width), dtype=bool)
    for row, count, seed in zip(mask, counts, seeds.tolist(), strict=True):
        _fill(row[:count], seed, _FRAMES, probability, span, min_spans)
    return torch.from_numpy(mask).to(lengths.device)


def channel_mask(
    seeds: Tensor, channels: int, *, probability: float, span: int, min_spans: int = 0
) -> Tensor:
    """Draw the masked channels of each row: (B,) seeds -> (B, channels) bool, on the CPU.

    Spans over the channel axis as in `span_mask`, from another random stream of the same seeds.
    """
    if not 0.0 <= probability <= 1.0 or span < 1:
        raise ValueError(
            f"channel mask: found probability {probability}, span {span}; want 0 to 1, at least 1"
        )
    mask = np.zeros((len(seeds), channels), dtype=bool)
    for row, seed in zip(mask, seeds.tolist(), strict=True):
        _fill(row, seed, _CHANNELS, probability, span, min_spans)
    return torch.from_numpy(mask)


def _fill(
    row: np.ndarray, seed: int, stream: int, probability: float, span: int, min_spans: int
) -> None:
    total = len(row)
    if total == 0 or probability == 0.0:
        return
    if total <= span:
        span = max(1, total // (max(min_spans, 1) + 1))
    # Philox is keyed, not hashed from entropy: any 64-bit seed is its own stream, cheaply.
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, stream], dtype=np.uint64)
    random = np.random.Generator(np.random.Philox(key=key))
    wanted = max(int(probability * total / span + random.random()), min_spans)
    places = max(total - span, 1)
    starts = random.choice(places, size=min(wanted, places), replace=False)
    row[(starts[:, None] + np.arange(span)).reshape(-1)] = True
