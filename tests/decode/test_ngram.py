"""The n-gram estimator: closed forms, normalisation, and that KenLM reads what is written."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import pytest

from speechssl.decode.ngram import (
    BEGIN,
    END,
    FIXED_DISCOUNTS,
    UNKNOWN,
    NgramModel,
    estimate,
)


def sentences(count: int = 400, seed: int = 0) -> list[list[str]]:
    draw = random.Random(seed)
    words = [f"w{i}" for i in range(30)]
    weights = [1 / (i + 1) ** 1.3 for i in range(30)]
    found = []
    for _ in range(count):
        sentence = draw.choices(words, weights, k=draw.randint(1, 9))
        # Some structure: w0 is often followed by w1.
        for i in range(len(sentence) - 1):
            if sentence[i] == "w0" and draw.random() < 0.7:
                sentence[i + 1] = "w1"
        found.append(sentence)
    return found


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_sum_to_one_after_every_history(order: int) -> None:
    model = estimate(sentences(), order, words=["extra"])
    vocabulary = model.vocabulary
    assert {END, UNKNOWN, "extra"} <= set(vocabulary) and BEGIN not in vocabulary
    histories = [h for level in model.backoffs for h in level][::7]
    histories += [(), (BEGIN,), ("never", "seen"), ("extra", "w0"), (BEGIN, "w29", "w28")]
    for history in histories:
        total = math.fsum(model.probability(w, history) for w in vocabulary)
        assert total == pytest.approx(1.0, abs=1e-9)


def test_a_tiny_bigram_model_equals_its_closed_form() -> None:
    model = estimate([["a", "b"], ["a", "b"], ["a", "c"]], 2)
    assert model.estimated == (False, False) and model.discounts[0] == FIXED_DISCOUNTS
    d1, d2, d3 = FIXED_DISCOUNTS
    # Distinct left neighbours: a 1 (<s>), b 1 (a), c 1 (a), </s> 2 (b, c); sum 5; 5 words + unk.
    share = (3 * d1 + d2) / 5 / 5
    p_a, p_end = (1 - d1) / 5 + share, (2 - d2) / 5 + share
    assert model.probability("a") == pytest.approx(p_a)
    assert model.probability(END) == pytest.approx(p_end)
    assert model.probability("nothing") == pytest.approx(share)
    # Bigrams of a: b 2, c 1. Of <s>: a 3.
    p_b = (1 - d1) / 5 + share
    assert model.probability("b", ["a"]) == pytest.approx((2 - d2) / 3 + (d2 + d1) / 3 * p_b)
    assert model.probability("a", [BEGIN]) == pytest.approx((3 - d3) / 3 + d3 / 3 * p_a)
    assert model.probability("b", [BEGIN]) == pytest.approx(d3 / 3 * p_b)


def test_discounts_of_a_natural_text_are_estimated() -> None:
    model = estimate(sentences(3000), 3)
    assert model.estimated[1:] == (True, True)
    for d1, d2, d3 in model.discounts[1:]:
        assert 0 < d1 <= 1 and 0 < d2 <= 2 and 0 < d3 <= 3


def test_a_higher_order_explains_held_out_text_better() -> None:
    train, held_out = sentences(2000), sentences(300, seed=9)
    one, two = (estimate(train, n).perplexity(held_out) for n in (1, 2))
    assert two < 0.9 * one < 31


def test_an_arpa_file_holds_all_that_the_model_knows(tmp_path: Path) -> None:
    model = estimate(sentences(100), 3, words=["extra"])
    model.write_arpa(tmp_path / "lm.arpa")
    text = (tmp_path / "lm.arpa").read_text()
    assert text.startswith("\\data\\\n") and text.endswith("\\end\\\n")
    assert f"ngram 1={len(model.probabilities[0]) + 1}\n" in text
    assert f"ngram 3={len(model.probabilities[2])}\n" in text
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("order", [2, 3])
def test_kenlm_scores_sentences_as_we_do(order: int, tmp_path: Path) -> None:
    decoder = pytest.importorskip("flashlight.lib.text.decoder")
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    assert decoder is not None
    model = estimate(sentences(200), order)
    model.write_arpa(tmp_path / "lm.arpa")
    words = Dictionary()
    known = [w for w in model.vocabulary if w not in (END, UNKNOWN)]
    for word in [*known, UNKNOWN]:
        words.add_entry(word)
    kenlm = KenLM(str(tmp_path / "lm.arpa"), words)
    for sentence in itertools.chain(sentences(60, seed=5), [["w0", "never", "w1"], ["w29"] * 4]):
        state, total = kenlm.start(False), 0.0
        for word in sentence:
            index = words.get_index(word if word in known else UNKNOWN)
            state, score = kenlm.score(state, index)
            total += score
        total += kenlm.finish(state)[1]
        assert total == pytest.approx(model.log10_probability(sentence), abs=2e-4)


def test_wrong_texts_and_orders_are_named() -> None:
    with pytest.raises(ValueError, match="order"):
        estimate([["a"]], 0)
    with pytest.raises(ValueError, match="no sentence"):
        estimate([[]], 2)
    with pytest.raises(ValueError, match="reserved"):
        estimate([["a", "<s>"]], 2)
    with pytest.raises(ValueError, match="at most 3"):
        estimate([["a"]], 5)
    with pytest.raises(ValueError, match="words"):
        estimate([["a"]], 2, words=["two words"])
    assert isinstance(estimate([["a"]], 3), NgramModel)
