"""Query by example against every path, scikit-learn and counting by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from speechssl.score.query import (
    average_precision,
    frame_costs,
    match,
    max_term_weighted_value,
    moments,
    query_results,
    subsequence_cost,
)


def test_the_cost_is_the_least_of_all_paths() -> None:
    random = np.random.default_rng(0)
    for _ in range(5):
        costs = random.random((4, 5))
        best = min(
            sum(costs[i, j] for i, j in enumerate(path))
            for path in itertools.product(range(5), repeat=4)
            if all(0 <= b - a <= 2 for a, b in itertools.pairwise(path))
        )
        assert subsequence_cost(costs) == pytest.approx(best / 4)


def test_a_query_that_is_there_costs_nothing_and_is_found_by_its_content() -> None:
    random = np.random.default_rng(1)
    query, other = random.standard_normal((12, 8)), random.standard_normal((12, 8))
    noise = [random.standard_normal((9, 8)) for _ in range(2)]
    holds = np.concatenate([noise[0], 3 * query, noise[1]])  # the cosine knows no gain
    assert match(query, holds) == pytest.approx(0, abs=1e-9)
    slower = np.concatenate([noise[0], np.repeat(query, 2, axis=0), noise[1]])
    assert match(query, slower) == pytest.approx(0, abs=1e-9)
    assert match(query, np.concatenate([noise[0], other, noise[1]])) < -0.05
    assert match(query[:4], holds) == 0.0


def test_costs_are_of_each_query_frame_between_zero_and_one() -> None:
    random = np.random.default_rng(2)
    query, recording = random.standard_normal((3, 6)), random.standard_normal((7, 6))
    costs = frame_costs(query, recording)
    assert costs.min(1).tolist() == [0] * 3 and costs.max(1) == pytest.approx(np.ones(3))
    cosine = (query @ recording.T) / np.outer(
        np.linalg.norm(query, axis=1), np.linalg.norm(recording, axis=1)
    )
    raw = np.exp(1 - cosine) - 1
    low, high = raw.min(1)[:, None], raw.max(1)[:, None]
    assert costs == pytest.approx((raw - low) / (high - low))


def test_moments_are_those_of_all_frames_together() -> None:
    parts = [5 + 3 * np.random.default_rng(i).standard_normal((10 + i, 4)) for i in range(3)]
    mean, deviation = moments([x.astype(np.float32) for x in parts])
    whole = np.concatenate(parts)
    assert mean == pytest.approx(whole.mean(0)) and deviation == pytest.approx(whole.std(0))
    assert mean.dtype == deviation.dtype == np.float64
    with pytest.raises(ValueError, match="no frame"):
        moments([np.zeros((0, 4))])


def test_average_precision_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(3)
    for _ in range(5):
        scores, relevant = random.integers(0, 9, 40).astype(float), random.random(40) < 0.3
        expected = metrics.average_precision_score(relevant, scores)
        assert average_precision(scores, relevant) == pytest.approx(expected)


def test_the_value_is_the_best_over_thresholds() -> None:
    random = np.random.default_rng(4)
    beta = 0.01 * (1 / 0.0008 - 1)
    for _ in range(5):
        scores = random.integers(0, 12, (4, 9)).astype(float)
        relevant = random.random((4, 9)) < 0.4
        relevant[:, 0], relevant[:, 1] = True, False
        scores += 6.0 * relevant
        values = [0.0]
        for threshold in np.unique(scores):
            taken = scores >= threshold
            miss = (relevant & ~taken).sum(1) / relevant.sum(1)
            alarm = (~relevant & taken).sum(1) / (~relevant).sum(1)
            values.append(1 - (miss + beta * alarm).mean())
        assert max_term_weighted_value(scores, relevant) == pytest.approx(max(values))
    assert max_term_weighted_value(relevant.astype(float), relevant) == pytest.approx(1.0)
    assert max_term_weighted_value(-relevant.astype(float), relevant) == 0.0


def test_queries_that_cannot_be_judged_are_left_out() -> None:
    relevant = np.array([[True, False, False], [False, False, False], [True, True, True]])
    scores = np.array([[3.0, 1.0, 2.0]] * 3)
    found = query_results(scores, relevant)
    assert found["map"] == found["mtwv"] == 1.0 and found["left_out"] == 2
    assert found["utterances"] == 1 and found["chance_map"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="no query of 1"):
        query_results(scores[:1], relevant[1:2])
    with pytest.raises(ValueError, match="all recordings hold"):
        max_term_weighted_value(scores, relevant)
