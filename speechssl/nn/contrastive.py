"""Contrast between a frame and others of its utterance (InfoNCE), and between utterances (NT-Xent).

Source: van den Oord et al. 2018; Baevski et al. 2020 (wav2vec 2.0), section 3.2.
Differs: one matrix of cosines per utterance, from which those of the negatives are gathered; the
reference gathers the negatives' vectors. Draws are per utterance (see `speechssl.nn.draws`).

Shape legend: B utterances, M packed frames, N negatives per frame, F width, G groups of codes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.nn.draws import random_bits


def draw_negatives(counts: Tensor, seeds: Tensor, number: int, size: int, stream: int) -> Tensor:
    """(B,) frames per utterance, (B,) seeds -> (B, size, number) indices of negatives.

    Uniform, with replacement, over the utterance's first `counts` frames but the frame itself.
    Indices of frames behind the count mean nothing, nor do those of an utterance of one frame.
    """
    others = (counts - 1).clamp(min=1)[:, None, None]
    index = random_bits(seeds.to(counts.device), stream, size, number) % others
    own = torch.arange(size, device=counts.device)[None, :, None]
    return (index + (index >= own)).clamp(max=size - 1)


def info_nce(
    context_BMF: Tensor,
    targets_BMF: Tensor,
    valid_BM: Tensor,
    negatives_BMN: Tensor,
    temperature: float,
    codes_BMG: Tensor | None = None,
    factors_BMN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum over valid frames of the cross entropy of the own target among negatives, and hits.

    codes_BMG: codes of the targets; a negative with the codes of the frame's own is left out.
    factors_BMN: of the negatives' cosines; None: all 1.
    The frame of an utterance that has no other costs nothing.
    """
    with torch.autocast(context_BMF.device.type, enabled=False):
        x = F.normalize(context_BMF.float(), dim=-1)
        y = F.normalize(targets_BMF.float(), dim=-1)
        cosines = x @ y.transpose(1, 2) / temperature  # (B, M, M)
        negative = cosines.gather(2, negatives_BMN)
        if factors_BMN is not None:
            negative = negative * factors_BMN
        forbidden = (valid_BM.sum(1) < 2)[:, None, None].expand_as(negative)
        if codes_BMG is not None:
            same = (codes_BMG[:, :, None] == codes_BMG[:, None, :]).all(-1)
            forbidden = forbidden | same.gather(2, negatives_BMN)
        negative = negative.masked_fill(forbidden, float("-inf"))
        positive = cosines.diagonal(dim1=1, dim2=2)[..., None]
        logits = torch.cat([positive, negative], 2)[valid_BM]
        loss = (logits.logsumexp(-1) - logits[:, 0]).sum()
        hits = (logits[:, :1] > logits[:, 1:]).all(-1).sum()
    return loss, hits


def nt_xent(views: Sequence[Tensor], temperature: float) -> tuple[Tensor, Tensor]:
    """Sum over utterances and pairs of views of the loss that asks of each view of an utterance
    which of the others' vectors is its own utterance's; and how often that is the nearest.

    views: (B, F) each. Of a pair of views, each of the 2 B vectors is compared with the 2 B - 1
    others, by cosine; the mean over the two directions counts. ln(2 B - 1) tells nothing; a single
    utterance costs nothing.
    Source: Chen et al. 2020 (SimCLR), section 2.1.
    """
    with torch.autocast(views[0].device.type, enabled=False):
        rays = [F.normalize(view.float(), dim=-1) for view in views]
        total, hits = rays[0].new_zeros(()), rays[0].new_zeros(())
        count = len(rays[0])
        own = torch.arange(2 * count, device=total.device).roll(count)
        for one, other in itertools.combinations(rays, 2):
            both = torch.cat([one, other])
            logits = (both @ both.T / temperature).fill_diagonal_(float("-inf"))
            total = total + F.cross_entropy(logits, own, reduction="sum") / 2
            hits = hits + (logits.detach().argmax(1) == own).sum() / 2
    return total, hits
