"""Slots of an intent: exact matches, and precision, recall and F1 of slot-value pairs.

A hypothesis may come as one value per slot, or be read off a text with tags, `<drink> iced mocha
</drink>`, as a recogniser with tag tokens writes it. Source: Yang et al. 2021 (SUPERB), intent
classification and slot filling. Differs: `f1` and `value_cer` count slots of the whole corpus, and
what a hypothesis has too many; SUPERB's own figures, which do not, are beside them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from speechssl.score.wer import Edits, align, count_edits

Slots = Sequence[tuple[str, str]]
"""(slot, value) pairs of one utterance."""


def tagged_slots(text: str) -> list[tuple[str, str]]:
    """(slot, value) of every `<slot> value </slot>`; what is not closed, or not open, is none."""
    return [
        (m["slot"], " ".join(m["value"].split()))
        for m in re.finditer(r"<(?P<slot>[^<>/]+)>(?P<value>[^<>]*)</(?P=slot)>", text)
    ]


def f1(refs: Iterable[Slots], hyps: Iterable[Slots], *, values: bool = True) -> dict[str, float]:
    """Micro-averaged precision, recall and F1 of slots: with their values, or their types alone.

    A pair counts as often as it occurs. Without any slot on either side all are 1.
    """
    right = found = wanted = 0
    for ref, hyp in zip(refs, hyps, strict=True):
        one, two = (Counter(pairs if values else [s for s, _ in pairs]) for pairs in (ref, hyp))
        right += (one & two).total()
        wanted, found = wanted + one.total(), found + two.total()
    return {
        "precision": right / found if found else float(wanted == 0),
        "recall": right / wanted if wanted else float(found == 0),
        "f1": 2 * right / (wanted + found) if wanted + found else 1.0,
    }


def value_cer(refs: Iterable[Slots], hyps: Iterable[Slots]) -> float:
    """Character error rate of slots' values, summed over the corpus.

    Values of one slot are compared in order; a value without a counterpart is all errors.
    Raises `ValueError` if no reference has a value.
    """
    edits = Edits()
    for ref, hyp in zip(refs, hyps, strict=True):
        for slot in dict.fromkeys(s for s, _ in (*ref, *hyp)):
            ours, theirs = ([v for s, v in pairs if s == slot] for pairs in (ref, hyp))
            for i in range(max(len(ours), len(theirs))):
                pair = (x[i] if i < len(x) else "" for x in (ours, theirs))
                edits = edits + count_edits(align(*pair))
    if edits.length == 0:
        raise ValueError("references: found no value of a slot, want some")
    return edits.rate


def superb_type_f1(refs: Iterable[Slots], hyps: Iterable[Slots]) -> float:
    """Mean over utterances of the F1 of which types of slots occur, however often.

    Without any slot on either side an utterance counts 1. Source: Yang et al. 2021 (SUPERB), slot
    filling, as in its code.
    """
    found = []
    for ref, hyp in zip(refs, hyps, strict=True):
        one, two = ({slot for slot, _ in pairs} for pairs in (ref, hyp))
        found.append(2 * len(one & two) / (len(one) + len(two)) if one or two else 1.0)
    return sum(found) / len(found)


def superb_value_cer(refs: Iterable[Slots], hyps: Iterable[Slots]) -> float:
    """Character error rate of the references' values, each against the nearest of its slot.

    One that the hypothesis lacks is all errors; those that it has beyond cost nothing.
    Raises `ValueError` if no reference has a value. Source: as `superb_type_f1`.
    """
    edits = Edits()
    for ref, hyp in zip(refs, hyps, strict=True):
        for slot, value in ref:
            theirs = [v for s, v in hyp if s == slot] or [""]
            each = (count_edits(align(value, v)) for v in theirs)
            edits = edits + min(each, key=lambda e: e.errors)
    if edits.length == 0:
        raise ValueError("references: found no value of a slot, want some")
    return edits.rate


def slot_results(refs: Sequence[Slots], hyps: Sequence[Slots]) -> dict[str, Any]:
    """What results.json holds of utterances' slots.

    accuracy: share of the utterances of which every slot is right.
    """
    if not refs:
        raise ValueError("slots: found no utterance, want at least one")
    pairs, types = f1(refs, hyps), f1(refs, hyps, values=False)
    names = sorted({s for row in (*refs, *hyps) for s, _ in row})
    of_each = {
        name: f1(*([[p for p in row if p[0] == name] for row in rows] for rows in (refs, hyps)))
        for name in names
    }
    return {
        "exact_match": sum(Counter(r) == Counter(h) for r, h in zip(refs, hyps)) / len(refs),
        "slot_f1": pairs["f1"],
        "slot_precision": pairs["precision"],
        "slot_recall": pairs["recall"],
        "slot_type_f1": types["f1"],
        "slot_value_cer": value_cer(refs, hyps),
        "superb_slot_type_f1": superb_type_f1(refs, hyps),
        "superb_slot_value_cer": superb_value_cer(refs, hyps),
        "utterances": len(refs),
        "by_slot": of_each,
    }
