"""Query by example: dynamic time warping of a spoken query over recordings, and how well it finds.

Source: Yang et al. 2021 (SUPERB) for distance and warping, as in its code: exp(cosine distance)
- 1, brought to 0 to 1 for each query frame; one step per query frame, 0 to 2 frames of the
recording, its ends open. Anguera et al. 2014 (QUESST 2014) for the term-weighted value.

Shape legend: Q query frames, T frames of a recording, D width, N queries, M recordings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

FEWEST_FRAMES = 5
"""A shorter query has score 0 everywhere."""
P_TARGET, C_MISS, C_ALARM = 0.0008, 100.0, 1.0
"""Of QUESST 2014."""


def frame_costs(query: np.ndarray, recording: np.ndarray) -> np.ndarray:
    """(Q, D) and (T, D) -> (Q, T): exp(1 - cosine) - 1, each row brought to 0 to 1."""
    rows = []
    for x in (query, recording):
        x = np.asarray(x, dtype=np.float64)
        rows.append(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))
    costs = np.expm1(1 - rows[0] @ rows[1].T)
    low, high = costs.min(1, keepdims=True), costs.max(1, keepdims=True)
    return (costs - low) / np.maximum(high - low, 1e-12)


def subsequence_cost(costs: np.ndarray) -> float:
    """Least mean over query frames of (Q, T) costs along a path from anywhere to anywhere.

    A step goes one query frame on, and 0, 1 or 2 frames of the recording.
    """
    total = costs[0].copy()
    for row in costs[1:]:
        best = total.copy()
        best[1:] = np.minimum(best[1:], total[:-1])
        best[2:] = np.minimum(best[2:], total[:-2])
        total = best + row
    return float(total.min() / len(costs))


def match(query: np.ndarray, recording: np.ndarray) -> float:
    """How surely the recording holds the query: minus the cost, at most 0."""
    if len(query) < FEWEST_FRAMES:
        return 0.0
    return -subsequence_cost(frame_costs(query, recording))


def moments(features: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(T, D) each -> mean and deviation (D,) of each dimension over all of them, float64."""
    frames = sum(len(x) for x in features)
    if not frames:
        raise ValueError("features: found no frame, want some")
    mean = sum(x.sum(0, dtype=np.float64) for x in features) / frames
    square = sum(np.square(x - mean).sum(0) for x in features) / frames
    return mean, np.sqrt(np.maximum(square, 1e-12))


def average_precision(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Of one query, (M,) and (M,) bool: mean over relevant ones of the precision at their rank.

    Ties count as one rank, so that the order of recordings does not matter.
    """
    scores, relevant = np.asarray(scores, dtype=np.float64), np.asarray(relevant, dtype=bool)
    if not relevant.any():
        raise ValueError("relevant: found none, want a recording or more that holds the query")
    _, places, number = np.unique(-scores, return_inverse=True, return_counts=True)
    hits = np.bincount(places, weights=relevant, minlength=len(number))
    precision = np.cumsum(hits) / np.cumsum(number)
    return float((hits * precision).sum() / hits.sum())


def max_term_weighted_value(
    scores: np.ndarray,
    relevant: np.ndarray,
    p_target: float = P_TARGET,
    c_miss: float = C_MISS,
    c_alarm: float = C_ALARM,
) -> float:
    """Highest over one threshold for all queries of 1 - mean (misses + beta false alarms).

    scores, relevant: (N, M); both rates are of each query. beta = c_alarm / c_miss (1 / p - 1).
    Raises `ValueError` for a query that every recording, or none, holds.
    """
    scores, relevant = np.asarray(scores, dtype=np.float64), np.asarray(relevant, dtype=bool)
    if not (relevant.any(1) & (~relevant).any(1)).all():
        raise ValueError("relevant: found a query that all recordings hold, or none; leave it out")
    beta = c_alarm / c_miss * (1 / p_target - 1)
    weights = np.where(
        relevant, 1 / relevant.sum(1, keepdims=True), -beta / (~relevant).sum(1, keepdims=True)
    )
    order = np.argsort(-scores.ravel(), kind="stable")
    ordered, gains = scores.ravel()[order], np.cumsum(weights.ravel()[order]) / len(scores)
    last = np.append(ordered[1:] != ordered[:-1], True)  # equal scores are accepted together
    return float(max(0.0, gains[last].max()))


def query_results(scores: np.ndarray, relevant: np.ndarray) -> dict[str, Any]:
    """What results.json holds of (N, M) scores, each query's own mean and deviation removed first.

    Queries that all recordings hold, or none, are left out and counted.
    """
    relevant = np.asarray(relevant, dtype=bool)
    kept = relevant.any(1) & (~relevant).any(1)
    if not kept.any():
        raise ValueError(f"relevant: found no query of {len(relevant)} that some recordings hold")
    scores, relevant = np.asarray(scores, dtype=np.float64)[kept], relevant[kept]
    spread = np.maximum(scores.std(1, keepdims=True), 1e-12)
    even = (scores - scores.mean(1, keepdims=True)) / spread
    return {
        "map": float(np.mean([average_precision(s, r) for s, r in zip(scores, relevant)])),
        "chance_map": float(relevant.mean(1).mean()),
        "mtwv": max_term_weighted_value(even, relevant),
        "utterances": len(scores),
        "recordings": scores.shape[1],
        "left_out": int((~kept).sum()),
    }
