"""Softmax on angles between embeddings and class centres, with an additive margin.

Shape legend: B utterances, E embedding width, C classes, K centres per class.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AngularMargin(nn.Module):
    """AAM-softmax with sub-centres: (B, E) embeddings, (B,) classes -> (B,) losses, (B, C) cosines.

    The cosine of a class is the largest over its K centres; that of the own class, cos(theta),
    becomes cos(theta + margin) before the softmax of `scale` times the cosines, or with kind cosine
    cos(theta) - margin (AM-softmax). With margin 0 it is that softmax itself. Narrower embeddings
    are compared with as many first channels of the centres.
    Source: Deng et al. 2019 (ArcFace); Deng et al. 2020 (sub-centres); Xiang et al. 2019 and
    Desplanques et al. 2020 for speakers (margin 0.2, scale 30); Wang et al. 2018 (AM-softmax), with
    margin 0.4 in Yang et al. 2021 (SUPERB).
    Beyond theta = pi - margin, where cos(theta + margin) would rise again, it goes on falling as
    cos(theta) - margin sin(margin), as in the official code.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        scale: float,
        centres: int = 1,
        kind: Literal["angle", "cosine"] = "angle",
    ) -> None:
        super().__init__()
        self.scale, self.centres, self.kind = scale, centres, kind
        self.weight = nn.Parameter(torch.empty(classes * centres, dim))
        nn.init.xavier_uniform_(self.weight)

    def forward(
        self, embeddings: Tensor, classes: Tensor, margin: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        cosines = self.cosines(embeddings)
        own = cosines.gather(1, classes[:, None])
        less = own - margin if self.kind == "cosine" else _with_margin(own, margin)
        logits = cosines.scatter(1, classes[:, None], less)
        return F.cross_entropy(self.scale * logits, classes, reduction="none"), cosines

    def cosines(self, embeddings: Tensor) -> Tensor:
        """(B, E) -> (B, C) float32 in [-1, 1]: the cosine with each class's nearest centre."""
        with torch.autocast(embeddings.device.type, enabled=False):
            centres = self.weight.float()[:, : embeddings.shape[1]]
            found = F.normalize(embeddings.float()) @ F.normalize(centres).T
            return found.unflatten(1, (-1, self.centres)).amax(-1).clamp(-1, 1)


def _with_margin(cosine: Tensor, margin: float) -> Tensor:
    if margin == 0:
        return cosine
    # The derivative of the sine is infinite at cosine 1.
    sine = (1 - cosine.square()).clamp(min=1e-7).sqrt()
    wider = cosine * math.cos(margin) - sine * math.sin(margin)
    beyond = cosine - margin * math.sin(margin)
    return torch.where(cosine > -math.cos(margin), wider, beyond)
