"""Scores of boundaries in closed form, and syllables of phones."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from speechssl.score.segmentation import (
    BoundaryCounts,
    boundaries,
    count_boundaries,
    is_vowel,
    r_value,
    syllables,
    vowels,
)


def test_the_true_boundaries_score_1() -> None:
    times = [0.1, 0.35, 0.8, 1.4]
    scores = count_boundaries(times, times).scores()
    assert scores == {"precision": 1, "recall": 1, "f1": 1, "r_value": 1, "over_segmentation": 0}


def test_a_boundary_counts_up_to_the_tolerance() -> None:
    for shift, hits in ((0.05, 3), (-0.05, 3), (0.051, 0)):
        found = [t + shift for t in (1.0, 2.0, 3.0)]
        assert count_boundaries([1.0, 2.0, 3.0], found).hits == hits


def test_a_boundary_counts_once() -> None:
    assert count_boundaries([1.0], [0.97, 1.0, 1.03]) == BoundaryCounts(1, 1, 3)
    assert count_boundaries([0.97, 1.03], [1.0]) == BoundaryCounts(1, 2, 1)


def test_pairs_are_as_many_as_can_be() -> None:
    """Against all ways to pair them."""
    random = np.random.default_rng(4)
    for _ in range(60):
        true, found = random.uniform(0, 0.5, 4), random.uniform(0, 0.5, random.integers(1, 5))
        near = np.abs(true[:, None] - found) <= 0.05
        best = max(
            sum(near[i, j] for i, j in zip(rows, range(len(found))))
            for rows in itertools.permutations(range(4), len(found))
        )
        assert count_boundaries(true, found).hits == best


def test_scores_in_closed_form() -> None:
    scores = BoundaryCounts(hits=6, true=8, found=12).scores()
    assert scores["precision"] == 0.5 and scores["recall"] == 0.75
    assert scores["f1"] == pytest.approx(2 * 0.5 * 0.75 / 1.25)
    assert scores["over_segmentation"] == 0.5
    first, second = math.sqrt(0.25**2 + 0.5**2), (-0.5 + 0.75 - 1) / math.sqrt(2)
    assert scores["r_value"] == pytest.approx(1 - (first + abs(second)) / 2)


def test_the_r_value_punishes_boundaries_everywhere_and_nowhere() -> None:
    assert r_value(1.0, 1.0) == pytest.approx(1 - (1 + 1 / math.sqrt(2)) / 2)
    assert r_value(0.0, -1.0) == pytest.approx(1 - math.sqrt(2) / 2)
    nowhere = count_boundaries([1.0, 2.0], []).scores()
    assert nowhere["f1"] == 0 and math.isnan(nowhere["precision"])
    assert all(math.isnan(v) for v in count_boundaries([], []).scores().values())


def test_counts_add_up() -> None:
    assert BoundaryCounts(1, 2, 3) + BoundaryCounts(4, 5, 6) == BoundaryCounts(5, 7, 9)


def test_segments_that_meet_share_a_boundary() -> None:
    segments = [(0.1, 0.3), (0.3, 0.55), (0.7, 0.9)]
    assert boundaries(segments).tolist() == [0.1, 0.3, 0.55, 0.7, 0.9]
    assert boundaries([]).shape == (0,)


def phones(text: str) -> list[tuple[float, float, str]]:
    """One phone every 0.1 s, separated by blanks; _ is a pause."""
    return [(i / 10, (i + 1) / 10, "sil" if p == "_" else p) for i, p in enumerate(text.split())]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("_ b a n ɑː n ə _", ["ba", "nɑː", "nə"]),
        ("t ɛ m p ə", ["tɛm", "pə"]),
        ("ɛ k s t ɹ ə", ["ɛks", "tɹə"]),
        ("a ɪ", ["a", "ɪ"]),
        ("aɪ", ["aɪ"]),
        ("s t _ k a t", ["kat"]),
        ("b ʌ ʔ n̩", ["bʌ", "ʔn̩"]),
        ("_", []),
    ],
)
def test_syllables_of_phones(text: str, wanted: list[str]) -> None:
    found = syllables(phones(text))
    assert [s[2] for s in found] == wanted
    for start, end, name in found:
        assert start < end and name


def test_syllables_have_no_gap_and_do_not_cross_words_or_pauses() -> None:
    spoken = phones("_ a n a t _ o k o")
    assert [s[2] for s in syllables(spoken)] == ["a", "nat", "o", "ko"]
    words = [(0.1, 0.3, "an"), (0.3, 0.5, "at"), (0.6, 0.9, "oko")]
    found = syllables(spoken, words)
    assert [s[2] for s in found] == ["an", "at", "o", "ko"]
    assert boundaries(found) == pytest.approx([0.1, 0.3, 0.5, 0.6, 0.7, 0.9])
    assert [v[2] for v in vowels(spoken)] == ["a", "a", "o", "o"]


def test_vowels_are_told_from_consonants() -> None:
    assert all(map(is_vowel, ["a", "iː", "ɑ̃", "oʊ", "ᵻ", "AH", "l̩"]))
    assert not any(map(is_vowel, ["t", "tʃ", "ŋ", "ɾ", "j", "", "NG", "l"]))
