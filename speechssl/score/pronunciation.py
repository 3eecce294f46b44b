"""Goodness of pronunciation from the posteriors of a phone recogniser.

Source: Witt and Young 2000; Hu et al. 2015 and Zhang et al. 2021 (speechocean762) for the ratio of
posteriors. GOP(p) is the mean over the frames aligned to p of log P(p | o) - max_q log P(q | o): 0
where p is the most probable phone throughout, negative where another is.

Shape legend: T frames, V tokens with the blank 0, U tokens of the canonical pronunciation.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

BLANK = 0


def ctc_align(log_probs: np.ndarray, tokens: Sequence[int]) -> list[tuple[int, int]]:
    """Most probable alignment: for each of U tokens its first frame, and the one behind its last.

    log_probs: (T, V). Raises `ValueError` for too few frames: one per token, and one between equal
    tokens.
    """
    log_probs = np.asarray(log_probs, dtype=np.float64)
    states = np.full(2 * len(tokens) + 1, BLANK)
    states[1::2] = tokens
    needed = len(tokens) + sum(a == b for a, b in itertools.pairwise(tokens))
    if log_probs.ndim != 2 or len(log_probs) < needed or not len(tokens):
        raise ValueError(
            f"log_probs: found shape {log_probs.shape} for {len(tokens)} tokens, want (T, V) with "
            f"at least {max(needed, 1)} frames, and a token or more"
        )
    # From the state before the last a token may be reached over its blank, unless it repeats.
    skips = np.zeros(len(states), dtype=bool)
    skips[3::2] = states[3::2] != states[1:-2:2]
    emitted = log_probs[:, states]
    score = np.full(len(states), -np.inf)
    score[:2] = emitted[0, :2]
    came = np.zeros((len(log_probs), len(states)), dtype=np.int64)
    for t in range(1, len(log_probs)):
        steps = np.full((3, len(states)), -np.inf)
        steps[0] = score
        steps[1, 1:] = score[:-1]
        steps[2, 2:] = np.where(skips[2:], score[:-2], -np.inf)
        came[t] = steps.argmax(0)
        score = steps.max(0) + emitted[t]
    state = len(states) - 1 if score[-1] >= score[-2] else len(states) - 2
    path = np.empty(len(log_probs), dtype=np.int64)
    for t in range(len(log_probs) - 1, -1, -1):
        path[t] = state
        state -= came[t, state]
    spans = []
    for place in range(1, len(states), 2):
        frames = np.flatnonzero(path == place)
        spans.append((int(frames[0]), int(frames[-1]) + 1))
    return spans


def goodness(
    log_probs: np.ndarray, tokens: Sequence[int], spans: Sequence[tuple[int, int]] | None = None
) -> np.ndarray:
    """(U,) GOP of each token, at most 0; the blank is no rival. Raises as `ctc_align` does.

    spans: of `ctc_align`, if they are known.
    """
    log_probs = np.asarray(log_probs, dtype=np.float64)
    rival = np.delete(log_probs, BLANK, axis=1).max(1)
    ratios = log_probs[:, list(tokens)] - rival[:, None]
    spans = ctc_align(log_probs, tokens) if spans is None else spans
    return np.array([ratios[a:b, i].mean() for i, (a, b) in enumerate(spans)])


def spread(spans: Sequence[tuple[int, int]], frames: int, most: int) -> list[tuple[int, int]]:
    """Spans that share the blanks between them, `most` frames to each side at most.

    CTC recognises a phone in a frame or two of those that it lasts.
    """
    starts, ends = [a for a, _ in spans], [b for _, b in spans]
    between = [(b + a + 1) // 2 for b, a in zip(ends, starts[1:])]
    edges = [0, *between, frames]
    return [
        (max(low, a - most), min(high, b + most))
        for (a, b), low, high in zip(spans, edges, edges[1:])
    ]


def auc(scores: np.ndarray, is_good: np.ndarray) -> float:
    """Probability that a good one scores above a bad one, ties half; (N,) and (N,) bool.

    Source: Mann and Whitney 1947. Raises `ValueError` where one kind is missing.
    """
    scores, is_good = np.asarray(scores, dtype=np.float64), np.asarray(is_good, dtype=bool)
    good, bad = np.sort(scores[is_good]), np.sort(scores[~is_good])
    if not len(good) or not len(bad):
        raise ValueError(f"is_good: found {len(good)} good of {len(scores)}, want some of both")
    below = np.searchsorted(bad, good, "left").sum() + np.searchsorted(bad, good, "right").sum()
    return float(below / (2 * len(good) * len(bad)))
