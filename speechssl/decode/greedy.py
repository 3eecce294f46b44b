"""Best-path CTC decoding: the most probable token of each frame, merged."""

from __future__ import annotations

import numpy as np


def greedy(log_probs: np.ndarray, blank: int = 0) -> tuple[list[int], float]:
    """(S, V) log-probabilities -> tokens without repeats and blanks, and the path's log-prob."""
    if log_probs.ndim != 2:
        raise ValueError(f"log_probs: found shape {log_probs.shape}, want (frames, tokens)")
    if not len(log_probs):
        return [], 0.0
    path = log_probs.argmax(1)
    new = np.ones(len(path), dtype=bool)
    new[1:] = path[1:] != path[:-1]
    return path[new & (path != blank)].tolist(), float(log_probs.max(1).sum())
