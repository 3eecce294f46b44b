"""Accuracy, unweighted average recall, macro F1 and confusions of single-label classification.

A reference of a class that the model has no output for can never be right: it counts as an
error, its class has recall 0 in the averages, and `unseen_classes` names it with its count.

Shape legend: N utterances, C classes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One utterance: its class by the manifest (None: it says none) and by the model."""

    id: str
    ref: str | None
    hyp: str
    speaker: str | None = None


def confusion(refs: Sequence[str], hyps: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """(C, C) int64: entry [i, j] counts references of class i that were taken for class j.

    Raises `ValueError` for lists of different length, a class named twice, or one that
    `classes` lacks.
    """
    if len(refs) != len(hyps):
        raise ValueError(f"refs, hyps: found {len(refs)} and {len(hyps)}, want as many of each")
    place = {name: i for i, name in enumerate(classes)}
    if len(place) != len(classes):
        raise ValueError(f"classes: found a name twice in {list(classes)}, want each once")
    unknown = sorted({x for x in (*refs, *hyps) if x not in place})
    if unknown:
        raise ValueError(f"classes: found {unknown[:5]} beside them, want some of {list(classes)}")
    flat = [place[r] * len(place) + place[h] for r, h in zip(refs, hyps, strict=True)]
    return _square(np.array(flat, dtype=np.int64), len(place))


def _square(flat: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(flat, minlength=count * count).reshape(count, count)


def accuracy(counts: np.ndarray) -> float:
    """Share of the utterances whose class was found; (C, C) counts as of `confusion`."""
    return float(np.trace(counts) / counts.sum())


def recalls(counts: np.ndarray) -> np.ndarray:
    """(C,) share of each class's references that were found; NaN for a class without any."""
    return _ratio(np.diag(counts), counts.sum(1))


def precisions(counts: np.ndarray) -> np.ndarray:
    """(C,) share of what was taken for each class that is of it; NaN where nothing was."""
    return _ratio(np.diag(counts), counts.sum(0))


def f1_scores(counts: np.ndarray) -> np.ndarray:
    """(C,) 2 tp / (references + predictions); NaN for a class that has neither."""
    return _ratio(2 * np.diag(counts), counts.sum(0) + counts.sum(1))


def uar(counts: np.ndarray) -> float:
    """Unweighted average recall: mean recall over the classes that have references.

    Source: Schuller et al. 2009 (the INTERSPEECH emotion challenge); scikit-learn calls it
    balanced accuracy.
    """
    return float(np.nanmean(recalls(counts)))


def macro_f1(counts: np.ndarray) -> float:
    """Mean F1 over the classes that have references or predictions, as scikit-learn's default."""
    return float(np.nanmean(f1_scores(counts)))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def classification_results(
    predictions: Iterable[Prediction], classes: Sequence[str]
) -> dict[str, Any]:
    """What results.json holds of a classification.

    classes: the model's outputs in order; classes that only references have follow behind them.
    Raises `ValueError` if an id occurs twice, or no utterance has a reference.
    """
    found = list(predictions)
    twice = [i for i, n in Counter(p.id for p in found).items() if n > 1]
    if twice:
        raise ValueError(f"predictions: found {twice[0]!r} and {len(twice) - 1} more ids twice")
    known = [p for p in found if p.ref is not None]
    if not known:
        raise ValueError(
            f"predictions: found {len(found)} utterances and no reference, want cuts that hold the "
            "field which the model was trained on"
        )
    refs, hyps = [str(p.ref) for p in known], [p.hyp for p in known]
    unseen = Counter(r for r in refs if r not in set(classes))
    names = [*classes, *sorted(unseen)]
    counts = confusion(refs, hyps, names)
    intervals = bootstrap(counts)
    of_each = zip(
        names, counts.sum(1), recalls(counts), precisions(counts), f1_scores(counts), strict=True
    )
    return {
        "accuracy": accuracy(counts),
        "accuracy_ci95": list(intervals["accuracy"]),
        "uar": uar(counts),
        "uar_ci95": list(intervals["uar"]),
        "macro_f1": macro_f1(counts),
        "majority_accuracy": float(counts.sum(1).max() / counts.sum()),
        "utterances": len(known),
        "without_reference": len(found) - len(known),
        "unseen_classes": dict(sorted(unseen.items())),
        "classes": names,
        "confusion": counts.tolist(),
        "per_class": {
            name: {
                "utterances": int(number),
                "recall": _or_none(recall),
                "precision": _or_none(precision),
                "f1": _or_none(f1),
            }
            for name, number, recall, precision, f1 in of_each
        },
        "by_speaker": _by_speaker(known),
    }


def bootstrap(
    counts: np.ndarray, draws: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % intervals of accuracy and UAR under resampling of utterances; deterministic.

    Utterances of one speaker are taken for independent, so with few speakers the intervals are
    too narrow for a statement about other speakers.
    """
    total = int(counts.sum())
    random = np.random.default_rng(seed)
    drawn = random.multinomial(total, counts.ravel() / total, size=draws)
    drawn = drawn.reshape(draws, *counts.shape)
    right, references = np.diagonal(drawn, axis1=1, axis2=2), drawn.sum(2)
    shares = np.divide(right, references, out=np.full(right.shape, np.nan), where=references > 0)
    found = {"accuracy": right.sum(1) / total, "uar": np.nanmean(shares, axis=1)}
    return {k: tuple(np.quantile(v, [0.025, 0.975]).tolist()) for k, v in found.items()}


def _by_speaker(predictions: Sequence[Prediction]) -> dict[str, dict[str, Any]]:
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for p in predictions:
        if p.speaker is not None:
            total[p.speaker] += 1
            right[p.speaker] += p.ref == p.hyp
    return {s: {"accuracy": right[s] / total[s], "utterances": total[s]} for s in sorted(total)}


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
