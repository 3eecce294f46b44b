"""Classification figures, against scikit-learn and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from speechssl.score.classification import (
    Prediction,
    accuracy,
    bootstrap,
    classification_results,
    confusion,
    f1_scores,
    macro_f1,
    precisions,
    recalls,
    uar,
)

NAMES = ["angry", "calm", "happy", "sad"]


def draw(seed: int, count: int = 200) -> tuple[list[str], list[str]]:
    """Three of the four classes in references, unevenly; all four in hypotheses."""
    random = np.random.default_rng(seed)
    refs = random.choice(NAMES[:3], count, p=[0.7, 0.2, 0.1])
    wrong = random.choice(NAMES, count)
    return refs.tolist(), np.where(random.random(count) < 0.6, refs, wrong).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_scikit_learn(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    refs, hyps = draw(seed)
    counts = confusion(refs, hyps, NAMES)
    assert (counts == metrics.confusion_matrix(refs, hyps, labels=NAMES)).all()
    assert accuracy(counts) == pytest.approx(metrics.accuracy_score(refs, hyps))
    expected = metrics.recall_score(refs, hyps, labels=NAMES[:3], average="macro")
    assert uar(counts) == pytest.approx(expected)
    assert macro_f1(counts) == pytest.approx(metrics.f1_score(refs, hyps, average="macro"))
    each = metrics.precision_recall_fscore_support(refs, hyps, labels=NAMES, zero_division=np.nan)
    assert precisions(counts) == pytest.approx(each[0], nan_ok=True)
    assert recalls(counts) == pytest.approx(each[1], nan_ok=True)
    assert f1_scores(counts) == pytest.approx(each[2], nan_ok=True)


def test_on_balanced_data_uar_is_accuracy() -> None:
    random = np.random.default_rng(0)
    refs = NAMES * 50
    counts = confusion(refs, random.permutation(refs).tolist(), NAMES)
    assert uar(counts) == pytest.approx(accuracy(counts))


def test_always_the_commonest_class_has_the_recall_of_chance() -> None:
    refs = ["a"] * 90 + ["b"] * 9 + ["c"]
    counts = confusion(refs, ["a"] * 100, ["a", "b", "c"])
    assert accuracy(counts) == 0.9 and uar(counts) == pytest.approx(1 / 3)
    assert macro_f1(counts) == pytest.approx(2 * 90 / 190 / 3)


def test_the_order_of_utterances_and_of_classes_changes_no_figure() -> None:
    refs, hyps = draw(7)
    order = np.random.default_rng(1).permutation(len(refs))
    one = confusion(refs, hyps, NAMES)
    two = confusion([refs[i] for i in order], [hyps[i] for i in order], NAMES[::-1])
    assert (one == two[::-1, ::-1]).all()
    assert uar(one) == pytest.approx(uar(two)) and macro_f1(one) == pytest.approx(macro_f1(two))


def test_an_unseen_class_counts_as_wrong_and_is_named() -> None:
    rows = [("1", "a", "a"), ("2", "b", "b"), ("3", "new", "a"), ("4", "new", "b")]
    rows.append(("5", None, "a"))
    results = classification_results([Prediction(*row) for row in rows], ["a", "b"])
    assert results["accuracy"] == 0.5 and results["uar"] == pytest.approx(2 / 3)
    assert results["unseen_classes"] == {"new": 2}
    assert results["classes"] == ["a", "b", "new"]
    assert results["confusion"] == [[1, 0, 0], [0, 1, 0], [1, 1, 0]]
    assert results["utterances"] == 4 and results["without_reference"] == 1
    assert results["per_class"]["new"] == {
        "utterances": 2, "recall": 0.0, "precision": None, "f1": 0.0,
    }  # fmt: skip
    assert results["majority_accuracy"] == 0.5


def test_each_speaker_has_its_own_accuracy() -> None:
    rows = [("1", "a", "a", "x"), ("2", "a", "b", "x"), ("3", "b", "b", "y"), ("4", "b", "b", None)]
    results = classification_results([Prediction(*row) for row in rows], ["a", "b"])
    assert results["by_speaker"] == {
        "x": {"accuracy": 0.5, "utterances": 2}, "y": {"accuracy": 1.0, "utterances": 1},
    }  # fmt: skip


def test_intervals_are_as_wide_as_the_binomial_says() -> None:
    refs = ["a"] * 200 + ["b"] * 200
    hyps = ["a"] * 150 + ["b"] * 50 + ["b"] * 150 + ["a"] * 50
    found = bootstrap(confusion(refs, hyps, ["a", "b"]))
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    for low, high in found.values():
        assert low == pytest.approx(0.75 - half, abs=0.01)
        assert high == pytest.approx(0.75 + half, abs=0.01)
    assert found == bootstrap(confusion(refs, hyps, ["a", "b"]))


def test_what_cannot_be_scored_is_named() -> None:
    with pytest.raises(ValueError, match=r"found \['z'\]"):
        confusion(["a", "z"], ["a", "a"], ["a"])
    with pytest.raises(ValueError, match="found 2 and 1"):
        confusion(["a", "a"], ["a"], ["a"])
    with pytest.raises(ValueError, match="each once"):
        confusion(["a"], ["a"], ["a", "a"])
    with pytest.raises(ValueError, match="no reference"):
        classification_results([Prediction("1", None, "a")], ["a"])
    with pytest.raises(ValueError, match="'1'"):
        classification_results([Prediction("1", "a", "a")] * 2, ["a"])
