"""Boundaries against true ones: precision, recall, F1 and R-value; and syllables of phones.

A boundary is found if one of the hypothesis lies within the tolerance, which counts for one only.

Source: Räsänen et al. 2009, "An Improved Speech Segmentation Quality Measure: the R-value".

Shape legend: N true boundaries, H those of the hypothesis, S segments.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np

TOLERANCE_SECONDS = 0.05
_VOWELS = frozenset("aeiouyæøœɐɑɒɔəɘɛɜɞɤɨɪɯɵɶʉʊʌʏɚɝᵻAEIOU")
_SYLLABIC = "\u0329"  # the stroke below a syllabic consonant
_GLIDES = frozenset("jwɥɹrɾɻʁlɫʎRLWY")
_OBSTRUENTS = frozenset("pbtdkgɡfvθðszʃʒxçhɸβɣcɟPBTDKGFVSZ")

Interval = tuple[float, float, str]
"""(start, end, symbol), in seconds."""


@dataclasses.dataclass(frozen=True)
class BoundaryCounts:
    """hits: pairs of a true and a found boundary. true, found: how many there are of each."""

    hits: int = 0
    true: int = 0
    found: int = 0

    def __add__(self, other: BoundaryCounts) -> BoundaryCounts:
        return BoundaryCounts(
            self.hits + other.hits, self.true + other.true, self.found + other.found
        )

    def scores(self) -> dict[str, float]:
        """precision, recall, f1, r_value and over_segmentation (found / true - 1).

        Not a number where it is not defined: without true boundaries, and without found ones
        precision.
        """
        precision = self.hits / self.found if self.found else math.nan
        recall = self.hits / self.true if self.true else math.nan
        both = self.found + self.true
        over = self.found / self.true - 1 if self.true else math.nan
        return {
            "precision": precision,
            "recall": recall,
            "f1": 2 * self.hits / both if self.true else math.nan,
            "r_value": r_value(recall, over),
            "over_segmentation": over,
        }


def r_value(recall: float, over_segmentation: float) -> float:
    """1 for the true boundaries; less by the distances from that point and from the line on which
    boundaries by chance lie."""
    to_target = math.hypot(1 - recall, over_segmentation)
    to_line = (recall - 1 - over_segmentation) / math.sqrt(2)
    return 1 - (to_target + abs(to_line)) / 2


def count_boundaries(
    true: Sequence[float] | np.ndarray,
    found: Sequence[float] | np.ndarray,
    tolerance: float = TOLERANCE_SECONDS,
) -> BoundaryCounts:
    """(N,) and (H,) seconds -> counts; each boundary is in one pair at most, pairs are as many as
    can be."""
    true, found = np.sort(true), np.sort(found)
    hits = i = j = 0
    # Among intervals of one width the earliest partner is never a worse choice than a later one.
    while i < len(true) and j < len(found):
        apart = found[j] - true[i]
        if abs(apart) <= tolerance + 1e-9:
            hits, i, j = hits + 1, i + 1, j + 1
        elif apart < 0:
            j += 1
        else:
            i += 1
    return BoundaryCounts(hits, len(true), len(found))


def boundaries(segments: Iterable[Sequence[float]], join: float = 1e-3) -> np.ndarray:
    """(S, 2) starts and ends in seconds -> starts and ends in order; those that meet are one."""
    edges = np.sort(np.asarray([tuple(s[:2]) for s in segments], dtype=np.float64).reshape(-1))
    if not len(edges):
        return edges
    return edges[np.append(True, np.diff(edges) > join)]


def is_vowel(phone: str) -> bool:
    """Whether an IPA or ARPAbet symbol is the nucleus of a syllable."""
    return bool(phone) and (phone[0] in _VOWELS or _SYLLABIC in phone)


def vowels(phones: Sequence[Interval]) -> list[Interval]:
    return [phone for phone in phones if is_vowel(phone[2])]


def syllables(
    phones: Sequence[Interval],
    words: Sequence[Interval] = (),
    pauses: frozenset[str] = frozenset({"sil", "sp", "spn", ""}),
) -> list[Interval]:
    """Phones in order -> syllables, one for each vowel; what is between pauses has no gap.

    Of the consonants between two vowels of a word the last one begins the second syllable, the
    last two if they are an obstruent and a liquid or glide; the rest end the first (a simple form
    of the largest onset). Syllables do not cross words, if these are given. Consonants without a
    vowel (between pauses, or of a word) belong to the syllable beside them, if there is one.
    """
    found: list[Interval] = []
    group: list[Interval] = []
    for phone in [*phones, (0.0, 0.0, "sil")]:
        if phone[2] not in pauses:
            group.append(phone)
            continue
        if any(is_vowel(p[2]) for p in group):
            found += _syllables(group, _word_starts(group, words))
        group = []
    return found


def _word_starts(group: Sequence[Interval], words: Sequence[Interval]) -> set[int]:
    """Places in `group` where a word begins: of the phone whose start is the nearest."""
    if not group:
        return set()
    starts = np.array([p[0] for p in group])
    inside = [w[0] for w in words if group[0][0] - 1e-3 <= w[0] < group[-1][1]]
    return {int(np.abs(starts - s).argmin()) for s in inside}


def _syllables(group: Sequence[Interval], word_starts: set[int]) -> list[Interval]:
    nuclei = [i for i, p in enumerate(group) if is_vowel(p[2])]
    cuts = [0]
    for one, other in itertools.pairwise(nuclei):
        word = [i for i in range(one + 1, other + 1) if i in word_starts]
        if word:
            cuts.append(word[0])
            continue
        between = other - one - 1
        onset = min(between, 1)
        if between >= 2:
            first, second = (group[other - k][2][0] for k in (2, 1))
            onset += first in _OBSTRUENTS and second in _GLIDES
        cuts.append(other - onset)
    ends = [*cuts[1:], len(group)]
    return [
        (group[a][0], group[b - 1][1], "".join(p[2] for p in group[a:b]))
        for a, b in zip(cuts, ends, strict=True)
    ]
