"""How well a linear classifier reads labels off features: multinomial logistic regression.

Shape legend: N points, D features, K classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TRAIN, DEV, TEST = 0, 1, 2
L2 = (1e-1, 1e-2, 1e-3, 1e-4)
"""Weights of the penalty that are tried."""


@dataclasses.dataclass(frozen=True)
class ProbeScore:
    """accuracy: on the test part; accuracy_ci95: its 95 % interval by resampling groups. chance:
    there, of always naming the commonest training class. control: there, of the same classifier
    trained on shuffled labels, so what is reached where features tell nothing of labels. l2: the
    penalty chosen on the dev part. classes: in training. points: of the three parts. by_group: of
    each group of the test part its number, points that were right, and points.
    """

    accuracy: float
    accuracy_ci95: tuple[float, float]
    chance: float
    control: float
    train_accuracy: float
    dev_accuracy: float
    l2: float
    classes: int
    points: tuple[int, int, int]
    by_group: tuple[tuple[int, int, int], ...] = ()


def assign_parts(names: Iterable[str], *, seed: int = 0, share: float = 0.2) -> dict[str, int]:
    """Names -> TRAIN, DEV or TEST by a hash: `share` each for dev and test, at least one name.

    Raises ValueError for fewer than three different names.
    """
    different = set(names)
    if len(different) < 3:
        raise ValueError(
            f"names: found {len(different)} different, want at least 3, one for each part"
        )
    ordered = sorted(different, key=lambda name: (_hash(f"{seed}:{name}"), name))
    few = max(1, round(share * len(ordered)))
    return {
        name: TEST if i < few else DEV if i < 2 * few else TRAIN for i, name in enumerate(ordered)
    }


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def linear_probe(
    points: Tensor,
    labels: Tensor,
    parts: Tensor,
    *,
    groups: np.ndarray | None = None,
    l2: Sequence[float] = L2,
    max_iterations: int = 100,
    seed: int = 0,
) -> ProbeScore:
    """Train on part TRAIN for each penalty, choose by part DEV, score part TEST.

    points: (N, D) float32 or float64, which is what is computed in. labels: (N,) integers.
    parts: (N,) of TRAIN, DEV, TEST. Each feature is brought to mean 0 and variance 1 over the
    training points. Points of classes that training has not seen count as errors.
    groups: (N,) integers: points of a group are resampled together, such as frames of an utterance;
    none: each point by itself.
    max_iterations: of L-BFGS for each penalty; each starts where the stronger one ended.
    Raises ValueError if a part is empty or training has fewer than two classes.
    """
    train, dev, test = (parts == part for part in (TRAIN, DEV, TEST))
    counts = tuple(int(chosen.sum()) for chosen in (train, dev, test))
    known, numbers = labels[train].unique(return_inverse=True)
    if min(counts) == 0 or len(known) < 2:
        raise ValueError(
            f"parts: found {counts[0]}, {counts[1]} and {counts[2]} points to train, choose and "
            f"test on, of {len(known)} classes; want some in each, and two classes or more"
        )
    x = standardised(points, train)
    shuffled = torch.randperm(counts[0], generator=torch.Generator().manual_seed(seed))
    best: tuple[float, float, Tensor] | None = None
    weights = None
    for penalty in sorted(l2, reverse=True):
        weights = fit_logistic(
            x[train], numbers, len(known), penalty, start=weights, max_iterations=max_iterations
        )
        found = _accuracy(x[dev], labels[dev], weights, known)
        if best is None or found > best[0]:
            best = found, penalty, weights
    assert best is not None
    dev_accuracy, penalty, weights = best
    mixed = numbers[shuffled.to(numbers.device)]
    control = fit_logistic(x[train], mixed, len(known), penalty, max_iterations=max_iterations)
    commonest = known[numbers.bincount().argmax()]
    right = _right(x[test], labels[test], weights, known)
    there = np.arange(len(labels)) if groups is None else np.asarray(groups)
    counts_by_group = by_group(right.cpu().numpy(), there[test.cpu().numpy()])
    return ProbeScore(
        accuracy=float(right.double().mean()),
        accuracy_ci95=interval(counts_by_group, seed=seed),
        chance=float((labels[test] == commonest).double().mean()),
        control=_accuracy(x[test], labels[test], control, known),
        train_accuracy=_accuracy(x[train], labels[train], weights, known),
        dev_accuracy=dev_accuracy,
        l2=penalty,
        classes=len(known),
        points=(counts[0], counts[1], counts[2]),
        by_group=() if groups is None else counts_by_group,
    )


def standardised(points: Tensor, train: Tensor) -> Tensor:
    """Each column to mean 0 and variance 1 over the rows of `train`; constant ones to about 0."""
    chosen = points[train].double()
    mean, deviation = chosen.mean(0), chosen.std(0, correction=0)
    # A constant column has the deviation of its rounding.
    least = 1e-6 * chosen.abs().amax(0).clamp(min=1e-30)
    scale = deviation.maximum(least).to(points.dtype)
    return (points - mean.to(points.dtype)) / scale


def fit_logistic(
    x: Tensor,
    labels: Tensor,
    classes: int,
    l2: float,
    *,
    start: Tensor | None = None,
    max_iterations: int = 100,
) -> Tensor:
    """Weights (K, D + 1), the last column the bias, that minimise the mean cross entropy plus
    l2 / 2 times the squared weights without biases, by L-BFGS.

    x: (N, D). labels: (N,) from 0 to K - 1. With C = 1 / (l2 N) this is scikit-learn's
    LogisticRegression.
    """
    weights = x.new_zeros(classes, x.shape[1] + 1) if start is None else start.clone()
    weights.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        tolerance_grad=1e-7 if x.dtype == torch.float64 else 1e-5,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        entropy = F.cross_entropy(_logits(x, weights), labels)
        total = entropy + l2 / 2 * weights[:, :-1].square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(loss)
    return weights.detach()


def _logits(x: Tensor, weights: Tensor) -> Tensor:
    return torch.addmm(weights[:, -1], x, weights[:, :-1].T)


def _accuracy(x: Tensor, labels: Tensor, weights: Tensor, known: Tensor) -> float:
    return float(_right(x, labels, weights, known).double().mean())


def _right(x: Tensor, labels: Tensor, weights: Tensor, known: Tensor) -> Tensor:
    return known[_logits(x, weights).argmax(1)] == labels


def by_group(right: np.ndarray, groups: np.ndarray) -> tuple[tuple[int, int, int], ...]:
    """(number, points that were right, points) of each group. right: (N,) booleans; groups: (N,)
    integers."""
    numbers, of, counts = np.unique(groups, return_inverse=True, return_counts=True)
    rights = np.bincount(of, weights=right)
    return tuple(zip(numbers.tolist(), rights.astype(int).tolist(), counts.tolist()))


def interval(
    found: Sequence[tuple[int, int, int]],
    other: Sequence[tuple[int, int, int]] | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval of the accuracy, of `by_group`, under resampling of groups; with another
    classifier's counts that of how much better the first is, both on the same groups.

    Raises ValueError if the groups are not the same.
    """
    table = [np.array(counts, dtype=np.float64) for counts in (found, other) if counts is not None]
    if any(not np.array_equal(table[0][:, 0], one[:, 0]) for one in table[1:]):
        raise ValueError(
            f"other: found {len(table[-1])} groups that are not the {len(table[0])} of the first, "
            "want the same in the same order: probes of the same cuts with the same seed"
        )
    number = len(table[0])
    random, equal = np.random.default_rng(seed), np.full(number, 1 / number)
    gains = []
    for _ in range(draws):  # one by one: all at once are `draws` times as much memory
        drawn = random.multinomial(number, equal)
        rates = [(drawn @ one[:, 1]) / (drawn @ one[:, 2]) for one in table]
        gains.append(rates[0] - (rates[1] if other is not None else 0))
    low, high = np.quantile(gains, [0.025, 0.975])
    return float(low), float(high)
