"""Slots against counting by hand and scikit-learn; concordance correlation against its limits."""

from __future__ import annotations

import numpy as np
import pytest

from speechssl.score.regression import ccc, pearson, regression_results, rmse
from speechssl.score.slots import (
    f1,
    slot_results,
    superb_type_f1,
    superb_value_cer,
    tagged_slots,
    value_cer,
)

REFS = [[("drink", "latte"), ("size", "small")], [("drink", "mocha")], []]
HYPS = [[("drink", "latte"), ("size", "large")], [("milk", "soy")], []]


def test_pairs_are_counted_over_the_corpus() -> None:
    # One of three references is found, by one of three hypotheses; two types are right.
    assert f1(REFS, HYPS) == pytest.approx({"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3})
    assert f1(REFS, HYPS, values=False)["f1"] == pytest.approx(2 / 3)
    assert f1(REFS, REFS)["f1"] == 1 and f1(REFS, [[], [], []])["f1"] == 0
    assert f1([[]], [[]]) == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    twice = [[("a", "x"), ("a", "x")]]
    assert f1(twice, [[("a", "x")]]) == pytest.approx({"precision": 1, "recall": 0.5, "f1": 2 / 3})


def test_f1_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    hits = random.random((2, 50, 6)) < 0.4
    rows = [[[(str(s), "v") for s in np.flatnonzero(r)] for r in side] for side in hits]
    expected = metrics.f1_score(hits[0], hits[1], average="micro")
    assert f1(*rows)["f1"] == pytest.approx(expected)


def test_superbs_figures_are_of_types_per_utterance_and_of_the_nearest_values() -> None:
    # Types per utterance: both of two; none of one and one; nothing on either side.
    assert superb_type_f1(REFS, HYPS) == pytest.approx((1 + 0 + 1) / 3)
    assert superb_type_f1([[("a", "x"), ("a", "y")]], [[("a", "z")]]) == 1  # once or twice
    assert superb_type_f1([[("a", "x"), ("b", "x")]], [[("a", "x")]]) == pytest.approx(2 / 3)
    # small to large 5, mocha missing 5; soy, which is too many, costs nothing.
    assert superb_value_cer(REFS, HYPS) == pytest.approx((5 + 5) / 15)
    # Whatever their order, and one may serve twice.
    both = [[("a", "tea"), ("a", "milk")]]
    assert superb_value_cer(both, [both[0][::-1]]) == 0 < value_cer(both, [both[0][::-1]])
    assert superb_value_cer([[("a", "tea"), ("a", "tea")]], [[("a", "tea")]]) == 0
    results = slot_results(REFS, HYPS)
    assert results["superb_slot_type_f1"] == superb_type_f1(REFS, HYPS)
    assert results["superb_slot_value_cer"] == superb_value_cer(REFS, HYPS)
    with pytest.raises(ValueError, match="no value"):
        superb_value_cer([[]], [[("a", "x")]])


def test_value_errors_count_characters_of_all_values() -> None:
    # small to large 5; mocha missing 5; soy inserted 3; of 15 characters.
    assert value_cer(REFS, HYPS) == pytest.approx((5 + 5 + 3) / 15)
    assert value_cer(REFS, REFS) == 0
    with pytest.raises(ValueError, match="no value"):
        value_cer([[]], [[]])


def test_tags_are_read_off_a_text() -> None:
    text = "i want a <drink> iced  mocha </drink> <size>small</size> <milk> soy <sugar> </milk>"
    assert tagged_slots(text) == [("drink", "iced mocha"), ("size", "small")]
    assert tagged_slots("</a> x <a>") == []


def test_results_hold_every_slot() -> None:
    found = slot_results(REFS, HYPS)
    assert found["exact_match"] == pytest.approx(1 / 3) and found["utterances"] == 3
    assert found["by_slot"]["drink"]["precision"] == 1 and found["by_slot"]["milk"]["recall"] == 0
    with pytest.raises(ValueError, match="no utterance"):
        slot_results([], [])


def test_concordance_has_known_values() -> None:
    x = np.random.default_rng(1).standard_normal(50)
    x = (x - x.mean()) / x.std()
    assert ccc(x, x) == pytest.approx(1) and ccc(x, -x) == pytest.approx(-1)
    # Scaled by a: 2 a / (1 + a^2); shifted by b: 2 / (2 + b^2). Pearson's sees neither.
    assert ccc(x, 3 * x) == pytest.approx(6 / 10) and pearson(x, 3 * x + 5) == pytest.approx(1)
    assert ccc(x, x + 2) == pytest.approx(2 / 6) and rmse(x, x + 2) == pytest.approx(2)
    assert ccc(x, np.zeros(50)) == 0 and np.isnan(pearson(x, np.zeros(50)))
    assert ccc(np.ones(3), np.ones(3)) == 1
    y = np.random.default_rng(2).standard_normal(50)
    assert ccc(x, y) == pytest.approx(ccc(y, x)) and abs(ccc(x, y)) <= abs(pearson(x, y))
    assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_numbers_without_reference_are_left_out() -> None:
    refs = [[1.0, 2.0], [2.0, 0.0], [None, 1.0], [3.0, 4.0]]
    hyps = [[1.0, 2.0], [2.0, 0.0], [9.0, 9.0], [3.0, 4.0]]
    found = regression_results(refs, hyps, ["a", "b"])
    assert found["ccc"] == 1 and found["utterances"] == 3 and found["without_reference"] == 1
    assert found["by_dimension"]["b"] == {"ccc": 1.0, "pearson": pytest.approx(1), "rmse": 0.0}
    with pytest.raises(ValueError, match="no reference"):
        regression_results([[None]], [[1.0]], ["a"])
    with pytest.raises(ValueError, match="shapes"):
        ccc(np.ones(2), np.ones(3))
