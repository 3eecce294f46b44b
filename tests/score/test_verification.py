"""EER, minDCF, DET points and score normalisation, against closed forms and scikit-learn."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from speechssl.score.verification import (
    Trial,
    as_norm,
    cohort_statistics,
    cosine,
    det_points,
    eer,
    eer_interval,
    error_curve,
    min_cost,
    min_dcf,
    probit,
    read_trials,
    verification_results,
)

COUNT = 20000


def gaussians(distance: float, count: int = COUNT) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of two unit Gaussians that lie `distance` apart: samples without chance."""
    normal = NormalDist()
    base = np.array([normal.inv_cdf((i + 0.5) / count) for i in range(count)])
    return np.concatenate([base + distance, base]), np.repeat([True, False], count)


@pytest.mark.parametrize(("distance", "expected"), [(1.0, 0.3085), (2.0, 0.1587), (4.0, 0.0228)])
def test_the_eer_of_two_gaussians(distance: float, expected: float) -> None:
    rate, threshold = eer(*gaussians(distance))
    assert rate == pytest.approx(NormalDist().cdf(-distance / 2), abs=1e-4)
    assert rate == pytest.approx(expected, abs=1e-4)
    assert threshold == pytest.approx(distance / 2, abs=1e-2)


def test_min_dcf_of_two_gaussians() -> None:
    scores, is_target = gaussians(4.0)
    found = min_dcf(scores, is_target, 0.01)
    threshold = 2.0 + np.log(0.99 / 0.01) / 4.0
    normal = NormalDist()
    cost = 0.01 * normal.cdf(threshold - 4) + 0.99 * (1 - normal.cdf(threshold))
    one_alarm = 99 / COUNT  # what a single false alarm costs
    assert found == pytest.approx(cost / 0.01, abs=one_alarm)
    assert found == pytest.approx(0.2785, abs=one_alarm)
    assert min_cost(scores, is_target, 0.01) == pytest.approx(0.01 * found)
    assert min_cost(scores, is_target, 0.99, 1.0, 2.0) == pytest.approx(
        0.02 * min_dcf(scores, is_target, 0.99, 1.0, 2.0)
    )


def test_separable_identical_and_exchanged_trials() -> None:
    assert eer(np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, True, False, False]))[0] == 0
    assert min_dcf(np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, True, False, False])) == 0
    for equal in (np.ones(5), np.zeros(5)):
        assert eer(equal, np.array([True, False, True, False, False]))[0] == 0.5
    random = np.random.default_rng(0)
    for _ in range(20):
        scores = random.integers(0, 12, 60).astype(float)  # with ties
        is_target = random.random(60) < 0.4
        assert eer(scores, ~is_target)[0] == pytest.approx(1 - eer(scores, is_target)[0])


def test_useless_scores_cost_as_much_as_rejecting_always() -> None:
    scores, is_target = gaussians(0.0, 500)
    assert min_dcf(-scores, is_target) <= 1.0
    assert min_dcf(np.ones(10), np.arange(10) < 5) == 1.0
    reversed_order = np.concatenate([np.zeros(5), np.ones(50)])
    assert min_dcf(reversed_order, np.arange(55) < 5, 0.01) == 1.0


def test_rates_do_not_change_under_monotone_maps() -> None:
    random = np.random.default_rng(1)
    scores, is_target = random.standard_normal(300), random.random(300) < 0.3
    for mapped in (3 * scores - 1, np.tanh(scores), np.exp(scores)):
        assert eer(mapped, is_target)[0] == pytest.approx(eer(scores, is_target)[0])
        assert min_dcf(mapped, is_target) == pytest.approx(min_dcf(scores, is_target))


def test_the_curve_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(2)
    scores, is_target = random.integers(0, 30, 400) / 7, random.random(400) < 0.3
    alarm, hit, thresholds = metrics.roc_curve(is_target, scores, drop_intermediate=False)
    ours = error_curve(scores, is_target)
    assert ours[0][::-1] == pytest.approx(thresholds)
    assert ours[1][::-1] == pytest.approx(1 - hit) and ours[2][::-1] == pytest.approx(alarm)


def test_a_weight_is_a_trial_that_many_times() -> None:
    random = np.random.default_rng(3)
    scores, is_target = random.integers(0, 9, 40).astype(float), random.random(40) < 0.5
    times = random.integers(0, 4, 40)
    again = eer(np.repeat(scores, times), np.repeat(is_target, times))[0]
    assert eer(scores, is_target, times)[0] == pytest.approx(again)


def test_det_points_lie_on_the_line_of_two_gaussians() -> None:
    alarm, miss = det_points(*gaussians(2.0), most=50)
    assert len(alarm) == 50
    for a, m in zip(alarm, miss, strict=True):
        # The last few quantiles stand for a whole tail.
        if min(a, m) > 1e-3:
            assert probit(a) + probit(m) == pytest.approx(-2.0, abs=0.02)


def test_cosine_knows_no_length() -> None:
    random = np.random.default_rng(4)
    a, b = random.standard_normal((2, 30, 8))
    found = cosine(a, b)
    assert found == pytest.approx(cosine(5 * a, 0.1 * b)) and (np.abs(found) <= 1).all()
    ones = pytest.approx(np.ones(30))
    assert cosine(a, a) == ones and -cosine(a, -a) == ones


def test_as_norm_undoes_any_affine_map_of_all_scores() -> None:
    random = np.random.default_rng(5)
    scores, enrol, test = (
        random.standard_normal(20), random.standard_normal((20, 50)),
        random.standard_normal((20, 50)),
    )  # fmt: skip

    def norm(scale: float, shift: float) -> np.ndarray:
        sides = [cohort_statistics(scale * x + shift, 10) for x in (enrol, test)]
        return as_norm(scale * scores + shift, sides[0], sides[1])

    assert norm(3.0, -2.0) == pytest.approx(norm(1.0, 0.0))


def test_as_norm_takes_the_nearest_of_the_cohort() -> None:
    cohort = np.array([[0.0, 9.0, 1.0, 7.0, -5.0]])
    mean, deviation = cohort_statistics(cohort, 2)
    assert mean == 8.0 and deviation == 1.0
    assert as_norm(np.array([10.0]), (mean, deviation), (mean, deviation)) == 2.0
    whole = cohort_statistics(cohort, 99)
    assert whole[0] == cohort.mean() and whole[1] == pytest.approx(cohort.std())


def test_resampling_speakers_covers_and_is_deterministic() -> None:
    random = np.random.default_rng(6)
    speakers = np.repeat(np.arange(12), 5)
    means = random.standard_normal((12, 6))
    points = means[speakers] + random.standard_normal((60, 6))
    one, two = np.triu_indices(60, 1)
    scores, is_target = cosine(points[one], points[two]), speakers[one] == speakers[two]
    names = [f"s{i}" for i in speakers]
    sides = [names[i] for i in one], [names[i] for i in two]
    found = eer_interval(scores, is_target, *sides)
    assert found is not None and found == eer_interval(scores, is_target, *sides)
    rate = eer(scores, is_target)[0]
    assert found[0] < rate < found[1] and found[1] - found[0] > 0.02
    results = verification_results(scores, is_target, *sides)
    assert results["eer"] == rate and results["eer_ci95"] == list(found)
    assert results["targets"] == 120 and results["nontargets"] == 60 * 59 // 2 - 120
    assert set(results["min_dcf"]) == {"0.01", "0.05"}
    assert eer_interval(scores[:3], is_target[:3], ["a", "a", "b"], ["a", "b", "b"]) is None


def test_trials_are_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "trials.txt"
    path.write_text("1 a b\n\n0 a c\n")
    assert read_trials(path) == [Trial(True, "a", "b"), Trial(False, "a", "c")]
    path.write_text("1 a b\ntarget a c\n")
    with pytest.raises(ValueError, match=r"trials\.txt:2: found 'target a c'"):
        read_trials(path)
    with pytest.raises(ValueError, match="no file"):
        read_trials(tmp_path / "none.txt")
    path.write_text("\n")
    with pytest.raises(ValueError, match=r"trials: found none in .*trials\.txt"):
        read_trials(path)


def test_what_cannot_be_scored_is_named() -> None:
    with pytest.raises(ValueError, match="not finite"):
        eer(np.array([1.0, np.nan]), np.array([True, False]))
    with pytest.raises(ValueError, match="some of both"):
        eer(np.ones(3), np.ones(3, dtype=bool))
    with pytest.raises(ValueError, match="p_target"):
        min_dcf(np.array([1.0, 0.0]), np.array([True, False]), 0.0)
    with pytest.raises(ValueError, match="2 or more"):
        cohort_statistics(np.ones((2, 5)), 1)
    with pytest.raises(ValueError, match="equal scores"):
        cohort_statistics(np.ones((2, 5)), 5)
