"""A good start for k-means: greedy k-means++, then rounds of splitting and merging.

Lloyd's iterations cannot move a centre from a region with two of them to one that shares
another's. A round here does: it splits the clusters that gain most by it, and pays with the
cheapest removals of others, as long as a split gains more than the removal costs; a few Lloyd
passes follow, and the round is kept only if the inertia fell.
Source: Arthur and Vassilvitskii, 2007 (k-means++, with greedy candidates); Ueda et al., 2000,
"SMEM algorithm for mixture models" (split and merge). Differs: many swaps per round.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from speechssl.nn.linear import product

CHUNK = 4096
"""Points per matrix product."""

SEED_POINTS_PER_CLASS = 32
"""Points that k-means++ looks at; the rounds repair what a small sample missed."""


def find_start(
    points: Tensor, classes: int, *, seed: int, swap_rounds: int
) -> tuple[Tensor, float]:
    """Centroids for (S, D) float32 points: (K, D) float64 on the CPU, and inertia per point."""
    generator = torch.Generator().manual_seed(seed)
    mean = points.mean(0)
    points = points - mean
    norms = points.square().sum(1)
    few = torch.randperm(len(points), generator=generator)[: classes * SEED_POINTS_PER_CLASS]
    few = few.to(points.device)
    centroids = greedy_plus_plus(points[few], norms[few], classes, generator)
    # A few passes bring the seeds, which are points, to means: splits are judged on means.
    for _ in range(3):
        fit = _assign(points, norms, centroids)
        centroids = _means(points, fit, centroids)
    fit = _assign(points, norms, centroids)
    for _ in range(swap_rounds):
        proposed, swaps = _swap(points, fit, centroids)
        if swaps == 0:
            break
        for _ in range(2):
            trial = _assign(points, norms, proposed)
            proposed = _means(points, trial, proposed)
        trial = _assign(points, norms, proposed)
        if not trial.inertia < fit.inertia:
            break
        gained = 1 - trial.inertia / fit.inertia
        centroids, fit = proposed, trial
        if gained < 1e-4:
            break
    return (centroids + mean).to("cpu", torch.float64), fit.inertia


def greedy_plus_plus(
    points: Tensor, norms: Tensor, classes: int, generator: torch.Generator
) -> Tensor:
    """k-means++ with 2 + ln K candidates per draw, the best of which is taken: (K, D)."""
    candidates = 2 + int(math.log(classes))
    draws = torch.rand(classes, candidates, generator=generator, dtype=torch.float64)
    first = int(draws[0, 0] * len(points))
    chosen = [first]
    closest = _distances(points, norms, points[first : first + 1], norms[first : first + 1])[:, 0]
    for number in range(1, classes):
        mass = closest.double().cumsum(0)
        wanted = draws[number].to(points.device) * mass[-1]
        picks = torch.searchsorted(mass, wanted).clamp_(max=len(points) - 1)
        distances = _distances(points, norms, points[picks], norms[picks])
        distances = torch.minimum(distances, closest[:, None])
        best = int(distances.sum(0, dtype=torch.float64).argmin())
        closest = distances[:, best].contiguous()
        chosen.append(int(picks[best]))
    return points[torch.tensor(chosen, device=points.device)].clone()


def _distances(points: Tensor, norms: Tensor, others: Tensor, other_norms: Tensor) -> Tensor:
    """(S, D), (M, D) -> (S, M) squared distances, float32, at least 0."""
    return (norms[:, None] + product(points, -2.0 * others, other_norms)).clamp_(min=0)


@dataclasses.dataclass(frozen=True)
class _Fit:
    """labels: (S,) on the points' device; the sums per cluster (K,) are on the CPU."""

    labels: Tensor
    counts: Tensor
    sse: Tensor
    removal: Tensor
    """(K,) rise of the SSE if a centre is taken away and nothing else moves."""

    @property
    def inertia(self) -> float:
        return float(self.sse.sum() / len(self.labels))


def _assign(points: Tensor, norms: Tensor, centroids: Tensor) -> _Fit:
    classes = len(centroids)
    bias, twice = centroids.square().sum(1), -2.0 * centroids
    labels, nearest, second = [], [], []
    for part in points.split(CHUNK):
        scores = product(part, twice, bias)
        best, label = scores.min(1)
        labels.append(label)
        nearest.append(best)
        if classes > 1:
            scores.scatter_(1, label[:, None], float("inf"))
            second.append(scores.amin(1))
    label = torch.cat(labels)
    best = torch.cat(nearest).double()
    rise = torch.cat(second).double() - best if second else torch.full_like(best, float("inf"))
    distances = (best + norms.double()).clamp_(min=0)
    return _Fit(
        label,
        torch.bincount(label.cpu(), minlength=classes),
        _sum_by(label, distances, classes),
        _sum_by(label, rise, classes),
    )


def _sum_by(labels: Tensor, values: Tensor, classes: int) -> Tensor:
    """(S,), (S,) float64 -> (K,) on the CPU: weighted counts are not deterministic on CUDA."""
    return torch.bincount(labels.cpu(), weights=values.cpu(), minlength=classes)


def _means(points: Tensor, fit: _Fit, centroids: Tensor) -> Tensor:
    """Means of the clusters; an empty one keeps its centroid (its removal costs nothing)."""
    from speechssl.labels.kmeans import class_sums

    sums = torch.zeros_like(centroids, dtype=torch.float64)
    for part, labels in zip(points.split(CHUNK), fit.labels.split(CHUNK)):
        sums += class_sums(part, labels, len(centroids))
    counts = fit.counts.to(points.device)[:, None]
    return torch.where(counts > 0, (sums / counts.clamp(min=1)).float(), centroids)


def _swap(points: Tensor, fit: _Fit, centroids: Tensor) -> tuple[Tensor, int]:
    """Centroids after the profitable swaps, and how many there were."""
    classes = len(centroids)
    if classes < 3:
        return centroids, 0
    counts = fit.counts.double()
    exact = centroids.to("cpu", torch.float64)
    gaps = torch.cdist(exact, exact).square()
    ward = gaps * (counts[:, None] * counts[None] / (counts[:, None] + counts[None]).clamp(min=1))
    ward.fill_diagonal_(float("inf"))
    ward_cost, partner = ward.min(1)
    cost = torch.minimum(ward_cost, fit.removal)
    splits = _best_splits(points, fit, centroids)
    removable = cost.argsort(stable=True).tolist()
    moved, used, swaps = centroids.clone(), set(), 0
    partner_of = partner.tolist()
    for gain, parent, children in splits:
        if parent in used:
            continue
        victim = next(
            (
                j
                for j in removable
                if j not in used
                and j != parent
                and partner_of[j] not in used
                and partner_of[j] != parent
            ),
            None,
        )
        if victim is None or cost[victim] >= 0.9 * gain:
            break
        heir = partner_of[victim]
        weight = float(counts[victim] / (counts[victim] + counts[heir]).clamp(min=1))
        moved[heir] = torch.lerp(centroids[heir], centroids[victim], weight)
        moved[parent], moved[victim] = children[0], children[1]
        used |= {parent, victim, heir}
        swaps += 1
    return moved, swaps


def _best_splits(points: Tensor, fit: _Fit, centroids: Tensor) -> list[tuple[float, int, Tensor]]:
    """(gain in SSE, cluster, its two halves' means), by falling gain, for the widest clusters."""
    order = fit.labels.argsort(stable=True)
    ends = fit.counts.cumsum(0).tolist()
    counts = fit.counts.tolist()
    widest = fit.sse.argsort(descending=True, stable=True)[: max(8, len(centroids) // 3)].tolist()
    found = []
    for k in widest:
        if counts[k] < 4:
            continue
        members = points[order[ends[k] - counts[k] : ends[k]]] - centroids[k]
        halves = _two_means(members)
        if halves is None:
            continue
        children, gain = halves
        found.append((gain, k, children + centroids[k]))
    return sorted(found, key=lambda item: -item[0])


def _two_means(members: Tensor) -> tuple[Tensor, float] | None:
    """2-means of centred points (n, D), begun along their main axis: ((2, D), fall of the SSE)."""
    members = members - members.mean(0)
    axis = members[members.square().sum(1).argmax()]
    for _ in range(4):
        axis = members.T @ (members @ axis)
        axis = axis / axis.norm().clamp(min=1e-20)
    side = members @ axis > 0
    total = members.sum(0)
    for _ in range(4):
        high = int(side.sum())
        if high in (0, len(members)):
            return None
        up = side.to(members.dtype) @ members
        upper, lower = up / high, (total - up) / (len(members) - high)
        middle = (upper.square().sum() - lower.square().sum()) / 2
        side = members @ (upper - lower) > middle
    # With a common mean of 0, the fall is the squares of the halves' means by their counts.
    high = int(side.sum())
    if high in (0, len(members)):
        return None
    up = (side.to(members.dtype) @ members).double()
    upper, lower = up / high, -up / (len(members) - high)
    gain = high * upper.square().sum() + (len(members) - high) * lower.square().sum()
    return torch.stack([upper, lower]).float(), float(gain)
