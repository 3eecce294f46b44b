"""The linear probe: scikit-learn's solution, honest parts, and chance where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechssl.score.probe import (
    DEV,
    L2,
    TEST,
    TRAIN,
    assign_parts,
    by_group,
    fit_logistic,
    interval,
    linear_probe,
    standardised,
)


def problem(points: int, dim: int, classes: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(classes, (points,))
    centres = torch.randn(classes, dim, dtype=torch.float64)
    return centres[labels] + noise * torch.randn(points, dim, dtype=torch.float64), labels


def parts_of(points: int) -> torch.Tensor:
    return torch.tensor([TRAIN, TRAIN, TRAIN, DEV, TEST]).repeat(points // 5)


@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_weights_are_those_of_scikit_learn(l2: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, labels = problem(600, 6, 4, 1.5)
    ours = fit_logistic(x, labels, 4, l2, max_iterations=500)
    other = linear_model.LogisticRegression(C=1 / (l2 * 600), tol=1e-9, max_iter=5000)
    other.fit(x.numpy(), labels.numpy())
    assert np.allclose(ours[:, :-1], other.coef_, atol=2e-4)
    # Biases are free up to a common constant.
    bias = ours[:, -1] - ours[:, -1].mean()
    assert np.allclose(bias, other.intercept_ - other.intercept_.mean(), atol=2e-4)


def test_the_gradient_vanishes_where_it_ends() -> None:
    x, labels = problem(300, 5, 3, 1.0)
    found = fit_logistic(x, labels, 3, 0.01, max_iterations=500).requires_grad_(True)
    logits = x @ found[:, :-1].T + found[:, -1]
    loss = torch.nn.functional.cross_entropy(logits, labels)
    (loss + 0.005 * found[:, :-1].square().sum()).backward()
    assert found.grad is not None and found.grad.abs().max() < 1e-5


def test_float32_scores_as_float64() -> None:
    x, labels = problem(2000, 10, 6, 1.2)
    wide = linear_probe(x, labels, parts_of(2000))
    narrow = linear_probe(x.float(), labels, parts_of(2000))
    assert narrow.accuracy == pytest.approx(wide.accuracy, abs=0.01)
    low, high = wide.accuracy_ci95
    assert low < wide.accuracy < high < low + 0.12
    assert 0.5 < wide.accuracy < 1 and wide.points == (1200, 400, 400) and wide.classes == 6


def test_separate_classes_are_read_without_error_and_shuffled_ones_by_chance() -> None:
    x, labels = problem(2000, 8, 5, 0.05)
    found = linear_probe(x, labels, parts_of(2000))
    assert found.accuracy == found.dev_accuracy == found.train_accuracy == 1
    # 400 test points of 5 classes: chance and its binomial deviation.
    deviation = (0.2 * 0.8 / 400) ** 0.5
    nothing = linear_probe(torch.randn(2000, 8), labels, parts_of(2000))
    assert abs(nothing.accuracy - 0.2) < 4 * deviation
    assert abs(nothing.control - 0.2) < 4 * deviation
    # Shuffled labels do not let the five clusters through either.
    assert found.control < 0.7


def test_the_penalty_is_chosen_on_dev_and_never_on_test() -> None:
    """Test labels may be anything: only the score changes."""
    x, labels = problem(500, 40, 3, 4.0)
    parts = parts_of(500)
    before = linear_probe(x, labels, parts)
    moved = labels.clone()
    moved[parts == TEST] = (moved[parts == TEST] + 1) % 3
    after = linear_probe(x, moved, parts)
    assert after.l2 == before.l2 and after.dev_accuracy == before.dev_accuracy
    assert after.accuracy < before.accuracy
    alone = [linear_probe(x, labels, parts, l2=[p]).dev_accuracy for p in L2]
    assert before.dev_accuracy == pytest.approx(max(alone), abs=0.015)


def test_offset_scale_and_constant_columns_do_not_matter() -> None:
    x, labels = problem(500, 4, 3, 1.0)
    moved = torch.cat([1e3 * x - 1e5, torch.full((500, 2), 0.1, dtype=torch.float64)], 1)
    parts = parts_of(500)
    plain = linear_probe(x, labels, parts).accuracy
    assert linear_probe(moved, labels, parts).accuracy == pytest.approx(plain, abs=0.011)
    scaled = standardised(moved, parts == TRAIN)
    assert scaled[:, 4:].abs().max() < 1e-3


def test_classes_that_training_has_not_seen_are_errors() -> None:
    x, labels = problem(500, 4, 3, 0.05)
    parts = parts_of(500)
    unseen = labels.clone()
    unseen[parts == TEST] = 9
    assert linear_probe(x, unseen, parts).accuracy == 0


@pytest.mark.parametrize("missing", [TRAIN, DEV, TEST])
def test_an_empty_part_is_refused(missing: int) -> None:
    x, labels = problem(50, 4, 3, 1.0)
    parts = parts_of(50)
    with pytest.raises(ValueError, match="want some in each"):
        linear_probe(x[parts != missing], labels[parts != missing], parts[parts != missing])


def test_parts_follow_from_names_and_seed_alone() -> None:
    names = [f"s{i}" for i in range(50)]
    found = assign_parts(names)
    assert found == assign_parts(list(reversed(names)) * 2)
    counts = [list(found.values()).count(part) for part in (TRAIN, DEV, TEST)]
    assert counts == [30, 10, 10]
    assert assign_parts(names, seed=1) != found
    assert sorted(assign_parts("abc").values()) == [TRAIN, DEV, TEST]
    with pytest.raises(ValueError, match="found 2 different"):
        assign_parts(["a", "b", "a"])


def test_the_interval_is_that_of_the_groups() -> None:
    """Ten equal points each: as wide as of so many fewer independent ones."""
    random = np.random.default_rng(0)
    right = random.random(400) < 0.7
    share = right.mean()
    low, high = interval(by_group(right, np.arange(400)))
    assert low < share < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 400), rel=0.1)
    tenfold = np.repeat(right, 10)
    grouped = by_group(tenfold, np.repeat(np.arange(400) + 7, 10))
    assert grouped[0] == (7, 10 * int(right[0]), 10)
    assert interval(grouped) == pytest.approx((low, high))
    alone = interval(by_group(tenfold, np.arange(4000)))
    assert alone[1] - alone[0] == pytest.approx((high - low) / np.sqrt(10), rel=0.1)
    assert interval(((3, 5, 5),)) == (1.0, 1.0)


def test_gains_on_the_same_groups_are_known_better_than_their_parts() -> None:
    """One more right in every group: a gain that resampling cannot shake."""
    random = np.random.default_rng(0)
    first = tuple((n, int(r), 40) for n, r in enumerate(random.integers(5, 35, 50)))
    better = tuple((n, r + 1, m) for n, r, m in first)
    assert interval(better, first) == pytest.approx((1 / 40, 1 / 40))
    low, high = interval(first)
    assert high - low > 0.05
    with pytest.raises(ValueError, match="want the same in the same order"):
        interval(better[1:], first)
