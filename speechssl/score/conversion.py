"""How near a converted utterance is to the same sentence spoken by the target speaker.

Both are cut to the frames louder than -20 dB of their own mean power, which leaves pauses out, and
paired by dynamic time warping on their mel-cepstra; spectra and F0 are compared on those pairs.

Shape legend: L samples, T frames of 5 ms, P pairs of frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from speechssl.score.cepstrum import (
    ALPHA,
    HOP_SECONDS,
    distances,
    distortions,
    frame_powers,
    hop_samples,
    mel_cepstra,
    power_spectra,
    smooth_over_pitch,
)
from speechssl.score.dtw import warp
from speechssl.score.pitch import PitchConfig, track
from speechssl.score.verification import eer, unit

GROSS = 0.2
"""Share of the reference's F0 from which on an error is a gross one."""
MEASURES = (
    "mcd", "mcd_c0", "f0_rmse_hz", "f0_correlation", "voicing_error", "gross_pitch_error",
    "duration_difference_s",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What the figures depend on; results.json states it."""

    rate: int = 16000
    """Sampling rate that both sides are brought to: 16000 or 24000."""
    order: int = 24
    """Order of the mel-cepstrum."""
    threshold_db: float = -20.0
    """Frames below this, against the utterance's mean power, are left out."""
    dtw: bool = True
    """Pair frames by time warping; else frame t with frame t, for copies of the same timing."""
    pitch: PitchConfig = dataclasses.field(default_factory=PitchConfig)

    def __post_init__(self) -> None:
        if self.rate not in ALPHA:
            raise ValueError(f"rate: found {self.rate}, want one of {sorted(ALPHA)}")

    def stated(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "rate_hz": self.rate,
            "hop_ms": 1000 * HOP_SECONDS,
            "spectrum": "25 ms Hann, power averaged over one F0",
            "order": self.order,
            "alpha": ALPHA[self.rate],
            "threshold_db": self.threshold_db,
            "dtw": self.dtw,
            "f0": f"autocorrelation, {self.pitch.floor_hz:g} to {self.pitch.ceiling_hz:g} Hz",
        }


@dataclasses.dataclass(frozen=True)
class Analysis:
    """An utterance as it is compared. cepstra (T, order + 1), f0 (T,) in Hz with 0 where unvoiced,
    loud (T,) bool: frames above the threshold."""

    cepstra: np.ndarray
    f0: np.ndarray
    loud: np.ndarray

    @property
    def span_s(self) -> float:
        """Seconds from the first loud frame to the last one."""
        places = np.flatnonzero(self.loud)
        return float(places[-1] - places[0] + 1) * HOP_SECONDS


def analyse(wave: np.ndarray, settings: Settings | None = None) -> Analysis:
    """(L,) at `settings.rate` -> its cepstra, F0 and loud frames.

    Raises ValueError for digital silence, or a wave that is not (L,) and finite.
    """
    settings = settings or Settings()
    spectra = power_spectra(wave, settings.rate)
    f0 = track(wave, settings.rate, hop_samples(settings.rate), settings.pitch)
    power = frame_powers(spectra)
    if not power.max(initial=0.0) > 0:
        raise ValueError("wave: found digital silence, want a signal")
    smooth = smooth_over_pitch(spectra, f0, settings.rate)
    return Analysis(
        mel_cepstra(smooth, settings.order, ALPHA[settings.rate]),
        f0,
        power > power.mean() * 10 ** (settings.threshold_db / 10),
    )


def pairs(a: Analysis, b: Analysis, *, dtw: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Frames (P,) of `a` and those of `b` that are compared.

    With dtw off, the longer one is cut at its end, and frames loud in both are taken; raises
    ValueError if the lengths differ by more than 50 ms, or no frame is loud in both.
    """
    if dtw:
        of_a, of_b = np.flatnonzero(a.loud), np.flatnonzero(b.loud)
        one, two = warp(distances(a.cepstra[of_a], b.cepstra[of_b]))
        return of_a[one], of_b[two]
    count = min(len(a.loud), len(b.loud))
    apart = abs(len(a.loud) - len(b.loud)) * HOP_SECONDS
    if apart > 0.05:
        raise ValueError(
            f"dtw: found lengths that differ by {apart:.2f} s, want the same timing, or dtw on"
        )
    both = np.flatnonzero(a.loud[:count] & b.loud[:count])
    if not len(both):
        raise ValueError("dtw: found no frame that is loud in both, want copies; or dtw on")
    return both, both


def compare(
    converted: Analysis, reference: Analysis, *, dtw: bool = True
) -> dict[str, float | int | None]:
    """The measures of one pair, None where there is nothing to measure.

    mcd, mcd_c0: mean mel-cepstral distortion in dB without and with c_0, which is loudness.
    f0_rmse_hz, f0_correlation: root mean square difference and Pearson correlation over pairs that
        are voiced in both; the latter None under 3 pairs, or where an F0 does not move.
    voicing_error: share of pairs that only one is voiced in.
    gross_pitch_error: share of pairs voiced in both whose F0 differs by more than 20 % of the
        reference's.
    duration_difference_s: converted minus reference, from the first to the last loud frame.
    pairs, voiced_pairs: how many they are taken over.
    """
    one, two = pairs(converted, reference, dtw=dtw)
    a, b = converted.cepstra[one], reference.cepstra[two]
    f0, true = converted.f0[one], reference.f0[two]
    voiced = (f0 > 0) & (true > 0)
    f0, true, only_one = f0[voiced], true[voiced], (f0 > 0) != (true > 0)
    moves = len(f0) >= 3 and min(np.ptp(f0), np.ptp(true)) > 1e-6
    some = len(f0) > 0
    return {
        "mcd": float(distortions(a, b, include_c0=False).mean()),
        "mcd_c0": float(distortions(a, b, include_c0=True).mean()),
        "f0_rmse_hz": float(np.sqrt(np.mean((f0 - true) ** 2))) if some else None,
        "f0_correlation": float(np.corrcoef(f0, true)[0, 1]) if moves else None,
        "voicing_error": float(only_one.mean()),
        "gross_pitch_error": float((np.abs(f0 - true) > GROSS * true).mean()) if some else None,
        "duration_difference_s": converted.span_s - reference.span_s,
        "pairs": len(one),
        "voiced_pairs": int(voiced.sum()),
    }


def averages(rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> dict[str, float | None]:
    """Mean of each measure over the rows that have it; durations by their absolute value."""
    rows = list(rows)
    found: dict[str, float | None] = {}
    for name in names:
        values = [row[name] for row in rows if row.get(name) is not None]
        if name == "duration_difference_s":
            values = [abs(v) for v in values]
        found[name] = float(np.mean(values)) if values else None
    return found


def natural_threshold(embeddings: np.ndarray, speakers: Sequence[str]) -> tuple[float, float]:
    """EER and its threshold of cosines over all pairs of different natural recordings.

    embeddings: (N, E); speakers: N names. Pairs of a recording with itself are left out.
    Raises ValueError unless some speaker has two recordings and there are two speakers.
    """
    vectors = unit(embeddings)
    first, second = np.triu_indices(len(vectors), 1)
    names = np.asarray(speakers)
    same = names[first] == names[second]
    if not same.any() or same.all():
        raise ValueError(
            f"natural: found {len(vectors)} recordings of {len(set(speakers))} speakers, want two "
            "speakers or more, one of them with two recordings"
        )
    return eer((vectors @ vectors.T)[first, second], same)


def speaker_scores(
    converted: np.ndarray, target: np.ndarray, source: np.ndarray, threshold: float
) -> dict[str, float | bool]:
    """Is it the target's voice? One conversion's embedding against natural recordings'.

    converted: (E,). target: (N, E) recordings of the target speaker, the converted one itself not
    among them (a self-pair). source: (E,) of the recording that was converted.
    target_cosine: mean over the target's recordings. accept_rate: share of them with which the
    cosine is at least `threshold`. closer_to_target: mean cosine above that with the source.
    """
    vector = unit(converted)
    cosines = unit(np.atleast_2d(target)) @ vector
    own = float(unit(source) @ vector)
    return {
        "target_cosine": float(cosines.mean()),
        "source_cosine": own,
        "accept_rate": float((cosines >= threshold).mean()),
        "closer_to_target": bool(cosines.mean() > own),
    }
