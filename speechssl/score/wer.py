"""Word and character error rates, with alignments.

The error rate is (substitutions + deletions + insertions) / reference length, summed over the
corpus before dividing. Among the alignments of least cost, the one is taken that prefers, from
the end backwards, match or substitution, then deletion, then insertion.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

NORMALISATIONS = {
    "basic": "NFC, lower case, typographic apostrophes made straight, punctuation and symbols "
    "replaced by spaces except apostrophes between letters or digits, single spaces",
    "none": "single spaces",
}
LENGTH_BUCKETS_S = (2.0, 5.0, 10.0, 20.0)


def normalise(text: str, scheme: str = "basic") -> str:
    """Bring a reference or hypothesis to the form that is scored; schemes: NORMALISATIONS."""
    if scheme not in NORMALISATIONS:
        raise ValueError(f"normalise: found {scheme!r}, want one of {sorted(NORMALISATIONS)}")
    if scheme == "basic":
        text = unicodedata.normalize("NFC", text).replace("’", "'").lower()
        kept = []
        for i, char in enumerate(text):
            if char == "'":
                joins = 0 < i < len(text) - 1 and text[i - 1].isalnum() and text[i + 1].isalnum()
                kept.append(char if joins else " ")
            else:
                kept.append(" " if unicodedata.category(char)[0] in "PS" else char)
        text = "".join(kept)
    return " ".join(text.split())


@dataclasses.dataclass(frozen=True)
class Edits:
    """Counts of one alignment; adds up."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    length: int = 0
    """Reference words or characters."""

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per reference item; 0 if both sides are empty, infinite if only this one is."""
        if self.length == 0:
            return 0.0 if self.errors == 0 else float("inf")
        return self.errors / self.length

    def __add__(self, other: Edits) -> Edits:
        return Edits(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.length + other.length,
        )


Pair = tuple[Any, Any]
"""(reference item or None, hypothesis item or None): None on one side is an insertion/deletion."""


def align(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> list[Pair]:
    """Least-cost alignment, as pairs in order."""
    ids: dict[Hashable, int] = {}
    ref = np.array([ids.setdefault(x, len(ids)) for x in reference], dtype=np.int64)
    hyp = np.array([ids.setdefault(x, len(ids)) for x in hypothesis], dtype=np.int64)
    steps = np.arange(len(hyp) + 1)
    cost = np.empty((len(ref) + 1, len(hyp) + 1), dtype=np.int64)
    cost[0] = steps
    for i, item in enumerate(ref, start=1):
        above = cost[i - 1]
        best = np.empty_like(above)
        best[0] = i
        best[1:] = np.minimum(above[1:] + 1, above[:-1] + (hyp != item))
        # A run of insertions costs its length: minimum over all its starts at once.
        cost[i] = np.minimum.accumulate(best - steps) + steps
    pairs: list[Pair] = []
    i, j = len(ref), len(hyp)
    while i or j:
        if i and j and cost[i, j] == cost[i - 1, j - 1] + int(ref[i - 1] != hyp[j - 1]):
            i, j = i - 1, j - 1
            pairs.append((reference[i], hypothesis[j]))
        elif i and cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
            pairs.append((reference[i], None))
        else:
            j -= 1
            pairs.append((None, hypothesis[j]))
    return pairs[::-1]


def count_edits(pairs: Iterable[Pair]) -> Edits:
    substitutions = deletions = insertions = length = 0
    for ref, hyp in pairs:
        length += ref is not None
        if ref is None:
            insertions += 1
        elif hyp is None:
            deletions += 1
        elif ref != hyp:
            substitutions += 1
    return Edits(substitutions, deletions, insertions, length)


@dataclasses.dataclass(frozen=True)
class Utterance:
    """What is known of one decoded utterance, before normalisation."""

    id: str
    ref: str
    hyp: str
    duration_s: float | None = None
    speaker: str | None = None
    language: str | None = None


@dataclasses.dataclass(frozen=True)
class Scored:
    utterance: Utterance
    words: Edits
    characters: Edits
    pairs: tuple[Pair, ...]


def score_utterance(utterance: Utterance, normalisation: str = "basic") -> Scored:
    ref = normalise(utterance.ref, normalisation)
    hyp = normalise(utterance.hyp, normalisation)
    pairs = align(ref.split(), hyp.split())
    return Scored(utterance, count_edits(pairs), count_edits(align(ref, hyp)), tuple(pairs))


def error_rates(
    utterances: Iterable[Utterance], normalisation: str = "basic"
) -> tuple[dict[str, Any], list[Scored]]:
    """Score a decoding; returns what results.json holds, and each utterance's alignment.

    Raises `ValueError` if there are no utterances, an id occurs twice, or no reference has a word.
    """
    scored = [score_utterance(u, normalisation) for u in utterances]
    if not scored:
        raise ValueError("utterances: found none, want at least one")
    twice = [i for i, n in Counter(s.utterance.id for s in scored).items() if n > 1]
    if twice:
        raise ValueError(f"utterances: found {twice[0]!r} and {len(twice) - 1} more ids twice")
    words = sum((s.words for s in scored), Edits())
    if words.length == 0:
        raise ValueError("references: found no word in any, want transcripts in the cuts")
    characters = sum((s.characters for s in scored), Edits())
    low, high = bootstrap([s.words for s in scored])
    results: dict[str, Any] = {
        "wer": words.rate,
        "wer_ci95": [low, high],
        "cer": characters.rate,
        "cer_ci95": list(bootstrap([s.characters for s in scored])),
        "words": words.length,
        "errors": words.errors,
        "substitutions": words.substitutions,
        "deletions": words.deletions,
        "insertions": words.insertions,
        "characters": characters.length,
        "character_errors": characters.errors,
        "utterances": len(scored),
        "utterances_with_errors": sum(s.words.errors > 0 for s in scored),
        "by_duration_s": _grouped(scored, _duration_bucket),
        "by_speaker": _grouped(scored, lambda s: s.utterance.speaker),
        "by_language": _by_language(scored),
        "confusions": confusions(scored),
        "normalisation": {"name": normalisation, "means": NORMALISATIONS[normalisation]},
    }
    return results, scored


def _by_language(scored: Iterable[Scored]) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[Scored]] = {}
    for item in scored:
        if item.utterance.language is not None:
            groups.setdefault(item.utterance.language, []).append(item)
    found = {}
    for name in sorted(groups):
        words = sum((s.words for s in groups[name]), Edits())
        characters = sum((s.characters for s in groups[name]), Edits())
        found[name] = {
            "cer": characters.rate if characters.length else None,
            "wer": words.rate if words.length else None,
            "characters": characters.length,
            "character_errors": characters.errors,
            "words": words.length,
            "errors": words.errors,
            "utterances": len(groups[name]),
        }
    return found


def over_languages(by_language: Mapping[str, Mapping[str, Any]], worst: int = 15) -> dict[str, Any]:
    """How character error rates differ between the languages of `error_rates`' "by_language".

    Each language counts the same, however much was said in it: mean, population standard
    deviation, and the mean over the `worst` ones (over all if there are fewer). Languages without a
    character in their references are left out.
    Source: Chen et al. 2025 (Interspeech 2025 ML-SUPERB 2.0 challenge); Shi et al. 2024 (ML-SUPERB
    2.0), section 3.
    Raises `ValueError` if there is no language, or `worst` is below 1.
    """
    rates = {k: v["cer"] for k, v in by_language.items() if v["cer"] is not None}
    if not rates or worst < 1:
        raise ValueError(
            f"by_language, worst: found {len(rates)} languages and {worst}, want 1 or more of both"
        )
    order = sorted(rates, key=lambda name: (-rates[name], name))[:worst]
    values = np.array(list(rates.values()))
    return {
        "languages": len(rates),
        "mean_cer": float(values.mean()),
        "std_cer": float(values.std()),
        "worst_cer": float(np.mean([rates[name] for name in order])),
        "worst": order,
    }


def bootstrap(edits: Sequence[Edits], draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the error rate under resampling of utterances; deterministic.

    Source: Bisani and Ney 2004, "Bootstrap estimates for confidence intervals in ASR".
    """
    errors = np.array([e.errors for e in edits], dtype=np.float64)
    lengths = np.array([e.length for e in edits], dtype=np.float64)
    random = np.random.default_rng(seed)
    rates = np.empty(draws)
    for i in range(draws):
        chosen = random.integers(len(edits), size=len(edits))
        rates[i] = errors[chosen].sum() / max(lengths[chosen].sum(), 1.0)
    low, high = np.quantile(rates, [0.025, 0.975])
    return float(low), float(high)


def confusions(scored: Iterable[Scored], top: int = 20) -> dict[str, list[list[Any]]]:
    """The most frequent substitutions, deletions and insertions, with their counts."""
    swapped: Counter[Pair] = Counter()
    deleted: Counter[str] = Counter()
    inserted: Counter[str] = Counter()
    for ref, hyp in (pair for s in scored for pair in s.pairs):
        if ref is None:
            inserted[hyp] += 1
        elif hyp is None:
            deleted[ref] += 1
        elif ref != hyp:
            swapped[ref, hyp] += 1

    def first(counter: Counter[Any]) -> list[tuple[Any, int]]:
        return sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:top]

    return {
        "substitutions": [[ref, hyp, n] for (ref, hyp), n in first(swapped)],
        "deletions": [[word, n] for word, n in first(deleted)],
        "insertions": [[word, n] for word, n in first(inserted)],
    }


def alignment_text(scored: Scored) -> str:
    """Reference over hypothesis in columns, errors in capitals and marked S, D, I."""
    rows: list[list[str]] = [[], [], []]
    for ref, hyp in scored.pairs:
        mark = "I" if ref is None else "D" if hyp is None else "S" if ref != hyp else ""
        shown = [ref or "***", hyp or "***", mark]
        if mark:
            shown[:2] = [shown[0].upper(), shown[1].upper()]
        width = max(map(len, shown))
        for row, cell in zip(rows, shown, strict=True):
            row.append(cell.ljust(width))
    words = scored.words
    head = (
        f"{scored.utterance.id}  errors {words.errors} of {words.length} words "
        f"(S {words.substitutions}, D {words.deletions}, I {words.insertions})"
    )
    body = [f"{k}: {' '.join(row).rstrip()}" for k, row in zip(("REF", "HYP", "   "), rows)]
    return "\n".join([head, *(line.rstrip() for line in body)]) + "\n"


def _duration_bucket(scored: Scored) -> str | None:
    seconds = scored.utterance.duration_s
    if seconds is None:
        return None
    edges = (0.0, *LENGTH_BUCKETS_S)
    at = max(i for i, edge in enumerate(edges) if seconds >= edge)
    return f"{edges[at]:g}-{edges[at + 1]:g}" if at + 1 < len(edges) else f"{edges[at]:g}+"


def _grouped(
    scored: Iterable[Scored], key: Callable[[Scored], str | None]
) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[Scored]] = {}
    for item in scored:
        name = key(item)
        if name is not None:
            groups.setdefault(name, []).append(item)

    def summary(group: list[Scored]) -> dict[str, Any]:
        words = sum((s.words for s in group), Edits())
        rate = words.rate if words.length else None
        return {
            "wer": rate,
            "words": words.length,
            "errors": words.errors,
            "utterances": len(group),
        }

    def order(name: str) -> tuple[float, str]:
        lead = name.split("-")[0].rstrip("+")
        return (float(lead) if lead.isdigit() else 0.0, name)

    return {name: summary(groups[name]) for name in sorted(groups, key=order)}
