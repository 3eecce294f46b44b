"""A saved k-means codebook: `centroids.npy` + `clusters.json` (+ `projection.npy`).

    clusters.json   classes, dim, features (what the extractor's `info` says), frame_rate_hz,
                    window_seconds, normalise, mean, scale, codebook_hash, and how it was fitted.

Everything is plain arrays and JSON. Pickled k-means models of other programs (.km, .joblib) are
refused: unpickling runs code of whoever made the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechssl import dist
from speechssl.labels.kmeans import Assigner

FORMAT = 1
CHUNK = 16384
NORMALISATIONS = ("none", "standardise", "whiten")


@dataclasses.dataclass(frozen=True)
class Normaliser:
    """x -> (x - mean) / scale, or (x - mean) @ projection; without either, x itself."""

    kind: str = "none"
    mean: Tensor | None = None
    scale: Tensor | None = None
    projection: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.mean is None:
            return x
        x = x.float() - self.mean.to(x.device)
        if self.projection is not None:
            return x @ self.projection.to(x.device)
        return x / self.scale.to(x.device) if self.scale is not None else x


def fit_normaliser(points: Tensor, kind: str, dim: int = 0) -> Normaliser:
    """Statistics of the points (N, D) of all ranks, in float64.

    kind: none, standardise (unit variance per dimension), or whiten (unit covariance; `dim`
    strongest directions, 0 for all).
    """
    if kind not in NORMALISATIONS:
        raise ValueError(f"normalise: found {kind!r}, want one of {NORMALISATIONS}")
    if kind == "none":
        return Normaliser()
    width = points.shape[1]
    if not 0 <= dim <= width:
        raise ValueError(f"whiten_dim: found {dim}, want 0 (all) to {width}")
    parts = points.split(CHUNK)
    count = dist.all_reduce_sum(torch.tensor([float(len(points))], dtype=torch.float64))
    total = sum((p.double().sum(0) for p in parts), torch.zeros(width, dtype=torch.float64))
    mean = dist.all_reduce_sum(total) / count
    if kind == "standardise":
        squares = torch.zeros(width, dtype=torch.float64)
        for part in parts:
            squares += (part.double() - mean).square().sum(0)
        scale = (dist.all_reduce_sum(squares) / count).sqrt().clamp(min=1e-6)
        return Normaliser(kind, mean.float(), scale.float())
    scatter = torch.zeros(width, width, dtype=torch.float64)
    for part in parts:
        centred = part.double() - mean
        scatter += centred.T @ centred
    values, vectors = torch.linalg.eigh(dist.all_reduce_sum(scatter) / count)
    keep = dim or width
    values, vectors = values[-keep:].flip(0), vectors[:, -keep:].flip(1)
    # A direction without variance would be blown up to noise: bound by the strongest one.
    scaled = vectors / values.clamp(min=float(values[0]) * 1e-8).sqrt()
    return Normaliser(kind, mean.float(), None, scaled.float())


def normalised(points: Tensor, kind: str, dim: int = 0) -> tuple[Tensor, Normaliser]:
    """The points after `fit_normaliser`'s transformation, and the transformation."""
    normaliser = fit_normaliser(points, kind, dim)
    if kind == "none":
        return points, normaliser
    return torch.cat([normaliser(part) for part in points.split(CHUNK)]), normaliser


@dataclasses.dataclass(frozen=True)
class Codebook:
    """Centroids with what is needed to apply them; `labels` assigns.

    centroids: (K, P) float32 in the normalised space. info: the content of clusters.json.
    """

    centroids: Tensor
    normaliser: Normaliser
    info: Mapping[str, Any]

    @property
    def classes(self) -> int:
        return len(self.centroids)

    @property
    def hash(self) -> str:
        """Identity of the labels it makes: features, normalisation and centroids."""
        digest = hashlib.sha256()
        digest.update(json.dumps(self.info.get("features", {}), sort_keys=True).encode())
        digest.update(self.normaliser.kind.encode())
        for array in (
            self.centroids,
            self.normaliser.mean,
            self.normaliser.scale,
            self.normaliser.projection,
        ):
            if array is not None:
                digest.update(np.ascontiguousarray(array.cpu().numpy(), "<f4").tobytes())
        return digest.hexdigest()[:32]

    def assigner(self, device: torch.device | str = "cpu") -> CodebookAssigner:
        return CodebookAssigner(self, device)


class CodebookAssigner:
    """(T, D) features -> (T,) int64 labels."""

    def __init__(self, codebook: Codebook, device: torch.device | str) -> None:
        self._normaliser = codebook.normaliser
        self._assign = Assigner(codebook.centroids, device)

    def __call__(self, features: Tensor) -> Tensor:
        return self._assign(self._normaliser(features))


def save_codebook(folder: str | Path, codebook: Codebook) -> None:
    """Write the files, clusters.json last: a folder that has it is complete."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    normaliser = codebook.normaliser
    _save_array(folder / "centroids.npy", codebook.centroids)
    if normaliser.projection is not None:
        _save_array(folder / "projection.npy", normaliser.projection)
    info = {
        **codebook.info,
        "format": FORMAT,
        "classes": codebook.classes,
        "dim": codebook.centroids.shape[1],
        "normalise": normaliser.kind,
        "mean": None if normaliser.mean is None else normaliser.mean.tolist(),
        "scale": None if normaliser.scale is None else normaliser.scale.tolist(),
        "codebook_hash": codebook.hash,
    }
    temporary = folder / "clusters.json.tmp"
    temporary.write_text(json.dumps(info, indent=1))
    os.replace(temporary, folder / "clusters.json")


def load_codebook(folder: str | Path) -> Codebook:
    """Open a folder of `save_codebook`.

    Raises `ValueError` if it is absent or unfinished, a pickle, or not what its hash says.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(
            f"clusters: found the file {folder}, want a folder with centroids.npy and "
            "clusters.json. Pickled k-means models (.km, .joblib, .pkl) are not opened, since "
            "unpickling runs code: in the program that made it, save cluster_centers_ with "
            "numpy.save and write clusters.json beside it"
        )
    path = folder / "clusters.json"
    if not path.is_file() or not (folder / "centroids.npy").is_file():
        raise ValueError(
            f"clusters: found no clusters.json and centroids.npy in {folder}, want the output of "
            "`speechssl cluster fit`; if that was interrupted, run it again"
        )
    info = json.loads(path.read_text())
    if info.get("format") != FORMAT:
        raise ValueError(f"{path}: found format {info.get('format')}, want {FORMAT}")
    projection = folder / "projection.npy"
    normaliser = Normaliser(
        info["normalise"],
        None if info["mean"] is None else torch.tensor(info["mean"], dtype=torch.float32),
        None if info["scale"] is None else torch.tensor(info["scale"], dtype=torch.float32),
        _load_array(projection) if info["normalise"] == "whiten" else None,
    )
    codebook = Codebook(_load_array(folder / "centroids.npy"), normaliser, info)
    if codebook.hash != info["codebook_hash"]:
        raise ValueError(
            f"{folder}: found arrays of hash {codebook.hash}, want {info['codebook_hash']} as "
            "clusters.json says; the files are of different fits, or damaged"
        )
    return codebook


def _save_array(path: Path, array: Tensor) -> None:
    temporary = path.with_suffix(".npy.tmp")
    with open(temporary, "wb") as file:
        np.save(file, array.cpu().numpy().astype(np.float32), allow_pickle=False)
    os.replace(temporary, path)


def _load_array(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32))
