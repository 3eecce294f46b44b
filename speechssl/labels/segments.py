"""Segments of speech without learning, and segments as frame labels.

The two baselines beside `nn.segmentation`: cuts at a fixed rate, and at dips of the energy.
Segments are (S, 2) seconds in order, without overlap.

Shape legend: L samples, T frames, S segments.
"""

from __future__ import annotations

import itertools

import numpy as np

SAMPLE_RATE = 16000
STEP = 160
"""Samples from one value of the energy's contour to the next: 10 ms."""


def fixed_rate(seconds: float, rate_hz: float) -> np.ndarray:
    """Segments of equal length over the whole utterance, the last one shorter."""
    if rate_hz <= 0:
        raise ValueError(f"rate_hz: found {rate_hz}, want more than 0")
    edges = np.arange(0.0, seconds, 1 / rate_hz)
    edges = np.append(edges[seconds - edges > 1e-3], seconds)
    return np.stack([edges[:-1], edges[1:]], 1)


def contour_db(wave: np.ndarray, smooth_seconds: float = 0.06) -> np.ndarray:
    """(L,) samples -> (T,) level every 10 ms in dB below the loudest, smoothed by a Hann window."""
    size = max(round(smooth_seconds * SAMPLE_RATE / STEP), 1)
    power = np.square(wave[: len(wave) // STEP * STEP].astype(np.float64)).reshape(-1, STEP)
    if not len(power):
        return np.zeros(0)
    weights = np.hanning(size + 2)[1:-1]
    weights = weights / weights.sum()
    before = (size - 1) // 2
    padded = np.pad(power.mean(1), (before, size - 1 - before), mode="edge")
    level = 10 * np.log10(np.convolve(padded, weights, mode="valid") + 1e-12)
    return level - level.max()


def energy_segments(wave: np.ndarray, silence_db: float = 25.0, dip_db: float = 3.0) -> np.ndarray:
    """(L,) samples at 16 kHz -> segments: runs above the silence, cut where the level dips.

    silence_db: frames so far below the loudest are in no segment. dip_db: a dip counts if the
    level falls so far, and rises so far again.
    Source: Mermelstein 1975, "Automatic segmentation of speech into syllabic units", with dips of
    the level in place of those below a convex hull.
    """
    level = contour_db(wave)
    loud = np.concatenate([[False], level >= -silence_db, [False]])
    edges = np.flatnonzero(loud[1:] != loud[:-1]).reshape(-1, 2)
    parts = []
    for start, end in edges:
        cuts = [start, *(start + dips(level[start:end], dip_db)), end]
        parts += list(itertools.pairwise(cuts))
    return np.array(parts, dtype=np.float64).reshape(-1, 2) * STEP / SAMPLE_RATE


def dips(level: np.ndarray, depth: float) -> np.ndarray:
    """(T,) -> places of the lowest points between rises and falls of at least `depth`."""
    # The first of equal neighbours stands for them.
    places = np.flatnonzero(np.append(True, np.diff(level) != 0))
    slope = np.sign(np.diff(level[places]))
    turns = places[1 + np.flatnonzero(slope[1:] != slope[:-1])]
    found: list[int] = []
    high, low, place = -np.inf, np.inf, 0
    falling = False
    for t in [0, *turns.tolist(), int(places[-1])]:
        if not falling:
            high = max(high, level[t])
            if level[t] <= high - depth:
                falling, low, place = True, level[t], t
        elif level[t] < low:
            low, place = level[t], t
        elif level[t] >= low + depth:
            found.append(place)
            falling, high = False, level[t]
    return np.array(found, dtype=np.int64)


def frame_labels(
    segments: np.ndarray, frames: int, frame_rate_hz: float, window_seconds: float
) -> np.ndarray:
    """(S, 2) seconds -> (T,) 0 outside of all, else 1 or 2 in turn, by each frame's centre.

    Equal neighbours are one segment, as `nn.segmentation.labelled_segments` reads them.
    """
    labels = np.zeros(frames, dtype=np.int64)
    if not len(segments):
        return labels
    # Rounding to a microsecond: a boundary between two frames must not fall on one by an ulp.
    centres = np.round(np.arange(frames) / frame_rate_hz + window_seconds / 2, 6)
    place = np.searchsorted(np.round(segments[:, 0], 6), centres, side="right") - 1
    inside = (place >= 0) & (centres < np.round(segments[:, 1], 6)[place])
    labels[inside] = 1 + place[inside] % 2
    return labels
