"""Calibration of verification scores: affine logistic regression, Cllr and its minimum.

A calibrated score is the natural logarithm of a likelihood ratio, so that one threshold, minus
the prior's log odds, is right for every prior.

Shape legend: N trials, F features (the score, and further ones such as durations).
"""

from __future__ import annotations

import dataclasses

import numpy as np

RIDGE = 1e-6
"""Penalty of the squared weights of standardised features: separable trials have no optimum."""


def cllr(log_ratios: np.ndarray, is_target: np.ndarray) -> float:
    """Mean cost in bits over all priors of taking (N,) scores for log-likelihood ratios.

    0 is perfect, 1 what is known without scores. Source: Brümmer and du Preez 2006.
    """
    targets, others = _both(log_ratios, is_target)
    return float((_softplus(-targets).mean() + _softplus(others).mean()) / (2 * np.log(2)))


def min_cllr(scores: np.ndarray, is_target: np.ndarray) -> float:
    """Cllr under the best increasing map of the scores: what calibration cannot mend."""
    return cllr(isotonic_log_ratios(scores, is_target), is_target)


def isotonic_log_ratios(scores: np.ndarray, is_target: np.ndarray) -> np.ndarray:
    """(N,) log-likelihood ratios by the best increasing map (pool adjacent violators).

    Infinite where a score is above, or below, all of the other kind.
    """
    _both(scores, is_target)
    values, places = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True)
    hits = np.bincount(places, weights=is_target, minlength=len(values))
    blocks: list[list[float]] = []  # targets, trials, distinct scores
    for hit, number in zip(hits, np.bincount(places, minlength=len(values))):
        blocks.append([hit, number, 1])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    kinds = np.array([(t, n - t) for t, n, _ in blocks])
    with np.errstate(divide="ignore"):
        posterior = np.log(kinds[:, 0]) - np.log(kinds[:, 1])
    prior = np.log(np.sum(is_target)) - np.log(np.sum(~np.asarray(is_target, dtype=bool)))
    return np.repeat(posterior - prior, [int(m) for *_, m in blocks])[places]


def actual_dcf(
    log_ratios: np.ndarray,
    is_target: np.ndarray,
    p_target: float = 0.01,
    c_miss: float = 1.0,
    c_alarm: float = 1.0,
) -> float:
    """Detection cost at the threshold that calibrated scores should have, normalised as minDCF.

    Source: NIST speaker recognition evaluation plans.
    """
    if not 0 < p_target < 1:
        raise ValueError(f"p_target: found {p_target}, want a probability between 0 and 1")
    targets, others = _both(log_ratios, is_target)
    costs = c_miss * p_target, c_alarm * (1 - p_target)
    threshold = np.log(costs[1] / costs[0])
    miss, alarm = (targets < threshold).mean(), (others >= threshold).mean()
    return float((costs[0] * miss + costs[1] * alarm) / min(costs))


@dataclasses.dataclass(frozen=True)
class Calibration:
    """log ratio = weights . features + offset."""

    weights: np.ndarray  # (F,)
    offset: float

    def log_ratios(self, features: np.ndarray) -> np.ndarray:
        """(N,) scores, or (N, F) features -> (N,) log-likelihood ratios."""
        return _columns(features) @ self.weights + self.offset


def fit_calibration(
    features: np.ndarray, is_target: np.ndarray, p_target: float = 0.5, iterations: int = 100
) -> Calibration:
    """Logistic regression in which targets have the prior `p_target`, by Newton's method.

    features: (N,) scores, or (N, F) with the score first.
    Raises `ValueError` for features that are constant or not finite, or one kind of trial only.
    Source: Brümmer and du Preez 2006; Mandasari et al. 2013 for durations as further features.
    """
    x = _columns(features)
    is_target = np.asarray(is_target, dtype=bool)
    for column in x.T:
        _both(column, is_target)
    mean, deviation = x.mean(0), x.std(0)
    if not deviation.all():
        raise ValueError("features: found one that is the same in all trials, want it to differ")
    x = np.hstack([(x - mean) / deviation, np.ones((len(x), 1))])
    share = np.where(is_target, p_target / is_target.sum(), (1 - p_target) / (~is_target).sum())
    prior = np.log(p_target / (1 - p_target))
    ridge = RIDGE * np.append(np.ones(x.shape[1] - 1), 0.0)
    theta = np.zeros(x.shape[1])

    def cost(at: np.ndarray) -> float:
        margins = np.where(is_target, 1.0, -1.0) * (x @ at + prior)
        return float((share * _softplus(-margins)).sum() + 0.5 * (ridge * at**2).sum())

    for _ in range(iterations):
        posterior = 0.5 * (1 + np.tanh((x @ theta + prior) / 2))
        gradient = x.T @ (share * (posterior - is_target)) + ridge * theta
        curvature = (x.T * (share * posterior * (1 - posterior))) @ x + np.diag(ridge)
        curvature[-1, -1] += 1e-12  # separable trials leave none to the offset
        step, size = np.linalg.solve(curvature, gradient), 1.0
        while cost(theta - size * step) > cost(theta) and size > 1e-9:
            size /= 2
        theta = theta - size * step
        if np.abs(gradient).max() < 1e-12:
            break
    weights = theta[:-1] / deviation
    return Calibration(weights, float(theta[-1] - weights @ mean))


def _columns(features: np.ndarray) -> np.ndarray:
    x = np.asarray(features, dtype=np.float64)
    return x[:, None] if x.ndim == 1 else x


def _both(scores: np.ndarray, is_target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, is_target = np.asarray(scores, dtype=np.float64), np.asarray(is_target, dtype=bool)
    if scores.shape != is_target.shape or scores.ndim != 1:
        raise ValueError(
            f"scores, is_target: found shapes {scores.shape}, {is_target.shape}, want (N,) twice"
        )
    if np.isnan(scores).any():
        raise ValueError("scores: found some that are not a number; look at the embeddings")
    if is_target.all() or not is_target.any():
        raise ValueError(
            f"trials: found {is_target.sum()} targets of {len(is_target)}, want some of both kinds"
        )
    return scores[is_target], scores[~is_target]


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, x)
