"""Spherical k-means within utterances."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from speechssl.nn.cosine_clusters import cosine_clusters


def case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two utterances of vectors about 3 orthogonal directions; the second one is padded."""
    random = torch.Generator().manual_seed(seed)
    which = torch.randint(3, (2, 60), generator=random)
    x = F.one_hot(which, 8).float() + 0.1 * torch.randn(2, 60, 8, generator=random)
    valid = torch.arange(60) < torch.tensor([[60], [35]])
    return x, valid, which, torch.tensor([11, 12])


def test_directions_are_told_apart_whatever_the_vectors_length() -> None:
    x, valid, which, _ = case()
    lengths = torch.rand(2, 60, 1) * 9 + 0.1
    for seed in range(4):  # starts are drawn: most of them find all three
        seeds = torch.tensor([seed, seed + 50])
        found = cosine_clusters(x * lengths, valid, torch.tensor([6, 6]), seeds, stream=0)
        for row in range(2):
            keep = valid[row]
            for cluster in found[row][keep].unique():
                assert len(which[row][keep & (found[row] == cluster)].unique()) == 1


def test_a_row_does_not_depend_on_its_batch_or_padding() -> None:
    x, valid, _, seeds = case()
    clusters = torch.tensor([7, 4])
    both = cosine_clusters(x, valid, clusters, seeds, stream=0)
    alone = cosine_clusters(x[1:, :35], valid[1:, :35], clusters[1:], seeds[1:], stream=0)
    assert torch.equal(both[1, :35], alone[0])
    x[1, 35:] = 1e3
    assert torch.equal(cosine_clusters(x, valid, clusters, seeds, stream=0)[1, :35], alone[0])
    assert both[1, :35].max() < 4


def test_equal_vectors_share_a_cluster() -> None:
    x = torch.randn(1, 5, 16).repeat(1, 8, 1)
    valid = torch.ones(1, 40, dtype=torch.bool)
    found = cosine_clusters(x, valid, torch.tensor([9]), torch.tensor([3]), stream=0)
    assert torch.equal(found.view(8, 5), found[:, :5].expand(8, -1))
