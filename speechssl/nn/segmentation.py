"""Syllable-like segments of frames: greedy by cosine, in time linear in the frames.

Source: Cho et al. 2024, "Sylber: Syllabic Embedding Representation of Speech from Raw Audio",
section 3.2. From left to right, a frame joins the open segment while its cosine with the
segment's mean reaches a threshold; then neighbours that are alike merge, and each boundary
between the others moves to where the frames change sides.

Differs:
- No loop over frames. A whole batch goes in step, a window of frames at a time, each utterance as
  far as its own segment reaches. A segment costs its length and at most one window more.
- All merges come before all moves of boundaries, which then are independent of each other: each
  may go back half of its left segment and forward half of its right one. The official code
  interleaves both from left to right.

Shape legend: B utterances, T frames, N items (frames, or segments), D width, W window.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 16
"""Items looked at together; no result depends on it."""


@torch.no_grad()
def segment(x: Tensor, alive: Tensor, threshold: Tensor) -> Tensor:
    """(B, T, D) frames -> (B, T) int64: the number of each frame's segment from 1, 0 for none.

    alive: (B, T) bool, frames that can be part of a segment; one that cannot ends it.
    threshold: (B,) least cosine of a frame, or a segment, with the mean of the one it joins.
    """
    x = x.float().masked_fill(~alive[..., None], 0.0)
    if not alive.any():
        return torch.zeros_like(alive, dtype=torch.int64)
    first = _number(_starts(x, alive, _behind(alive), threshold), alive)
    merged = _merged(x, first, threshold)
    return _moved(x, merged)


def segment_means(x: Tensor, segments: Tensor) -> Tensor:
    """(B, T, D) -> same: the mean of each frame's segment, 0 outside of all."""
    sums, counts = _sums(x, segments)
    means = sums / counts.clamp(min=1)[..., None]
    place = segments[..., None].expand_as(x)
    return means.gather(1, place).masked_fill(segments[..., None] == 0, 0.0)


def spans(segments: Tensor) -> np.ndarray:
    """(T,) numbers of segments -> (S, 2) first frame of each, and the one behind its last."""
    found = torch.nn.functional.pad(segments, (1, 1)).cpu().numpy()
    edges = np.flatnonzero(found[1:] != found[:-1])
    inside = found[1:][edges] > 0
    # Behind a segment another one or none begins: the next edge in any case.
    return np.stack([edges[inside], edges[np.flatnonzero(inside) + 1]], 1)


def labelled_segments(labels: Tensor) -> Tensor:
    """(B, T) labels -> (B, T) numbers of segments: equal neighbours are one, below 1 is none."""
    alive = labels > 0
    before = F.pad(labels, (1, 0))[:, :-1]
    return _number(alive & (labels != before), alive)


def frame_levels_db(wave: Tensor, wave_lengths: Tensor, hop: int, frames: int) -> Tensor:
    """(B, L) samples -> (B, frames): level of the `hop` samples from each frame's start, in dB
    below the utterance's loudest."""
    wave = wave.float().masked_fill(
        torch.arange(wave.shape[1], device=wave.device) >= wave_lengths[:, None], 0.0
    )
    wave = F.pad(wave, (0, max(0, frames * hop - wave.shape[1])))[:, : frames * hop]
    power = wave.view(len(wave), frames, hop).square().mean(2)
    return 10 * ((power + 1e-12) / (power.amax(1, keepdim=True) + 1e-12)).log10()


def _behind(alive: Tensor) -> Tensor:
    """(B, N) where the item before is alive too."""
    return F.pad(alive, (1, 0))[:, :-1]


def _number(starts: Tensor, alive: Tensor) -> Tensor:
    return starts.cumsum(1) * alive


def _starts(x: Tensor, alive: Tensor, joins: Tensor, threshold: Tensor) -> Tensor:
    """(B, N) where a segment begins.

    joins: (B, N) where an item may join what is before it.
    """
    batch, count, _ = x.shape
    starts = torch.zeros_like(alive)
    places = torch.arange(count, device=x.device)
    # The first living item from each place on; `count` where there is none.
    after = torch.where(alive, places, count).flip(1).cummin(1).values.flip(1)
    after = F.pad(after, (0, 1), value=count)
    unit = F.normalize(x, dim=-1)
    rows = torch.arange(batch, device=x.device)
    window = torch.arange(WINDOW, device=x.device)
    begin, at = after[:, 0], after[:, 0] + 1
    total = x[rows, begin.clamp(max=count - 1)]
    while bool((begin < count).any()):
        starts[rows, begin.clamp(max=count - 1)] |= begin < count
        wanted = at[:, None] + window
        there = wanted.clamp(max=count - 1)
        items = x.gather(1, there[..., None].expand(-1, -1, x.shape[2]))
        sums = total[:, None] + items.cumsum(1)
        before = torch.cat([total[:, None], sums[:, :-1]], 1)
        near = unit.gather(1, there[..., None].expand(-1, -1, x.shape[2]))
        cosine = (F.normalize(before, dim=-1) * near).sum(-1)
        fails = (wanted >= count) | ~joins.gather(1, there) | ~alive.gather(1, there)
        fails |= cosine < threshold[:, None]
        ended = fails.any(1)
        stop = at + fails.int().argmax(1)
        new = after.gather(1, stop.clamp(max=count)[:, None])[:, 0]
        begin = torch.where(ended, new, begin)
        at = torch.where(ended, new + 1, at + WINDOW)
        fresh = x[rows, new.clamp(max=count - 1)]
        total = torch.where(ended[:, None], fresh, sums[:, -1])
    return starts


def _sums(x: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
    """(B, S + 1, D) sums over each segment and (B, S + 1) its frames; entry 0 is the outside."""
    batch, _, dim = x.shape
    size = int(segments.max()) + 1 if segments.numel() else 1
    place = (segments + size * torch.arange(batch, device=x.device)[:, None]).flatten()
    sums = x.new_zeros(batch * size, dim).index_add_(0, place, x.flatten(0, 1))
    counts = torch.bincount(place, minlength=batch * size)
    return sums.view(batch, size, dim), counts.view(batch, size)


def _edges(segments: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(B, size) bool: whether segment i follows its predecessor without a gap; (B, T) first
    frames."""
    before = F.pad(segments, (1, 0))[:, :-1]
    first = (segments > 0) & (segments != before)
    follows = torch.zeros(len(segments), size, dtype=torch.bool, device=segments.device)
    rows, at = first.nonzero(as_tuple=True)
    follows[rows, segments[rows, at]] = before[rows, at] > 0
    return follows, first


def _merged(x: Tensor, segments: Tensor, threshold: Tensor) -> Tensor:
    """Neighbours join by the same rule as frames, with their sums in place of frames."""
    sums, counts = _sums(x, segments)
    follows, _ = _edges(segments, sums.shape[1])
    starts = _starts(sums[:, 1:], counts[:, 1:] > 0, follows[:, 1:], threshold)
    number = F.pad(starts.cumsum(1), (1, 0))
    return number.gather(1, segments)


def _moved(x: Tensor, segments: Tensor) -> Tensor:
    """Move each boundary between neighbours to where the sum of the cosines with the means of the
    sides is the largest."""
    sums, counts = _sums(x, segments)
    size = sums.shape[1]
    follows, first = _edges(segments, size)
    if not follows.any():
        return segments
    places = torch.arange(x.shape[1], device=x.device).expand_as(segments)
    begin = torch.zeros_like(counts).scatter_reduce_(
        1, segments, torch.where(first, places, -1), "amax", include_self=False
    )
    own, length = begin.gather(1, segments), counts.gather(1, segments)
    followed = F.pad(follows, (0, 1))[:, 1:]
    left = (segments > 0) & follows.gather(1, segments) & (places < own + length // 2)
    right = (segments > 0) & followed.gather(1, segments) & (places >= own + length - length // 2)
    # The boundary of a frame is that in front of this segment.
    boundary = torch.where(right, segments + 1, torch.where(left, segments, 0))
    unit, centre = F.normalize(x, dim=-1), F.normalize(sums, dim=-1)

    def cosine(number: Tensor) -> Tensor:
        return (unit * centre.gather(1, number[..., None].expand_as(x))).sum(-1)

    gain = cosine((boundary - 1).clamp(min=0)) - cosine(boundary)
    gain = gain.double().masked_fill(boundary == 0, 0.0)
    # Sums of gains from the first frame that the boundary may go back to.
    run = gain.cumsum(1)
    opening = (boundary > 0) & (boundary != F.pad(boundary, (1, 0))[:, :-1])
    base = torch.zeros(counts.shape, dtype=run.dtype, device=x.device).scatter_add_(
        1, boundary, torch.where(opening, run - gain, 0.0)
    )
    moved = torch.where(boundary > 0, run - base.gather(1, boundary), 0.0)
    best = torch.zeros_like(base).scatter_reduce_(1, boundary, moved, "amax")
    behind = x.shape[1]
    reached = (boundary > 0) & (moved == best.gather(1, boundary)) & (moved > 0)
    cut = torch.full_like(counts, behind).scatter_reduce_(
        1, boundary, torch.where(reached, places + 1, behind), "amin"
    )
    back = begin - F.pad(counts, (1, 0))[:, :-1] // 2
    cut = torch.where(cut == behind, back, cut)
    cut = torch.where(follows, cut, begin)
    starts = torch.zeros_like(first, dtype=torch.int64)
    exists = (counts > 0) & (torch.arange(size, device=x.device) > 0)
    rows, number = exists.nonzero(as_tuple=True)
    starts[rows, cut[rows, number]] = 1
    return _number(starts, segments > 0)
