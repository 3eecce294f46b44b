"""Quality of frame labels against phone alignments: functions of joint counts.

`joint[y, z]` counts the frames of phone y and cluster z. The phone of a frame is the one whose
interval holds the frame's centre; frames in no interval are not counted.
Source: Hsu et al., 2021, HuBERT, section IV-D (phone purity, cluster purity, PNMI).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

UNALIGNED = -1
_STRESS = re.compile(r"[ˈˌ]+|(?<=^[A-Z]{2})[0-2]$")


def strip_stress(phone: str) -> str:
    """AH0 -> AH, ˈa -> a: stress is no part of a phone's identity."""
    return _STRESS.sub("", phone) or phone


def phone_frames(
    intervals: Sequence[tuple[float, float, int]],
    num_frames: int,
    frame_rate_hz: float,
    window_seconds: float = 0.025,
) -> np.ndarray:
    """Phone number of each frame's centre, t / rate + window / 2: (num_frames,), UNALIGNED = -1.

    intervals: (start, end, phone number) in seconds, start included, end not; sorted by start.
    """
    phones = np.full(num_frames, UNALIGNED, dtype=np.int32)
    if not len(intervals) or not num_frames:
        return phones
    starts = np.array([start for start, _, _ in intervals])
    ends = np.array([end for _, end, _ in intervals])
    numbers = np.array([number for _, _, number in intervals], dtype=np.int32)
    # Rounding to a microsecond: 0.1 + 0.0125 must not fall before 0.1125 by an ulp.
    centres = np.round(np.arange(num_frames) / frame_rate_hz + window_seconds / 2, 6)
    at = np.searchsorted(np.round(starts, 6), centres, side="right") - 1
    inside = (at >= 0) & (centres < np.round(ends, 6)[at])
    phones[inside] = numbers[at[inside]]
    return phones


def add_counts(joint: np.ndarray, phones: np.ndarray, labels: np.ndarray) -> None:
    """Count pairs of equal frame numbers into joint (Y, Z), in place, to the shorter length."""
    shared = min(len(phones), len(labels))
    phones, labels = phones[:shared], labels[:shared].astype(np.int64)
    kept = (phones >= 0) & (labels >= 0)
    pairs = phones[kept].astype(np.int64) * joint.shape[1] + labels[kept]
    joint += np.bincount(pairs, minlength=joint.size).reshape(joint.shape)


def entropy(counts: np.ndarray) -> float:
    """Entropy of a table of counts, in nats."""
    p = counts[counts > 0].astype(np.float64)
    p = p / p.sum() if p.size else p
    return float(-(p * np.log(p)).sum())


def pnmi(joint: np.ndarray) -> float:
    """I(y; z) / H(y): the share of phone identity that the clusters tell. NaN if H(y) = 0."""
    phone_entropy = entropy(joint.sum(1))
    if phone_entropy == 0.0:
        return float("nan")
    return (phone_entropy + entropy(joint.sum(0)) - entropy(joint)) / phone_entropy


def phone_purity(joint: np.ndarray) -> float:
    """sum_z max_y p(y, z): accuracy of naming each cluster by its commonest phone."""
    total = joint.sum()
    return float(joint.max(0).sum() / total) if total else float("nan")


def cluster_purity(joint: np.ndarray) -> float:
    """sum_y max_z p(y, z); falls with the number of clusters, so compare at equal K."""
    total = joint.sum()
    return float(joint.max(1).sum() / total) if total else float("nan")


def usage(counts: np.ndarray) -> dict[str, float]:
    """Perplexity exp H(z) and empty clusters of the (K,) label counts."""
    if not counts.sum():
        return {"perplexity": float("nan"), "empty": len(counts)}
    return {"perplexity": float(np.exp(entropy(counts))), "empty": int((counts == 0).sum())}


def count_runs(labels: np.ndarray) -> int:
    """Number of runs of equal labels in a (T,) sequence; frames / runs is the mean run length."""
    return int(1 + np.count_nonzero(np.diff(labels.astype(np.int64)))) if len(labels) else 0


def run_values(labels: np.ndarray) -> np.ndarray:
    """The (T,) labels with runs of equal ones collapsed to one."""
    return labels[np.flatnonzero(np.diff(labels.astype(np.int64), prepend=-1))]


def bit_rates(counts: np.ndarray, runs: np.ndarray, frame_rate_hz: float) -> dict[str, float]:
    """Bits per second that the labels take: (K,) counts of frames, (K,) of runs of equal labels.

    bits: log2 K for each frame. coded_bits: each frame by an ideal code for how often its label
    occurs. collapsed_bits: each run by such a code, without its duration.
    Source: the DASB benchmark (Mousavi et al. 2024) for the first; Polyak et al. 2021 ("Speech
    Resynthesis from Discrete Disentangled Self-Supervised Representations") for collapsed units.
    """
    frames = int(counts.sum())
    if not frames:
        return dict.fromkeys(("bits", "coded_bits", "collapsed_bits"), float("nan"))
    seconds = frames / frame_rate_hz
    return {
        "bits": frame_rate_hz * float(np.log2(len(counts))),
        "coded_bits": frame_rate_hz * entropy(counts) / float(np.log(2)),
        "collapsed_bits": int(runs.sum()) / seconds * entropy(runs) / float(np.log(2)),
    }


def summary(joint: np.ndarray) -> dict[str, float]:
    """PNMI and both purities, with the counts behind them."""
    return {
        "pnmi": pnmi(joint),
        "phone_purity": phone_purity(joint),
        "cluster_purity": cluster_purity(joint),
        "phones": int((joint.sum(1) > 0).sum()),
        "aligned_frames": int(joint.sum()),
    }


class PhoneTable:
    """Phone names to row numbers, growing as names appear."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._number: dict[str, int] = {}

    def __call__(self, phone: str) -> int:
        phone = strip_stress(phone)
        if phone not in self._number:
            self._number[phone] = len(self.names)
            self.names.append(phone)
        return self._number[phone]

    def intervals(
        self, items: Iterable[tuple[float, float, str]]
    ) -> list[tuple[float, float, int]]:
        """(start, end, name) in any order -> (start, end, number), by start."""
        return [(start, end, self(name)) for start, end, name in sorted(items)]
