"""Agreement of numbers: concordance and Pearson's correlation, errors.

Shape legend: N utterances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def ccc(x: np.ndarray, y: np.ndarray) -> float:
    """Concordance correlation 2 cov / (var + var + (difference of means)^2), -1 to 1.

    Of two constants that are equal it is 1, of a constant and anything else 0.
    Source: Lin 1989, with population moments.
    """
    x, y = _pair(x, y)
    spread = x.var() + y.var() + (x.mean() - y.mean()) ** 2
    if spread == 0:
        return 1.0
    return float(2 * ((x - x.mean()) * (y - y.mean())).mean() / spread)


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation of (N,) and (N,); NaN where one of them is constant."""
    x, y = _pair(x, y)
    if x.std() == 0 or y.std() == 0:
        return float("nan")
    return float(((x - x.mean()) * (y - y.mean())).mean() / (x.std() * y.std()))


def rmse(x: np.ndarray, y: np.ndarray) -> float:
    x, y = _pair(x, y)
    return float(np.sqrt(np.square(x - y).mean()))


def _pair(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or not len(x):
        raise ValueError(f"x, y: found shapes {x.shape}, {y.shape}, want (N,) twice, not empty")
    return x, y


def regression_results(
    refs: Sequence[Sequence[float | None]], hyps: Sequence[Sequence[float]], names: Sequence[str]
) -> dict[str, Any]:
    """What results.json holds: each dimension's figures, and their mean CCC.

    refs, hyps: a row of `names` per utterance. Raises `ValueError` if no row has all references, or
    a number is not finite.
    """
    kept = [(r, h) for r, h in zip(refs, hyps, strict=True) if None not in r]
    if not kept:
        raise ValueError(
            f"values: found {len(refs)} utterances and no reference of {list(names)}, want cuts "
            "that hold the fields which the model was trained on"
        )
    ref, hyp = (np.array([pair[i] for pair in kept], dtype=np.float64) for i in (0, 1))
    if not (np.isfinite(ref).all() and np.isfinite(hyp).all()):
        raise ValueError("values: found some that are not finite, want numbers; decode again")
    figures: Mapping[str, Any] = {
        name: {
            "ccc": ccc(ref[:, i], hyp[:, i]),
            "pearson": _or_none(pearson(ref[:, i], hyp[:, i])),
            "rmse": rmse(ref[:, i], hyp[:, i]),
        }
        for i, name in enumerate(names)
    }
    return {
        "ccc": float(np.mean([f["ccc"] for f in figures.values()])),
        "by_dimension": dict(figures),
        "utterances": len(kept),
        "without_reference": len(refs) - len(kept),
    }


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value
