"""RankMe and effective rank against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from speechssl.score.rank import effective_rank, rankme


def orthonormal(rows: int, columns: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64))[0]


@pytest.mark.parametrize("k", [1, 5, 32])
def test_k_orthonormal_directions_have_rank_k(k: int) -> None:
    points = orthonormal(400, k) @ orthonormal(64, k).T
    assert rankme(points) == pytest.approx(k, abs=1e-6)


def test_both_follow_their_definition_on_known_singular_values() -> None:
    values = torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    left = orthonormal(50, 5)
    # Orthogonal to the constant column: centring changes nothing.
    ones = torch.ones(50, 1, dtype=torch.float64)
    left = torch.linalg.qr(torch.cat([ones, left], 1))[0][:, 1:5]
    points = left @ torch.diag(values) @ orthonormal(6, 4).T
    shares_of = {rankme: [3 / 6, 2 / 6, 1 / 6], effective_rank: [9 / 14, 4 / 14, 1 / 14]}
    for measure, shares in shares_of.items():
        want = math.exp(-sum(p * math.log(p) for p in shares))
        assert measure(points) == pytest.approx(want, rel=1e-9)


def test_an_offset_is_one_direction_to_rankme_and_none_to_effective_rank() -> None:
    points = torch.randn(500, 8)
    far = points + 1e4 * torch.randn(8)
    assert rankme(far) < 1.2 < rankme(points)
    assert effective_rank(far) == pytest.approx(effective_rank(points), rel=1e-3)
    assert rankme(torch.full((10, 4), 0.3)) == pytest.approx(1, abs=1e-9)
    assert effective_rank(torch.full((10, 4), 0.3)) == 0
    assert rankme(torch.zeros(10, 4)) == 0


def test_scale_and_rotation_change_nothing() -> None:
    points = torch.randn(300, 16, dtype=torch.float64) * torch.linspace(0.1, 3, 16)
    turned = 7.5 * points @ orthonormal(16, 16)
    assert rankme(turned) == pytest.approx(rankme(points), rel=1e-9)
    assert effective_rank(turned) == pytest.approx(effective_rank(points), rel=1e-9)


@pytest.mark.parametrize(
    "points", [torch.zeros(3), torch.zeros(0, 3), torch.tensor([[1.0, float("nan")]])]
)
def test_other_input_is_refused(points: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"^points: found"):
        rankme(points)
