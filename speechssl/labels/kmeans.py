"""K-means on sampled frames: subset seeding with split-and-merge repair, then exact Lloyd.

Where k-means ends is decided by its seeds: Lloyd never moves a centre across a gap. So the
search for a good start is done on a subset of about 100 points per class, where it is cheap
(`speechssl.labels.seeding`); the whole sample then only refines it. Points may be spread over
ranks: sums and counts are all-reduced, and which points form the subset or a mini-batch follows
from a random key per point, so the result does not depend on the number of ranks.

Shape legend: N points on this rank, D features, K classes.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechssl import dist
from speechssl.labels.reservoir import frame_keys
from speechssl.nn.linear import product

CHUNK_POINTS = 4096
"""Points per matrix product: keeps the (points, K) scores in cache."""

CHUNK_POINTS_CUDA = 65536
"""On a GPU few large products are faster than many small ones."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KMeansConfig:
    """How to fit."""

    classes: int
    """Number of clusters."""
    seed: int = 0
    """Everything random follows from it."""
    max_iterations: int = 50
    """Passes over the whole sample at most."""
    tolerance: float = 1e-4
    """Stop when the inertia falls by less than this fraction in one pass."""
    seed_points_per_class: int = 100
    """Size of the subset on which starts are sought."""
    restarts: int = 1
    """Starts tried on the subset; the one of least inertia is refined."""
    swap_rounds: int = 30
    """Split-and-merge rounds per start at most; 0 for plain greedy k-means++."""
    batch_points: int = 0
    """Mini-batch size over all ranks; 0 for full Lloyd."""
    save_every: int = 5
    """Passes between two saved states."""

    def __post_init__(self) -> None:
        for name in ("classes", "max_iterations", "restarts", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, want at least 1")
        if self.seed_points_per_class < 2:
            raise ValueError(
                f"seed_points_per_class: found {self.seed_points_per_class}, want at least 2"
            )
        if self.batch_points < 0 or self.swap_rounds < 0:
            raise ValueError("batch_points and swap_rounds: want 0 or more")


@dataclasses.dataclass(frozen=True)
class KMeansFit:
    """Result of `fit_kmeans`.

    centroids: (K, D) float32. counts: (K,) points per class. inertia: mean squared distance per
    point to its nearest centroid, measured with these very centroids. history: inertia of each
    pass, the first being that of the start. points: how many there were over all ranks.
    """

    centroids: Tensor
    counts: Tensor
    inertia: float
    history: tuple[float, ...]
    points: int


class Assigner:
    """Nearest centroid by chunked matrix products: argmin |c|^2 - 2 x.c, both centred.

    centroids: (K, D). The centroids' mean is subtracted from both sides, so that float32
    products do not cancel for features with a large offset.
    """

    def __init__(self, centroids: Tensor, device: torch.device | str = "cpu") -> None:
        exact = centroids.to(device="cpu", dtype=torch.float64)
        self.device = torch.device(device)
        self.offset = exact.mean(0).float().to(self.device)
        centred = exact - self.offset.to("cpu", torch.float64)
        self.twice = (-2.0 * centred).float().to(self.device)
        self.bias = centred.square().sum(1).float().to(self.device)

    def scores(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """(n, D) any float dtype -> centred points (n, D), |c|^2 - 2 x.c (n, K); float32."""
        centred = points.to(self.device, torch.float32) - self.offset
        return centred, product(centred, self.twice, self.bias)

    def nearest(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n, D) -> centred points, labels (n,) int64, squared distances (n,)."""
        centred, scores = self.scores(points)
        best, labels = scores.min(1)
        return centred, labels, (best + centred.square().sum(1)).clamp_(min=0.0)

    def __call__(self, points: Tensor) -> Tensor:
        """(n, D) -> labels (n,) int64 on `points`' device, in chunks."""
        parts = [self.scores(part)[1].argmin(1) for part in points.split(CHUNK_POINTS)]
        labels = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
        return labels.to(points.device)


def class_sums(points: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Sum of the points of each class: (n, D), (n,) -> (K, D). Deterministic on every device."""
    if points.device.type != "cpu":
        # index_add_ uses atomics on CUDA: the order of additions, and so the sum, would vary.
        hot = torch.zeros(classes, len(points), device=points.device)
        hot[labels, torch.arange(len(points), device=points.device)] = 1.0
        return hot @ points
    return torch.zeros(classes, points.shape[1]).index_add_(0, labels, points)


@dataclasses.dataclass
class PassSums:
    """Sums of one pass over all ranks' points: float64, on the CPU."""

    sums: Tensor
    counts: Tensor
    sse: Tensor

    @property
    def inertia(self) -> float:
        return float(self.sse.sum() / self.counts.sum().clamp(min=1))


def one_pass(points: Tensor, centroids: Tensor, device: torch.device | str) -> PassSums:
    """Assign every point of every rank to its centroid, and sum per class."""
    assigner = Assigner(centroids, device)
    classes, dim = centroids.shape
    total = torch.zeros(classes, dim + 2, dtype=torch.float64, device=device)
    for part in points.split(CHUNK_POINTS if total.is_cpu else CHUNK_POINTS_CUDA):
        centred, labels, distances = assigner.nearest(part)
        # Two further columns: the squared distances, and ones to count the points.
        columns = torch.cat([centred, distances[:, None], torch.ones_like(distances[:, None])], 1)
        total += class_sums(columns, labels, classes)
    total = dist.all_reduce_sum(total).cpu()
    counts = total[:, dim + 1].round()
    sums = total[:, :dim] + counts[:, None] * assigner.offset.to("cpu", torch.float64)
    return PassSums(sums, counts, total[:, dim].clone())


def fit_kmeans(
    points: Tensor,
    config: KMeansConfig,
    *,
    keys: np.ndarray | None = None,
    device: torch.device | str = "cpu",
    state_path: Path | None = None,
    log: Callable[[str, int, float], None] | None = None,
) -> KMeansFit:
    """Cluster the points of all ranks.

    points: (N, D) float16 or float32 on the CPU, this rank's share.
    keys: (N,) uint64, a random number per point; its order decides subset and mini-batches.
        Default: drawn from the seed and the point's place among all ranks' points.
    state_path: an .npz file; when it holds the state of an equal fit, the fit goes on from there.
    log: called with phase ("start", "lloyd"), pass number and inertia per point.
    Raises `ValueError` for fewer points than classes, or non-finite points.
    """
    total = _count_points(points, config)
    if keys is None:
        first = sum(dist.gather_objects(len(points))[: dist.rank()])
        keys = frame_keys(f"kmeans:{config.seed}", first + len(points))[first:]
    say = log or (lambda phase, number, inertia: None)
    subset = _lowest_keys(points, keys, min(total, config.classes * config.seed_points_per_class))
    state = _State.load(state_path, config, points.shape[1], total)
    if state is None:
        state = _State(_seed_centroids(subset, config, device, say), [], 0)
        state.save(state_path, config, total)
    points = _on_device(points, device)
    step = _mini_batch_steps if config.batch_points else _lloyd_steps
    for inertia in step(points, keys, subset, state, config, device):
        say("lloyd", state.iteration, inertia)
        if state.iteration % config.save_every == 0:
            state.save(state_path, config, total)
    # The centroids handed out are float32: what is reported holds for these.
    centroids = state.centroids.float()
    final = one_pass(points, centroids, device)
    return KMeansFit(
        centroids, final.counts.long(), final.inertia, (*state.history, final.inertia), total
    )


def _lloyd_steps(
    points: Tensor,
    keys: np.ndarray,
    subset: Tensor,
    state: _State,
    config: KMeansConfig,
    device: torch.device | str,
) -> Iterator[float]:
    while state.iteration < config.max_iterations and not state.converged(config.tolerance):
        found = one_pass(points, state.centroids, device)
        state.centroids = move_centroids(found, state.centroids, subset, device)
        state.history.append(found.inertia)
        state.iteration += 1
        yield found.inertia


def _mini_batch_steps(
    points: Tensor,
    keys: np.ndarray,
    subset: Tensor,
    state: _State,
    config: KMeansConfig,
    device: torch.device | str,
) -> Iterator[float]:
    """Each batch moves a centroid towards its mean by the batch's share of all points seen.

    Batches are ranges of keys: the same points on any number of ranks. `converged` looks at one
    pass over the sample, not at one batch, whose inertia is noise.
    Source: Sculley, 2010, "Web-scale k-means clustering", algorithm 1.
    """
    order = torch.from_numpy(np.argsort(keys, kind="stable"))
    total = sum(dist.gather_objects(len(points)))
    batches = max(1, round(total / config.batch_points))
    edges = [
        int(np.searchsorted(keys[order.numpy()], _key_at(b / batches))) for b in range(batches)
    ]
    edges.append(len(points))
    while state.iteration < config.max_iterations and not state.converged(config.tolerance):
        sse, seen = 0.0, torch.zeros(config.classes, dtype=torch.float64)
        for b in range(batches):
            part = points[order[edges[b] : edges[b + 1]].to(points.device)]
            found = one_pass(part, state.centroids, device)
            seen += found.counts
            # Earlier passes count as if they had spread evenly over the classes: so the state
            # to save is the centroids and the number of passes alone.
            weight = found.counts / (state.iteration * total / config.classes + seen).clamp(min=1)
            mean = found.sums / found.counts.clamp(min=1)[:, None]
            state.centroids = torch.lerp(state.centroids, mean, weight[:, None])
            sse += float(found.sse.sum())
        state.history.append(sse / total)
        state.iteration += 1
        yield sse / total


def move_centroids(
    found: PassSums, centroids: Tensor, subset: Tensor, device: torch.device | str
) -> Tensor:
    """Each centroid to the mean of its points; an empty one to a badly served subset point."""
    moved = found.sums / found.counts.clamp(min=1)[:, None]
    empty = torch.nonzero(found.counts == 0).flatten()
    if len(empty) and len(subset):
        _, _, distances = Assigner(centroids, device).nearest(subset)
        worst = distances.cpu().argsort(descending=True, stable=True)[: len(empty)]
        moved[empty[: len(worst)]] = subset[worst].double()
    return moved


def _seed_centroids(
    subset: Tensor,
    config: KMeansConfig,
    device: torch.device | str,
    say: Callable[[str, int, float], None],
) -> Tensor:
    """Best start of `restarts`, sought on rank 0: (K, D) float64."""
    from speechssl.labels.seeding import find_start

    best: Tensor | None = None
    if dist.is_main():
        lowest = float("inf")
        for number in range(config.restarts):
            start, inertia = find_start(
                subset.to(device, torch.float32),
                config.classes,
                seed=config.seed * 7919 + number,
                swap_rounds=config.swap_rounds,
            )
            say("start", number, inertia)
            if inertia < lowest:
                best, lowest = start, inertia
    found = dist.broadcast_object(None if best is None else best.numpy())
    return torch.from_numpy(found)


@dataclasses.dataclass
class _State:
    centroids: Tensor
    history: list[float]
    iteration: int

    def converged(self, tolerance: float) -> bool:
        if len(self.history) < 2:
            return False
        before, now = self.history[-2:]
        return before - now <= tolerance * before

    def save(self, path: Path | None, config: KMeansConfig, total: int) -> None:
        if path is None or not dist.is_main():
            return
        temporary = path.with_suffix(".tmp.npz")
        np.savez(
            temporary,
            centroids=self.centroids.numpy(),
            history=np.asarray(self.history),
            iteration=np.asarray(self.iteration),
            fit=np.asarray(_fit_name(config, self.centroids.shape[1], total)),
        )
        os.replace(temporary, path)

    @staticmethod
    def load(path: Path | None, config: KMeansConfig, dim: int, total: int) -> _State | None:
        """The saved state, or None if there is none; rank 0 reads for all."""
        state = None
        if path is not None and dist.is_main() and path.is_file():
            with np.load(path, allow_pickle=False) as saved:
                if str(saved["fit"]) == _fit_name(config, dim, total):
                    state = (saved["centroids"], saved["history"], int(saved["iteration"]))
        state = dist.broadcast_object(state)
        if state is None:
            return None
        return _State(torch.from_numpy(state[0]), [float(x) for x in state[1]], state[2])


def _fit_name(config: KMeansConfig, dim: int, total: int) -> str:
    """What must be equal for a saved state to be continued."""
    kept = {k: v for k, v in dataclasses.asdict(config).items() if k != "save_every"}
    kept.pop("max_iterations")
    return json.dumps({**kept, "dim": dim, "points": total}, sort_keys=True)


def _count_points(points: Tensor, config: KMeansConfig) -> int:
    counted = dist.gather_objects(
        (len(points), all(bool(p.isfinite().all()) for p in points.split(1 << 16)))
    )
    total = sum(count for count, _ in counted)
    if not all(finite for _, finite in counted):
        raise ValueError("points: found NaN or infinity, want finite features")
    if total < config.classes:
        raise ValueError(
            f"points: found {total} frames for {config.classes} classes, want at least one frame "
            "per class; give more audio or fewer classes"
        )
    return total


def _on_device(points: Tensor, device: torch.device | str) -> Tensor:
    """The points on the GPU if they take at most half of its free memory; else where they are."""
    if torch.device(device).type != "cuda":
        return points
    free, _ = torch.cuda.mem_get_info(torch.device(device))
    return points.to(device) if points.nbytes <= free // 2 else points


def _lowest_keys(points: Tensor, keys: np.ndarray, count: int) -> Tensor:
    """The `count` points of lowest key over all ranks, in key order, on rank 0 (else empty)."""
    order = np.argsort(keys, kind="stable")[:count]
    share = (keys[order], points[torch.from_numpy(order)].numpy())
    shares = dist.gather_objects(share)
    all_keys = np.concatenate([k for k, _ in shares])
    all_points = np.concatenate([p for _, p in shares])
    return torch.from_numpy(all_points[np.argsort(all_keys, kind="stable")[:count]])


def _key_at(fraction: float) -> np.uint64:
    return np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))
