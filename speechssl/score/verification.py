"""Speaker verification: cosine scores, adaptive score normalisation, EER, minDCF, DET points.

A trial is accepted when its score is at least the threshold, so equal scores are accepted or
rejected together.

Shape legend: N trials, K cohort utterances, E embedding width, P thresholds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Trial:
    """Whether two utterances are of one speaker."""

    target: bool
    enrol: str
    test: str


def read_trials(path: str | Path) -> list[Trial]:
    """Trials of a text file, as VoxCeleb's: one `1|0 ENROL TEST` per line.

    Raises `ValueError` that names the line which is something else, and for no line at all.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"trials: found no file {path}, want lines of `1|0 ENROL TEST`")
    found = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            words = line.split()
            if not words:
                continue
            if len(words) != 3 or words[0] not in ("0", "1"):
                raise ValueError(
                    f"{path}:{number}: found {line.strip()[:80]!r}, want `1 ENROL TEST` for one "
                    "speaker or `0 ENROL TEST` for two"
                )
            found.append(Trial(words[0] == "1", words[1], words[2]))
    if not found:
        raise ValueError(f"trials: found none in {path}, want lines of `1|0 ENROL TEST`")
    return found


def unit(x: np.ndarray) -> np.ndarray:
    """(..., E) -> the same vectors at length 1, float64; a zero vector stays zero."""
    x = np.asarray(x, dtype=np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, E) and (N, E) -> (N,) cosines, row by row."""
    return (unit(a) * unit(b)).sum(-1)


def cohort_statistics(scores: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, K) scores against a cohort -> (N,) mean and (N,) deviation of the `top` highest.

    Raises `ValueError` for fewer than two of them, or where they are all equal.
    """
    count = min(top, scores.shape[1])
    if count < 2:
        raise ValueError(
            f"top: found {top} of {scores.shape[1]} cohort utterances, want 2 or more: a deviation "
            "is taken of them"
        )
    highest = np.partition(np.asarray(scores, dtype=np.float64), -count, axis=1)[:, -count:]
    deviation = highest.std(axis=1)
    if not deviation.all():
        raise ValueError("cohort: found equal scores only, want utterances of different speakers")
    return highest.mean(axis=1), deviation


def as_norm(
    scores: np.ndarray,
    enrol: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """(N,) scores brought to the scale of each side's nearest impostors, and averaged.

    enrol, test: mean and deviation (N,) of each trial's sides, as `cohort_statistics` gives.
    Source: Matejka et al. 2017, "Analysis of score normalization in multilingual speaker
    recognition" (adaptive S-norm 1: each side chooses its own cohort).
    """
    return 0.5 * ((scores - enrol[0]) / enrol[1] + (scores - test[0]) / test[1])


def error_curve(
    scores: np.ndarray, is_target: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds (P,), ascending to infinity, with the miss and false-alarm rates (P,) at each.

    scores: (N,); is_target: (N,) bool; weights: (N,) how much each trial counts, None: alike.
    Raises `ValueError` for scores that are not finite, or where one kind of trial is missing.
    """
    scores, is_target = np.asarray(scores, dtype=np.float64), np.asarray(is_target, dtype=bool)
    if scores.shape != is_target.shape or scores.ndim != 1:
        raise ValueError(
            f"scores, is_target: found shapes {scores.shape}, {is_target.shape}, want (N,) twice"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores: found some that are not finite, want numbers; look at embeddings")
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=np.float64)
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    below = [np.append(0.0, np.cumsum((weights * kind)[order])) for kind in (is_target, ~is_target)]
    if not (below[0][-1] > 0 and below[1][-1] > 0):
        raise ValueError(
            f"trials: found {below[0][-1]:g} of one speaker and {below[1][-1]:g} of two, want some "
            "of both"
        )
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    at = np.append(first, len(ordered))
    thresholds = np.append(ordered[first], np.inf)
    return thresholds, below[0][at] / below[0][-1], 1.0 - below[1][at] / below[1][-1]


def eer(
    scores: np.ndarray, is_target: np.ndarray, weights: np.ndarray | None = None
) -> tuple[float, float]:
    """Equal error rate, and the threshold there; arguments as of `error_curve`.

    Between two points of the curve the rates are interpolated, so that equal scores throughout
    give 0.5, and exchanging targets and non-targets gives 1 - EER.
    """
    thresholds, miss, alarm = error_curve(scores, is_target, weights)
    gap = miss - alarm  # from -1 to 1, never falling
    behind = int(np.argmax(gap >= 0))
    before = behind - 1
    share = -gap[before] / (gap[behind] - gap[before])
    low, high = thresholds[before], thresholds[behind]
    rate = miss[before] + share * (miss[behind] - miss[before])
    return float(rate), float(low if np.isinf(high) else low + share * (high - low))


def min_cost(
    scores: np.ndarray,
    is_target: np.ndarray,
    p_target: float = 0.01,
    c_miss: float = 1.0,
    c_alarm: float = 1.0,
) -> float:
    """Least detection cost over all thresholds, as it is: some libraries call this minDCF.

    Source: NIST speaker recognition evaluation plans (2008 and later).
    """
    if not 0 < p_target < 1:
        raise ValueError(f"p_target: found {p_target}, want a probability between 0 and 1")
    _, miss, alarm = error_curve(scores, is_target)
    return float((c_miss * p_target * miss + c_alarm * (1 - p_target) * alarm).min())


def min_dcf(
    scores: np.ndarray,
    is_target: np.ndarray,
    p_target: float = 0.01,
    c_miss: float = 1.0,
    c_alarm: float = 1.0,
) -> float:
    """`min_cost` divided by the cost of the better blind decision: at most 1."""
    cost = min_cost(scores, is_target, p_target, c_miss, c_alarm)
    return cost / min(c_miss * p_target, c_alarm * (1 - p_target))


def det_points(
    scores: np.ndarray, is_target: np.ndarray, most: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """False-alarm and miss rates (P,) of a DET curve, at most `most` points evenly along it.

    The points where either rate is 0 or 1, which a DET plot cannot show, are left out.
    """
    _, miss, alarm = error_curve(scores, is_target)
    inside = np.flatnonzero((miss > 0) & (miss < 1) & (alarm > 0) & (alarm < 1))
    if len(inside) > most:
        inside = inside[np.linspace(0, len(inside) - 1, most).round().astype(int)]
    return alarm[inside], miss[inside]


def probit(rate: float) -> float:
    """The normal deviate of a rate in (0, 1): the axes of a DET plot (Martin et al. 1997)."""
    return NormalDist().inv_cdf(rate)


def eer_interval(
    scores: np.ndarray,
    is_target: np.ndarray,
    enrol_speakers: Sequence[str],
    test_speakers: Sequence[str],
    draws: int = 200,
    seed: int = 0,
) -> tuple[float, float] | None:
    """95 % interval of the EER under resampling of speakers; None with too few of them.

    Trials share speakers and utterances, so resampling trials would claim far too much. A draw
    takes speaker s n_s times: its target trials count n_s times, a trial of s and t n_s n_t times.
    Source: after Poh et al. 2007 (user-specific bootstrap).
    """
    names, places = np.unique([*enrol_speakers, *test_speakers], return_inverse=True)
    if len(names) < 3:
        return None
    enrol, test = places[: len(scores)], places[len(scores) :]
    random = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        times = np.bincount(random.integers(len(names), size=len(names)), minlength=len(names))
        weights = np.where(enrol == test, times[enrol], times[enrol] * times[test])
        if weights[is_target].sum() and weights[~is_target].sum():
            found.append(eer(scores, is_target, weights)[0])
    if not found:
        return None
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def verification_results(
    scores: np.ndarray,
    is_target: np.ndarray,
    enrol_speakers: Sequence[str] | None = None,
    test_speakers: Sequence[str] | None = None,
    p_targets: Sequence[float] = (0.01, 0.05),
) -> dict[str, Any]:
    """What results.json holds of a list of scored trials; speakers give the EER an interval."""
    is_target = np.asarray(is_target, dtype=bool)
    rate, threshold = eer(scores, is_target)
    interval = None
    if enrol_speakers is not None and test_speakers is not None:
        interval = eer_interval(scores, is_target, enrol_speakers, test_speakers)
    alarm, miss = det_points(scores, is_target)
    return {
        "eer": rate,
        "eer_ci95": None if interval is None else list(interval),
        "eer_threshold": threshold,
        "min_dcf": {f"{p:g}": min_dcf(scores, is_target, p) for p in p_targets},
        "min_cost": {f"{p:g}": min_cost(scores, is_target, p) for p in p_targets},
        "targets": int(is_target.sum()),
        "nontargets": int((~is_target).sum()),
        "det": {"false_alarm": alarm.tolist(), "miss": miss.tolist()},
    }
