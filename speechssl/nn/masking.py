"""Span masks over frames and channels, and block masks over frames, drawn per utterance.

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

_FRAMES, _CHANNELS, _BLOCKS = 0, 1, 2
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


def block_mask(
    lengths: Tensor,
    seeds: Tensor,
    *,
    masks: int,
    probability: float,
    block: int,
    adjust: float = 0.0,
    min_blocks: int = 1,
    inverse: bool = False,
    size: int | None = None,
) -> Tensor:
    """Draw M masks of blocks for each row: (B,) lengths, (B,) seeds -> (B, M, size) bool.

    int(T * (probability + adjust) / block) blocks, at least `min_blocks`, lie around frames drawn
    with replacement and may overlap; then single frames, drawn too, join or leave until just
    int(T * probability) are masked, at least one, and one is left. adjust makes up for overlaps,
    so that fewer single frames are needed. inverse: the blocks are what stays visible, the share
    1 - probability. A row of one frame is not masked.

    Source: Baevski et al. 2022 (data2vec 2.0), section 3.3; fairseq `compute_block_mask_1d`.
    """
    if not 0.0 < probability < 1.0 or probability + adjust < 0 or block < 1 or masks < 1:
        raise ValueError(
            f"block mask: found probability {probability}, adjust {adjust}, block {block} and "
            f"{masks} masks; want a probability between 0 and 1, also adjusted not below 0, and "
            "at least 1 of the others"
        )
    counts = lengths.tolist()
    width = max(counts, default=0) if size is None else size
    mask = np.zeros((len(counts), masks, width), dtype=bool)
    chosen = 1 - probability if inverse else probability
    for rows, count, seed in zip(mask, counts, seeds.tolist(), strict=True):
        random = _random(seed, _BLOCKS)
        for row in rows[:, :count] if count > 1 else ():
            wanted = min(max(int(count * chosen), 1), count - 1)
            many = max(int(count * (chosen + adjust) / block), min_blocks)
            centres = random.integers(count, size=many)
            places = centres[:, None] + np.arange(block) - block // 2
            row[places.clip(0, count - 1)] = True
            spare = int(row.sum()) - wanted
            turned = random.choice(np.flatnonzero(row == (spare > 0)), abs(spare), replace=False)
            row[turned] = spare < 0
            if inverse:
                np.logical_not(row, out=row)
    return torch.from_numpy(mask).to(lengths.device)


def _random(seed: int, stream: int) -> np.random.Generator:
    # Philox is keyed, not hashed from entropy: any 64-bit seed is its own stream, cheaply.
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def _fill(
    row: np.ndarray, seed: int, stream: int, probability: float, span: int, min_spans: int
) -> None:
    total = len(row)
    if total == 0 or probability == 0.0:
        return
    if total <= span:
        span = max(1, total // (max(min_spans, 1) + 1))
    random = _random(seed, stream)
    wanted = max(int(probability * total / span + random.random()), min_spans)
    places = max(total - span, 1)
    starts = random.choice(places, size=min(wanted, places), replace=False)
    row[(starts[:, None] + np.arange(span)).reshape(-1)] = True
