"""Between the frames of an encoder and those of a mel spectrogram; between two speakers' frames.

Shape legend: B utterances, T encoder frames, M mel frames, D width, N reference frames.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Frames whose cosines are held at a time: 128 MiB.
SOURCE_CHUNK = 2048
REFERENCE_CHUNK = 16384


def align(x: Tensor, lengths: Tensor, frames: int, *, hop: int, field: int, mel_hop: int) -> Tensor:
    """Encoder frames (B, T, D) at the times of `frames` mel frames: (B, M, D).

    Encoder frame t stands for the middle of what it sees, sample t * hop + field / 2; mel frame m
    for sample m * mel_hop. Between two encoder frames the line through them is taken; before the
    first and behind the last of an utterance, these. lengths: (B,) valid encoder frames, 1 or
    more.
    Differs from the study's code (Huang et al. 2022), which stretches features to the mel's
    number of frames: what lies at one time there drifts by up to a frame.
    """
    at = (torch.arange(frames, device=x.device) * mel_hop - field / 2) / hop
    last = (lengths - 1).clamp(min=0)[:, None]
    at = torch.minimum(at.clamp(min=0)[None], last.to(at.dtype))
    before = at.floor().long()
    after = torch.minimum(before + 1, last)
    share = (at - before)[..., None].to(x.dtype)
    return torch.lerp(_take(x, before), _take(x, after), share)


def _take(x: Tensor, at: Tensor) -> Tensor:
    return x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))


def knn_frames(source: Tensor, reference: Tensor, k: int = 4) -> Tensor:
    """(T, D), (N, D) -> (T, D): the mean of the k reference frames of highest cosine to each.

    With fewer than k reference frames, of all of them. In blocks, so that memory does not grow
    with T * N. Raises `ValueError` if there is no reference frame.
    Source: Baas et al. 2023 (kNN-VC), section 3.2: features of both sides from one layer, k = 4,
    unweighted.
    """
    if not len(reference) or source.shape[-1] != reference.shape[-1]:
        raise ValueError(
            f"knn: found {tuple(source.shape)} and {tuple(reference.shape)}, want (T, D) and "
            "(N, D) with N at least 1"
        )
    if k < 1:
        raise ValueError(f"knn_k: found {k}, want 1 or more")
    parts = [_nearest(part, reference, k) for part in source.split(SOURCE_CHUNK)]
    return torch.cat(parts) if parts else source


def _nearest(source: Tensor, reference: Tensor, k: int) -> Tensor:
    unit = F.normalize(source.float(), dim=-1)
    best = source.new_empty((len(source), 0), dtype=torch.float32)
    places = torch.empty((len(source), 0), dtype=torch.int64, device=source.device)
    for start in range(0, len(reference), REFERENCE_CHUNK):
        part = reference[start : start + REFERENCE_CHUNK]
        cosines = unit @ F.normalize(part.float(), dim=-1).T
        found, at = cosines.topk(min(k, len(part)), dim=-1)
        best, places = torch.cat([best, found], -1), torch.cat([places, at + start], -1)
        best, at = best.topk(min(k, best.shape[-1]), dim=-1)
        places = places.gather(-1, at)
    return reference[places].mean(1).to(source.dtype)
