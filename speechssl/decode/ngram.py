"""Estimation of n-gram language models, written as ARPA files that any decoder reads.

Interpolated modified Kneser-Ney smoothing: a count c is discounted by D1, D2 or D3 (c = 1, 2,
3 or more), the freed mass goes to the next lower order, whose counts are the numbers of distinct
left neighbours, and unigrams are interpolated with a uniform distribution over the vocabulary.

Source: Chen and Goodman 1999, "An empirical study of smoothing techniques for language modeling",
section 4.1.6; Heafield et al. 2013 for the treatment of <s>, whose n-grams have no left neighbour
and keep their plain counts.

Meant for recipe-sized texts (tens of millions of words: all counts are held in memory).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
RESERVED = (BEGIN, END, UNKNOWN)
FIXED_DISCOUNTS = (0.5, 1.0, 1.5)
"""Used for an order whose counts of counts allow no estimate (tiny or artificial texts)."""

Gram = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class NgramModel:
    """An interpolated model in back-off form.

    probabilities: per order, n-gram -> p(last word | those before), interpolation included.
    backoffs: per order below the highest, history -> weight of the shorter history; a history
        that is absent has weight 1.
    discounts: per order, D1, D2, D3. estimated: per order, False where they are fixed ones.
    """

    order: int
    probabilities: tuple[dict[Gram, float], ...]
    backoffs: tuple[dict[Gram, float], ...]
    discounts: tuple[tuple[float, float, float], ...]
    estimated: tuple[bool, ...]

    @property
    def vocabulary(self) -> list[str]:
        """Predictable words, <unk> and </s> included, <s> not."""
        return [gram[0] for gram in self.probabilities[0]]

    def probability(self, word: str, history: Sequence[str] = ()) -> float:
        """p(word | history), a word outside the vocabulary being <unk>."""
        known = self.probabilities[0]
        word = word if (word,) in known else UNKNOWN
        past = tuple(w if (w,) in known or w == BEGIN else UNKNOWN for w in history)
        past = past[len(past) - min(len(past), self.order - 1) :]
        weight = 1.0
        while True:
            found = self.probabilities[len(past)].get((*past, word))
            if found is not None:
                return weight * found
            weight *= self.backoffs[len(past) - 1].get(past, 1.0)
            past = past[1:]

    def log10_probability(self, words: Sequence[str]) -> float:
        """log10 of the probability of a sentence, its end included."""
        history: list[str] = [BEGIN]
        total = 0.0
        for word in (*words, END):
            total += math.log10(self.probability(word, history))
            history.append(word)
        return total

    def perplexity(self, sentences: Iterable[Sequence[str]]) -> float:
        """Per word and sentence end; unknown words count as <unk>."""
        total, count = 0.0, 0
        for words in sentences:
            total += self.log10_probability(words)
            count += len(words) + 1
        if not count:
            raise ValueError("perplexity: found no sentences, want at least one")
        return 10 ** (-total / count)

    def write_arpa(self, path: str | Path) -> None:
        """Write under a temporary name, then rename."""
        path = Path(path)
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("w", encoding="utf-8") as out:
            out.write("\\data\\\n")
            for n, grams in enumerate(self.probabilities, start=1):
                out.write(f"ngram {n}={len(grams) + (n == 1)}\n")
            for n, grams in enumerate(self.probabilities, start=1):
                out.write(f"\n\\{n}-grams:\n")
                if n == 1:
                    # <s> is never predicted; the format wants a line for its back-off.
                    out.write(f"-99\t{BEGIN}\t{self._log_backoff((BEGIN,)):.7f}\n")
                for gram, p in sorted(grams.items()):
                    tail = "" if n == self.order else f"\t{self._log_backoff(gram):.7f}"
                    out.write(f"{math.log10(p):.7f}\t{' '.join(gram)}{tail}\n")
            out.write("\n\\end\\\n")
        os.replace(temporary, path)

    def _log_backoff(self, gram: Gram) -> float:
        if self.order == 1:
            return 0.0
        return math.log10(self.backoffs[len(gram) - 1].get(gram, 1.0))


def estimate(
    sentences: Iterable[Sequence[str]], order: int, *, words: Iterable[str] = ()
) -> NgramModel:
    """Estimate a model from tokenised sentences, in which rare words may stand as <unk>.

    words: further vocabulary; a word that the text lacks gets the probability of <unk>.
    Raises `ValueError` for an order below 1, for no text, or for a reserved symbol in the text.
    """
    if order < 1:
        raise ValueError(f"order: found {order}, want at least 1")
    raw = _count(sentences, order)
    vocabulary = {gram[0] for gram in raw[0]} - {BEGIN} | {END, UNKNOWN} | _checked(words)
    adjusted = _adjust(raw)
    adjusted[0].pop((BEGIN,), None)
    discounts, estimated = zip(*(_discounts(counts) for counts in adjusted), strict=True)
    probabilities: list[dict[Gram, float]] = []
    backoffs: list[dict[Gram, float]] = []
    for n, counts in enumerate(adjusted):
        totals, freed = _mass(counts, discounts[n])
        if n == 0:
            share = freed[()] / totals[()] / len(vocabulary)
            level = {(w,): share for w in sorted(vocabulary)}
            for gram, count in counts.items():
                level[gram] += (count - _discount(count, discounts[0])) / totals[()]
        else:
            weights = {past: freed[past] / totals[past] for past in totals}
            below = probabilities[n - 1]
            level = {
                gram: (count - _discount(count, discounts[n])) / totals[gram[:-1]]
                + weights[gram[:-1]] * below[gram[1:]]
                for gram, count in counts.items()
            }
            backoffs.append(weights)
        probabilities.append(level)
    return NgramModel(
        order, tuple(probabilities), tuple(backoffs), tuple(discounts), tuple(estimated)
    )


def _checked(words: Iterable[str]) -> set[str]:
    found = {word for word in words if word not in RESERVED}
    wrong = [word for word in found if not word or len(word.split()) != 1]
    if wrong:
        raise ValueError(f"words: found {wrong[0]!r}, want words without spaces")
    return found


def _count(sentences: Iterable[Sequence[str]], order: int) -> list[Counter[Gram]]:
    counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
    empty = True
    for number, words in enumerate(sentences):
        if not words:
            continue
        if BEGIN in words or END in words:
            raise ValueError(f"sentence {number}: found a reserved symbol, {BEGIN} or {END}")
        empty = False
        padded = (BEGIN, *words, END)
        for n in range(1, order + 1):
            counts[n - 1].update(padded[i : i + n] for i in range(len(padded) - n + 1))
    if empty:
        raise ValueError("text: found no sentence, want at least one with a word")
    if not counts[-1]:
        longest = max(n for n, c in enumerate(counts, start=1) if c)
        raise ValueError(
            f"order: found {order}, want at most {longest}, the longest sentence with its ends"
        )
    return counts


def _adjust(raw: list[Counter[Gram]]) -> list[dict[Gram, int]]:
    """Below the highest order: distinct left neighbours, or plain counts behind <s>."""
    adjusted: list[dict[Gram, int]] = []
    for counts, longer in itertools.pairwise(raw):
        kept: dict[Gram, int] = defaultdict(int)
        for gram in longer:
            kept[gram[1:]] += 1
        for gram, count in counts.items():
            if gram[0] == BEGIN:
                kept[gram] = count
        adjusted.append(dict(kept))
    adjusted.append(dict(raw[-1]))
    return adjusted


def _discounts(counts: dict[Gram, int]) -> tuple[tuple[float, float, float], bool]:
    of_counts = Counter(counts.values())
    n1, n2, n3, n4 = (of_counts[c] for c in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return FIXED_DISCOUNTS, False
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    if all(0 < d <= c for c, d in enumerate(found, start=1)):
        return found, True
    return FIXED_DISCOUNTS, False


def _discount(count: int, discounts: tuple[float, float, float]) -> float:
    return discounts[min(count, 3) - 1]


def _mass(
    counts: dict[Gram, int], discounts: tuple[float, float, float]
) -> tuple[dict[Gram, int], dict[Gram, float]]:
    """Per history: the sum of its counts, and the sum of what they are discounted by."""
    totals: dict[Gram, int] = defaultdict(int)
    freed: dict[Gram, float] = defaultdict(float)
    for gram, count in counts.items():
        totals[gram[:-1]] += count
        freed[gram[:-1]] += _discount(count, discounts)
    return totals, freed
