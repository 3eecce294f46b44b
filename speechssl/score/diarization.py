"""Who spoke when: diarization error rate and Jaccard error rate under the best mapping of names.

DER = (miss + false alarm + confusion) / speaker time of the reference. Names of a hypothesis mean
nothing; they are mapped one to one to those of the reference so that most time agrees. `collar`
seconds on both sides of every boundary of the reference are not scored, nor, with `overlap` off,
where several speak in the reference. Source: NIST Rich Transcription evaluation plans (2009);
Ryant et al. 2019 (second DIHARD challenge) for the Jaccard error rate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechssl.score.assignment import assign


@dataclasses.dataclass(frozen=True)
class Turn:
    """One stretch of one speaker, in seconds."""

    speaker: str
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class Times:
    """Scored seconds of one or more recordings; adds up."""

    total: float = 0.0
    """Speaker time of the reference: overlapping speakers count each."""
    miss: float = 0.0
    false_alarm: float = 0.0
    confusion: float = 0.0

    @property
    def rate(self) -> float:
        """DER; 0 if nobody speaks on either side, infinite if only in the hypothesis."""
        errors = self.miss + self.false_alarm + self.confusion
        if self.total == 0:
            return 0.0 if errors == 0 else float("inf")
        return errors / self.total

    def __add__(self, other: Times) -> Times:
        return Times(
            self.total + other.total,
            self.miss + other.miss,
            self.false_alarm + other.false_alarm,
            self.confusion + other.confusion,
        )


@dataclasses.dataclass(frozen=True)
class Recording:
    """What is known of one recording; turns may overlap, also of one speaker."""

    id: str
    duration: float
    reference: tuple[Turn, ...]
    hypothesis: tuple[Turn, ...]


@dataclasses.dataclass(frozen=True)
class _Timeline:
    """Pieces between all boundaries: P lengths, and who speaks in each, (P, R) and (P, H) bool."""

    seconds: np.ndarray
    reference: np.ndarray
    hypothesis: np.ndarray


def diarization_times(recording: Recording, collar: float = 0.0, overlap: bool = True) -> Times:
    """Times of one recording, scored from 0 to its duration.

    Raises `ValueError` for a negative collar or duration, or a turn that ends before it starts.
    """
    line = _timeline(recording, collar, overlap)
    refs, hyps = line.reference.sum(1), line.hypothesis.sum(1)
    both = line.reference.T * line.seconds @ line.hypothesis  # (R, H) seconds in common
    right = np.zeros(len(line.seconds))
    for i, j in assign(-both) if both.size else ():
        right += line.reference[:, i] & line.hypothesis[:, j]
    return Times(
        total=float(line.seconds @ refs),
        miss=float(line.seconds @ np.maximum(refs - hyps, 0)),
        false_alarm=float(line.seconds @ np.maximum(hyps - refs, 0)),
        confusion=float(line.seconds @ (np.minimum(refs, hyps) - right)),
    )


def jaccard_errors(recording: Recording) -> list[float]:
    """Of each speaker of the reference 1 - intersection / union with the one mapped to them.

    Names are mapped so that the sum is least; a speaker without a partner has error 1.
    """
    line = _timeline(recording, 0.0, True)
    both = line.reference.T * line.seconds @ line.hypothesis
    union = (line.seconds @ line.reference)[:, None] + line.seconds @ line.hypothesis - both
    errors = 1.0 - np.divide(both, union, out=np.zeros_like(both), where=union > 0)
    found = np.ones(line.reference.shape[1])
    for i, j in assign(errors) if errors.size else ():
        found[i] = errors[i, j]
    return found.tolist()


def _timeline(recording: Recording, collar: float, overlap: bool) -> _Timeline:
    if collar < 0 or recording.duration < 0:
        raise ValueError(
            f"collar, duration: found {collar}, {recording.duration} of {recording.id!r}, want 0 "
            "or more seconds"
        )
    for turn in (*recording.reference, *recording.hypothesis):
        if turn.end < turn.start:
            raise ValueError(
                f"{recording.id}: found a turn from {turn.start} to {turn.end} s, want its end "
                "behind its start"
            )
    sides = [_by_speaker(x) for x in (recording.reference, recording.hypothesis)]
    borders = [b for spans in sides[0].values() for span in spans for b in span]
    edges = {0.0, recording.duration}
    edges |= {b for side in sides for spans in side.values() for span in spans for b in span}
    if collar:
        edges |= {b + sign * collar for b in borders for sign in (-1, 1)}
    times = np.array(sorted(e for e in edges if 0 <= e <= recording.duration))
    seconds, middle = np.diff(times), (times[1:] + times[:-1]) / 2
    active = [
        np.array([_inside(middle, spans) for spans in side.values()]).reshape(-1, len(middle)).T
        for side in sides
    ]
    scored = np.ones(len(middle), dtype=bool)
    for border in borders if collar else ():
        scored &= np.abs(middle - border) > collar
    if not overlap:
        scored &= active[0].sum(1) < 2
    return _Timeline(seconds[scored], active[0][scored], active[1][scored])


def _by_speaker(turns: Iterable[Turn]) -> dict[str, list[tuple[float, float]]]:
    """Speaker -> spans that neither touch nor overlap."""
    found: dict[str, list[tuple[float, float]]] = {}
    for turn in sorted(turns, key=lambda t: (t.start, t.end)):
        spans = found.setdefault(turn.speaker, [])
        if spans and turn.start <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(spans[-1][1], turn.end)
        else:
            spans.append((turn.start, turn.end))
    return found


def _inside(times: np.ndarray, spans: Sequence[tuple[float, float]]) -> np.ndarray:
    inside = np.zeros(len(times), dtype=bool)
    for start, end in spans:
        inside |= (times > start) & (times < end)
    return inside


def turns_of(active: np.ndarray, names: Sequence[str], frame_rate_hz: float) -> list[Turn]:
    """(T, S) bool, who speaks in each frame -> turns; frame t lasts from t to t + 1 frames."""
    found = []
    for column, name in zip(np.asarray(active, dtype=np.int8).T, names, strict=True):
        steps = np.diff(column, prepend=0, append=0)
        starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
        found += [
            Turn(name, a / frame_rate_hz, b / frame_rate_hz)
            for a, b in zip(starts.tolist(), ends.tolist(), strict=True)
        ]
    return sorted(found, key=lambda t: (t.start, t.end, t.speaker))


def median_filtered(active: np.ndarray, width: int) -> np.ndarray:
    """(T, S) bool -> the majority of `width` frames around each, silence beyond both ends.

    width: odd; 1 changes nothing.
    """
    if width < 1 or width % 2 == 0:
        raise ValueError(f"median: found {width}, want an odd number of frames")
    active = np.asarray(active, dtype=np.int64)
    sums = np.cumsum(np.pad(active, ((width // 2 + 1, width // 2), (0, 0))), axis=0)
    return 2 * (sums[width:] - sums[:-width]) > width


def diarization_results(
    recordings: Iterable[Recording], collar: float = 0.0, overlap: bool = True
) -> dict[str, Any]:
    """What results.json holds: DER and its parts over all recordings, JER, each recording's DER.

    Raises `ValueError` if nobody speaks in any reference.
    """
    found = list(recordings)
    times = [diarization_times(r, collar, overlap) for r in found]
    whole = sum(times, Times())
    if whole.total == 0:
        raise ValueError(
            f"references: found no speaker in {len(found)} recordings, want cuts whose "
            "supervisions say who speaks when"
        )
    jaccard = [e for r in found for e in jaccard_errors(r)]
    return {
        "der": whole.rate,
        "miss": whole.miss / whole.total,
        "false_alarm": whole.false_alarm / whole.total,
        "confusion": whole.confusion / whole.total,
        "jer": float(np.mean(jaccard)),
        "collar_s": collar,
        "overlap_scored": overlap,
        "speaker_s": whole.total,
        "recordings": len(found),
        # None: nobody speaks in the reference, but somebody in the hypothesis.
        "by_recording": {
            r.id: t.rate if math.isfinite(t.rate) else None
            for r, t in zip(found, times, strict=True)
        },
    }


def rttm(recordings: Mapping[str, Sequence[Turn]]) -> str:
    """Recording -> turns, as the NIST's text format."""
    return "".join(
        f"SPEAKER {name} 1 {t.start:.3f} {t.end - t.start:.3f} <NA> <NA> {t.speaker} <NA> <NA>\n"
        for name, turns in recordings.items()
        for t in turns
    )


def read_rttm(path: str | Path) -> dict[str, list[Turn]]:
    """Recording -> turns of a file; raises `ValueError` that names the line which is wrong."""
    found: dict[str, list[Turn]] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split()
        if not words or words[0] != "SPEAKER":
            continue
        try:
            start, duration = float(words[3]), float(words[4])
            found.setdefault(words[1], []).append(Turn(words[7], start, start + duration))
        except (IndexError, ValueError):
            raise ValueError(
                f"{path}:{number}: found {line[:80]!r}, want SPEAKER FILE CHANNEL START DURATION "
                "<NA> <NA> NAME <NA> <NA>"
            ) from None
    return found
