"""How near a wave is to the one wanted: SI-SDR in closed form, PESQ and STOI where installed.

Shape legend: S sources, L samples.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from speechssl.score.assignment import assign

LIBRARIES = {"pesq": "pesq", "stoi": "pystoi"}
"""Measure -> the library that computes it."""
MOST_DB = 100.0
"""SI-SDR beyond this is taken for it: that of a perfect wave is infinite."""


def si_sdr(found: np.ndarray, truth: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, of (L,) and (L,) without their means.

    10 log10 |s|^2 / |found - s|^2, with s the projection of `found` on `truth`.
    Source: Le Roux et al. 2019, "SDR - half-baked or well done?", equation 4.
    Raises `ValueError` for waves of different length, or a truth that is silent.
    """
    found, truth = np.asarray(found, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if found.shape != truth.shape or found.ndim != 1:
        raise ValueError(
            f"found, truth: found shapes {found.shape}, {truth.shape}, want (L,) twice"
        )
    found, truth = found - found.mean(), truth - truth.mean()
    power = truth @ truth
    if power == 0:
        raise ValueError("truth: found silence, want a wave to compare with")
    part = truth * (found @ truth) / power
    signal, rest = part @ part, (found - part) @ (found - part)
    if signal == 0:
        return -MOST_DB
    if rest == 0:
        return MOST_DB
    return float(np.clip(10 * np.log10(signal / rest), -MOST_DB, MOST_DB))


def best_order(found: np.ndarray, truth: np.ndarray) -> list[int]:
    """(S, L) and (S, L) -> for each truth the place of its wave, so that SI-SDR is the highest."""
    table = np.array([[si_sdr(x, y) for x in found] for y in truth])
    return [column for _, column in assign(-table)]


def audio_digest(name: str, waves: Sequence[np.ndarray]) -> str:
    """Hash of an utterance's name and waves (L,), exact to 24 bits a sample."""
    digest = hashlib.blake2b(name.encode(), digest_size=8)
    for wave in waves:
        digest.update(b"/" + np.asarray(wave).astype("<f4").tobytes())
    return digest.hexdigest()


def available() -> dict[str, bool]:
    """Which of PESQ and STOI can be computed here."""
    return {k: importlib.util.find_spec(v) is not None for k, v in LIBRARIES.items()}


def pesq(found: np.ndarray, truth: np.ndarray, rate: int = 16000) -> float | None:
    """Wideband PESQ (ITU-T P.862.2) by the library `pesq`, about 1.0 to 4.64.

    None where it is not defined: of less than a quarter of a second, or without speech in one.
    """
    from pesq import PesqError
    from pesq import pesq as measure

    if not found.any() or not truth.any():
        return None
    try:
        return float(measure(rate, truth, found, "wb"))
    except PesqError:
        return None


def stoi(found: np.ndarray, truth: np.ndarray, rate: int = 16000) -> float:
    """Short-time objective intelligibility (Taal et al. 2011) by the library `pystoi`; up to 1."""
    from pystoi import stoi as measure

    return float(measure(truth, found, rate, extended=False))


def wave_figures(
    mixture: np.ndarray, found: np.ndarray, truth: np.ndarray, perceptual: Sequence[str] = ()
) -> list[dict[str, float | None]]:
    """Figures of each source of one mixture, (L,), (S, L) and (S, L), under the best order.

    perceptual: some of "pesq" and "stoi".
    """
    measures = {"pesq": pesq, "stoi": stoi}
    rows = []
    for wanted, place in zip(truth, best_order(found, truth), strict=True):
        own = si_sdr(found[place], wanted)
        row: dict[str, float | None] = {"si_sdr_db": own}
        row["si_sdr_improvement_db"] = own - si_sdr(mixture, wanted)
        row |= {name: measures[name](found[place], wanted) for name in perceptual}
        rows.append(row)
    return rows


def separation_results(rows: Sequence[dict[str, float | None]], utterances: int) -> dict[str, Any]:
    """What results.json holds: means over all sources of all mixtures.

    A figure that is not defined of some sources is the mean of the others, and `undefined` says of
    how many it is not; None if of all.
    """
    if not rows:
        raise ValueError("estimates: found no source, want mixtures whose cuts name their sources")
    known = {k: [row[k] for row in rows if row[k] is not None] for k in rows[0]}
    means = {k: float(np.mean(values)) if values else None for k, values in known.items()}
    undefined = {k: len(rows) - len(v) for k, v in known.items() if len(v) < len(rows)}
    return means | {"utterances": utterances, "sources": len(rows), "undefined": undefined}
