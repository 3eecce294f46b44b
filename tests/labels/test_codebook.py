"""Saved codebooks: round trip, identity, refusal of what cannot be trusted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from speechssl.labels.codebook import Codebook, fit_normaliser, load_codebook, save_codebook


def codebook(kind: str = "none", dim: int = 0) -> tuple[Codebook, torch.Tensor]:
    points = torch.randn(500, 6) * torch.tensor([1.0, 2, 3, 4, 5, 60]) + 7
    normaliser = fit_normaliser(points, kind, dim)
    centroids = normaliser(points[:20]).clone()
    return Codebook(centroids, normaliser, {"features": {"kind": "mfcc"}}), points


@pytest.mark.parametrize(("kind", "dim"), [("none", 0), ("standardise", 0), ("whiten", 4)])
def test_a_saved_codebook_gives_the_same_labels_and_hash(
    tmp_path: Path, kind: str, dim: int
) -> None:
    made, points = codebook(kind, dim)
    save_codebook(tmp_path, made)
    opened = load_codebook(tmp_path)
    assert opened.hash == made.hash and opened.info["classes"] == 20
    assert torch.equal(opened.assigner()(points), made.assigner()(points))
    assert made.assigner()(points)[:20].tolist() == list(range(20))


def test_centroids_are_plain_float32(tmp_path: Path) -> None:
    save_codebook(tmp_path, codebook()[0])
    array = np.load(tmp_path / "centroids.npy", allow_pickle=False)
    assert array.dtype == np.float32 and array.shape == (20, 6)


@pytest.mark.parametrize("kind", ["standardise", "whiten"])
def test_normalised_points_have_unit_variance(kind: str) -> None:
    points = torch.randn(4000, 6) @ torch.randn(6, 6) + 9
    found = fit_normaliser(points, kind)(points).double()
    covariance = found.T @ found / len(found)
    assert torch.allclose(found.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-4)
    wanted = torch.eye(6, dtype=torch.float64)
    if kind == "whiten":
        assert torch.allclose(covariance, wanted, atol=1e-3)
    assert torch.allclose(covariance.diagonal(), wanted.diagonal(), atol=1e-3)


def test_the_hash_changes_with_centroids_features_and_normalisation() -> None:
    made, _ = codebook()
    other = Codebook(made.centroids + 1e-3, made.normaliser, made.info)
    layer = Codebook(made.centroids, made.normaliser, {"features": {"kind": "encoder"}})
    scaled = Codebook(made.centroids, codebook("standardise")[0].normaliser, made.info)
    assert len({made.hash, other.hash, layer.hash, scaled.hash}) == 4


def test_mixed_up_files_are_noticed(tmp_path: Path) -> None:
    made, _ = codebook()
    save_codebook(tmp_path, made)
    np.save(tmp_path / "centroids.npy", made.centroids.numpy() * 2)
    with pytest.raises(ValueError, match="hash"):
        load_codebook(tmp_path)


def test_an_unfinished_folder_and_a_pickled_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cluster fit"):
        load_codebook(tmp_path)
    pickled = tmp_path / "km.joblib"
    pickled.write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="unpickling runs code"):
        load_codebook(pickled)


def test_an_unknown_normalisation_is_named() -> None:
    with pytest.raises(ValueError, match="cmvn"):
        fit_normaliser(torch.zeros(4, 2), "cmvn")
