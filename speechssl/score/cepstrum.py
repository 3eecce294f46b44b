"""Mel-cepstra of a smooth spectral envelope, and the distortion between them.

The spectrum is that of a windowed transform whose power is averaged over one F0 wherever there is
a pitch, so that harmonics do not count as timbre. That is the middle one of CheapTrick's three
steps; WORLD's own analysis moves its window with the pitch as well, so distortions are of the same
kind as published ones but not the same numbers.

Shape legend: L samples, T frames, K frequencies from 0 to half the sampling rate, D order of the
mel-cepstrum (which has D + 1 coefficients, c_0 first).
"""

from __future__ import annotations

import numpy as np

HOP_SECONDS = 0.005
WINDOW_SECONDS = 0.025
FFT_SIZE = 1024
FLOOR = 1e-8
"""Least power of a frequency, as a share of the utterance's highest."""
UNVOICED_WIDTH_HZ = 333.0
"""Width over which frames without a pitch are averaged (CheapTrick's, 2/3 of 500 Hz)."""
ALPHA = {16000: 0.42, 24000: 0.466}
"""Sampling rate -> all-pass constant by which its frequencies are warped to about the mel scale."""
DECIBEL = 10.0 / np.log(10.0)


def hop_samples(rate: int) -> int:
    return round(rate * HOP_SECONDS)


def power_spectra(wave: np.ndarray, rate: int) -> np.ndarray:
    """(L,) in [-1, 1] -> (T, K) powers, T = L // hop + 1, K = 513; frame t is centred on t * hop.

    Raises ValueError for another rate than 16 or 24 kHz, or a wave that is not (L,) and finite.
    """
    if rate not in ALPHA:
        raise ValueError(f"rate: found {rate} Hz, want one of {sorted(ALPHA)}; resample before")
    wave = np.asarray(wave, dtype=np.float64)
    if wave.ndim != 1 or not np.isfinite(wave).all():
        raise ValueError(f"wave: found shape {wave.shape} or values not finite, want (L,) numbers")
    size, hop = round(rate * WINDOW_SECONDS), hop_samples(rate)
    padded = np.pad(wave, (size // 2, size))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[: len(wave) + 1 : hop]
    # Periodic Hann, normalised so that a wave's power is the mean of its spectrum.
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    spectrum = np.fft.rfft(frames * (window / np.sqrt(np.sum(window**2))), FFT_SIZE)
    return np.square(np.abs(spectrum))


def frame_powers(spectra: np.ndarray) -> np.ndarray:
    """(T, K) -> (T,) mean power of each windowed frame."""
    inner = spectra[:, 1:-1].sum(1)  # both signs of these frequencies are in a real wave
    return (2 * inner + spectra[:, 0] + spectra[:, -1]) / (2 * (spectra.shape[1] - 1))


def smooth_over_pitch(spectra: np.ndarray, f0: np.ndarray, rate: int) -> np.ndarray:
    """(T, K) powers -> their mean over a width of f0 (T,) Hz around each frequency, (T, K).

    0 in `f0` is a frame without pitch. The spectrum is mirrored at both of its ends. A constant
    stays what it is, and a comb with spacing f0 becomes flat.
    """
    spectra, f0 = np.asarray(spectra, dtype=np.float64), np.asarray(f0, dtype=np.float64)
    count = spectra.shape[1]
    bin_hz = rate / 2 / (count - 1)
    half = np.where(f0 > 0, f0, UNVOICED_WIDTH_HZ) / bin_hz / 2
    pad = int(np.ceil(half.max())) + 2
    if pad >= count:
        raise ValueError(f"f0: found {f0.max():.0f} Hz, want far below {rate // 2} Hz")
    mirrored = np.pad(spectra, ((0, 0), (pad, pad)), mode="reflect")
    # Integral from the left up to the middle of each bin's interval; linear between the bins.
    steps = 0.5 * (mirrored[:, 1:] + mirrored[:, :-1])
    integral = np.concatenate([np.zeros((len(spectra), 1)), np.cumsum(steps, axis=1)], axis=1)
    middle = pad + np.arange(count)[None]

    def at(place: np.ndarray) -> np.ndarray:
        low = np.floor(place).astype(np.int64)
        part = place - low
        left, right = (np.take_along_axis(mirrored, low + k, 1) for k in (0, 1))
        # The integral of a line between two bins is a parabola.
        inside = part * left + 0.5 * part**2 * (right - left)
        return np.take_along_axis(integral, low, 1) + inside

    width = half[:, None]
    return np.maximum((at(middle + width) - at(middle - width)) / (2 * width), 0.0)


def warped(omega: np.ndarray, alpha: float) -> np.ndarray:
    """Frequencies (0 to pi) as the all-pass filter of constant alpha sees them (0 to pi)."""
    return omega + 2 * np.arctan2(alpha * np.sin(omega), 1 - alpha * np.cos(omega))


def mel_cepstra(spectra: np.ndarray, order: int, alpha: float) -> np.ndarray:
    """(T, K) powers -> (T, order + 1): log|H| = sum over m of c_m cos(m w), w the warped frequency.

    Natural logarithm of amplitudes, so a gain g adds ln g to c_0 and nothing to the others.
    Coefficients are the Fourier integrals over the warped axis, taken on the unwarped bins.
    Source: Tokuda et al. 1994, "Mel-generalized cepstral analysis", eq. 1 to 5 with gamma = 0, of
    the spectrum itself instead of an iterated fit to it.
    """
    if spectra.ndim != 2 or not 0 < order < spectra.shape[1]:
        raise ValueError(f"order: found {order} with shape {spectra.shape}, want 1 to K - 1")
    floor = FLOOR * float(spectra.max(initial=0.0))
    if floor <= 0:
        raise ValueError("wave: found digital silence, want a signal")
    omega = np.linspace(0, np.pi, spectra.shape[1])
    slope = (1 - alpha**2) / (1 + alpha**2 - 2 * alpha * np.cos(omega))
    weight = slope / (spectra.shape[1] - 1)
    weight[[0, -1]] *= 0.5
    basis = np.cos(np.outer(warped(omega, alpha), np.arange(order + 1))) * weight[:, None]
    basis[:, 1:] *= 2.0
    return 0.5 * np.log(np.maximum(spectra, floor)) @ basis


def distortions(a: np.ndarray, b: np.ndarray, *, include_c0: bool) -> np.ndarray:
    """(P, D + 1) twice -> (P,) mel-cepstral distortion of each pair of frames, in dB.

    10 / ln 10 sqrt(2 sum over d of (a_d - b_d)^2), d from 1, or from 0 with include_c0. Without
    c_0 it is the root mean square difference of the two log spectra over the warped axis.
    Source: Kubichek 1993, "Mel-cepstral distance measure for objective speech quality assessment".
    """
    first = 0 if include_c0 else 1
    return DECIBEL * np.sqrt(2.0 * np.square(a[:, first:] - b[:, first:]).sum(1))


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, D + 1) and (M, D + 1) -> (N, M) distortions without c_0 of all pairs."""
    a, b = a[:, 1:], b[:, 1:]
    square = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2.0 * a @ b.T
    return DECIBEL * np.sqrt(2.0 * np.maximum(square, 0.0))
