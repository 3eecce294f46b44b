"""CKA and CCA: invariances, independence, and CKA against its definition by kernels."""

from __future__ import annotations

import pytest
import torch

from speechssl.score.cka import PARTS, cca, cka_matrix, heldout_cca, linear_cka


@pytest.fixture
def views() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(4000, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64)
    return x, x[:, :5] + 0.5 * torch.randn(4000, 5, dtype=torch.float64)


def test_cka_is_the_alignment_of_centred_kernels(views) -> None:
    x, y = (v[:200] for v in views)
    centre = torch.eye(200, dtype=torch.float64) - 1 / 200
    k, m = (centre @ v @ v.T @ centre for v in (x, y))
    want = (k * m).sum() / (k.norm() * m.norm())
    assert linear_cka(x, y) == pytest.approx(float(want), rel=1e-9)


def test_cka_knows_shift_scale_and_rotation_for_the_same(views) -> None:
    x, y = views
    turn = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    moved = 3 * x @ turn + 5
    assert linear_cka(x, moved) == pytest.approx(1, abs=1e-9)
    assert linear_cka(moved, y) == pytest.approx(linear_cka(x, y), abs=1e-9)
    assert linear_cka(y, x) == pytest.approx(linear_cka(x, y), rel=1e-12)


def test_the_matrix_holds_each_pair(views) -> None:
    x, y = views
    found = cka_matrix([x, y, y - x[:, :5]])
    assert torch.equal(found, found.T) and torch.equal(found.diagonal(), torch.ones(3).double())
    assert float(found[2, 1]) == pytest.approx(linear_cka(y - x[:, :5], y), rel=1e-12)


def test_independent_views_are_unlike_and_a_constant_one_has_no_likeness(views) -> None:
    x, _ = views
    noise = torch.randn(4000, 12, dtype=torch.float64)
    assert linear_cka(x, noise) < 0.01
    correlations, mean = cca(x, noise)
    assert correlations.max() < 0.15 and mean < 0.1
    constant = cka_matrix([x, torch.full((4000, 3), 0.1)])
    assert bool(constant[0, 1].isnan()) and bool(constant[1, 1].isnan())


def test_cca_knows_any_invertible_map_for_the_same(views) -> None:
    x, _ = views
    mapped = x @ torch.randn(12, 12, dtype=torch.float64) - 2
    correlations, mean = cca(x, mapped, epsilon=1e-12)
    assert torch.allclose(correlations, torch.ones(12).double(), atol=1e-4)
    assert mean == pytest.approx(1, abs=1e-4)


def test_one_shared_direction_is_one_correlation() -> None:
    """y's first column is a_0 + noise of equal variance: correlation sqrt(1/2); the others none."""
    x = torch.randn(50_000, 6, dtype=torch.float64)
    noise = torch.randn(50_000, 4, dtype=torch.float64)
    y = torch.cat([x[:, :1] + noise[:, :1], noise[:, 1:]], 1)
    correlations, mean = cca(x, y)
    assert correlations.shape == (4,)
    assert float(correlations[0]) == pytest.approx(0.5**0.5, abs=0.01)
    assert correlations[1:].max() < 0.03 and mean < 0.5


def test_held_out_cca_does_not_credit_width() -> None:
    """Of 400 points, 60 and 60 wide, independent: the points that directions were found on look
    alike, others do not."""
    x, y = torch.randn(2, 400, 60, dtype=torch.float64)
    parts = torch.arange(400) % PARTS
    assert cca(x, y)[1] > 0.25
    assert abs(heldout_cca(x, y, parts)) < 0.1
    mapped = x @ torch.randn(60, 60, dtype=torch.float64) - 2
    assert heldout_cca(x, mapped, parts) > 0.98


def test_held_out_cca_finds_the_correlation_there_is() -> None:
    # One dimension each: it is Pearson's correlation, sqrt(1/2) here.
    x = torch.randn(20_000, 1, dtype=torch.float64)
    y = x + torch.randn(20_000, 1, dtype=torch.float64)
    parts = torch.arange(20_000) % PARTS
    assert heldout_cca(x, y, parts) == pytest.approx(0.5**0.5, abs=0.02)
    # Clusters and their identity, one-hot.
    classes = torch.randint(5, (2000,))
    one_hot = torch.eye(5, dtype=torch.float64)[classes]
    points = one_hot @ torch.randn(5, 8, dtype=torch.float64)
    points = points + 0.01 * torch.randn(2000, 8, dtype=torch.float64)
    assert heldout_cca(points, one_hot, torch.arange(2000) % PARTS) > 0.95


def test_held_out_cca_of_constants_and_of_wrong_parts() -> None:
    x, parts = torch.randn(100, 3), torch.arange(100) % PARTS
    assert heldout_cca(x, torch.ones(100, 2), parts) != heldout_cca(x, torch.ones(100, 2), parts)
    for wrong in (parts[1:], parts % 9, parts + 1):
        with pytest.raises(ValueError, match="parts: found"):
            heldout_cca(x, x, wrong)


def test_views_of_other_points_are_refused(views) -> None:
    x, y = views
    with pytest.raises(ValueError, match=r"want \(4000, width\)"):
        linear_cka(x, y[1:])
    with pytest.raises(ValueError, match="NaN"):
        linear_cka(x, torch.full((4000, 2), float("nan")))
