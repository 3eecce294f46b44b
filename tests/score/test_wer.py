"""Error rates against jiwer, and the alignments that they are counted from."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from speechssl.score.wer import (
    Edits,
    Utterance,
    align,
    alignment_text,
    bootstrap,
    confusions,
    count_edits,
    error_rates,
    normalise,
    over_languages,
    score_utterance,
)

WORDS = ["a", "the", "cat", "dog", "sat", "on", "mat", "it's"]


def random_pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    pairs = []
    for _ in range(count):
        ref = [draw.choice(WORDS) for _ in range(draw.randint(1, 14))]
        hyp = [draw.choice(WORDS) if draw.random() < 0.2 else w for w in ref]
        hyp = [w for w in hyp if draw.random() > 0.1]
        if draw.random() < 0.3:
            hyp.insert(draw.randint(0, len(hyp)), draw.choice(WORDS))
        pairs.append((" ".join(ref), " ".join(hyp)))
    return pairs


def test_word_and_character_error_rates_equal_those_of_jiwer() -> None:
    jiwer = pytest.importorskip("jiwer")
    pairs = random_pairs(300)
    refs, hyps = [r for r, _ in pairs], [h for _, h in pairs]
    utterances = [Utterance(str(i), r, h) for i, (r, h) in enumerate(pairs)]
    results, _ = error_rates(utterances, "none")
    assert results["wer"] == pytest.approx(jiwer.wer(refs, hyps), abs=1e-12)
    assert results["cer"] == pytest.approx(jiwer.cer(refs, hyps), abs=1e-12)
    assert results["words"] == sum(len(r.split()) for r in refs)
    assert 0.05 < results["wer"] < 0.6


def test_each_utterance_has_the_least_number_of_errors() -> None:
    jiwer = pytest.importorskip("jiwer")
    for ref, hyp in random_pairs(200, seed=1):
        found = jiwer.process_words(ref, hyp)
        ours = score_utterance(Utterance("u", ref, hyp), "none").words
        assert ours.errors == found.substitutions + found.deletions + found.insertions


def test_an_alignment_holds_both_sides_in_order() -> None:
    for ref, hyp in random_pairs(200, seed=2):
        pairs = align(ref.split(), hyp.split())
        assert [r for r, _ in pairs if r is not None] == ref.split()
        assert [h for _, h in pairs if h is not None] == hyp.split()
        assert (None, None) not in pairs


@pytest.mark.parametrize(
    ("ref", "hyp", "expected"),
    [
        ("", "", Edits(0, 0, 0, 0)),
        ("", "a b", Edits(0, 0, 2, 0)),
        ("a b", "", Edits(0, 2, 0, 2)),
        ("a b c", "a c", Edits(0, 1, 0, 3)),
        ("a b c", "a x c d", Edits(1, 0, 1, 3)),
    ],
)
def test_small_cases_are_counted_by_hand(ref: str, hyp: str, expected: Edits) -> None:
    assert count_edits(align(ref.split(), hyp.split())) == expected


def test_rates_of_empty_references_are_defined() -> None:
    assert Edits().rate == 0.0
    assert math.isinf(Edits(insertions=1).rate)
    with pytest.raises(ValueError, match="no word"):
        error_rates([Utterance("u", "", "a")])
    with pytest.raises(ValueError, match="none"):
        error_rates([])
    with pytest.raises(ValueError, match="twice"):
        error_rates([Utterance("u", "a", "a"), Utterance("u", "b", "b")])


def test_an_empty_reference_beside_others_adds_its_insertions() -> None:
    results, _ = error_rates([Utterance("u", "", "a b"), Utterance("v", "c d e f", "c d e f")])
    assert results["wer"] == 0.5 and results["insertions"] == 2


def test_basic_normalisation_removes_case_and_punctuation_alone() -> None:
    assert normalise("Ice-cream, PLEASE!  It’s 'good'") == "ice cream please it's good"
    assert normalise("Ice-cream", "none") == "Ice-cream"
    with pytest.raises(ValueError, match="normalise"):
        normalise("a", "other")


def test_basic_normalisation_is_as_fine_as_the_tokenizers() -> None:
    from speechssl.data.text import normalise as of_tokenizer

    for text in ("It's — a 'test'!", "Ärger über $5", "O’NEIL’S rock'n'roll", "e\u0301tude"):
        assert normalise(of_tokenizer(text)) == normalise(text)


def test_groups_add_up_to_the_whole() -> None:
    utterances = [
        Utterance(str(i), r, h, 0.7 * i, speaker=f"s{i % 3}", language="ab"[i % 2])
        for i, (r, h) in enumerate(random_pairs(60, seed=3))
    ]
    results, _ = error_rates(utterances)
    for name in ("by_duration_s", "by_speaker", "by_language"):
        assert sum(g["errors"] for g in results[name].values()) == results["errors"]
        assert sum(g["utterances"] for g in results[name].values()) == 60
    assert list(results["by_duration_s"]) == ["0-2", "2-5", "5-10", "10-20", "20+"]


def test_each_language_counts_the_same_over_languages() -> None:
    """Character errors: 1 of 4, 0 of 8, 2 of 2; the fourth has no reference to be right about."""
    utterances = [
        Utterance("1", "abcd", "abxd", language="sv"),
        Utterance("2", "abcd", "abcd", language="fi"),
        Utterance("3", "efgh", "efgh", language="fi"),
        Utterance("4", "ab", "xy", language="et"),
        Utterance("5", "", "ab", language="xx"),
        Utterance("6", "abcd", "abcd"),
    ]
    by_language = error_rates(utterances)[0]["by_language"]
    assert [by_language[k]["cer"] for k in ("et", "fi", "sv", "xx")] == [1.0, 0.0, 0.25, None]
    found = over_languages(by_language, worst=2)
    assert found["languages"] == 3 and found["worst"] == ["et", "sv"]
    assert found["mean_cer"] == pytest.approx(1.25 / 3)
    assert found["std_cer"] == pytest.approx(statistics.pstdev([1.0, 0.0, 0.25]))
    assert found["worst_cer"] == pytest.approx(0.625)
    assert over_languages(by_language)["worst_cer"] == pytest.approx(found["mean_cer"])
    for wrong in (({}, 1), (by_language, 0)):
        with pytest.raises(ValueError, match="want 1 or more of both"):
            over_languages(*wrong)


def test_the_interval_holds_the_rate_and_narrows_with_more_utterances() -> None:
    edits = [score_utterance(Utterance("u", r, h)).words for r, h in random_pairs(400, seed=4)]
    total = sum(edits, Edits())
    low, high = bootstrap(edits)
    assert low < total.rate < high
    few_low, few_high = bootstrap(edits[:40])
    assert few_high - few_low > 2 * (high - low)
    assert bootstrap(edits) == (low, high)


def test_confusions_are_counted_and_alignments_readable() -> None:
    scored = [score_utterance(Utterance(f"u{i}", "the cat sat", "a cat sat on")) for i in range(3)]
    found = confusions(scored)
    assert found["substitutions"] == [["the", "a", 3]]
    assert found["insertions"] == [["on", 3]] and found["deletions"] == []
    text = alignment_text(scored[0])
    assert "THE" in text and "***" in text and "errors 2 of 3 words" in text


def test_results_hold_intervals_of_words_and_of_characters() -> None:
    said = [Utterance(str(i), "a bc", "a b" if i % 3 else "a bc") for i in range(30)]
    results, scored = error_rates(said, "none")
    assert results["wer_ci95"] == list(bootstrap([s.words for s in scored]))
    low, high = results["cer_ci95"]
    assert low < results["cer"] < high < results["wer_ci95"][0]
