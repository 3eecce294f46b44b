"""Spherical k-means within each utterance, on the fly.

Shape legend: B utterances, N vectors, F width, K the most clusters of an utterance.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.nn.draws import random_bits

_STEPS = 2**-16
"""Cosines are rounded to this, so that equal ones are equal whatever the kernel."""


@torch.no_grad()
def cosine_clusters(
    x_BNF: Tensor,
    valid_BN: Tensor,
    clusters: Tensor,
    seeds: Tensor,
    *,
    stream: int,
    iterations: int = 5,
) -> Tensor:
    """(B, N) index of each vector's cluster; that of vectors that are not valid means nothing.

    clusters: (B,) how many; they start at vectors that each utterance's seed draws, and one that
    loses all its members stays where it was. Valid vectors stand first in their row.
    """
    with torch.autocast(x_BNF.device.type, enabled=False):
        x = F.normalize(x_BNF.float(), dim=-1) * valid_BN[..., None]
        size = int(clusters.max())
        counts = valid_BN.sum(1, keepdim=True).clamp(min=1)
        start = random_bits(seeds.to(x.device), stream, size) % counts
        centres = x.gather(1, start[..., None].expand(-1, -1, x.shape[2]))
        absent = torch.arange(size, device=x.device) >= clusters.to(x.device)[:, None]
        for i in range(iterations):
            cosines = (x @ centres.transpose(1, 2) / _STEPS).round()
            nearest = cosines.masked_fill(absent[:, None], float("-inf")).argmax(-1)
            if i + 1 == iterations:
                break
            member = F.one_hot(nearest, size).float() * valid_BN[..., None]
            sums = member.transpose(1, 2) @ x
            found = member.sum(1)[..., None] > 0
            centres = torch.where(found, F.normalize(sums, dim=-1), centres)
    return nearest
