"""Units of frames, inside a model: nearest centroids, and an embedding of each.

Shape legend: B utterances, T frames, D width, K units, P width of the centroids.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Units(nn.Module):
    """(B, T, D) -> (B, T, E): the embedding of each frame's nearest centroid.

    The centroids and the affine map into their space are buffers, filled by `take`, so that a
    saved model needs no other file. No gradient passes to the frames.
    """

    centroids: Tensor
    offset: Tensor
    projection: Tensor

    def __init__(self, units: int, dim: int, centroid_dim: int, embedding_dim: int) -> None:
        super().__init__()
        self.register_buffer("centroids", torch.zeros(units, centroid_dim))
        self.register_buffer("offset", torch.zeros(dim))
        self.register_buffer("projection", torch.zeros(dim, centroid_dim))
        self.embedding = nn.Embedding(units, embedding_dim)

    @torch.no_grad()
    def take(self, centroids: Tensor, offset: Tensor, projection: Tensor) -> None:
        """Frames x belong to the centroid nearest to (x - offset) @ projection."""
        for own, given in (
            (self.centroids, centroids),
            (self.offset, offset),
            (self.projection, projection),
        ):
            if own.shape != given.shape:
                raise ValueError(
                    f"clusters: found an array of shape {tuple(given.shape)}, want "
                    f"{tuple(own.shape)}: are these clusters of this encoder's layer?"
                )
            own.copy_(given)

    @torch.no_grad()
    def assign(self, x: Tensor) -> Tensor:
        """(..., D) -> (...) int64."""
        if not self.projection.is_cuda and not self.projection.any():
            raise ValueError(
                "clusters: found none, want centroids; `speechssl finetune` takes those of "
                "head.clusters"
            )
        with torch.autocast(x.device.type, enabled=False):
            points = (x.float() - self.offset) @ self.projection
            # Both centred: float32 products of values far from 0 would cancel.
            centre = self.centroids.mean(0)
            words = self.centroids - centre
            distance = words.square().sum(-1) - 2 * (points - centre) @ words.T
            return distance.argmin(-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.embedding(self.assign(x))
