"""Calibration against the closed form of two Gaussians, and Cllr against its limits."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from speechssl.score.calibration import (
    actual_dcf,
    cllr,
    fit_calibration,
    isotonic_log_ratios,
    min_cllr,
)
from speechssl.score.verification import min_dcf


def gaussians(distance: float, count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of N(distance / 2, 1) and N(-distance / 2, 1): their log ratio is distance * s."""
    normal = NormalDist()
    base = np.array([normal.inv_cdf((i + 0.5) / count) for i in range(count)])
    shift = distance / 2
    return np.concatenate([base + shift, base - shift]), np.repeat([True, False], count)


@pytest.mark.parametrize("p_target", [0.5, 0.1])
def test_the_map_of_two_gaussians_is_known(p_target: float) -> None:
    scores, is_target = gaussians(2.0)
    for scale, shift in ((1.0, 0.0), (0.05, 7.0)):
        found = fit_calibration(scale * scores + shift, is_target, p_target)
        assert found.weights[0] * scale == pytest.approx(2.0, rel=5e-3)
        mapped = found.log_ratios(scale * scores + shift)
        assert mapped == pytest.approx(2.0 * scores, abs=0.05)


def test_prior_and_numbers_of_trials_do_not_move_it() -> None:
    scores, is_target = gaussians(2.0)
    kept = is_target | (np.arange(len(scores)) % 8 == 3)
    found = fit_calibration(scores[kept], is_target[kept])
    assert found.weights[0] == pytest.approx(2.0, rel=0.02)
    assert found.offset == pytest.approx(0.0, abs=0.03)


def test_cllr_has_known_values() -> None:
    is_target = np.array([True, False, True, False])
    assert cllr(np.zeros(4), is_target) == 1.0
    assert cllr(np.array([50.0, -50.0, 60.0, -40.0]), is_target) == pytest.approx(0.0, abs=1e-9)
    x = np.log(3.0)  # 3 to 1 for the truth throughout: log2(1 + 1/3)
    assert cllr(np.array([x, -x, x, -x]), is_target) == pytest.approx(np.log2(4 / 3))
    assert cllr(np.array([-100.0, 100.0, -100.0, 100.0]), is_target) > 100


def test_calibrated_scores_are_at_their_minimum_and_others_above() -> None:
    scores, is_target = gaussians(2.0)
    calibrated = cllr(2.0 * scores, is_target)
    best = min_cllr(scores, is_target)
    assert best == pytest.approx(calibrated, abs=2e-3) and best < calibrated
    for wrong in (scores, 6.0 * scores, 2.0 * scores + 1):
        assert cllr(wrong, is_target) > calibrated + 0.01
        assert min_cllr(wrong, is_target) == pytest.approx(best)


def test_fitting_never_costs_more_than_the_scores_had() -> None:
    random = np.random.default_rng(0)
    for _ in range(10):
        is_target = random.random(80) < 0.3
        scores = random.standard_normal(80) + is_target
        found = fit_calibration(scores, is_target)
        after = cllr(found.log_ratios(scores), is_target)
        assert after <= cllr(scores, is_target) + 1e-9 and after <= 1.0 + 1e-6
        assert min_cllr(scores, is_target) <= after


def test_it_agrees_with_scikit_learn() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    isotonic = pytest.importorskip("sklearn.isotonic")
    random = np.random.default_rng(1)
    is_target = random.random(300) < 0.4
    features = np.stack([random.standard_normal(300) + is_target, random.random(300)], 1)
    share = np.where(is_target, 0.5 / is_target.sum(), 0.5 / (~is_target).sum())
    theirs = linear.LogisticRegression(C=1e9, tol=1e-10, max_iter=1000)
    theirs.fit(features, is_target, sample_weight=1e4 * share)
    ours = fit_calibration(features, is_target)
    assert ours.weights == pytest.approx(theirs.coef_[0], abs=2e-4)
    assert ours.offset == pytest.approx(theirs.intercept_[0], abs=2e-4)
    scores = random.integers(0, 40, 300) + 8.0 * is_target
    shares = isotonic.IsotonicRegression().fit_transform(scores, is_target)
    prior = np.log(is_target.sum() / (~is_target).sum())
    with np.errstate(divide="ignore"):
        expected = np.log(shares) - np.log1p(-shares) - prior
    assert isotonic_log_ratios(scores, is_target) == pytest.approx(expected)


def test_separable_trials_have_a_finite_map() -> None:
    is_target = np.arange(20) < 10
    scores = np.where(is_target, 2.0, -1.0) + 0.01 * np.arange(20)
    found = fit_calibration(scores, is_target)
    assert np.isfinite(found.log_ratios(scores)).all() and found.weights[0] > 0
    assert cllr(found.log_ratios(scores), is_target) < 0.02
    assert min_cllr(scores, is_target) == 0.0


def test_durations_help_where_they_matter() -> None:
    random = np.random.default_rng(2)
    is_target = np.arange(4000) < 2000
    duration = random.uniform(0, 2, 4000)
    scores = np.where(is_target, 1.0, -1.0) + duration + random.standard_normal(4000)
    plain = fit_calibration(scores, is_target).log_ratios(scores)
    both = np.stack([scores, duration], 1)
    informed = fit_calibration(both, is_target)
    assert informed.weights == pytest.approx([2.0, -2.0], rel=0.15)
    assert cllr(informed.log_ratios(both), is_target) < cllr(plain, is_target) - 0.01


def test_the_actual_cost_of_calibrated_scores_is_nearly_the_least() -> None:
    scores, is_target = gaussians(4.0)
    actual = actual_dcf(4.0 * scores, is_target, 0.05)
    assert min_dcf(scores, is_target, 0.05) <= actual
    assert actual == pytest.approx(min_dcf(scores, is_target, 0.05), abs=0.01)
    assert actual_dcf(4.0 * scores - 9, is_target, 0.05) > 1.5 * actual
    assert actual_dcf(np.full(4, -50.0), np.array([True, False, True, False])) == 1.0


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="0 targets of 3"):
        cllr(np.ones(3), np.zeros(3, dtype=bool))
    with pytest.raises(ValueError, match="not a number"):
        cllr(np.array([1.0, np.nan]), np.array([True, False]))
    with pytest.raises(ValueError, match="the same in all"):
        fit_calibration(np.ones(4), np.arange(4) < 2)
    with pytest.raises(ValueError, match="p_target"):
        actual_dcf(np.ones(2), np.array([True, False]), 1.0)
